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
from attnguide.run_folder.records import read_records
from attnguide.run_folder.tables import read_table
from attnguide.types import MethodConfig
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


def test_rows_are_compared_with_another_seed_and_with_no_method(run: Run, tmp_path: Path) -> None:
    injected = (MethodConfig("inject5", {"start": 0.0}),)
    rows = [row("p3", seed=3), row("p4", seed=4), row("i3", seed=3, methods=injected), row("i4", seed=4, methods=injected)]
    callback = ValueInvariance()
    run([callback, RunFolder(sheet=False)], [*rows, row("again", seed=3), row("other", steps=2, seed=3)])
    records = {record["id"]: record for record in read_records(tmp_path)}
    names = (
        "cross_value_change_by_seed",
        "self_value_change_by_seed",
        "cross_value_change_by_method",
        "self_value_change_by_method",
    )
    found = {id: [None if not record.get(name) else float(record[name]) for name in names] for id, record in records.items()}
    assert found["p3"] == [None] * 4 and found["other"] == [None] * 4
    for id in ("p4", "i3", "i4"):
        by_seed, by_method = found[id][:2], found[id][2:]
        for cross, own in [*([by_seed] if id != "i3" else []), *([by_method] if id != "p4" else [])]:
            assert cross == 0 and own is not None and own > 0.01, (id, found[id])
    assert found["i3"][:2] == [None, None] and found["p4"][2:] == [None, None]
    assert float(records["p4"]["self_value_change"]) > 0.01
    lines = read_table(tmp_path / "value_invariance.csv")
    assert {(line["id"], line["seed"], line["method"]) for line in lines if line["id"] == "i4"} == {("i4", "4", "inject5")}
    assert "with another seed, cross-attention values are the same." in callback.verdict
    assert "with no method, self-attention values differ at the last step by up to" in callback.verdict


def test_few_references_are_kept(run: Run, tmp_path: Path) -> None:
    run([ValueInvariance(references=0), RunFolder(sheet=False)], [row("p3", seed=3), row("p4", seed=4)])
    assert all(not line["seed_difference"] for line in read_table(tmp_path / "value_invariance.csv"))
    with pytest.raises(ValueError, match="references must be at least 0"):
        ValueInvariance(references=-1)


@contextmanager
def drifting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Text states that are another every step, as a model would have that reads the time into them."""
    answered = StableDiffusion.predict

    def predict(self, inputs, step, conditioning, *, until=None):  # type: ignore[no-untyped-def]
        states = Conditioning(conditioning.cond * (1 + step.index / 10), None, conditioning.extra)
        return answered(self, inputs, step, states, until=until)

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusion, "predict", predict)
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
