"""Ablations from text, read with the readers of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attnguide.ablation.axes import Ablation
from attnguide.ablation.file import read_ablation
from attnguide.cli.settings import run_settings

Read = Callable[[str], Ablation]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes a file and reads it."""
    readers = {setting.name: setting.read for setting in run_settings()}

    def read(text: str) -> Ablation:
        path = tmp_path / "trial.yaml"
        path.write_text(text, encoding="utf-8")
        return read_ablation(path, readers)

    return read
