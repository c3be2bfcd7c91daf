"""Standard output and error whose failure (closed pipe, full disk, narrow encoding) does not end a run."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Tolerant:
    """A text stream that drops text which it cannot write.

    Args:
        stream: Stream that is written to until it fails for the first time.

    Attributes:
        failure: The exception that stopped writing; ``None`` before one, or if the reader only closed the pipe (``| head``).
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._open = True
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; characters that the encoding lacks are written as escapes."""
        if self._open:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError as error:
                return self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write several pieces of text."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        if self._open:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._open = False
        self.failure = None if getattr(error, "errno", None) == errno.EPIPE else error
        # The interpreter flushes the buffer once more when it ends; point the descriptor at the null device for that.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def tolerant_streams() -> Iterator[tuple[Tolerant, Tolerant]]:
    """Standard output and error as :class:`Tolerant` streams until the block ends."""
    before = sys.stdout, sys.stderr
    for number in range(3):  # else the next opened file would get the closed descriptor, and the output
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    null = open(os.devnull, "w", encoding="utf-8")
    streams = Tolerant(sys.stdout or null), Tolerant(sys.stderr or null)
    sys.stdout, sys.stderr = streams  # type: ignore[assignment]
    try:
        yield streams
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
        null.close()
