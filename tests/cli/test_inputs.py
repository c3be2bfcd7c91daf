"""Input pictures on the command line, in tables, ablations and comparisons; kept, fed back, and refused in one line."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from attnguide.rows.tables import read_samples
from attnguide.run_folder.records import read_records
from tests import tiny
from tests.steering import pipelines

from .conftest import Command

QUIET = ["--no-maps", "--no-norms", "--logger", "none", "--steps", "2"]
PLACES = ["--region", "red cat=0,0,0.5,1", "--region", "blue ball=0.5,0.25,1,1"]


@pytest.fixture(scope="module")
def controlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controlnet")
    pipelines.shared("sd_controlnet").controlnet.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _pictures(attnguide: Command) -> None:
    """In the empty working directory of the test."""
    for name in ("a", "b"):
        pipelines.picture(ord(name), 32, 32).save(f"{name}.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    mask.save("mask.png")


def test_a_typed_row_is_made_kept_and_made_again(attnguide: Command, tiny_folder: Path, controlnet: Path) -> None:
    words = [tiny.PROMPT, *PLACES, *QUIET, "--model", str(tiny_folder), "--method", "forward_layout", "--init-image", "a.png"]
    words += ["--inpaint-mask", "mask.png", "--control", "canny=b.png:0.5", "--controlnet", str(controlnet), "--strength", "1"]
    made = attnguide("sample", *words, "--out", "run")
    assert made.status == 0, made.err
    plain, steered = read_records("run")
    assert plain["method"] == "plain" and steered["method"] == "forward_layout"
    for record in (plain, steered):
        assert record["init_image"] == str(Path("a.png").absolute()) and record["strength"] == "1"
        assert json.loads(record["control"]) == [{"type": "canny", "image": str(Path("b.png").absolute()), "scale": 0.5}]
        shown = np.asarray(Image.open(Path("run/samples") / f"{record['id']}.png"))
        assert (shown[:, :16] == np.asarray(Image.open("a.png"))[:, :16]).all()
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["controlnet"] == [str(controlnet)] and list(config["made_with"]["model"]["controlnets"]) == [str(controlnet)]
    pictures = {path.name: path.read_bytes() for path in Path("run/samples").glob("*.png")}
    assert len(set(pictures.values())) == 2
    Path("run/samples", f"{steered['id']}.png").unlink()
    assert attnguide("sample", "--resume", "--out", "run").status == 0
    assert {path.name: path.read_bytes() for path in Path("run/samples").glob("*.png")} == pictures
    again = attnguide("sample", "--config", "run/config.yaml", "--out", "again")
    assert again.status == 0, again.err
    assert {path.name: path.read_bytes() for path in Path("again/samples").glob("*.png")} == pictures


def test_a_table_mixes_rows(attnguide: Command, tiny_folder: Path) -> None:
    Path("table").mkdir()
    shutil.copy("a.png", "table/start.png")
    lines = [
        {"id": "text", "prompt": tiny.PROMPT},
        {"id": "picture", "prompt": tiny.PROMPT, "init_image": "start.png", "strength": "0.5"},
        {"id": "missing", "prompt": tiny.PROMPT, "init_image": "gone.png"},
        {"id": "anew", "prompt": tiny.PROMPT, "init_image": "../b.png", "inpaint_mask": "../mask.png"},
    ]
    with open("table/rows.csv", "w") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "init_image", "strength", "inpaint_mask"])
        writer.writeheader()
        writer.writerows(lines)
    made = attnguide("sample", "--rows", "table/rows.csv", *QUIET, "--model", str(tiny_folder), "--out", "run")
    assert made.status == 1
    found = {record["id"]: record for record in read_records("run")}
    assert {id: record["status"] for id, record in found.items() if id != "missing"} == dict.fromkeys(
        ("text", "picture", "anew"), "ok"
    )
    assert found["missing"]["status"].startswith("refused: init_image file")
    assert [found[id]["strength"] for id in ("text", "picture", "anew")] == ["", "0.5", "1"]
    assert [found[id]["unet_forwards"] for id in ("text", "picture", "anew")] == ["4", "2", "4"]
    assert found["picture"]["init_image"] == str(Path("table/start.png").absolute())
    rows = read_samples("table/rows.csv")
    Path("rows.yaml").write_text(yaml.safe_dump([{"prompt": "a cat", "control": "canny=b.png:0.3", "init_image": "b.png"}]))
    (row,) = read_samples("rows.yaml")
    assert (row.control[0].type, row.control[0].scale, rows[1].kind) == ("canny", 0.3, "img2img")
    Path("rows.csv").write_text('prompt,control\na cat,canny=b.png\na dog,"[{""type"": ""depth"", ""image"": ""a.png""}]"\n')
    assert [one.control[0].type for one in read_samples("rows.csv")] == ["canny", "depth"]


def test_strength_and_pictures_are_axes(attnguide: Command, tiny_folder: Path) -> None:
    content = {
        "base": {"prompt": tiny.PROMPT, "regions": PLACES[1::2], "maps": False, "norms": False, "logger": "none", "steps": 4},
        "parameters": {
            "method": {"values": ["forward_layout"]},
            "strength": {"values": [0.5, 1.0]},
            "init_image": {"values": ["a.png", "b.png"]},
        },
    }
    Path("trial.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    told = attnguide("ablate", "trial.yaml", "--model", str(tiny_folder), "--dry-run")
    assert told.status == 0, told.err
    made = attnguide("ablate", "trial.yaml", "--model", str(tiny_folder), "--out", "run")
    assert made.status == 0, made.err
    records = read_records("run")
    assert len(records) == 8, "each with its plain twin"
    cells = {(record["axis.strength"], record["axis.init_image"], record["method"]): record for record in records}
    assert {key[:2] for key in cells} == {(s, name) for s in ("0.5", "1") for name in ("a.png", "b.png")}
    assert len({Path("run/samples", f"{record['id']}.png").read_bytes() for record in records}) == 8
    assert cells["0.5", "a.png", "plain"]["unet_forwards"] == "4" and cells["1", "b.png", "plain"]["unet_forwards"] == "8"


def test_a_comparison_begins_from_a_picture(attnguide: Command, tiny_folder: Path) -> None:
    Path("rows.csv").write_text('id,prompt,obj1,bbox1\n1,a red cat,cat,"0,0,0.5,1"\n')
    words = ["--model", str(tiny_folder), "--judge", "none", "--logger", "none", "--steps", "4", "--best-of", "0"]
    made = attnguide("eval", "rows.csv", *words, "--method", "forward_layout", "--init-image", "a.png", "--out", "run")
    assert made.status == 0, made.err
    assert [record["strength"] for record in read_records("run")] == ["0.8", "0.8"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--init-image", "gone.png"], "init_image file"),
        (["--init-image", "rows.txt"], "is not a picture that can be read"),
        (["--strength", "0.5"], "strength needs an init_image"),
        (["--init-image", "a.png", "--strength", "0"], "strength: expected a number above 0 and at most 1; got '0'"),
        (["--init-image", "a.png", "--strength", "1.5"], "strength: expected a number above 0 and at most 1"),
        (["--init-image", "a.png", "--strength", "0.01"], "strength 0.01 of 30 steps leaves none to make"),
        (["--inpaint-mask", "mask.png"], "inpaint_mask needs an init_image"),
        (
            ["--init-image", "wide.png", "--inpaint-mask", "mask.png"],
            "must have the size of its init_image, 64x32",
        ),
        (["--control", "b.png"], "control: control must be TYPE=IMAGE[:SCALE]"),
        (["--control", "canny=b.png", "--control", "canny=a.png"], "control must name every type once"),
        (
            ["--control", "canny=b.png"],
            "needs a ControlNet of the run: --controlnet canny=PATH; the run has none",
        ),
        (["--control", "canny=b.png", "--controlnet", "depth=a/b"], "the run has depth"),
        (["--controlnet", "canny=a/b"], "controlnet: expected a row with a --control of the type 'canny'"),
        (["--controlnet", "./nowhere"], "controlnet: ./nowhere: expected a folder in diffusers format or a hub id"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_mistakes_are_told_before_a_model_is_loaded(attnguide: Command, words: list[str], said: str) -> None:
    Path("rows.txt").write_text("a cat")
    pipelines.picture(0, 32, 64).save("wide.png")
    found = attnguide("sample", "a cat", "--model", "nowhere", "--out", "run", *words)
    assert found.status == 2
    assert found.err.startswith("error: ") and found.err.count("\n") == 1 and said in found.err
    assert not Path("run").exists()


def test_a_family_without_the_pipeline_is_named_before_it_is_loaded(attnguide: Command, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, "model")
    index = json.loads(Path("model/model_index.json").read_text())
    Path("model/model_index.json").write_text(json.dumps({**index, "_class_name": "LatentConsistencyModelPipeline"}))
    found = attnguide("sample", "a cat", "--model", "model", "--init-image", "a.png", "--out", "run")
    assert found.status == 2
    assert "model: LatentConsistencyModelPipeline has no pipeline for img2img; those that have one are Stable" in found.err
    assert not Path("run/config.yaml").exists()
