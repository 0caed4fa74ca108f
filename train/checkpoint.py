"""Checkpoints of a run: saved in the background, verified when they are used, restored onto any mesh.

A checkpoint is a folder named by its step, with what `train.storage` writes and a seal with the checksums of that. It
is written and sealed under another name: what has a step's name was once whole.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from train import seals, storage
from train.errors import InputError, StorageError
from train.seals import UNFINISHED, Damaged, Seal
from train.terminal import warn


class Checkpoints:
    """The checkpoints of one run under `folder`; every process of the run makes the same calls.

    Kept are the `keep_latest` newest that were due, the newest of all and, where `best_metric` names one of the metrics
    given to `save`, the one with its least (`best_mode="min"`) or greatest value; with `keep_up_to_best` as many that
    were due up to that one. Opening removes what a killed run
    left half-written. A checkpoint that is not what was written is never used and never deleted: it is renamed to
    `<step>.damaged`, and `say` is given one line about it.

    Raises:
        InputError: `keep_latest` is below 1, or the folder cannot be used.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_latest: int,
        best_metric: str | None = None,
        best_mode: Literal["min", "max"] = "min",
        keep_up_to_best: bool = False,
        say: Callable[[str], None] = warn,
    ) -> None:
        if keep_latest < 1:
            raise InputError(f"checkpoints to keep: {keep_latest} would leave nothing to continue from; give 1 or more")
        self._folder = Path(folder).absolute()
        self._keep_latest, self._best_metric, self._best_mode, self._say = keep_latest, best_metric, best_mode, say
        self._keep_up_to_best = keep_up_to_best
        self._saving: tuple[int, Future[Seal]] | None = None
        self._worker = ThreadPoolExecutor(1, "checkpoints")
        self._seals: dict[int, Seal] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                seals.mend(self._folder, say)
            _meet("checkpoints are mended")
            self._seals = seals.scan(self._folder)[0]
        except OSError as error:
            raise InputError(f"{error.filename or self._folder} cannot be used: {error.strerror}") from error
        self._verified = set(sorted(self._seals)[-1:])  # each verification is good for one use

    def newest(self) -> int | None:
        """The newest step, None where there is none; its content is verified. Waits for a running save."""
        return max(self.steps(), default=None)

    def steps(self) -> list[int]:
        """The saved steps, oldest first; waits for a running save."""
        self.wait()
        return sorted(self._seals)

    def regular_steps(self) -> list[int]:
        """The saved steps that were due, oldest first; waits for a running save."""
        return [step for step in self.steps() if not self._seals[step].interim]

    def best_step(self) -> int | None:
        """The step with the best metric (of equals the first), None where no save had it; waits for a running save."""
        self.wait()
        return self._best()

    def intact(self, steps: Iterable[int]) -> list[int]:
        """Those of `steps` whose content is verified; about each of the others one line is said."""
        intact = []
        for step in steps:
            try:
                self._verify(step)
            except InputError as error:
                self._say(str(error))
            else:
                self._verified.add(step)
                intact.append(step)
        return intact

    def save(
        self,
        step: int,
        state: Any,
        data: dict[str, Any],
        metrics: Mapping[str, Any] | None = None,
        *,
        interim: bool = False,
    ) -> None:
        """Starts saving `state` and `data` as `step`.

        Returns when the arrays are copied off the devices, so they may be donated at once; first waits for an earlier
        save that still runs. `data` is what JSON can hold. `interim` marks a checkpoint that is not due: it goes as
        soon as there is a newer one. A step that is saved already stays as it is, but becomes due if it is now,
        and takes metrics if it has none.

        Raises:
            InputError: `metrics` are given and `best_metric` is not among them.
            StorageError: this save, or the one before, cannot be written.
        """
        if metrics is not None and self._best_metric is not None and self._best_metric not in metrics:
            known = ", ".join(sorted(metrics)) or "none"
            raise InputError(f"best metric {self._best_metric!r} is not among the metrics of the evaluation: {known}")
        values = None if metrics is None else {name: float(value) for name, value in metrics.items()}
        # The data's position moves on while Orbax writes: it gets a copy.
        data = json.loads(json.dumps(data))
        self.wait()
        saved = self._seals.get(step)
        try:
            if saved is None:
                draft = self._folder / f"{step}{UNFINISHED}"
                response = storage.start_saving(draft, state, data)
                seal = Seal(step, interim, values, {})
                self._saving = step, self._worker.submit(self._finish, response, draft, seal)
            elif (saved.interim and not interim) or (saved.metrics is None and values is not None):
                seal = saved._replace(interim=saved.interim and interim, metrics=values)
                if jax.process_index() == 0:
                    seals.write(self._folder / str(step), seal)
                self._seals[step] = seal
                self._tidy()
        except Exception as error:
            raise self._failure(step, error) from None

    def check(self) -> None:
        """Raises StorageError as soon as a save in the background has failed; costs nothing, and never waits."""
        # Several processes learn of it at the next save, together: alone one would leave the others waiting.
        if self._saving is not None and self._saving[1].done() and jax.process_count() == 1:
            self.wait()

    def wait(self) -> None:
        """Returns when no save runs any more. Removes what need not be kept.

        Raises:
            StorageError: the save could not be written.
        """
        if self._saving is None:
            return
        step, saving = self._saving
        error = saving.exception()
        self._saving = None
        if _anywhere(error is not None):
            raise self._failure(step, error or OSError("another process failed")) from None
        self._seals[step] = saving.result()
        self._tidy()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """The state and the data's position saved as `step`.

        `abstract_state` is a tree of `jax.ShapeDtypeStruct` with shardings: it alone says where the arrays go, whatever
        mesh they were saved from. The state comes back as its types (optax's NamedTuples too).

        Raises:
            InputError: there is no such step, it is damaged, or it holds other arrays than `abstract_state`.
        """
        self._verify(step)
        return storage.load(self._folder / str(step), abstract_state)

    def restore_params(self, step: int) -> dict[str, Any]:
        """What `TrainState.evaluated` was at `step`, as nested dicts of NumPy arrays on the host.

        Nothing else is loaded.

        Raises:
            InputError: there is no such step, or it is damaged.
        """
        self._verify(step)
        return storage.load_params(self._folder / str(step))

    def close(self) -> None:
        """Waits for what runs in the background and releases it. Raises StorageError as `wait`."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StorageError as failure:
            if error is None:
                raise
            self._say(str(failure))  # what ended the run comes first

    # --- saving --------------------------------------------------------------------------------------------------

    def _finish(self, response: Any, draft: Path, seal: Seal) -> Seal:
        """Runs in the background: waits for the content, seals it, and gives it its name."""
        response.result()
        if jax.process_index() == 0:
            seal = seal._replace(files=seals.hash_files(draft))
            seals.write(draft, seal)
            draft.rename(self._folder / str(seal.step))
        return seal

    def _failure(self, step: int, error: BaseException) -> BaseException:
        """What to raise where `step` cannot be saved; an error that is not about storage stays what it is."""
        if jax.process_index() == 0:
            for draft in self._folder.glob(f"{step}{UNFINISHED}*"):
                shutil.rmtree(draft, ignore_errors=True)
        reason = storage.system_reason(error)
        if reason is None:
            return error
        good = max((step for step in self._seals if (self._folder / str(step)).is_dir()), default=None)
        left = "there is no earlier one" if good is None else f"the last good one is that of step {good}"
        return StorageError(
            f"the checkpoint of step {step} could not be written to {self._folder} ({reason}); {left}; "
            "free space or mend the folder, and give the same command again"
        )

    def _tidy(self) -> None:
        due, best = [step for step in sorted(self._seals) if not self._seals[step].interim], self._best()
        kept = {*due[-self._keep_latest :], max(self._seals), best}
        if self._keep_up_to_best and best is not None:
            kept.update([step for step in due if step <= best][-self._keep_latest :])
        for step in self._seals.keys() - kept:
            del self._seals[step]
            if jax.process_index() == 0:
                self._remove(step)

    def _remove(self, step: int) -> None:
        # Renamed first: killed on the way, it leaves nothing that looks whole.
        doomed = self._folder / f"{step}{UNFINISHED}-removed"
        try:
            (self._folder / str(step)).rename(doomed)
        except FileNotFoundError:
            return  # removed by hand
        except OSError as error:
            self._say(f"the checkpoint of step {step} in {self._folder} could not be removed: {error.strerror}")
            return
        self._worker.submit(shutil.rmtree, doomed, ignore_errors=True)

    def _best(self) -> int | None:
        sign = 1 if self._best_mode == "max" else -1
        values = ((step, (seal.metrics or {}).get(self._best_metric or "")) for step, seal in self._seals.items())
        known = [(-sign * value, step) for step, value in values if value is not None and math.isfinite(value)]
        return min(known, default=(0, None))[1]

    # --- restoring -----------------------------------------------------------------------------------------------

    def _verify(self, step: int) -> None:
        """Reads the whole checkpoint, unless that was just done. Raises InputError and sets it aside if damaged."""
        path = self._folder / str(step)
        if step not in self.steps() or not path.exists():
            known = ", ".join(map(str, sorted(self._seals.keys() - {step}))) or "none"
            raise InputError(f"{self._folder}: no checkpoint of step {step}; there are: {known}")
        if step in self._verified:
            self._verified.discard(step)
            return
        damage = None
        if jax.process_index() == 0:
            try:
                seals.verify(path, self._seals[step])
            except Damaged as error:
                damage = f"{error}; it is set aside as {seals.set_aside(path)}"
        if _anywhere(damage is not None):
            del self._seals[step]
            raise InputError(f"checkpoint {path}: {damage or 'it is damaged'}")


def _meet(name: str) -> None:
    """All processes wait here for each other."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _anywhere(flag: bool) -> bool:
    """Whether `flag` is true in any process; each of them asks."""
    return flag if jax.process_count() == 1 else bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
