"""What the shapes benchmark's command refuses and prints, with rendered scenes instead of samples."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_shapes

from attnguide import benchmark
from attnguide.models.load import load_model
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import random_scene
from attnguide.types import Cost, Sample, SampleResult
from tests import joint

SMALL = ["--layouts", "development", "--categories", "single", "--prompts", "2", "--steps", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(joint.save(tmp_path_factory.mktemp("models") / "joint"))


@pytest.fixture(autouse=True)
def _rendered(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Pictures of the renderer, and every model loaded once."""
    loaded: dict[str, Any] = {}

    def sample_rows(model: object, rows: Sequence[Sample], **_: object) -> Iterator[SampleResult]:
        yield from (SampleResult(row, render(random_scene(row.seed)), None, Cost(2, 0, 0.5, 0.5)) for row in rows)

    def load(name: str) -> Any:
        return loaded.setdefault(name, load_model(name, device="cpu"))

    monkeypatch.setattr(benchmark, "sample_rows", sample_rows)
    monkeypatch.setattr(bench_shapes, "load_model", load)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--categories", "bogus", "single"], "--categories must be some of single, "),
        (["--seeds", "0"], "argument --seeds: must be at least 1; got 0"),
        (["--prompts", "0"], "argument --prompts: must be at least 1; got 0"),
        (["--cfg-scale", "nan"], "cfg_scale"),
        (["--layouts", "no.csv"], "--layouts: source must be benchmark, development or the path of a CSV file; got 'no.csv'"),
        (["--model", "no/such"], "no/such"),
        (["--true-cfg-scale", "2"], "true_cfg_scale is for models that read cfg_scale as a condition"),
    ],
    ids=["categories", "seeds", "prompts", "scale", "layouts", "model", "guidance"],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        bench_shapes.main([*SMALL, *words])
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    assert said in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [([], "no classifier-free guidance"), (["--true-cfg-scale", "2.5"], "cfg 2.5")],
    ids=["none", "true"],
)
def test_the_title_says_the_guidance_that_acts(
    words: list[str], told: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench_shapes.main([*SMALL, "--seeds", "1", "--model", str(folder), "--out", str(tmp_path / "run"), *words])
    title, *_ = capsys.readouterr().out.splitlines()
    assert title == f"2 pictures, 1 seeds a prompt, 2 steps, {told}"


def test_tables_are_of_the_rows_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--out", str(tmp_path), "--localisation"]
    bench_shapes.main([*words, "--seeds", "2"])
    first = capsys.readouterr().out
    bench_shapes.main([*words, "--categories", "single", "two_objects", "--seeds", "1"])
    second = capsys.readouterr().out
    assert [line.split()[:2] for line in first.splitlines() if line.startswith(("single", "all"))] == [
        *(["single", "4"], ["all", "4"]),
        *(["single", "4"], ["all", "4"]),
    ]
    assert [line.split()[:2] for line in second.splitlines() if line.startswith(("single", "two_objects", "all"))] == [
        *(["single", "2"], ["two_objects", "2"], ["all", "4"]),
        *(["single", "2"], ["two_objects", "2"], ["all", "4"]),
    ]
    assert "were made before" not in first and "of the 2 pictures of this call alone: 2 were made before" in second


def test_models_and_layout_files_have_folders_of_their_own_and_weights_are_part_of_the_settings(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, "--seeds", "1"]
    for more in ([], ["--layouts", "benchmark"], ["--model", str(folder)]):
        bench_shapes.main([*words, *more])
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert (tmp_path / "runs" / "bench_shapes-shapes-development" / "sheet.png").exists()
    (weights,) = (folder / "transformer").glob("*.safetensors")
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))  # trained on in place
    try:
        with pytest.raises(SystemExit, match=r"--out .* holds pictures made with .*weights"):
            bench_shapes.main([*words, "--model", str(folder)])
    finally:
        weights.write_bytes(before)
