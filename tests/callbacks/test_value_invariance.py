"""Values over the steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from attnguide.callbacks import RunFolder, ValueInvariance, ValuesChangedError
from attnguide.models.base import Conditioning
from attnguide.models.unet import StableDiffusion
from attnguide.records import read_records, read_table
from tests.callbacks.conftest import Run, row


def test_cross_values_are_constant_and_self_values_are_not(run: Run, tmp_path: Path) -> None:
    callback = ValueInvariance(fail=True)
    run([callback, RunFolder(sheet=False)], [row("p"), row("g", "mask_guidance")])
    lines = read_table(tmp_path / "value_invariance.csv")
    assert {line["id"] for line in lines} == {"p", "g"}
    for line in lines:
        assert (float(line["largest_difference"]) == 0) == (line["kind"] == "cross"), line
    assert "Cross-attention values are constant: bit-equal" in callback.verdict
    assert "Self-attention values change over the steps by up to" in callback.verdict
    assert (tmp_path / "value_invariance.txt").read_text() == f"{callback.verdict}\n"
    assert {record["cross_value_change"] for record in read_records(tmp_path)} == {"0"}


@contextmanager
def drifting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Text states that are another every step, as a model would have that reads the time into them."""
    predict = StableDiffusion.predict_noise

    def predict_noise(self, inputs, step, conditioning, *, until=None):  # type: ignore[no-untyped-def]
        states = Conditioning(conditioning.cond * (1 + step.index / 10), None, conditioning.extra)
        return predict(self, inputs, step, states, until=until)

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusion, "predict_noise", predict_noise)
        yield


def test_changed_cross_values_fail_the_run_when_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with drifting(monkeypatch):
        run([told := ValueInvariance()], [row("p")])
        assert "Cross-attention values change over the steps" in told.verdict and "(row p)" in told.verdict
        with pytest.raises(ValuesChangedError, match="Cross-attention values change"):
            run([ValueInvariance(fail=True)], [row("q")])
        run([ValueInvariance(fail=True, tolerance=10.0)], [row("r")])
    worst = max(
        float(line["relative_difference"]) for line in read_table(tmp_path / "value_invariance.csv") if line["kind"] == "cross"
    )
    assert worst == pytest.approx(0.2, rel=1e-3), "third step, 1 + 2 / 10"


def test_nothing_is_kept_of_a_finished_batch(run: Run) -> None:
    callback = ValueInvariance()
    run([callback], [row("p")])
    assert not any(
        isinstance(value, torch.Tensor) for held in vars(callback).values() if isinstance(held, dict) for value in held
    )
    assert callback._first == {}
