"""Learning-rate schedules and optax chains: adamw, lamb, adafactor and muon behind one configuration.

Every optimizer ends in the same two links, decoupled weight decay on kernels and embedding tables and then the
learning rate, so `learning_rate` and `weight_decay` mean the same whatever its name. Around all of them may be a moving
average of the parameters that they make.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from train.errors import InputError
from train.options import LARGEST, NotNegative, Positive, Range, Share, check_options

DECAYED = ("kernel", "embedding")
ONE_LAYER = re.compile(r"layer_\d+")


@dataclass(frozen=True)
class OptimizerConfig:
    """What `make_optimizer` builds; the options `--optimizer.*` of every job."""

    name: Literal["adamw", "lamb", "adafactor", "muon"] = "adamw"
    """Update rule; muon moves the matrices inside layers and adamw everything else."""
    learning_rate: Annotated[float | None, Range(0, open_low=True)] = None
    """Learning rate at the end of the warm-up; by default the job's own for the preset."""
    schedule: Literal["linear", "inverse-square-root", "cosine", "warmup-stable-decay"] = "linear"
    """Shape after the warm-up; all but inverse-square-root end at 0 after the last step."""
    warmup_steps: Annotated[int | None, Range(0, LARGEST)] = 0
    """Steps in which the learning rate rises linearly from 1/warmup of its peak; None: a tenth of --steps."""
    decay_steps: Annotated[int | None, Range(1, LARGEST)] = None
    """Last steps, in which warmup-stable-decay falls from the peak to 0; by default a tenth of --steps."""
    weight_decay: NotNegative = 0.01
    """Decoupled decay of kernels and embedding tables, multiplied by the learning rate; none on biases and norms."""
    beta1: Share = 0.9
    """Decay of the mean of gradients (not used by adafactor; muon's matrices use 0.95)."""
    beta2: Share = 0.999
    """Decay of the mean of squared gradients (not used by adafactor)."""
    epsilon: Positive = 1e-6
    """Added to the root of the mean of squared gradients (not used by adafactor)."""
    clip_norm: NotNegative = 1.0
    """Largest global norm of the gradients; 0 switches clipping off."""
    layer_decay: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    """Factor between the learning rates of a layer and of the one above it, embeddings lowest."""
    ema: Annotated[float | None, Range(0, 1, open_low=True, open_high=True)] = None
    """Decay of a moving average of the parameters, such as 0.999, which is what is evaluated and exported then."""


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of each update, counted from 0, in a run of `steps` updates.

    Warm-up gives update s the rate `peak * (s + 1) / warmup`, which is the peak at its last step. Then, for
    s >= warmup: linear `peak * (steps - s) / (steps - warmup)`; cosine half a period over the same span (both are 0
    at s = steps, so that the last update still moves); inverse square root `peak * sqrt(warmup / (s + 1))` (Vaswani
    et al. 2017, section 5.3, whose step numbers start at 1); warm-up-stable-decay (Hu et al. 2024, section 4) the peak,
    and over the last `decay_steps` linearly down, `peak * (steps - s) / decay`. A warm-up longer than the run is cut
    off by its end.

    Raises:
        InputError: a value of `config` is out of range, or an option has no meaning for the schedule.
    """
    check_options(config, "--optimizer.")
    peak, warmup = config.learning_rate, steps // 10 if config.warmup_steps is None else config.warmup_steps
    if peak is None:
        raise InputError("--optimizer.learning-rate: the preset has none of its own; give a number above 0")
    if config.decay_steps is not None and config.schedule != "warmup-stable-decay":
        raise InputError(
            f"--optimizer.decay-steps {config.decay_steps} has no meaning for --optimizer.schedule {config.schedule}; "
            "leave it out, or choose warmup-stable-decay"
        )
    decay = config.decay_steps or max(1, steps // 10)
    if config.decay_steps is not None and warmup + decay > steps:
        raise InputError(
            f"--optimizer.decay-steps {decay} and --optimizer.warmup-steps {warmup} are more than --steps {steps}; "
            "give fewer"
        )

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.float32)
        remaining = jnp.clip((steps - step) / max(steps - warmup, 1), 0.0, 1.0)
        if config.schedule == "linear":
            factor = remaining
        elif config.schedule == "cosine":
            factor = 0.5 * (1.0 - jnp.cos(jnp.pi * remaining))
        elif config.schedule == "warmup-stable-decay":
            factor = jnp.clip((steps - step) / decay, 0.0, 1.0)
        else:
            factor = jnp.sqrt(max(warmup, 1) / (step + 1.0))
        return peak * jnp.where(step < warmup, (step + 1.0) / max(warmup, 1), factor)

    return schedule


def make_optimizer(config: OptimizerConfig, steps: int, params_shapes: Any) -> optax.GradientTransformation:
    """Clipping by global norm, then the optimizer that `config` names, as one optax transformation.

    `params_shapes` is the tree of parameters or of their `jax.ShapeDtypeStruct`s, per layer (`layer_0`, ...) or with
    layers stacked on the leading axis below a component `layers`; both layouts get equal updates.

    Raises:
        InputError: a value of `config` is out of range, or muon finds no matrix inside a layer.
    """
    schedule = make_schedule(config, steps)
    if config.name == "adamw":
        optimizer = _adamw(config, schedule)
    elif config.name == "lamb":
        # optax.lamb takes one trust ratio an array, which on stacked layers would mix the layers.
        moments = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
        optimizer = optax.chain(
            moments, _decay(config), _by_layer(_trust_ratio), optax.scale_by_learning_rate(schedule)
        )
    elif config.name == "adafactor":
        # optax.adafactor decays by weight_decay itself at every step, not by learning rate times weight_decay. 32 lets
        # attention kernels be factored over [D, K]. Updates have an RMS of 1 as adamw's have, not relative to the
        # parameters', so that one learning rate fits both.
        optimizer = optax.chain(
            optax.scale_by_factored_rms(min_dim_size_to_factor=32),
            _by_layer(_clip_rms),
            _decay(config),
            optax.scale_by_learning_rate(schedule),
        )
    else:
        optimizer = _muon(config, schedule, params_shapes)
    links = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    links.append(optimizer)
    if config.layer_decay != 1.0:
        links.append(_layer_decay(config.layer_decay, params_shapes))
    made = optax.chain(*links) if len(links) > 1 else optimizer
    return made if config.ema is None else _with_average(made, config.ema)


class Averaged(NamedTuple):
    """The state of an optimizer that averages the parameters: its own, the weights' sum (float32), and the average."""

    optimizer: Any
    weight: Any
    average: Any


def _with_average(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Averages the parameters after each update, those of t updates ago with a weight of `decay` to the power of t.

    Those that training starts from have none: after one update the average is what that has made.
    """

    def init_fn(params: Any) -> Averaged:
        return Averaged(optimizer.init(params), jnp.zeros(()), params)

    def update_fn(updates: Any, state: Averaged, params: Any = None) -> tuple[Any, Averaged]:
        updates, inner = optimizer.update(updates, state.optimizer, params)
        weight = decay * state.weight + (1 - decay)
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, x: old + (1 - decay) / weight * (x - old), state.average, new)
        return updates, Averaged(inner, weight, average)

    return optax.GradientTransformation(init_fn, update_fn)


def _layer_decay(decay: float, params_shapes: Any) -> optax.GradientTransformation:
    """Scales updates by `decay` to the power of how far a parameter is from the top (Clark et al. 2020, table 6).

    Of N layers, heads have the power 0, layer i has N - i, and embeddings N + 1. An encoder's and a decoder's layers
    count alike.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params_shapes)
    layers = max((_layer_count(_names(path), leaf) for path, leaf in leaves), default=0)
    if not layers:
        raise InputError("--optimizer.layer-decay: the model has no layers; leave it out")

    def scale(path: Any, update: jax.Array) -> jax.Array:
        names = _names(path)
        if _is_stacked(names):
            power = (len(update) - jnp.arange(len(update))).reshape(-1, *[1] * (update.ndim - 1))
            return update * jnp.asarray(decay**power, update.dtype)
        if index := next((name[len("layer_") :] for name in names if ONE_LAYER.fullmatch(name)), None):
            return update * decay ** (layers - int(index))
        return update * decay ** (layers + 1) if any("embed" in name for name in names) else update

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def _layer_count(names: list[str], leaf: Any) -> int:
    """How many layers a parameter shows: all where they are stacked, else those up to its own."""
    if _is_stacked(names):
        return leaf.shape[0]
    return max((int(name[len("layer_") :]) + 1 for name in names if ONE_LAYER.fullmatch(name)), default=0)


def decay_mask(params: Any) -> Any:
    """A tree of booleans: True for leaves named `kernel` or `embedding`, which alone are decayed."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _names(path)[-1] in DECAYED, params)


def _adamw(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    moments = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    return optax.chain(moments, _decay(config), optax.scale_by_learning_rate(schedule))


def _muon(config: OptimizerConfig, schedule: optax.Schedule, params_shapes: Any) -> optax.GradientTransformation:
    def labels(path: Any, leaf: Any) -> str:
        return "muon" if _muon_axes(_names(path), len(leaf.shape)) else "adamw"

    labels_tree = jax.tree_util.tree_map_with_path(labels, params_shapes)
    if "muon" not in jax.tree.leaves(labels_tree):
        raise InputError("--optimizer.name: muon needs kernels inside layers and this model has none; use adamw")
    matrices = optax.contrib.muon(
        schedule,
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(
            lambda path, leaf: _muon_axes(_names(path), leaf.ndim), params
        ),
        consistent_rms=0.2,  # the RMS of adamw's updates (Liu et al. 2025, section 2.2): one learning rate fits both
    )
    # optax's muon would run Nesterov Adam on the rest, and decay all of it or nothing.
    return optax.partition({"muon": matrices, "adamw": _adamw(config, schedule)}, labels_tree)


def _muon_axes(names: list[str], ndim: int) -> MuonDimensionNumbers | None:
    """Which axes of a parameter are a matrix's input and output, None where it is none or is outside the layers.

    Kernels read from their first axis and write to the others, attention's `out` reads from all but its last. Four
    axes are several projections in one, `[D, 3, H, K]`: each of them is a matrix of its own.
    """
    stacked = _is_stacked(names)
    axes = list(range(int(stacked), ndim))
    if names[-1] != "kernel" or len(axes) < 2 or not (stacked or any(ONE_LAYER.fullmatch(name) for name in names)):
        return None
    if len(axes) == 3 and "out" in names[-2:]:
        return MuonDimensionNumbers(axes[:2], axes[2:])
    return MuonDimensionNumbers(axes[:1], axes[2:] if len(axes) == 4 else axes[1:])


def _by_layer(function: Callable[[jax.Array, jax.Array], jax.Array]) -> optax.GradientTransformation:
    """Applies `function(update, param)` to each parameter, and to each layer of a stacked one."""

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(path: Any, update: jax.Array, param: jax.Array) -> jax.Array:
            return (jax.vmap(function) if _is_stacked(_names(path)) else function)(update, param)

        return jax.tree_util.tree_map_with_path(one, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update_fn)


def _trust_ratio(update: jax.Array, param: jax.Array) -> jax.Array:
    """LAMB's layer-wise scale, norm of the parameter over norm of the update (You et al. 2020, algorithm 2)."""
    param_norm, update_norm = jnp.linalg.norm(param.ravel()), jnp.linalg.norm(update.ravel())
    usable = (param_norm > 0) & (update_norm > 0)
    return update * jnp.where(usable, param_norm / jnp.where(usable, update_norm, 1.0), 1.0)


def _clip_rms(update: jax.Array, param: jax.Array) -> jax.Array:
    """Adafactor's update clipping at d = 1 (Shazeer and Stern 2018, section 6)."""
    return update / jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(update))))


def _decay(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.add_decayed_weights(config.weight_decay, mask=decay_mask)


def _names(path: Any) -> list[str]:
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")


def _is_stacked(names: list[str]) -> bool:
    return "layers" in names and not any(ONE_LAYER.fullmatch(name) for name in names)
