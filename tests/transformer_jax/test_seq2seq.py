import functools
import json
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from transformer_jax import (
    AttentionMask,
    Decoder,
    StackConfig,
    Transformer,
    TransformerConfig,
    cross_entropy,
    shift_right,
    stack_layers,
)

V = 11
rng = np.random.default_rng(0)
SOURCE = rng.integers(2, V, (3, 4)).astype(np.int32)
TARGET = rng.integers(2, V, (3, 5)).astype(np.int32)
SOURCE_MASK = (np.arange(4)[None, :] < np.array([4, 2, 3])[:, None]).astype(np.int32)


def shapes_of(config):
    ids = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(Transformer(config).init, jax.random.key(0), ids, ids)["params"]


# --- parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "bias", "count"),
    [("base", True, 63_082_496), ("base", False, 63_045_632), ("big", True, 214_245_376), ("big", False, 214_171_648)],
)
def test_the_presets_have_the_paper_models_parameters(preset, bias, count):
    shapes = shapes_of(getattr(TransformerConfig, preset)(37_000, attention_bias=bias))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_parameter_names_and_shapes_are_the_published_ones():
    """A public contract: checkpoints outside of this repository are written in these names."""
    flat = flax.traverse_util.flatten_dict(shapes_of(TransformerConfig.tiny(100, positions="learned")), sep="/")
    lines = "".join(f"{name} {list(leaf.shape)} {leaf.dtype}\n" for name, leaf in sorted(flat.items()))
    assert lines == (Path(__file__).parent / "golden_parameters.txt").read_text()


def test_parameters_are_stored_in_the_type_asked_for():
    model = Transformer(TransformerConfig.tiny(5, features=8, num_heads=2), param_dtype=jnp.bfloat16)
    ids = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be an integer from 1 to 2147483647, not 0"),
        ({"positions": "none"}, "positions must be 'interleaved', 'halves' or 'learned', not 'none'"),
        ({"num_heads": 7}, "7 heads do not divide the width 512"),
        ({"decoder_layers": 0}, "decoder_layers must be an integer from 1 to 10000, not 0"),
    ],
)
def test_a_config_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{"vocab_size": 5, **options})


# --- what depends on what ----------------------------------------------------------------------------------------


def test_the_decoder_is_causal():
    """By gradients: no output depends on a later input, and every output on each earlier one and its own."""
    module = Decoder(StackConfig(2, 8, 2, mlp_dim=12, norm="pre"))
    x, memory = (jnp.asarray(rng.normal(size=(1, n, 8)), jnp.float32) for n in (5, 3))
    params = module.init(jax.random.key(0), x, memory)["params"]

    def run(x, memory):
        return module.apply({"params": params}, x, memory, AttentionMask.causal())[0][0]

    by_input_LDSD, by_memory_LDSD = (g[:, :, 0] for g in jax.jit(jax.jacrev(run, (0, 1)))(x, memory))
    strength_LL = np.abs(by_input_LDSD).sum((1, 3))
    assert (strength_LL[np.triu_indices(5, 1)] == 0.0).all()
    assert (strength_LL[np.tril_indices(5)] > 0.0).all()
    assert (np.abs(by_memory_LDSD).sum((1, 3)) > 0.0).all()


@pytest.fixture(scope="module")
def teacher(tiny):
    """The jitted model, with every mask and position as an argument: compiled once for each set of them."""
    model, params = tiny
    return jax.jit(functools.partial(model.apply, {"params": params}))


def test_logits_depend_on_no_later_target_token(teacher):
    logits, encoded = teacher(SOURCE, TARGET, SOURCE_MASK)
    assert logits.shape == (3, 5, V) and logits.dtype == jnp.float32 and encoded.shape == (3, 4, 8)
    for position in range(5):
        changed = TARGET.copy()
        changed[:, position] = 1
        other = teacher(SOURCE, changed, SOURCE_MASK).logits
        np.testing.assert_array_equal(other[:, :position], logits[:, :position])
        assert (np.abs(other[:, position:] - logits[:, position:]).max(-1) > 0).all()


def test_examples_of_a_batch_do_not_touch_each_other(teacher):
    logits = teacher(SOURCE, TARGET, SOURCE_MASK).logits
    source, target = SOURCE.copy(), TARGET.copy()
    source[1], target[1] = 1, 1
    other = teacher(source, target, SOURCE_MASK).logits
    np.testing.assert_array_equal(other[::2], logits[::2])
    assert np.abs(other[1] - logits[1]).max() > 0


def test_padding_is_not_read(teacher):
    logits = teacher(SOURCE, TARGET, SOURCE_MASK).logits
    noise = np.where(SOURCE_MASK == 1, SOURCE, 1)
    assert (noise != SOURCE).any()
    np.testing.assert_array_equal(teacher(noise, TARGET, SOURCE_MASK).logits, logits)


# Two examples in one row, sources of 3 and 2 and targets of 2 and 3 tokens, and some padding behind them.
PACKED = {
    "input_ids": np.array([[5, 6, 1, 7, 1, 0]]),
    "decoder_input_ids": np.array([[0, 3, 0, 4, 9, 0]]),
    "position_ids": np.array([[0, 1, 2, 0, 1, 0]]),
    "segment_ids": np.array([[1, 1, 1, 2, 2, 0]]),
    "decoder_position_ids": np.array([[0, 1, 0, 1, 2, 0]]),
    "decoder_segment_ids": np.array([[1, 1, 2, 2, 2, 0]]),
}
PACKED_LABELS, PACKED_WEIGHTS = np.array([[3, 1, 4, 9, 1, 0]]), np.array([[1, 1, 1, 1, 1, 0]])
UNPACKED = {
    "input_ids": np.array([[5, 6, 1], [7, 1, 0]]),
    "decoder_input_ids": np.array([[0, 3, 0], [0, 4, 9]]),
    "attention_mask": np.array([[1, 1, 1], [1, 1, 0]]),
}
UNPACKED_LABELS, UNPACKED_WEIGHTS = np.array([[3, 1, 0], [4, 9, 1]]), np.array([[1, 1, 0], [1, 1, 1]])


def test_packed_examples_give_the_loss_and_gradients_of_unpacked_ones(make_transformer):
    model, params = make_transformer(positions="learned", attention_bias=False)

    def loss(params, batch, labels, weights):
        logits = model.apply({"params": params}, **batch).logits
        return cross_entropy(logits, labels, weights, label_smoothing=0.1)[0], logits

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (packed, packed_logits), packed_gradients = step(params, PACKED, PACKED_LABELS, PACKED_WEIGHTS)
    (apart, logits), gradients = step(params, UNPACKED, UNPACKED_LABELS, UNPACKED_WEIGHTS)
    np.testing.assert_allclose(packed_logits[0, :2], logits[0, :2], atol=1e-5)
    np.testing.assert_allclose(packed_logits[0, 2:5], logits[1], atol=1e-5)
    np.testing.assert_allclose(packed, apart, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), packed_gradients, gradients)


def test_packed_examples_do_not_touch_each_other(teacher):
    logits = teacher(**PACKED).logits
    changed = {name: array.copy() for name, array in PACKED.items()}
    changed["input_ids"][0, 3:5], changed["decoder_input_ids"][0, 2:5] = 8, 8
    other = teacher(**changed).logits
    np.testing.assert_array_equal(other[0, :2], logits[0, :2])
    assert (np.abs(other[0, 2:5] - logits[0, 2:5]).max(-1) > 0).all()
    changed = {name: array.copy() for name, array in PACKED.items()}
    changed["input_ids"][0, 5], changed["decoder_input_ids"][0, 5] = 8, 8
    np.testing.assert_array_equal(teacher(**changed).logits[0, :5], logits[0, :5])


@pytest.mark.parametrize("absent", ["segment_ids", "decoder_segment_ids"])
def test_segments_of_one_side_alone_are_refused(tiny, absent):
    model, params = tiny
    with pytest.raises(ValueError, match="segment_ids"):
        model.apply({"params": params}, **{name: array for name, array in PACKED.items() if name != absent})


def test_shift_right_starts_with_the_start_token():
    np.testing.assert_array_equal(shift_right(jnp.asarray([[4, 5, 1], [6, 1, 0]]), 9), [[9, 4, 5], [9, 6, 1]])


@pytest.mark.parametrize("positions", ["interleaved", "learned"])
def test_a_cache_continues_at_its_position(make_transformer, positions):
    model, params = make_transformer(positions=positions)

    @jax.jit
    def both():
        run = functools.partial(model.apply, {"params": params})
        encoded = run(SOURCE, SOURCE_MASK, method="encode")
        whole, none = run(TARGET, encoded, SOURCE_MASK, method="decode")
        memory, cache = run(encoded, method="project_memory"), run(3, 8, method="empty_cache")
        first, cache = run(TARGET[:, :2], memory, SOURCE_MASK, cache=cache, method="decode")
        rest, _ = run(TARGET[:, 2:], memory, SOURCE_MASK, cache=cache, method="decode")
        return whole, none, jnp.concatenate([first, rest], axis=1)

    whole, none, parts = both()
    assert none is None
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_learned_positions_end_with_their_table(make_transformer):
    model, params = make_transformer(positions="learned", max_length=3)
    with pytest.raises(ValueError, match="4 tokens, but the position table has 3 rows"):
        model.apply({"params": params}, SOURCE, TARGET)
    again = np.array([[0, 1, 2, 0, 1]])  # a packed row may be longer than the table
    packed = model.apply({"params": params}, TARGET, TARGET, position_ids=again, decoder_position_ids=again)
    assert np.isfinite(packed.logits).all()


def test_sinusoids_reach_past_the_prepared_length(make_transformer, teacher):
    model, params = make_transformer(max_length=2)
    logits = jax.jit(model.apply)({"params": params}, SOURCE, TARGET, SOURCE_MASK).logits
    np.testing.assert_allclose(logits, teacher(SOURCE, TARGET, SOURCE_MASK).logits, atol=1e-6)


def test_embeddings_are_scaled_and_tied(tiny):
    """Section 3.4: the table times sqrt(D) on the way in, the same table on the way out."""
    model, params = tiny
    table = np.asarray(params["embedding"]["embedding"], np.float64)
    doubled = jax.tree.map(jnp.zeros_like, params["encoder"])
    silent = {**params, "encoder": {**doubled, "norm": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}}
    encoded = np.asarray(model.apply({"params": silent}, SOURCE, method="encode"))
    angles = np.arange(4)[:, None] / 10000 ** (np.arange(0, 8, 2) / 8)
    x = table[SOURCE] * np.sqrt(8) + np.stack([np.sin(angles), np.cos(angles)], -1).reshape(4, 8)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(encoded, expected, atol=1e-4)


def test_embeddings_are_dropped_in_both_stacks(make_transformer):
    """With silent sublayers only the dropout of the embeddings is left to change anything (section 5.4)."""
    model, params = make_transformer(dropout_rate=0.5)
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if {"out", "down"} & {key.key for key in path} else leaf, params
    )

    @jax.jit
    def run(key):
        return model.apply({"params": silent}, SOURCE, TARGET, deterministic=False, rngs={"dropout": key})

    one, other = run(jax.random.key(0)), run(jax.random.key(1))
    for a, b, again in zip(one, other, run(jax.random.key(0)), strict=True):
        assert np.abs(a - b).max() > 0.1
        np.testing.assert_array_equal(a, again)


def test_bfloat16_is_close_to_float32(make_transformer, teacher):
    model, params = make_transformer(dtype=jnp.bfloat16)
    logits, encoded = jax.jit(model.apply)({"params": params}, SOURCE, TARGET, SOURCE_MASK)
    assert logits.dtype == jnp.float32 and encoded.dtype == jnp.bfloat16
    expected = teacher(SOURCE, TARGET, SOURCE_MASK).logits
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())


# --- folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan", [False, True])
def test_a_saved_model_comes_back_bit_for_bit(make_transformer, tmp_path, scan):
    model, params = make_transformer(scan_layers=scan, positions="learned")
    model.save_pretrained(tmp_path / "new" / "folder", params)
    assert {p.name for p in (tmp_path / "new" / "folder").iterdir()} == {"config.json", "model.safetensors"}
    back, read = Transformer.from_pretrained(tmp_path / "new" / "folder")
    assert back == model
    assert jax.tree.structure(read) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert Transformer.from_pretrained(tmp_path / "new" / "folder", jnp.bfloat16)[0].dtype == jnp.bfloat16


def test_the_file_is_the_same_however_the_layers_run(tiny, make_transformer, tmp_path):
    model, params = tiny
    model.save_pretrained(tmp_path / "unrolled", params)
    make_transformer(scan_layers=True)[0].save_pretrained(tmp_path / "scanned", stack_layers(params))
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("unrolled", "scanned")]
    assert files[0] == files[1]


@pytest.fixture
def folder(tiny, tmp_path):
    model, params = tiny
    model.save_pretrained(tmp_path, params)
    return tmp_path


def rewrite_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_folder_that_does_not_fit_its_config_is_refused(folder):
    rewrite_config(folder, mlp_dim=13)
    with pytest.raises(ValueError, match=r"6 parameters: .*mlp.*\(12,\), not \(13,\)"):
        Transformer.from_pretrained(folder)


def test_missing_and_unknown_parameters_are_named(folder):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["spare"] = tensors.pop("embedding.embedding")
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match=r"2 parameters: embedding.embedding is missing.*spare is .*not known"):
        Transformer.from_pretrained(folder)


def test_folders_of_other_models_are_refused(folder):
    rewrite_config(folder, model_type="bart")
    with pytest.raises(ValueError, match="model_type 'bart', but only 'transformer_jax' and 'marian' can be read"):
        Transformer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} does not exist"):
        Transformer.from_pretrained(folder)


@pytest.mark.parametrize(("content", "message"), [("{", "is not JSON"), ("[]", "holds list, not a JSON object")])
def test_a_config_that_is_no_config_is_refused(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Transformer.from_pretrained(folder)


def test_a_config_with_an_unknown_field_is_refused(folder):
    rewrite_config(folder, colour="red")
    with pytest.raises(ValueError, match="colour"):
        Transformer.from_pretrained(folder)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="model.safetensors"):
        Transformer.from_pretrained(folder)


def test_parameters_that_cannot_be_saved_leave_nothing(tiny, tmp_path):
    model, params = tiny
    with pytest.raises(ValueError, match=r"embedding.embedding is \(\), not \(11, 8\)"):
        model.save_pretrained(tmp_path, {**params, "embedding": {"embedding": object()}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors"])
def test_a_disk_that_fills_up_leaves_nothing_half_written(tiny, tmp_path, monkeypatch, broken):
    model, params = tiny
    write = Path.write_bytes

    def fill_up(path, content):
        if not path.name.startswith(broken):
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path, params)
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_keeps_what_was_there(folder, tiny, monkeypatch):
    model, params = tiny
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fill_up(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder, jax.tree.map(lambda x: x + 1, params))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_beams_need_a_cache_of_their_slots(tiny):
    model, params = tiny
    ids, history = jnp.ones((1, 2), jnp.int32), jnp.zeros((1, 2, 4), jnp.int32)
    run = functools.partial(model.apply, {"params": params}, method="decode", history_BWT=history)
    memory = model.apply({"params": params}, ids, method="encode")
    cache = model.apply({"params": params}, 1, 7, method="empty_cache")
    for given in ({}, {"cache": cache}, {"cache": cache, "position_ids": ids}):
        with pytest.raises(ValueError, match="history_BWT needs a cache with a multiple of 2 slots"):
            run(ids, memory, **given)
