import json
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import make_map_rows

from attnguide.rows.tables import read_samples
from attnguide.shapes.judge import judge
from attnguide.shapes.layouts import choose_layouts, load_layouts

PROMPTS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("map_rows")
    make_map_rows.main(["--out", str(out), "--prompts", str(PROMPTS)])
    return out


@pytest.mark.parametrize(("name", "which"), [("first", 0), ("second", 1)])
def test_rows_place_one_object_and_name_both(folder: Path, name: str, which: int) -> None:
    layouts = choose_layouts(load_layouts("benchmark"), ["two_objects"], PROMPTS)
    for row, layout in zip(read_samples(folder / f"{name}.jsonl"), layouts, strict=True):
        (region,) = row.regions
        assert region.phrase == layout.phrases[which] and row.prompt == layout.prompt
        assert all(phrase in row.prompt for phrase in layout.phrases)
        assert region.box == pytest.approx(layout.boxes[which], abs=1e-5)


def test_borrowed_maps_name_their_source(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "seed.jsonl").read_text().splitlines()]
    assert len(rows) == PROMPTS
    assert all(region.endswith(f"=seed:{make_map_rows.SEED}") for row in rows for region in row["regions"])


def test_pictures_show_what_the_prompts_name(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "picture.jsonl").read_text().splitlines()]
    for row in rows:
        names, files = zip(*(region.split("=noise:") for region in row["regions"]), strict=True)
        assert len(set(files)) == 1
        found = judge(Image.open(files[0])).detections
        assert sorted(f"{one.color} {one.shape}" for one in found) == sorted(names)


def test_rows_with_a_background_place_every_object(folder: Path) -> None:
    layouts = {layout.id: layout for layout in load_layouts("benchmark")}
    rows = list(read_samples(folder / "background.jsonl"))
    assert len(rows) == PROMPTS
    for row in rows:
        assert "background" in row.prompt and [region.phrase for region in row.regions] == [*layouts[row.id].phrases]


def test_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_map_rows.main(["--out", str(tmp_path / "rows"), "--prompts", "0"])
    assert not (tmp_path / "rows").exists()
