"""Batches whose rows are split over several devices."""

import jax
import numpy as np
import pytest

from tests.transformer_jax.marian_folders import own_model
from tests.transformer_jax.test_translator import LETTERS, Letters
from transformer_jax import Translator, chunks
from transformer_jax.attention import KVCache
from transformer_jax.batches import row_count


@pytest.fixture
def layouts(monkeypatch):
    """The number of rows, and the rows of every device, of each array of a batch, and of what decoding makes of it."""
    seen = []

    def watch(name, of):
        run = getattr(chunks, name)

        def watched(*args):
            out = run(*args)
            leaves = jax.tree.leaves(of(args, out), is_leaf=lambda x: isinstance(x, KVCache))
            arrays = [x.key_BHSK if isinstance(x, KVCache) else x for x in leaves]
            shards = [[shard.data.shape[:1] for shard in x.addressable_shards] for x in arrays if x.ndim]
            seen.append((len(out.limit_B), shards))
            return out

        monkeypatch.setattr(chunks, name, watched)

    watch("_begin", lambda args, state: (args[5:], state))
    watch("_advance", lambda args, state: state)
    return seen


@pytest.mark.parametrize("drawn", [False, True])
def test_rows_are_split_over_all_devices_of_a_mesh(layouts, drawn, monkeypatch):
    """Axes, of which a mesh may have several and of any type, do not matter."""
    monkeypatch.setattr(chunks, "FEWEST", 1)
    model, params = own_model(10)  # whose outputs are short: rows leave the batch, and caches grow for those that stay
    rng = np.random.default_rng(0)
    sentences = ["".join(rng.choice([*LETTERS], size=n)) for n in rng.integers(1, 12, size=15)]
    prefixes = ["ab" * 18] * 2 + [""] * 13
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    found = []
    for each in (None, mesh):
        translate = Translator(model, params, Letters(), num_beams=2, batch_size=15, mesh=each)
        if drawn:
            found.append(translate.sample(sentences, 2, prefixes=prefixes))
        else:
            found.append(translate.n_best(sentences, prefixes))
        if each is None:
            layouts.clear()
    assert {rows for rows, _ in layouts} == {16, 8}  # though all but two are done before
    for rows, arrays in layouts:
        assert all(shards == [(rows // 8,)] * 8 for shards in arrays) and len(arrays) > 8
    one, split = ([output for outputs in each for output in outputs] for each in found)
    assert [output.text for output in split] == [output.text for output in one]
    np.testing.assert_allclose([o.score for o in split], [o.score for o in one], rtol=1e-5)  # sums in another order


def test_row_counts_are_multiples_and_few():
    assert [row_count(n, 64) for n in (1, 2, 3, 33, 64)] == [1, 2, 4, 64, 64]
    assert [row_count(n, 64, 6) for n in (1, 6, 7, 13, 60, 64)] == [6, 6, 12, 24, 66, 66]


def test_what_is_no_mesh_is_refused(tiny):
    with pytest.raises(ValueError, match="mesh must be a jax.sharding.Mesh or None, not 8"):
        Translator(*tiny, Letters(), mesh=8)
