"""Runs of the tiny model under a trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from attnguide.data import SampleDataModule
from attnguide.module import GuidanceModule, make_trainer
from attnguide.types import MethodConfig, Region, Sample
from tests import tiny

REGIONS = (Region("red cat", box=(0, 0, 0.5, 1)), Region("blue ball", blob=(0.7, 0.5, 0.15, 0.2)))

Run = Callable[..., L.Trainer]


def row(id: str, *methods: str, **settings: Any) -> Sample:
    """A short row with two regions."""
    return Sample(id, tiny.PROMPT, **{"regions": REGIONS, "steps": 3, "methods": tuple(map(MethodConfig, methods)), **settings})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Sample rows on the tiny model with these callbacks, in the test's own folder."""

    def run(callbacks: Sequence[L.Callback], samples: Sequence[Sample], batch_size: int = 8, **settings: Any) -> L.Trainer:
        trainer = make_trainer(tmp_path, callbacks=callbacks, device="cpu", **settings)
        data = SampleDataModule(samples, batch_size)
        trainer.predict(GuidanceModule(tiny.model()), datamodule=data, return_predictions=False)
        return trainer

    return run
