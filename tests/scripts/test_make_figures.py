"""The README's figure, drawn on a model with random weights in few steps."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

from attnguide.models.unet import StableDiffusion
from attnguide.shapes.expectation import expectation_from_prompt
from tests import tiny

PATH = Path(__file__).resolve().parents[2] / "scripts" / "make_figures.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> object:
    spec = importlib.util.spec_from_file_location("make_figures", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_figures", module)
    spec.loader.exec_module(module)
    held = StableDiffusion(tiny.pipeline(length=77), "tiny")
    make = held.make_scheduler
    monkeypatch.setattr(held, "make_scheduler", lambda name, steps, *shape: make(name, 2, *shape))
    monkeypatch.setattr(module, "load_model", lambda name: held)
    return module


def test_figure(script: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.png"
    monkeypatch.setattr(sys, "argv", ["make_figures.py", "--out", str(path)])
    script.main()
    assert path.stat().st_size <= script.LIMIT
    lines, columns = len(script.SCENES), len(script.columns())
    picture = Image.open(path)
    assert picture.width > columns * script.CELL and picture.height > lines * script.CELL


def test_every_scene_can_be_judged(script: object) -> None:
    for sample in script.rows():
        expected = expectation_from_prompt(sample.prompt)
        assert expected is not None
        assert {region.phrase for region in sample.regions} == set(expected.names)
    assert script.columns()[0] == ("plain", ())
    assert len({sample.id for sample in script.rows()}) == len(script.rows())


def test_large_pictures_are_saved_with_fewer_colours(script: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.effect_noise((200, 200), 80).convert("RGB")
    monkeypatch.setattr(script, "LIMIT", 30_000)
    script.save(noise, tmp_path / "noise.png")
    with Image.open(tmp_path / "noise.png") as saved:
        assert saved.mode == "P"


def test_sheets_are_made_smaller(script: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet, path = tmp_path / "sheet.png", tmp_path / "small.png"
    Image.new("RGB", (300, 100), "red").save(sheet)
    for width, size in ((150, (150, 50)), (600, (300, 100))):
        monkeypatch.setattr(sys, "argv", ["m", "--sheet", str(sheet), "--width", str(width), "--out", str(path)])
        script.main()
        with Image.open(path) as saved:
            assert saved.size == size and saved.convert("RGB").getpixel((5, 5)) == (255, 0, 0)
    monkeypatch.setattr(sys, "argv", ["m", "--sheet", str(tmp_path / "gone.png"), "--out", str(tmp_path / "no.png")])
    with pytest.raises(SystemExit):
        script.main()
    assert not (tmp_path / "no.png").exists()
