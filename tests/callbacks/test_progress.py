"""Progress for people."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from attnguide.callbacks import LineProgress, ProgressBar, progress_bar
from attnguide.callbacks.base import SamplingCallback
from attnguide.callbacks.progress import terminal
from tests.callbacks.conftest import Run, row


def test_a_line_per_finished_row(run: Run) -> None:
    stream = io.StringIO()
    run([LineProgress(stream)], [row("a", "mask_guidance"), row("p", seed=4)])
    first, second = stream.getvalue().splitlines()
    assert first.startswith("[1/2] a: mask_guidance, seed 0, ") and first.endswith(" left, ok")
    assert "1 rows and about " in first and "left" not in second
    assert second.startswith("[2/2] p: plain, seed 4, 6 forwards, 0 backwards, ")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminals_get_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress_bar(Terminal()), ProgressBar)
    assert isinstance(progress_bar(io.StringIO()), LineProgress)
    for out, err, drawn in ((Terminal(), io.StringIO(), 0), (io.StringIO(), Terminal(), 1), (Terminal(), Terminal(), 1)):
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        assert terminal() is (out, err)[drawn] and isinstance(progress_bar(), ProgressBar)
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert terminal() is None and isinstance(progress_bar(), LineProgress)


def test_the_bar_is_drawn_where_the_terminal_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)

    class Talk(SamplingCallback):
        def on_denoise_step_end(self, *_: object) -> None:
            print("a line")

    run([progress_bar(), Talk()], [row("a", steps=1)])
    assert out.getvalue() == "a line\n" and "Batches" in err.getvalue()
    assert sys.stdout is out


def test_the_bar_shows_steps_and_inner_updates(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, float, float | None]] = []
    bar = ProgressBar()

    class Look(SamplingCallback):
        def look(self) -> None:
            shown.extend((task.description, task.completed, task.total) for task in bar.progress.tasks if task.visible)

        def on_guidance_update(self, *_: object) -> None:
            self.look()

        def on_denoise_step_end(self, *_: object) -> None:
            self.look()

    monkeypatch.setattr("lightning.pytorch.callbacks.progress.rich_progress.get_console", lambda: Console(file=io.StringIO()))
    trainer = run([bar, Look()], [row("a", "mask_guidance")])
    assert trainer.progress_bar_callback is bar
    texts = [description for description, *_ in shown]
    assert any("mask_guidance, update 1 on 1 rows, loss 0." in text for text in texts)
    assert any("Steps" in text and done == 2 and total == 3 for text, done, total in shown)
    assert any("Batches" in text for text in texts)
