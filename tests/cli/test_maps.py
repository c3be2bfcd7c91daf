"""``attnguide maps``, and regions whose places come from other pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from attnguide.run_folder.records import read_records
from tests import tiny
from tests.models import families

from .conftest import Command

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--height", "32", "--width", "32", "--steps", "2", "--device", "cpu"]
QUIET = ["--no-maps", "--no-norms", "--logger", "none"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "init.png")
    return tmp_path / "init.png"


def test_maps_as_a_process_are_painted_on_and_used(tiny_folder: Path, tmp_path: Path, attnguide: Command) -> None:
    words = ["maps", tiny.PROMPT, "--word", "red cat", "--word", "blue ball", "--seed", "5", *SMALL]
    command = [sys.executable, "-m", "attnguide", *words, "--model", str(tiny_folder), "--out", "maps"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "maps"
    names = {"red_cat.png", "red_cat.npy", "red_cat-steps.npy", "blue_ball.png", "blue_ball.npy", "blue_ball-steps.npy"}
    assert {path.name for path in folder.iterdir()} == {*names, "_picture.png", "_overview.png", "_maps.yaml"}
    assert "red_cat.png" in ended.stdout and "peak of attention" in ended.stdout
    cells = np.load(folder / "red_cat.npy")
    assert cells.shape == (16, 16) and cells.min() == 0 and cells.max() == 1
    assert np.load(folder / "red_cat-steps.npy").shape == (2, 16, 16)
    kept = yaml.safe_load((folder / "_maps.yaml").read_text())
    assert kept["words"] == ["red cat", "blue ball"] and set(kept["peaks"]) == {"red_cat", "blue_ball"}

    painted = Image.open(folder / "red_cat.png")
    ImageDraw.Draw(painted).rectangle((0, 0, painted.width, painted.height // 2), fill=255)
    painted.save(tmp_path / "painted.png")
    pictures = {}
    for name, place in (
        ("numbers", folder / "red_cat.npy"),
        ("picture", folder / "red_cat.png"),
        ("paint", tmp_path / "painted.png"),
    ):
        method = ["--method", "inject5", "--method.start", "0", "--no-plain", "--region", f"red cat={place}", "--seed", "0"]
        assert attnguide("sample", tiny.PROMPT, *method, *SMALL, *QUIET, "--model", tiny_folder, "--out", name).status == 0
        (record,) = read_records(name)
        pictures[name] = np.asarray(Image.open(f"{name}/samples/{record['id']}.png")).astype(int)
    assert np.abs(pictures["numbers"] - pictures["picture"]).max() <= 2, "the grey levels of the picture"
    assert np.abs(pictures["numbers"] - pictures["paint"]).max() > 2


@pytest.mark.parametrize("way", ["invert", "noise"])
def test_maps_of_a_picture(way: str, image: Path, tiny_folder: Path, attnguide: Command) -> None:
    Path("maps").mkdir()  # empty folders are taken
    ended = attnguide("maps", "a red cat", "--image", image, "--by", way, *SMALL, "--model", tiny_folder, "--out", "maps")
    assert ended.status == 0, ended.err
    assert {path.name for path in Path("maps").glob("*.npy")} >= {"a.npy", "red.npy", "cat.npy"}
    assert ("reconstruction: PSNR" in ended.out) == (way == "invert")
    assert list(Path().iterdir()) == [Path("maps")]


def test_regions_name_their_sources(image: Path, tiny_folder: Path, attnguide: Command) -> None:
    regions = ["--region", "red cat=seed:9", "--region", f"blue ball=invert:{os.path.relpath(image)}"]
    words = ["sample", tiny.PROMPT, *regions, "--method", "inject5", "--seed", "0", *SMALL, *QUIET, "--model", tiny_folder]
    assert attnguide(*words, "--out", "run").status == 0
    plain, steered = read_records("run")
    assert (plain["method"], steered["method"]) == ("plain", "inject5")
    assert float(steered["reconstruction_psnr"]) > 0 and float(steered["reconstruction_mse"]) > 0
    assert int(steered["unet_forwards"]) == int(plain["unet_forwards"]) + 4 + 4
    for name in ("red_cat.png", "red_cat.npy", "blue_ball.png", "blue_ball.npy"):
        assert Path("run/targets", steered["id"], name).is_file()
    assert Path("run/sheet.png").is_file()
    kept = yaml.safe_load(Path("run/config.yaml").read_text())["regions"]
    found = Path(kept[1]["source"]["image"])
    assert kept[0]["source"] == {"kind": "seed", "seed": 9} and found.is_absolute() and found.resolve() == image
    assert attnguide("sample", "--config", "run/config.yaml", "--out", "again").status == 0
    for record in (plain, steered):
        pictures = [Path(folder, "samples", f"{record['id']}.png").read_bytes() for folder in ("run", "again")]
        assert pictures[0] == pictures[1]
    assert "2 of 2 rows are complete" in attnguide("sample", "--resume", "--out", "run").out


def test_sources_are_axes_of_an_ablation(image: Path, tiny_folder: Path, attnguide: Command) -> None:
    Path("trial.yaml").write_text(f"""\
base: {{prompt: {tiny.PROMPT}, steps: 2, methods: [inject5]}}
list:
  source:
    drawn: {{regions: ["red cat=0,0,0.5,1"]}}
    inverted: {{regions: [{{phrase: red cat, source: {{kind: invert, image: {os.path.relpath(image)}, threshold: 0.5}}}}]}}
""")
    ended = attnguide("ablate", "trial.yaml", "--no-plain", *SMALL, *QUIET, "--model", tiny_folder, "--out", "run")
    assert ended.status == 0, ended.err
    drawn, inverted = read_records("run")
    assert drawn["reconstruction_psnr"] == "" and float(inverted["reconstruction_psnr"]) > 0
    assert "reconstruction_psnr" in Path("run/summary.csv").read_text()


CONCEPTS = ["--reader", "concept_attention"]


def test_shares_of_concepts(tmp_path: Path, tiny_folder: Path, attnguide: Command) -> None:
    families.build("flux_dev").save_pretrained(tmp_path / "flux")
    words = ["maps", tiny.PROMPT, *CONCEPTS, "--word", "cat", "--word", "grass", *SMALL]
    ended = attnguide(*words, "--model", tmp_path / "flux", "--out", "maps")
    assert ended.status == 0, ended.err
    assert {path.name for path in Path("maps").glob("*.npy")} >= {"cat.npy", "grass.npy"}
    shares = sum(np.load(f"maps/{name}-steps.npy") for name in ("cat", "grass"))
    assert shares.shape == (1, 8, 8)
    np.testing.assert_allclose(shares, 1, atol=1e-5)
    ended = attnguide("maps", tiny.PROMPT, *CONCEPTS, *SMALL, "--model", tmp_path / "flux", "--out", "own")
    assert {path.name for path in Path("own").glob("*-steps.npy")} == {
        f"{word}-steps.npy" for word in ("red", "cat", "blue", "ball")
    }
    ended = attnguide(*words, "--model", tiny_folder, "--out", "none")
    assert ended.status == 2 and "UNet2DConditionModel has none" in ended.err and not Path("none").exists()


def test_maps_of_guided_pictures_of_flux(tmp_path: Path, attnguide: Command) -> None:
    """The second half's weight acts on the picture, and so on the maps; a weight that nothing reads is told of."""
    families.build("flux_schnell").save_pretrained(tmp_path / "flux")
    words = ["maps", tiny.PROMPT, "--word", "cat", *SMALL, "--model", tmp_path / "flux"]
    for out, guidance in (("plain", []), ("guided", ["--true-cfg-scale", "9", "--negative-prompt", "a dog"])):
        ended = attnguide(*words, *guidance, "--out", out)
        assert ended.status == 0, ended.err
    assert not np.array_equal(np.load("plain/cat-steps.npy")[1], np.load("guided/cat-steps.npy")[1])
    assert yaml.safe_load(Path("guided/_maps.yaml").read_text())["true_cfg_scale"] == 9
    assert "cfg_scale has no effect" in attnguide(*words, "--cfg-scale", "9", "--out", "unread").err


WRONG = [
    ([], ["prompt: expected"]),
    ([tiny.PROMPT, "--word", "red cst"], ["'red cst'", "'red cat'"]),
    ([tiny.PROMPT, "--word", "red cat=0,0,1,1"], ["takes no place", "'red cat'"]),
    ([tiny.PROMPT, "--image", "gone.png"], ["Picture file", "gone.png", "does not exist"]),
    ([tiny.PROMPT, "--image", "text.png"], ["text.png", "not a picture"]),
    ([tiny.PROMPT, "--by", "magic"], ["by: expected invert or noise; got 'magic'"]),
    ([tiny.PROMPT, "--start", "0.5", "--stop", "0.5"], ["start and stop", "0.5 to 0.5"]),
    ([tiny.PROMPT, "--threshold", "2"], ["threshold", "got 2"]),
    ([tiny.PROMPT, "--out", "full"], ["out: expected a new or empty folder", "full"]),
    ([tiny.PROMPT, "--by", "noise"], ["by: expected --image"]),
    ([tiny.PROMPT, "--iterations", "2"], ["iterations: expected --image"]),
    ([tiny.PROMPT, "--steps", "0"], ["steps", "at least 1"]),
    ([tiny.PROMPT, "--wrod", "cat"], ["--wrod", "--word"]),
    ([tiny.PROMPT, "--reader", "magic"], ["reader: expected attention or concept_attention; got 'magic'"]),
    ([tiny.PROMPT, *CONCEPTS, "--word", "red cat", "--word", "dog"], ["word: concepts must be single words; got 'red cat'"]),
    (["a cat", *CONCEPTS], ["word: concepts must be at least two"]),
    ([tiny.PROMPT, *CONCEPTS, "--image", "text.png"], ["reader: concept_attention", "--image"]),
]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("words", "said"), WRONG, ids=[" ".join(said) for _, said in WRONG])
def test_mistakes_are_told_before_anything_is_done(words: list[str], said: list[str], attnguide: Command) -> None:
    Path("text.png").write_text("no picture")
    Path("full").mkdir()
    Path("full/file").write_text("here")
    ended = attnguide("maps", *words)
    assert ended.status == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended
    for part in said:
        assert part in ended.err
    assert sorted(path.name for path in Path().iterdir()) == ["full", "text.png"]


def test_what_the_model_finds_leaves_nothing(tiny_folder: Path, attnguide: Command) -> None:
    for words, part in (
        (["--height", "40", "--width", "24", "--steps", "2000"], "steps"),
        (["--model", str(tiny_folder / "gone")], "model: "),
    ):
        ended = attnguide("maps", tiny.PROMPT, "--device", "cpu", "--model", tiny_folder, *words)
        assert ended.status == 2 and part in ended.err and ended.err.count("\n") == 1, ended
    assert list(Path().iterdir()) == []


@pytest.mark.usefixtures("no_model")
def test_help_tells_how(attnguide: Command) -> None:
    ended = attnguide("maps", "--help")
    assert ended.status == 0 and "--word" in ended.out and "example" in ended.out
