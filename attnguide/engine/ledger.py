"""Cost of a batch: network passes, time and memory."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from attnguide.types import Cost


def high_water_mb() -> float:
    """Peak resident memory of this process so far in MiB; NaN where the system does not report it.

    Read from /proc where it exists, since getrusage includes the parent's peak.
    """
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**10
    if importlib.util.find_spec("resource") is None:  # Windows
        return math.nan
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Ledger:
    """Counts network passes per row, time and memory, from construction to :meth:`close`.

    Args:
        rows: Number of rows in the batch.
        device: Device that the network runs on.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.forwards = [0] * rows
        self.backwards = [0] * rows
        self._device = device
        self._start = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def forward(self, rows: Sequence[int]) -> None:
        """Count one network evaluation for each element of ``rows``."""
        for row in rows:
            self.forwards[row] += 1

    def backward(self, rows: Sequence[int]) -> None:
        """Count one gradient through the network for each element of ``rows``."""
        for row in rows:
            self.backwards[row] += 1

    def close(self) -> list[Cost]:
        """The cost of every row; the batch's time is shared evenly."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = (time.perf_counter() - self._start) / max(len(self.forwards), 1)
        memory = self._peak_memory_mb()
        return [Cost(f, b, seconds, memory) for f, b in zip(self.forwards, self.backwards, strict=True)]

    def _peak_memory_mb(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        return high_water_mb()
