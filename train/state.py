"""The train state, made sharded, and the step that updates it."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from train.optimizer import Averaged
from train.sharding import RULES, parameter_shardings, state_shardings
from transformer_jax import logical_axes

Batch = dict[str, Array]
Sums = dict[str, Array]


class TrainState(NamedTuple):
    """What a step updates: the number of finished updates and of those skipped (int32), parameters, optimizer state."""

    step: Any
    skipped: Any
    params: Any
    opt_state: Any

    @property
    def evaluated(self) -> Any:
        """The parameters to evaluate and to export: their moving average, if the optimizer keeps one."""
        return self.opt_state.average if isinstance(self.opt_state, Averaged) else self.params


class Objective(Protocol):
    """What a job trains on. Every quantity is a sum and a weight, so that parts of a batch can be added."""

    terms: tuple[str, ...]
    """The sums that make up the loss, each divided by its weight; the others are only reported."""

    def prepare(self, batch: Batch, key: Array) -> tuple[Batch, Sums]:
        """What is done to a whole batch in front of the model (masking), and the weight of every sum.

        One more weight, `tokens`, counts the real tokens of the batch.
        """
        ...

    def sums(self, params: Any, batch: Batch, dropout_key: Array | None) -> Sums:
        """The sums over (a part of) a prepared batch; without a key there is no dropout."""
        ...


# --- state -------------------------------------------------------------------------------------------------------


def abstract_state(
    model: nn.Module, inputs: tuple[Any, ...], optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state as ShapeDtypeStructs with shardings for the mesh; nothing is computed.

    Args:
        inputs: what `model.init` takes after the key, as arrays or ShapeDtypeStructs.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    shardings = parameter_shardings(logical_axes(model, *inputs), shapes, mesh)
    params = jax.tree.map(_with_sharding, shapes, shardings)
    opt_shapes = jax.eval_shape(optimizer.init, shapes)
    opt_state = jax.tree.map(_with_sharding, opt_shapes, state_shardings(opt_shapes, params, mesh))
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    return TrainState(count, count, params, opt_state)


def init_state(
    model: nn.Module,
    inputs: tuple[Any, ...],
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    seed: int,
    params: Any = None,
) -> TrainState:
    """A fresh state, born sharded: it is never whole on one device. It starts from `params` where they are given."""

    def make(params: Any) -> TrainState:
        if params is None:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
            params = model.init(jax.random.key(seed), *zeros)["params"]
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, zero, params, optimizer.init(params))

    if params is not None:
        params = jax.device_put(params, shardings_of(abstract.params))
    return jax.jit(make, out_shardings=shardings_of(abstract))(params)


@jax.jit
def all_finite(params: Any) -> Array:
    """Whether no parameter is nan or infinite: a boolean scalar."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def shardings_of(abstract: Any) -> Any:
    """The shardings in a tree of ShapeDtypeStructs."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def _with_sharding(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


# --- steps -------------------------------------------------------------------------------------------------------


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    abstract: TrainState,
    *,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch, int], tuple[TrainState, Sums]]:
    """The jitted update `(state, batch, seed) -> (state, metrics)`; the state given is donated.

    Randomness is a pure function of (seed, step); runs of several seeds share one compilation. With `accumulate` > 1
    the batch is worked off in so many parts, whose gradients add up to exactly that of the whole: sums are divided by
    the weights of the whole batch. Metrics are the sums divided by their weights, `loss`, `learning_rate`,
    `gradient_norm`, and each weight under `weight/<name>`.

    An update whose loss or gradient norm is not finite is skipped on the device: parameters and moments stay, and
    `skipped_updates`, the number of those so far, goes up. Steps, and with them the schedule and all randomness, go
    on as if it had been made.
    """

    def step(state: TrainState, batch: Batch, seed: Array) -> tuple[TrainState, Sums]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        with nn.logical_axis_rules(RULES):
            batch, weights = objective.prepare(batch, jax.random.fold_in(key, 0))
            weights = {name: jnp.maximum(weight, 1.0) for name, weight in weights.items()}
            gradient = jax.value_and_grad(functools.partial(_mean_loss, objective, weights), has_aux=True)
            dropout_key = jax.random.fold_in(key, 1)
            if accumulate == 1:
                (_, sums), grads = gradient(state.params, batch, dropout_key)
            else:
                sums, grads = _accumulate(gradient, state.params, batch, dropout_key, accumulate)
        metrics = {name: total / weights[name] for name, total in sums.items()}
        metrics["loss"] = sum((metrics[name] for name in objective.terms), jnp.zeros(()))
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])

        def update() -> tuple[Any, Any]:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            return optax.apply_updates(state.params, updates), opt_state

        params, opt_state = _if_good(good, update, (state.params, state.opt_state))
        skipped = metrics["skipped_updates"] = state.skipped + ~good
        metrics |= {f"weight/{name}": weight for name, weight in weights.items()}
        return TrainState(state.step + 1, skipped, params, opt_state), metrics

    update = jax.jit(step, donate_argnums=0, out_shardings=(shardings_of(abstract), None))
    return lambda state, batch, seed: update(state, batch, np.uint32(seed))


def make_eval_step(objective: Objective) -> Callable[[Any, Batch, Array], tuple[Sums, Sums]]:
    """The jitted `(params, batch, key) -> (sums, weights)` without dropout; the key draws the masking."""

    @jax.jit
    def step(params: Any, batch: Batch, key: Array) -> tuple[Sums, Sums]:
        with nn.logical_axis_rules(RULES):
            batch, weights = objective.prepare(batch, key)
            return objective.sums(params, batch, None), weights

    return step


def _if_good(good: Array, update: Callable[[], Any], old: Any) -> Any:
    """The update if it is good, else what was there; counts (integers, which schedules read) go on in any case."""

    def is_count(x: Array) -> bool:
        return jnp.issubdtype(x.dtype, jnp.integer)

    def branch() -> Any:
        return jax.lax.cond(good, update, lambda: jax.tree.map(lambda x: x + 1 if is_count(x) else x, old))

    def select() -> Any:
        return jax.tree.map(lambda new, x: new if is_count(x) else jnp.where(good, new, x), update(), old)

    # On a GPU the host would have to read which way a branch goes; on a CPU selecting costs a copy of every parameter.
    return jax.lax.platform_dependent(cpu=branch, default=select)


def evaluate(eval_step: Any, params: Any, batches: Iterable[Batch]) -> dict[str, float]:
    """The evaluation row of a whole set of batches; batch k is masked by the key k, the same at every call."""
    totals = [eval_step(params, batch, jax.random.fold_in(jax.random.key(0), k)) for k, batch in enumerate(batches)]
    sums, weights = jax.tree.map(lambda *xs: float(np.sum([np.asarray(x) for x in xs])), *totals)
    return {f"eval/{name}": sums[name] / weights[name] for name in sums}


def _mean_loss(objective: Objective, weights: Sums, params: Any, batch: Batch, key: Array) -> tuple[Array, Sums]:
    sums = objective.sums(params, batch, key)
    return sum((sums[name] / weights[name] for name in objective.terms), jnp.zeros(())), sums


def _accumulate(gradient: Any, params: Any, batch: Batch, key: Array, parts: int) -> tuple[Sums, Any]:
    # Part i takes rows i, i + parts, ...: every device then works on rows that it already holds.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        index, rows = part
        (_, sums), grads = gradient(params, rows, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, (sums, grads)), None

    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(lambda: gradient(params, first, key))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0][1], shapes[1]))
    return jax.lax.scan(add, zeros, (jnp.arange(parts), split))[0]
