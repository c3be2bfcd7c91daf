import subprocess
import sys
import time

import pytest
import torch

from attnguide.engine.ledger import Ledger, high_water_mb

CPU = torch.device("cpu")


def test_passes_are_counted_per_row() -> None:
    ledger = Ledger(3, CPU)
    ledger.forward((0, 2, 0, 2))
    ledger.forward((1,))
    ledger.backward((2,))
    ledger.backward(())
    costs = ledger.close()
    assert [cost.unet_forwards for cost in costs] == [2, 1, 2]
    assert [cost.unet_backwards for cost in costs] == [0, 0, 1]


def test_time_is_shared_evenly_and_memory_is_in_megabytes(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    costs = Ledger(3, CPU).close()
    assert [cost.seconds for cost in costs] == [2.0, 2.0, 2.0]
    # A Python process with torch in it takes more than 50 MB, and this machine has less than a TB.
    assert all(50 < cost.peak_memory_mb < 1e6 for cost in costs)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_child_is_its_own() -> None:
    """A child of a large process began with the parent's peak where getrusage was asked."""
    ballast = torch.ones(2**26)  # 256 MB
    lean = "import attnguide.engine.ledger as one; print(one.high_water_mb())"
    child = subprocess.run([sys.executable, "-c", lean], capture_output=True, text=True, check=True)
    assert float(child.stdout) < high_water_mb() - ballast.nbytes / 2**21
