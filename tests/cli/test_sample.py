"""``attnguide sample`` from words to a run folder."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from attnguide.cli import main
from attnguide.run_folder.records import COSTS, read_records
from tests import tiny
from tests.models import ldm

from .conftest import Command

ONE = [tiny.PROMPT, "--region", "red cat=0,0,0.5,1", "--region", "blue ball=0.5,0.25,1,1", "--steps", "2"]
WORDS = [*ONE, "--seed", "0..1"]
GUIDED = ["--method", "mask_guidance", "--method.step_size", "20"]
IDS = ["seed0-plain", "seed0-mask_guidance", "seed1-plain", "seed1-mask_guidance"]
QUICK = ["--no-maps", "--no-norms", "--logger", "none"]


@pytest.fixture(scope="module")
def first(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """One run that many tests look at, and what it said."""
    folder, said = tmp_path_factory.mktemp("runs") / "first", io.StringIO()
    words = [*WORDS, *GUIDED, "--model", str(tiny_folder), "--out", str(folder), "--logger", "csv"]
    with redirect_stdout(said), redirect_stderr(io.StringIO()):
        assert main(["sample", *words]) == 0
    yield folder, said.getvalue()


def _pictures(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (folder / "samples").glob("*.png")}


def _lasting(folder: Path) -> dict[str, dict[str, str]]:
    """Records by id, without what differs from run to run."""
    return {
        record["id"]: {key: value for key, value in record.items() if key not in ("seconds", "peak_memory_mb")}
        for record in read_records(folder)
    }


# ------------------------------------------------------------------------------------------------------------ run folder


def test_every_row_has_a_picture_maps_and_a_record(first: tuple[Path, str]) -> None:
    folder, _ = first
    assert set(_pictures(folder)) == set(IDS)
    assert {record["id"] for record in read_records(folder)} == set(IDS)
    for id in IDS:
        for phrase in ("red_cat", "blue_ball"):
            assert (folder / "maps" / id / f"{phrase}.png").is_file()
    assert Image.open(folder / "samples" / "seed0-plain.png").size == (32, 32)
    assert (folder / "csv" / "metrics.csv").is_file()


def test_columns_of_the_records(first: tuple[Path, str]) -> None:
    with (first[0] / "records.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert columns[:5] == ["id", "prompt", "negative_prompt", "seed", "method"]
    assert tuple(columns[-len(COSTS) :]) == ("unet_forwards", "unet_backwards", "seconds", "peak_memory_mb", "status")
    assert {"steps", "cfg_scale", "options", "regions", "inside", "loss_mask_guidance"} < set(columns)


def test_records_say_what_was_done(first: tuple[Path, str]) -> None:
    records = {record["id"]: record for record in read_records(first[0])}
    plain, guided = records["seed1-plain"], records["seed1-mask_guidance"]
    assert (plain["method"], plain["seed"], plain["options"], plain["status"]) == ("plain", "1", "", "ok")
    assert (plain["unet_forwards"], plain["unet_backwards"]) == ("4", "0")  # 2 steps of 2 halves
    assert json.loads(guided["options"]) == {"mask_guidance": {"step_size": 20}}
    assert (guided["unet_forwards"], guided["unet_backwards"]) == ("5", "1")  # guided in the first half of the schedule
    assert (guided["height"], guided["width"], guided["cfg_scale"]) == ("32", "32", "5")


def test_guided_pictures_differ_from_their_twins(first: tuple[Path, str]) -> None:
    pictures = _pictures(first[0])
    assert len(set(pictures.values())) == 4


def test_sheet_shows_rows_side_by_side_with_regions(first: tuple[Path, str]) -> None:
    sheet = np.asarray(Image.open(first[0] / "sheet.png").convert("RGB"))
    assert sheet.shape[0] > 2 * 32 and sheet.shape[1] > 2 * 32
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 50


def test_what_it_says(first: tuple[Path, str]) -> None:
    folder, said = first
    before, _, after = said.partition("\n\n")
    assert tiny.PROMPT in before and "red cat = 0,0,0.5,1" in before and "2 plain, 2 mask_guidance" in before
    assert str(folder) in before
    for id in IDS:
        assert re.search(rf"^{id} +\d", after, re.MULTILINE)
    for name in ("sheet.png", "samples", "maps", "records.csv", "config.yaml"):
        assert str(folder / name) in after


# --------------------------------------------------------------------------------------------------- again, and going on


def test_configuration_fed_back_gives_the_same_run(first: tuple[Path, str], attnguide: Command) -> None:
    folder, _ = first
    assert attnguide("sample", "--config", folder / "config.yaml", "--out", "again").status == 0
    assert _pictures(Path("again")) == _pictures(folder)
    assert _lasting(Path("again")) == _lasting(folder)
    assert Path("again/config.yaml").read_text() == (folder / "config.yaml").read_text()


def test_what_is_typed_wins_over_the_configuration(first: tuple[Path, str], tiny_folder: Path, attnguide: Command) -> None:
    """The same row typed in full is its measure: to the bit, a picture is that of the same batch alone."""
    ended = attnguide("sample", "--seed", "1", "--out", "one", "--config", first[0] / "config.yaml", "--no-plain")
    assert ended.status == 0
    typed = [*ONE, "--seed", "1", "--no-plain", *GUIDED, *QUICK]
    assert attnguide("sample", *typed, "--model", tiny_folder, "--out", "typed").status == 0
    assert set(_pictures(Path("one"))) == {"seed1-mask_guidance"}
    assert _pictures(Path("one")) == _pictures(Path("typed"))


@pytest.mark.usefixtures("no_model")
def test_resume_of_a_complete_run_loads_nothing(first: tuple[Path, str], attnguide: Command) -> None:
    folder = first[0]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = attnguide("sample", "--out", folder, "--resume")
    assert ended.status == 0 and "4 of 4 rows are complete" in ended.out and "seed1-plain" in ended.out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_resume_makes_only_what_is_missing(first: tuple[Path, str], attnguide: Command) -> None:
    shutil.copytree(first[0], "stopped")
    Path("stopped/samples/seed1-plain.png").unlink()
    kept = Path("stopped/samples/seed0-plain.png")
    Image.new("RGB", (32, 32), "red").save(kept)  # so that a second sampling of it would show
    red = kept.read_bytes()
    ended = attnguide("sample", "--resume", "--out=stopped")
    assert ended.status == 0 and "3 of 4 rows are complete" in ended.out
    assert kept.read_bytes() == red
    assert _pictures(Path("stopped"))["seed1-plain"] == _pictures(first[0])["seed1-plain"]
    assert _lasting(Path("stopped")) == _lasting(first[0])


@pytest.mark.usefixtures("no_model")
def test_resume_with_other_settings_is_refused(first: tuple[Path, str], attnguide: Command) -> None:
    ended = attnguide("sample", "--out", first[0], "--resume", "--steps", "3")
    assert ended.status == 2 and "'steps' (2, now 3)" in ended.err


@pytest.mark.usefixtures("no_model")
def test_resume_of_a_folder_without_a_run_is_a_new_run(attnguide: Command) -> None:
    assert "a model was loaded" in attnguide("sample", tiny.PROMPT, "--out", "new", "--resume").err
    assert attnguide("sample", "--out", "new", "--resume", "--print_config").status == 0


@pytest.mark.usefixtures("no_model")
def test_print_config_is_a_configuration(attnguide: Command) -> None:
    printed = attnguide("sample", *WORDS, *GUIDED, "--logger", "csv", "--print_config")
    assert (printed.status, printed.err) == (0, "")
    said = yaml.safe_load(printed.out)
    assert said["prompt"] == tiny.PROMPT and said["seed"] == [0, 1] and said["steps"] == 2
    assert said["methods"] == [{"name": "mask_guidance", "step_size": 20}]
    assert list(Path().iterdir()) == []
    Path("printed.yaml").write_text(printed.out)
    assert attnguide("sample", "--config", "printed.yaml", "--print_config").out == printed.out


@pytest.mark.usefixtures("no_model")
def test_later_configurations_win(attnguide: Command) -> None:
    Path("one.yaml").write_text("steps: 7\ncfg_scale: 2\n")
    Path("two.yaml").write_text("steps: 8\n")
    said = yaml.safe_load(attnguide("sample", "--config", "one.yaml", "--config=two.yaml", "--print_config").out)
    assert (said["steps"], said["cfg_scale"]) == (8, 2.0)


# ------------------------------------------------------------------------------------------------------------------ rows


def _ids(folder: str) -> set[str]:
    return set(_pictures(Path(folder)))


def test_methods_named_together_work_together(attnguide: Command, tiny_folder: Path) -> None:
    words = [*ONE, *GUIDED, "--method", "inject7", "--method.scale", "2", "--method.start", "0", *QUICK]
    assert attnguide("sample", *words, "--model", tiny_folder, "--out", "both").status == 0
    assert _ids("both") == {"seed0-plain", "seed0-mask_guidance_inject7"}
    record = _lasting(Path("both"))["seed0-mask_guidance_inject7"]
    assert record["method"] == "mask_guidance+inject7"
    assert json.loads(record["options"]) == {"inject7": {"scale": 2, "start": 0}, "mask_guidance": {"step_size": 20}}


def test_methods_compared_share_one_plain_twin(attnguide: Command, tiny_folder: Path) -> None:
    words = [*ONE, "--compare", "--method", "inject1", "--method", "inject2", "--method", "inject1", *QUICK]
    assert attnguide("sample", *words, "--model", tiny_folder, "--out", "each").status == 0
    assert _ids("each") == {"seed0-plain", "seed0-inject1", "seed0-inject2", "seed0-inject1-2"}


def test_method_plain_and_a_prompt_alone_are_plain(attnguide: Command, tiny_folder: Path) -> None:
    assert attnguide("sample", *WORDS, "--method", "plain", *QUICK, "--model", tiny_folder, "--out", "plain").status == 0
    assert _ids("plain") == {"seed0-plain", "seed1-plain"}
    alone = [tiny.PROMPT, "--steps", "2", "--scheduler", "euler", *QUICK, "--model", tiny_folder, "--out", "alone"]
    assert attnguide("sample", *alone).status == 0
    assert _ids("alone") == {"seed0-plain"}
    assert _lasting(Path("alone"))["seed0-plain"]["scheduler"] == "euler"
    assert not Path("alone/maps").exists() and not Path("alone/map_norms.csv").exists()


def test_a_region_alone_means_the_default_method(attnguide: Command, tiny_folder: Path) -> None:
    Image.fromarray(np.pad(np.full((8, 4), 255, np.uint8), ((0, 0), (0, 4)))).save("left.png")
    words = [tiny.PROMPT, "--region", "red cat=left.png", "--steps", "2", *QUICK, "--model", tiny_folder, "--out", "run"]
    assert attnguide("sample", *words).status == 0
    assert _ids("run") == {"seed0-plain", "seed0-forward_layout"}
    kept = yaml.safe_load(Path("run/config.yaml").read_text())
    assert kept["regions"] == [{"phrase": "red cat", "mask": str(Path("left.png").absolute())}]


def test_table_of_rows_with_boxes_in_pixels(attnguide: Command, tiny_folder: Path) -> None:
    Path("table.csv").write_text(
        "id,prompt,seed,method,options,obj1,bbox1,place\n"
        f'a,{tiny.PROMPT},4,mask_guidance,"{{""mask_guidance"": {{""step_size"": 5}}}}",red cat,"0,0,32,64",left\n'
        f'b,{tiny.PROMPT},5,plain,,blue ball,"32,0,64,64",right\n'
    )
    words = ["--rows", "table.csv", "--box-size", "64", "--steps", "2", *QUICK, "--model", tiny_folder, "--out", "rows"]
    assert attnguide("sample", *words).status == 0
    records = _lasting(Path("rows"))
    assert set(records) == {"a", "a-plain", "b"}
    assert json.loads(records["a"]["regions"]) == [{"box": [0, 0, 0.5, 1], "phrase": "red cat"}]
    assert json.loads(records["a"]["tags"]) == {"place": "left"} and records["a"]["seed"] == "4"
    again = attnguide("sample", "--config", "rows/config.yaml", "--out", "again")
    assert again.status == 0
    assert _lasting(Path("again")) == records and _pictures(Path("again")) == _pictures(Path("rows"))


def test_rows_times_seeds_times_methods(attnguide: Command, tiny_folder: Path) -> None:
    Path("table.yaml").write_text(f"samples:\n- prompt: {tiny.PROMPT}\n- {{id: dog, prompt: a dog}}\nregions: []\nsteps: 1\n")
    words = ["--rows", "table.yaml", "--seed", "0", "1", "--cfg-scale", "1", *QUICK, "--model", tiny_folder, "--out", "rows"]
    assert attnguide("sample", *words).status == 0
    assert _ids("rows") == {"0000-seed0", "0000-seed1", "dog-seed0", "dog-seed1"}
    assert {record["unet_forwards"] for record in _lasting(Path("rows")).values()} == {"1"}


def test_a_row_that_turns_nan_fails_alone(attnguide: Command, tiny_folder: Path) -> None:
    words = [*ONE, "--method", "mask_guidance", "--method.step_size", "1e38", *QUICK]
    ended = attnguide("sample", *words, "--model", tiny_folder, "--out", "nan")
    assert ended.status == 1
    records = _lasting(Path("nan"))
    assert records["seed0-plain"]["status"] == "ok" and _ids("nan") == {"seed0-plain"}
    status = records["seed0-mask_guidance"]["status"]
    assert "mask_guidance" in status and "step" in status
    assert f"failed   seed0-mask_guidance: {status}" in ended.out


# ------------------------------------------------------------------------------------------------------- logs and numbers


def test_wandb_runs_offline_and_says_how_to_upload(
    attnguide: Command, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = [*ONE, *GUIDED, "--logger", "wandb", "csv", "--wandb.name", "named", "--wandb.tags", "[a, b]"]
    ended = attnguide("sample", *words, "--values", "--model", tiny_folder, "--out", "logged")
    assert ended.status == 0
    assert "wandb sync logged/wandb/offline-run-*" in ended.out
    assert list(Path("logged/wandb").glob("offline-run-*/run-*.wandb"))
    assert Path("logged/csv/metrics.csv").is_file()
    assert "attn1 (row seed0-mask_guidance)" in ended.out  # where values of self-attention change most
    assert yaml.safe_load(Path("logged/config.yaml").read_text())["wandb"] == {"name": "named", "tags": ["a", "b"]}


def test_prompts_of_the_shapes_world_are_judged(attnguide: Command, tiny_folder: Path) -> None:
    words = ["a red ball", "--steps", "1", *QUICK, "--model", tiny_folder]
    assert attnguide("sample", *words, "--out", "other").status == 0
    assert attnguide("sample", "a red star", *words[1:], "--out", "shapes").status == 0
    other, shapes = (set(read_records(folder)[0]) for folder in ("other", "shapes"))
    assert other < shapes


def test_a_single_file_with_its_configuration(tiny_folder: Path, attnguide: Command) -> None:
    save_file(ldm.checkpoint(tiny.shared_pipeline()), "tiny.safetensors")
    words = [*ONE, "--seed", "1", "--no-plain", *GUIDED, *QUICK, "--out", "run"]
    assert attnguide("sample", *words, "--model", "tiny.safetensors", "--model-config", tiny_folder).status == 0
    assert attnguide("sample", *words[:-1], "folder", "--model", tiny_folder).status == 0
    assert set(_pictures(Path("run"))) == {"seed1-mask_guidance"}
    assert _pictures(Path("run")) == _pictures(Path("folder"))
    kept = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (kept["model"], kept["model_config"]) == ("tiny.safetensors", str(tiny_folder))
