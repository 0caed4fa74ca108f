"""A checkpoint's content on disk: the train state and the position of the data, written and read by Orbax.

The only place that knows Orbax. The state is arrays in TensorStore's OCDBT, the position is JSON; nothing in it is ever
executed.
"""

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from train.errors import InputError
from train.optimizer import Averaged


def start_saving(folder: Path, state: Any, data: Any) -> ocp.AsyncResponse[None]:
    """Starts writing; returns when the arrays are copied off the devices. The response's `result` waits, and raises."""
    _silence()
    with _context():
        return ocp.save_checkpointables_async(folder, {"state": state, "data": data})


def load(folder: Path, abstract_state: Any) -> tuple[Any, Any]:
    """The state, placed and typed as `abstract_state` says, and the position of the data.

    Raises:
        InputError: the state that was saved has other arrays.
    """
    _silence()
    with _context():
        saved, wanted = _flat(ocp.checkpointables_metadata(folder).metadata["state"]), _flat(abstract_state)
        advice = "give the options the run was made with, or another --run"
        for names, verb in ((wanted.keys() - saved.keys(), "lacks"), (saved.keys() - wanted.keys(), "holds")):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise InputError(f"checkpoint {folder}: {verb} {min(names)}{more}, unlike this run's state; {advice}")
        for name, leaf in wanted.items():
            found, needed = _kind(saved[name]), _kind(leaf)
            if found != needed:
                raise InputError(f"checkpoint {folder}: {name} is {found}, this run needs {needed}; {advice}")
        loaded = ocp.load_checkpointables(folder, {"state": abstract_state, "data": None})
    return loaded["state"], loaded["data"]


def load_params(folder: Path) -> dict[str, Any]:
    """The parameters to evaluate, as nested dicts of NumPy arrays on the host: their average, if one was kept."""
    _silence()
    context = _context()
    context.pytree.loading.partial_load = True
    with context:
        saved = ocp.checkpointables_metadata(folder).metadata["state"]
        optimizer = saved.get("opt_state")
        averaged = isinstance(optimizer, dict) and optimizer.keys() == set(Averaged._fields)
        wanted = {"opt_state": {"average": optimizer["average"]}} if averaged else {"params": saved["params"]}
        abstract = jax.tree.map(lambda _: np.ndarray, wanted)
        loaded = ocp.load_checkpointables(folder, {"state": abstract})["state"]
        return loaded["opt_state"]["average"] if averaged else loaded["params"]


def system_reason(error: BaseException | None) -> str | None:
    """What the operating system said, where it made this error or one behind it."""
    while error is not None:
        code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore says it in its message
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if code:
            return os.strerror(int(code[1]))
        error = error.__cause__ or error.__context__
    return None


def _context() -> ocp.Context:
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="data")
    context = ocp.Context()
    context.checkpointables.registry = registry
    # In the background, a folder that cannot be made keeps other threads of Orbax waiting for it.
    context.asynchronous.create_directories_asynchronously = False
    return context


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path; NamedTuples and the dicts that Orbax names them by flatten to the same paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _kind(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _silence() -> None:
    """Whatever goes wrong in Orbax is raised to us: what it prints about each of its threads besides is dropped."""
    logging.getLogger("absl").addFilter(_not_from_orbax)
    before = sys.unraisablehook
    if getattr(before, "__module__", "") == __name__:
        return

    def hook(event: Any) -> None:
        # TensorStore finishing an array after another has failed and Orbax has gone.
        if event.object is not None or str(event.exc_value) != "Event loop is closed":
            before(event)

    sys.unraisablehook = hook


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname
