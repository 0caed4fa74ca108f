"""TensorBoard's files: the scalars of a run, each row written at once.

tensorboardX's own writer is a thread behind a queue: a full disk ends the thread, and the program then waits for ever.
Here only its messages and checksums are used.
"""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


class Events:
    """Scalars of one start of a run, in a file of their own under `folder`.

    Args:
        purge_step: TensorBoard hides what earlier files hold from this step on; None hides nothing.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # slow to import

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000:.0f}.{socket.gethostname()}"
        self._file = (folder / name).open("xb", buffering=0)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        check = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        append(self._file, length + check[0] + data + check[1])


def append(file: IO[bytes], content: bytes) -> None:
    """Writes all of the content to an unbuffered file; OSError where it does not take it."""
    while content:
        content = content[file.write(content) :]
