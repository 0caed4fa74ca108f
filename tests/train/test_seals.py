"""Damaged checkpoints: each kind of damage, to each file, is noticed, said and set aside; the run goes on before it."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from train import seals
from train.checkpoint import Checkpoints
from train.errors import InputError

STEPS = (100, 200, 300)


def make_state(step):
    key = jax.random.key(step)
    return {"params": {"kernel": jax.random.normal(key, (64, 64)), "bias": jnp.ones(8)}, "step": jnp.int32(step)}


def abstract():
    where = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), make_state(0))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    with Checkpoints(folder, keep_latest=3) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, make_state(step), {"n": step})
    return folder


@pytest.fixture
def folder(template, tmp_path):
    return shutil.copytree(template, tmp_path / "checkpoints")


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def opened(folder, say):
    return Checkpoints(folder, keep_latest=3, say=say)


def assert_goes_on_from(step, folder, damaged=("300",), aside=None, said=""):
    """The newest intact step restores bit-equal, a line was said of each damaged one, and nothing else changed."""
    before, lines = files(folder), []
    aside = aside or {name: f"{name}.damaged" for name in damaged}
    with opened(folder, lines.append) as checkpoints:
        assert checkpoints.newest() == step
        state, data = checkpoints.restore(step, abstract())
    assert data == {"n": step}
    jax.tree.map(np.testing.assert_array_equal, state, make_state(step))
    assert len(lines) == len(damaged)
    for name, line in zip(damaged, lines, strict=True):
        assert line.startswith(f"checkpoint {folder / name}: ") and "\n" not in line and said in line, line
        assert line.endswith(f"; it is set aside as {aside[name]}, and the run goes on from step {step}"), line
    renamed = {"/".join([aside.get(path.split("/")[0], path.split("/")[0]), *path.split("/")[1:]]) for path in before}
    after = files(folder)
    assert after.keys() == renamed and sorted(after.values()) == sorted(before.values())
    with opened(folder, lines.append) as checkpoints:
        assert checkpoints.newest() == step and len(lines) == len(damaged)


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def empty(path, rng):
    path.write_bytes(b"")


def remove(path, rng):
    path.unlink()


def lengthen(path, rng):
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [flip, cut, empty, remove, lengthen])
def test_any_damage_to_any_file_is_found(template, tmp_path, damage):
    rng = random.Random(0)
    names = sorted(files(template / "300"))
    assert {"SEAL", "data/data.json", "state/_METADATA", "state/manifest.ocdbt"} <= set(names) and len(names) > 8
    for number, name in enumerate(names):
        folder = shutil.copytree(template, tmp_path / str(number))
        path = folder / "300" / name
        if not path.stat().st_size and damage in (flip, cut, empty):
            continue
        damage(path, rng)
        assert_goes_on_from(200, folder, said=f"300: {name}" if damage is not remove or name != "SEAL" else "SEAL")


def test_no_bit_of_a_seal_can_be_another(folder):
    path = folder / "300/SEAL"
    content = path.read_bytes()
    rng = random.Random(2)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(seals.Damaged, match="SEAL is not what was written"):
            seals.read(folder / "300", 300)


def test_random_damage_is_never_restored(template, tmp_path):
    rng = random.Random(1)
    for number in range(40):
        folder = shutil.copytree(template, tmp_path / str(number))
        paths = [path for path in sorted((folder / "300").rglob("*")) if path.is_file() and path.stat().st_size]
        for path in rng.sample(paths, rng.randint(1, 3)):
            rng.choice([flip, cut, empty, remove, lengthen])(path, rng)
        assert_goes_on_from(200, folder)


def other_keys(folder):
    (folder / "300/data/data.json").write_text('{"epoch": 3}')


def added(folder):
    (folder / "300/state/d/added").write_bytes(b"x")


def copied(folder):
    shutil.rmtree(folder / "300")
    shutil.copytree(folder / "200", folder / "300")


def swapped(folder):
    shutil.copy(folder / "200/SEAL", folder / "300/SEAL")


def emptied(folder):
    shutil.rmtree(folder / "300")
    (folder / "300").mkdir()


def a_file(folder):
    shutil.rmtree(folder / "300")
    (folder / "300").write_text("not a folder")


def without_seal(folder):
    (folder / "300/SEAL").unlink()


def foreign_seal(folder):
    body = b'{"version": 2}\n'
    (folder / "300/SEAL").write_bytes(seals.hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (other_keys, "data/data.json is not what was written"),
        (added, "state/d/added was added"),
        (copied, "it is a copy of the checkpoint of step 200"),
        (swapped, "it is a copy of the checkpoint of step 200"),
        (emptied, "it has no SEAL file, as if it had not been finished"),
        (a_file, "it is not a folder"),
        (without_seal, "it has no SEAL file, as if it had not been finished"),
        (foreign_seal, "SEAL is not one of this version"),
    ],
)
def test_each_kind_of_damage_to_the_whole_is_named(folder, damage, said):
    damage(folder)
    assert_goes_on_from(200, folder, said=said)


@pytest.mark.parametrize("name", ["007", "1e3", "-5", "300.0", "+7", "1_000", "٣", "nan", " 7"])
def test_what_is_only_like_a_step_is_set_aside(folder, name):
    shutil.copytree(folder / "100", folder / name)
    assert_goes_on_from(300, folder, damaged=(name,), said="it is not named by its step, as 500 would be")


def test_what_is_no_checkpoint_by_its_name_is_left_alone(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "old").mkdir()
    assert_goes_on_from(300, folder, damaged=())


def test_a_checkpoint_copied_to_a_later_step_is_found_out(folder):
    shutil.copytree(folder / "200", folder / "999")
    assert_goes_on_from(300, folder, damaged=("999",), said="it is a copy of the checkpoint of step 200")


def test_several_damaged_ones_are_passed_over_and_no_name_is_taken_twice(folder):
    (folder / "300.damaged").mkdir()
    (folder / "300.damaged" / "x").write_text("earlier")
    flip(folder / "300/state/_METADATA", random.Random(0))
    remove(folder / "200/state/manifest.ocdbt", random.Random(0))
    aside = {"200": "200.damaged", "300": "300.damaged-2"}
    assert_goes_on_from(100, folder, damaged=("300", "200"), aside=aside)


def test_nothing_intact_starts_anew(folder):
    lines = []
    for step in STEPS:
        remove(folder / str(step) / "state/_METADATA", random.Random(0))
    with opened(folder, lines.append) as checkpoints:
        assert checkpoints.newest() is None
        checkpoints.save(100, make_state(100), {"n": 100})
        assert checkpoints.newest() == 100
    assert len(lines) == 3 and all(line.endswith("and the run starts anew") for line in lines)
    assert sorted(path.name for path in folder.iterdir()) == ["100", "100.damaged", "200.damaged", "300.damaged"]


def test_the_step_of_a_damaged_one_is_saved_again(folder):
    lines = []
    flip(folder / "300/SEAL", random.Random(0))
    with opened(folder, lines.append) as checkpoints:
        checkpoints.save(300, make_state(300), {"n": 300})
    assert_goes_on_from(300, folder, damaged=())


def test_an_older_damaged_one_is_found_when_it_is_used(folder):
    lines = []
    flip(folder / "100/state/_METADATA", random.Random(0))
    flip(folder / "200/data/data.json", random.Random(0))
    with opened(folder, lines.append) as checkpoints:
        assert checkpoints.steps() == [100, 200, 300] and lines == []
        assert checkpoints.intact(checkpoints.regular_steps()) == [300]
        assert lines == [
            f"checkpoint {folder / step}: {file} is not what was written; it is set aside as {step}.damaged"
            for step, file in (("100", "state/_METADATA"), ("200", "data/data.json"))
        ]
        assert checkpoints.steps() == [300]
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_params(300), make_state(300)["params"])


@pytest.mark.parametrize("use", ["restore", "restore_params"])
def test_damage_after_opening_is_an_error_of_one_line(folder, use):
    with opened(folder, pytest.fail) as checkpoints:
        remove(folder / "200/state/_METADATA", random.Random(0))
        arguments = (200, abstract()) if use == "restore" else (200,)
        said = r"/200: state/_METADATA is missing; it is set aside as 200.damaged$"
        with pytest.raises(InputError, match=said):
            getattr(checkpoints, use)(*arguments)
        assert checkpoints.steps() == [100, 300]
        shutil.rmtree(folder / "100")
        arguments = (100, *arguments[1:])
        with pytest.raises(InputError, match="no checkpoint of step 100; there are: 300$"):
            getattr(checkpoints, use)(*arguments)


def test_a_seal_that_was_being_rewritten_is_no_damage(folder):
    (folder / "300/SEAL.tmp").write_bytes(b"half")
    assert_goes_on_from(300, folder, damaged=())
