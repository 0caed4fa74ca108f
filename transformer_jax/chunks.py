"""Decoding of whole batches in chunks of tokens, so that sentences that are done cost nothing more."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from transformer_jax import decoding
from transformer_jax.attention import KVCache
from transformer_jax.checks import require
from transformer_jax.decoding import BeamSearch, Columns, Constraint, Phrases, Search, check_columns, ensemble
from transformer_jax.devices import ROWS
from transformer_jax.generation import Decoding, decoder_step, read_source
from transformer_jax.seq2seq import ShortSoftmax, Transformer

CHUNK = 16  # tokens between two looks at which sentences are done
SLOTS = 32  # positions that a cache begins with
FEWEST = 8  # rows on a device that are not made fewer: reading the parameters is what a step of so few takes


class ShortLists(NamedTuple):
    """The words that the outputs of a batch may have: `ids_N` are those of all, `is_own_BN` says which a sentence has.

    They are all that its probabilities are shared among, whatever the others have.
    """

    ids_N: Array
    is_own_BN: Array


def decode(
    models: tuple[Transformer, ...],
    search: Search,
    params: tuple[dict[str, Any], ...],
    input_ids: Array,
    mask_BS: Array,
    limit_B: Array,
    constraints: tuple[Constraint, ...] = (),
    keys_B: Array | None = None,
    mesh: Mesh | None = None,
    phrases: Phrases | None = None,
    short: ShortLists | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """All outputs of a batch: ids [B, W, T] and scores [B, W], as `search.outputs` gives them.

    Not for `jit`: it looks at which sentences are done every `CHUNK` tokens. The others go on in half as many rows as
    soon as they fit, and a cache that is full goes on in one twice as long, so that short outputs pay for little.

    Args:
        models, params: one, or several that decide together, see `ensemble`.
        limit_B: the most tokens of each output, its start and end among them.
        constraints: arrays in them have a row a sentence.
        keys_B: typed keys by which each sentence's samples are drawn.
        mesh: over whose devices all rows are split, and to which the parameters are copied, see
            `transformer_jax.devices`. Rows stay a multiple of their number.
        phrases: what each output contains; for beam search.
        short: the only words of the outputs. Scores are under the model's probabilities of these words alone, which
            are higher than those among all words.
    """
    parts = 1 if mesh is None else mesh.size
    T, W = search.options.max_length, search.options.num_beams
    require(phrases is None or isinstance(search, BeamSearch), "phrases need beam search")
    for leaf in jax.tree.leaves((constraints, phrases)):
        require(leaf.shape[:1] == (len(input_ids),), f"constraints hold {leaf.shape}: give {len(input_ids)} rows")
    words, is_own_BN = None, None
    if short is not None:
        check_columns(constraints)
        columns = Columns.of(short.ids_N, models[0].config.target_vocab_size)
        words, is_own_BN = _Words(columns, _short_softmaxes(models, params, columns.ids_N)), short.is_own_BN
    slots = min(T, SLOTS)
    given = (input_ids, mask_BS, limit_B, constraints, keys_B, phrases, is_own_BN)
    state = _begin(models, search, slots, mesh, params, *given)
    rows = np.arange(len(input_ids))
    ids_BWT = np.full((len(rows), W, T), search.options.pad_id, np.int32)
    scores_BW = np.zeros((len(rows), W), np.float32)
    while True:
        stop = jnp.int32(min(slots, int(state.length) + CHUNK))
        state = _advance(models, search, mesh, params, words, state, stop)
        is_open_B, length = np.asarray(state.is_open_B), int(state.length)
        left, size = int(is_open_B.sum()), len(rows)
        is_done = not left or length >= T
        while size % (2 * parts) == 0 and left <= size // 2 and size > FEWEST * parts:
            size //= 2
        if is_done or size < len(rows):
            ids, scores = search.outputs(state)
            ids_BWT[rows], scores_BW[rows] = np.asarray(ids), np.asarray(scores)
        if is_done:
            return ids_BWT, scores_BW
        if size < len(rows):
            kept = np.argsort(~is_open_B, kind="stable")[:size]  # the open ones first
            state, rows = _keep(mesh, state, jnp.asarray(kept)), rows[kept]
        if length >= slots:
            slots = min(T, 2 * slots)
            state = _lengthen(W * slots, mesh, state)


def cast_matrices(params: Any, dtype: DTypeLike) -> Any:
    """The parameters with their matrices in the type that a model computes in, once instead of at each step."""

    def cast(path: tuple[Any, ...], leaf: Any) -> Any:
        return jnp.asarray(leaf, dtype) if path[-1].key in ("kernel", "embedding") else jnp.asarray(leaf)

    return jax.tree_util.tree_map_with_path(cast, params)


class _Words(NamedTuple):
    """A short list of the vocabulary, and each model's softmax over it."""

    columns: Columns
    softmaxes: tuple[ShortSoftmax, ...]


@functools.partial(jax.jit, static_argnums=0)
def _short_softmaxes(
    models: tuple[Transformer, ...], params: tuple[dict[str, Any], ...], ids_N: Array
) -> tuple[ShortSoftmax, ...]:
    both = zip(models, params, strict=True)
    return tuple(cast(Any, model.apply({"params": own}, ids_N, method="short_softmax")) for model, own in both)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _begin(
    models: tuple[Transformer, ...],
    search: Search,
    slots: int,
    mesh: Mesh | None,
    params: tuple[dict[str, Any], ...],
    input_ids: Array,
    mask_BS: Array,
    limit_B: Array,
    constraints: tuple[Constraint, ...],
    keys_B: Array | None,
    phrases: Phrases | None,
    is_own_BN: Array | None,
) -> Any:
    beams = search.options.num_beams

    def begin(model: Transformer, params: dict[str, Any]) -> Decoding:
        own_BN = None if is_own_BN is None else jnp.where(is_own_BN, 0.0, -jnp.inf)
        return read_source(model, params, input_ids, mask_BS, beams, slots)._replace(own_BN=own_BN)

    caches = tuple(begin(model, own) for model, own in zip(models, params, strict=True))
    if isinstance(search, BeamSearch):
        return _split(mesh, search.begin(caches, limit_B, constraints, phrases))
    if keys_B is None:
        keys_B = jax.random.split(jax.random.key(0), len(input_ids))
    return _split(mesh, search.begin(caches, limit_B, keys_B, constraints))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def _advance(
    models: tuple[Transformer, ...],
    search: Search,
    mesh: Mesh | None,
    params: tuple[dict[str, Any], ...],
    words: _Words | None,
    state: Any,
    length: Array,
) -> Any:
    def run(params: tuple[dict[str, Any], ...], words: _Words | None, state: Any, length: Array) -> Any:
        softmaxes = [None] * len(models) if words is None else words.softmaxes
        step = ensemble([decoder_step(*each) for each in zip(models, params, softmaxes, strict=True)])
        return decoding.advance(search, step, state, length, None if words is None else words.columns)

    if mesh is None:
        return run(params, words, state, length)

    # No device waits for another: left to the compiler, each would sort the scores of all rows at every step. One whose
    # rows are done stops early, but as nothing becomes of these any more, the others' length is right for them too.
    def run_apart(*given: Any) -> Any:
        return _by_rows(lambda x, axis: jax.lax.pmax(x, ROWS) if axis is None else x, run(*given))

    whole, specs = PartitionSpec(), _by_rows(_spec, state)
    apart = jax.shard_map(run_apart, mesh=mesh, in_specs=(whole, whole, specs, whole), out_specs=specs, check_vma=False)
    return apart(params, words, state, length)


@functools.partial(jax.jit, static_argnums=0)
def _keep(mesh: Mesh | None, state: Any, rows_N: Array) -> Any:
    """The state of some sentences alone."""
    return _split(mesh, _by_rows(lambda x, axis: x if axis is None else jnp.take(x, rows_N, axis=axis), state))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _lengthen(slots: int, mesh: Mesh | None, state: Any) -> Any:
    """The state with room for more tokens in its caches."""

    def longer(x: Any) -> Any:
        if not isinstance(x, KVCache):
            return x
        room = [(0, 0)] * (x.key_BHSK.ndim - 2) + [(0, slots - x.slots), (0, 0)]
        return KVCache(jnp.pad(x.key_BHSK, room), jnp.pad(x.value_BHSK, room), x.length)

    def lengthened(source: Decoding) -> Decoding:
        return source._replace(cache=jax.tree.map(longer, source.cache, is_leaf=lambda x: isinstance(x, KVCache)))

    return _split(mesh, state._replace(cache=tuple(map(lengthened, state.cache))))


def _split(mesh: Mesh | None, state: Any) -> Any:
    """The state with its rows split over the devices."""
    if mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, _by_rows(lambda x, axis: NamedSharding(mesh, _spec(x, axis)), state))


def _spec(x: Array, axis: int | None) -> PartitionSpec:
    return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, ROWS)


def _by_rows(change: Callable[[Array, int | None], Any], state: Any) -> Any:
    """A state of `change(array, axis of its rows)` for each array; None for the axis of those without rows."""

    def changed(x: Any) -> Any:
        if isinstance(x, KVCache):
            key, value = (change(y, y.ndim - 4) for y in (x.key_BHSK, x.value_BHSK))
            return KVCache(key, value, change(x.length, None))
        return change(x, 0 if x.ndim else None)

    return jax.tree.map(changed, state, is_leaf=lambda x: isinstance(x, KVCache))
