from __future__ import annotations

import time

import pytest
import torch

from attnguide.shapes.training.pace import Clock, decay_after, learning_rate_factor, paced


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
    now[0] = 220.0
    assert progress(9) == 1.0 and clock.is_up
    assert clock.progress()(0) == 1.0  # nothing is left
    assert not Clock(None).is_up


def test_a_young_average_forgets_quickly() -> None:
    assert decay_after(1, 0.998) == pytest.approx(2 / 11)
    assert decay_after(90, 0.998) == pytest.approx(0.91)
    assert decay_after(10_000, 0.998) == 0.998
