from __future__ import annotations

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from attnguide.shapes.training.pace import Averages, Clock, Keeper, Told, decay_after, learning_rate_factor, paced


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.005), (99, 0.5), (199, 1.0), (400, 1.0), (600, 1.0), (800, 0.5), (900, 0.25), (1000, 0.0), (1100, 0.0)],
)
def test_learning_rate_by_hand(step: int, factor: float) -> None:
    assert learning_rate_factor(step, step / 1000) == pytest.approx(factor)


def test_a_longer_training_starts_like_a_shorter_one() -> None:
    assert all(learning_rate_factor(step, step / 1000) == learning_rate_factor(step, step / 3000) for step in range(600))


def test_an_optimizer_follows_its_progress() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = paced(optimizer, lambda step: 0.9)["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(2.0 / 200) and rates[-1] == pytest.approx(2.0 * 0.25)  # a tenth is left of four


def test_clock_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(minutes=2)
    now[0] = 140.0
    progress = clock.progress()  # what begins now has 80 seconds
    assert progress(0) == 0.0 and not clock.is_up
    now[0] = 160.0
    assert progress(7) == pytest.approx(0.25)
    falling = clock.progress(falling=1.0)  # at its peak now, at 0 in a minute
    rates = []
    for now[0] in (160.0, 190.0, 205.0, 220.0):
        rates.append(learning_rate_factor(1000, falling(0)))
    assert rates == pytest.approx([1.0, 0.5, 0.25, 0.0])
    now[0] = 220.0
    assert progress(9) == 1.0 and clock.is_up
    assert clock.progress()(0) == 1.0  # nothing is left
    assert not Clock(None).is_up


def test_a_young_average_forgets_quickly() -> None:
    assert decay_after(1, 0.998) == pytest.approx(2 / 11)
    assert decay_after(90, 0.998) == pytest.approx(0.91)
    assert decay_after(10_000, 0.998) == 0.998


class _Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("every", [1, 3])
def test_averages_by_hand(every: int) -> None:
    """Of the weights after every so many steps, each step's decay counted."""
    module, averages = _Module(), Averages(every=every, decay=0.5)
    averages.setup(SimpleNamespace(), module, "fit")  # type: ignore[arg-type]
    expected = 0.0
    for step in range(1, 10):
        with torch.no_grad():
            module.weight.fill_(step)
        averages.on_train_batch_end(SimpleNamespace(global_step=step), module, None, None, 0)  # type: ignore[arg-type]
        if (step - 1) % every == 0:
            seen = (step - 1) // every
            kept = decay_after(seen * every, 0.5) ** every if seen else 0.0
            expected = kept * expected + (1 - kept) * step
    assert averages._average_model is not None
    assert averages._average_model.module.weight.item() == pytest.approx(expected, rel=1e-5)


def _trainer(agreed: Any = lambda said, all: said, **values: Any) -> Any:
    """A trainer of one process, or of several that agree by ``agreed``."""
    strategy = SimpleNamespace(reduce_boolean_decision=agreed)
    common = {"should_stop": False, "max_steps": -1, "limit_val_batches": 1, "callback_metrics": {}, "is_global_zero": True}
    return SimpleNamespace(strategy=strategy, **(common | values))


def test_weights_that_are_no_numbers_do_not_take_the_checkpoint_s_place(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("good")
    keeper, module = Keeper(path, Clock(0), every=3), _Module()
    trainer = _trainer(global_step=7, save_checkpoint=lambda part: Path(part).write_text("new"))
    torch.nn.init.constant_(module.weight, float("nan"))
    with pytest.raises(RuntimeError, match="no longer finite at step 7"):
        keeper.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
    assert path.read_text() == "good" and list(tmp_path.iterdir()) == [path]
    torch.nn.init.zeros_(module.weight)
    keeper.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
    assert path.read_text() == "new"


def test_one_of_several_processes_that_is_told_to_stop_stops_all_and_the_first_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for first in (False, True):
        keeper = Keeper(path, Clock(None), every=60)
        trainer = _trainer(
            lambda said, all: True,  # another one says so
            global_step=1,
            is_global_zero=first,
            save_checkpoint=lambda part: Path(part).write_text("state"),
        )
        keeper.on_train_batch_end(trainer, _Module())  # type: ignore[arg-type]
        assert trainer.should_stop and path.exists() is first


def test_processes_follow_the_first_one_s_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Clock(minutes=1).progress()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda share, src: share.fill_(0.5 + src))
    assert progress(3) == 0.5


def test_a_training_tells_where_it_stands(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    told, trainer, module = Told(every=20), _trainer(global_step=50), _Module()
    told.on_train_start(trainer, module)  # type: ignore[arg-type]
    trainer.callback_metrics = {"flow/error": torch.tensor(0.25), "preview/single": torch.tensor(0.5)}
    for now[0], trainer.global_step in [(110.0, 80), (120.0, 100), (130.0, 120)]:
        told.on_train_batch_end(trainer, module)  # type: ignore[arg-type]
    told.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert [record.message for record in caplog.records] == [
        "step 100, 2.50 steps a second, flow/error 0.250",
        "step 120, preview: preview/single 0.500",
    ]
