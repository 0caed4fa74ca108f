"""Checkpoints of a run: saved in the background, the latest and the best kept, restored onto any mesh.

The only place that knows Orbax. A checkpoint is a folder named by its step with the train state (arrays in
TensorStore's OCDBT) and the position of the data (JSON); nothing in it is ever executed.
"""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from train.errors import InputError

# Orbax takes every folder with this in its name for a save that was cut short, and removes it at the next start.
UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of one run under `folder`; every process of the run makes the same calls.

    Kept are the `keep_latest` newest and, where `best_metric` names one of the metrics given to `save`, the one with
    its least (`best_mode="min"`) or greatest value. What a killed run left half-written is ignored and removed.

    Raises:
        InputError: `keep_latest` is below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_latest: int,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
    ) -> None:
        if keep_latest < 1:
            raise InputError(f"checkpoints to keep: {keep_latest} would leave nothing to continue from; give 1 or more")
        logging.getLogger("absl").addFilter(_without_orbax_chatter)
        self._folder = Path(folder).absolute()
        self._keep_latest, self._best_metric, self._best_mode = keep_latest, best_metric, best_mode
        registry = ocp.handlers.local_registry()
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
        self._context = ocp.Context()
        self._context.checkpointables.registry = registry
        # Orbax's own preservation deletes file by file: killed on the way it leaves a folder that looks whole.
        self._checkpointer = ocp.training.Checkpointer(
            self._folder, context=self._context, cleanup_tmp_directories=True
        )
        self._values = {info.step: self._value(info.metrics) for info in self._checkpointer.checkpoints}
        self._saving: int | None = None
        self._deleter = ThreadPoolExecutor(1, "checkpoint-deleter")

    def save(self, step: int, state: Any, data: dict[str, Any], metrics: Mapping[str, Any] | None = None) -> None:
        """Starts saving `state` and `data` as `step`; does nothing where that step is saved already.

        Returns when the arrays are copied off the devices, so they may be donated at once; first waits for an earlier
        save that still runs, and raises what made it fail. `data` is what JSON can hold.

        Raises:
            InputError: `metrics` are given and `best_metric` is not among them.
        """
        if metrics is not None and self._best_metric is not None and self._best_metric not in metrics:
            known = ", ".join(sorted(metrics)) or "none"
            raise InputError(f"best metric {self._best_metric!r} is not among the metrics of the evaluation: {known}")
        self.wait()
        if step in self._values:
            return
        self._checkpointer.save_checkpointables_async(
            step,
            # The data's position moves on while Orbax writes: it gets a copy.
            {"state": state, "data": json.loads(json.dumps(data))},
            force=True,
            metrics=None if metrics is None else {name: float(value) for name, value in metrics.items()},
        )
        self._values[step], self._saving = self._value(metrics), step

    def steps(self) -> list[int]:
        """The saved steps, oldest first; waits for a running save."""
        self.wait()
        return sorted(self._values)

    def latest_step(self) -> int | None:
        """The newest saved step, None where there is none; waits for a running save."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best metric (the newer of equals), None where no save had it; waits for a running save."""
        self.wait()
        return self._best()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """The state and the data's position saved as `step`.

        `abstract_state` is a tree of `jax.ShapeDtypeStruct` with shardings: it alone says where the arrays go, whatever
        mesh they were saved from. The state comes back as its types (optax's NamedTuples too).

        Raises:
            InputError: there is no such step, or it holds other arrays than `abstract_state`.
        """
        saved = _flat(self._metadata(step))
        wanted = _flat(abstract_state)
        where = f"checkpoint {self._folder / str(step)}"
        advice = "give the options the run was made with, or another --run"
        for names, verb in ((wanted.keys() - saved.keys(), "lacks"), (saved.keys() - wanted.keys(), "holds")):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise InputError(f"{where}: {verb} {min(names)}{more}, unlike this run's state; {advice}")
        for name, leaf in wanted.items():
            if _kind(saved[name]) != _kind(leaf):
                raise InputError(f"{where}: {name} is {_kind(saved[name])}, this run needs {_kind(leaf)}; {advice}")
        loaded = self._checkpointer.load_checkpointables(step, {"state": abstract_state, "data": None})
        return loaded["state"], loaded["data"]

    def restore_params(self, step: int) -> dict[str, Any]:
        """The parameters saved as `step`, as nested dicts of NumPy arrays on the host; nothing else is read.

        Raises:
            InputError: there is no such step.
        """
        abstract = {"params": jax.tree.map(lambda _: np.ndarray, self._metadata(step)["params"])}
        context = ocp.Context(self._context)
        context.pytree.loading.partial_load = True
        with context:
            return ocp.load_checkpointables(self._folder / str(step), {"state": abstract})["state"]["params"]

    def wait(self) -> None:
        """Returns when no save runs any more; raises what made it fail. Removes what need not be kept."""
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            self._checkpointer.wait()
        except BaseException:
            del self._values[step]
            raise
        keep = {*sorted(self._values)[-self._keep_latest :], self._best()}
        for step in self._values.keys() - keep:
            del self._values[step]
            if jax.process_index() == 0:
                doomed = self._folder / f"{step}{UNFINISHED}-deleted"
                with contextlib.suppress(FileNotFoundError):  # removed by hand
                    (self._folder / str(step)).rename(doomed)
                self._deleter.submit(shutil.rmtree, doomed, ignore_errors=True)

    def close(self) -> None:
        """Waits for what runs in the background and releases it."""
        try:
            self.wait()
        finally:
            self._deleter.shutdown()
            self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _value(self, metrics: Mapping[str, Any] | None) -> float | None:
        value = (metrics or {}).get(self._best_metric or "")
        return float(value) if value is not None and math.isfinite(value) else None

    def _best(self) -> int | None:
        sign = 1 if self._best_mode == "max" else -1
        return max(((sign * v, step) for step, v in self._values.items() if v is not None), default=(0, None))[1]

    def _metadata(self, step: int) -> dict[str, Any]:
        steps = self.steps()
        if step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise InputError(f"{self._folder}: no checkpoint of step {step}; there are: {known}")
        return self._checkpointer.checkpointables_metadata(step).metadata["state"]


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path; NamedTuples and the dicts that Orbax names them by flatten to the same paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _kind(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _without_orbax_chatter(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or "orbax" not in record.pathname
