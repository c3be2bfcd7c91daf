"""Heat maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnguide.callbacks import AttentionMapsLogger
from attnguide.callbacks.attention_maps import prompt_words
from attnguide.types import MethodConfig, Region
from tests.callbacks.conftest import Run, row


def test_files_of_every_region(run: Run, tmp_path: Path) -> None:
    run([AttentionMapsLogger(strip=2)], [row("a"), row("b", seed=1, regions=(Region("red cat"), Region("red cat")))])
    names = {file.name for file in (tmp_path / "maps" / "a").iterdir()}
    assert names == {f"{word}{end}" for word in ("red_cat", "blue_ball") for end in (".png", "-steps.png", ".npy")} | {
        "_overview.png"
    }
    raw = np.load(tmp_path / "maps" / "a" / "red_cat.npy")
    assert raw.shape[0] == 3 and raw.shape[1] == raw.shape[2] and (raw >= 0).all() and (raw <= 1).all()
    assert (tmp_path / "maps" / "b" / "red_cat~2.npy").exists(), "a second region of the same phrase"
    with Image.open(tmp_path / "maps" / "a" / "red_cat.png") as picture:
        assert min(picture.size) >= 256


def test_rows_without_regions_show_every_word(run: Run, tmp_path: Path) -> None:
    run([AttentionMapsLogger()], [row("w", regions=())])
    names = {file.name for file in (tmp_path / "maps" / "w").glob("*.npy")}
    assert names == {"a.npy", "a~2.npy", "red.npy", "cat.npy", "and.npy", "blue.npy", "ball.npy"}
    assert [(word.phrase, word.occurrence) for word in prompt_words("a cat, A dog")] == [
        ("a", 0),
        ("cat", 0),
        ("A", 1),
        ("dog", 0),
    ]


def test_an_injected_map_is_what_is_drawn(run: Run, tmp_path: Path) -> None:
    method = MethodConfig(
        "map_injection", {"stage": "probs", "operation": "replace", "levels": (0, 1), "start": 0, "stop": 1, "unit": "progress"}
    )
    run([AttentionMapsLogger(steps=(0.0, 0.5))], [row("i", methods=(method,)), row("p")])
    injected, plain = (np.load(tmp_path / "maps" / id / "red_cat.npy").mean(0) for id in ("i", "p"))
    left = injected.shape[1] // 2
    assert injected[:, :left].sum() / injected.sum() > 0.95 > plain[:, :left].sum() / plain.sum()


def test_rows_of_a_batch_are_not_mixed_up(run: Run, tmp_path: Path) -> None:
    run([AttentionMapsLogger()], [row("a", seed=0), row("b", seed=1)])
    together = np.load(tmp_path / "maps" / "b" / "blue_ball.npy")
    run([AttentionMapsLogger()], [row("b", seed=1)])
    np.testing.assert_allclose(np.load(tmp_path / "maps" / "b" / "blue_ball.npy"), together, atol=1e-5)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="steps must be a range"):
        AttentionMapsLogger(steps=(0.5, 0.5))
    with pytest.raises(ValueError, match="strip must be at least 1"):
        AttentionMapsLogger(strip=0)
