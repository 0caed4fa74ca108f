"""SIGTERM, SIGINT and SIGHUP during training: they end the step, and the state is saved.

A run that a signal ended has the exit code 128 + the signal's number: 143, 130 and 129.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal ends the program.

    Attributes:
        signal: which one.
        message: what is left of the run and how it goes on; "" where there is nothing to say.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.signal, self.message = signal.Signals(number), message

    @property
    def exit_code(self) -> int:
        """What shells give programs that a signal ended."""
        return 128 + self.signal


class Stop:
    """Whether a signal has asked the training to stop.

    Attributes:
        asked: the first signal that came, None until then.
    """

    asked: signal.Signals | None = None


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Inside, the first signal is noted in the Stop that this gives, and a second one ends the program at once.

    Afterwards the handlers are what they were. Signals that are ignored (nohup) stay so. Outside, signals do what they
    do to any program: an exception raised by a handler could be lost in a callback of some library.
    """
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        stop.asked = signal.Signals(number)
        for each in SIGNALS:
            if signal.getsignal(each) is note:
                signal.signal(each, signal.SIG_DFL)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, old in before.items() if old is not signal.SIG_IGN]
    # Python leaves signals to the main thread; of several processes each would stop at another step, and hang.
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        handled = []
    try:
        for number in handled:
            signal.signal(number, note)
        yield stop
    finally:
        for number in handled:
            signal.signal(number, before[number])
