"""``attnguide ablate`` from a file to a run folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from attnguide.run_folder.records import read_records
from attnguide.run_folder.tables import read_table
from tests import tiny
from tests.wandb_file import read_wandb, wandb_files

from .conftest import FILE, Command

CELLS = ["plain", "inject1, 1", "inject1, 2.5", "inject5, 1", "inject5, 2.5"]


@pytest.fixture
def first(ablation: tuple[Path, str]) -> tuple[Path, str]:
    """One run that many tests look at, and what it said."""
    return ablation


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_cell_is_on_record_with_its_axes(first: tuple[Path, str]) -> None:
    records = read_records(first[0])
    assert len(records) == 10 and all(record["status"] == "ok" for record in records)
    assert list(dict.fromkeys(record["cell"] for record in records)) == CELLS
    last = next(record for record in records if record["id"] == "seed1-inject5-2.5")
    assert (last["axis.method"], last["axis.method.scale"], last["seed"], last["cfg_scale"]) == ("inject5", "2.5", "1", "4")
    assert last["options"] == '{"inject5": {"scale": 2.5, "start": 0}}'
    columns = list(records[0])
    assert columns.index("tags") < columns.index("cell") < columns.index("axis.method") < columns.index("unet_forwards")


def test_what_lies_in_the_folder(first: tuple[Path, str]) -> None:
    folder, said = first
    lines = read_table(folder / "summary.csv")
    assert {line["cell"] for line in lines} == set(CELLS)
    assert {line["n"] for line in lines} == {"2"} and "inside" in {line["metric"] for line in lines}
    for name in ("sheets/seed0.png", "sheets/seed1.png", "plots/inside-over-method.scale.png", "sheet.png"):
        assert Image.open(folder / name).size > (100, 100)
    for text in ("method (2) x method.scale (2)", "4 cells for 2 prompts and seeds, 10 rows, 2 of them plain"):
        assert text in said
    assert f"{folder}/summary.csv" in said and "inject5, 2.5" in said


def test_wandb_has_the_group_tables_and_plots(first: tuple[Path, str]) -> None:
    folder, said = first
    assert "wandb sync" in said
    assert yaml.safe_load((folder / "config.yaml").read_text())["wandb"] == {"group": "trial"}
    kept = {
        path.name.rsplit("_", 2)[0] for path in folder.glob("wandb/offline-run-*/files/media/*/ablation/**/*") if path.is_file()
    }
    assert {"summary", "cells", "inside over method.scale_table", "sheets", "plots"} <= kept


def test_the_kept_configuration_makes_the_same_run(first: tuple[Path, str], attnguide: Command) -> None:
    assert attnguide("sample", "--config", first[0] / "config.yaml", "--logger", "none", "--out", "again").status == 0
    pictures = {name: content for name, content in _files(first[0]).items() if name.startswith("samples/")}
    assert {name: content for name, content in _files(Path("again")).items() if name.startswith("samples/")} == pictures


@pytest.mark.usefixtures("no_model")
def test_resume_of_a_complete_run_draws_again_and_loads_nothing(
    first: tuple[Path, str], tiny_folder: Path, attnguide: Command
) -> None:
    shutil.copytree(first[0], "run")
    before = Path("run/summary.csv").read_bytes()
    Path("run/summary.csv").unlink()
    words = ["ablate", first[0].parent / "trial.yaml", "--model", tiny_folder, "--logger", "wandb"]
    ended = attnguide(*words, "--out", "run", "--resume")
    assert ended.status == 0 and "10 of 10 rows are complete" in ended.out
    assert Path("run/summary.csv").read_bytes() == before


def test_resume_makes_only_what_is_missing(first: tuple[Path, str], tiny_folder: Path, attnguide: Command) -> None:
    shutil.copytree(first[0], "run")
    missing = Path("run/samples/seed1-inject1-1.png")
    picture = missing.read_bytes()
    missing.unlink()
    words = ["ablate", first[0].parent / "trial.yaml", "--model", tiny_folder, "--logger", "none"]
    ended = attnguide(*words, "--out", "run", "--resume")
    assert ended.status == 0 and "9 of 10 rows are complete" in ended.out and ended.err.count("\n") == 1
    assert missing.read_bytes() == picture and len(read_records("run")) == 10


def test_cells_become_runs_of_their_own_on_request(tiny_folder: Path, attnguide: Command) -> None:
    Path("trial.yaml").write_text(FILE)
    words = ["ablate", "trial.yaml", "--method", "inject5", "--method.scale", "2.5", "--seed", "0", "--steps", "1"]
    ended = attnguide(*words, "--model", tiny_folder, "--out", "run", "--logger", "wandb", "--cell-runs")
    assert ended.status == 0, ended.err
    runs = {found.run.display_name: found for found in (read_wandb(Path("run"), path) for path in wandb_files(Path("run")))}
    assert set(runs) == {"run", "plain", "inject5, 2.5"}
    cell = runs["inject5, 2.5"]
    assert (cell.run.job_type, cell.run.run_group) == ("cell", "trial")
    assert cell.config["axis/method"] == "inject5" and cell.config["axis/method_scale"] == 2.5
    assert cell.summary["mean/inside"] == pytest.approx(runs["run"].summary["mean/inside/inject5"])
    assert cell.keys() == {"pictures/cell"}


def test_values_are_picked_as_a_wandb_agent_types_them(tiny_folder: Path, attnguide: Command) -> None:
    Path("trial.yaml").write_text(FILE)
    agent = ["--cfg_scale=4", "--method=inject5", "--method.scale=2.5", "--method.start=0", "--seed=1"]
    words = ["ablate", "trial.yaml", *agent, "--no-plain", "--steps", "1", "--model", tiny_folder, "--out", "run"]
    assert attnguide(*words).status == 0
    (record,) = read_records("run")
    assert (record["id"], record["cell"], record["steps"], record["seed"]) == ("seed1-inject5-2.5", "inject5, 2.5", "1", "1")


@pytest.mark.usefixtures("no_model")
def test_a_sweep_may_call_sample_instead(attnguide: Command) -> None:
    agent = ["--cfg_scale=4", "--method=inject5", "--method.scale=2.5", "--seed=1"]
    said = yaml.safe_load(attnguide("sample", tiny.PROMPT, *agent, "--print_config").out)
    assert (said["cfg_scale"], said["seed"], said["methods"]) == (4.0, [1], [{"name": "inject5", "scale": 2.5}])


@pytest.mark.usefixtures("no_model")
def test_dry_run_tells_cells_and_costs_and_writes_nothing(attnguide: Command) -> None:
    Path("trial.yaml").write_text(FILE.replace("inject5", "mask_guidance").replace("  method.start: {value: 0}\n", ""))
    ended = attnguide("ablate", "trial.yaml", "--steps", "10", "--method.scale", "2.5", "--dry-run")
    assert ended.status == 0 and list(Path().iterdir()) == [Path("trial.yaml")]
    rows = [line.split() for line in ended.out.splitlines()]
    assert ["mask_guidance,", "2.5", "2", "25", "5", "50", "10"] in rows
    assert ["all", "6", "130", "10"] in rows


def test_runs_of_a_sweep_have_folders_of_their_own(
    tiny_folder: Path, attnguide: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("trial.yaml").write_text(FILE)
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    words = ["--method", "inject1", "--method.scale", "1", "--seed", "0", "--no-plain", "--no-norms", "--model", tiny_folder]
    assert attnguide("ablate", "trial.yaml", *words).status == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("trial_2") and folder.name.endswith("_abc123")


@pytest.mark.usefixtures("no_model")
def test_prompts_and_rows_are_not_cells(attnguide: Command) -> None:
    Path("trial.yaml").write_text("parameters:\n  prompt: {values: [a cat, a dog]}\n  steps: {values: [1, 2]}\n")
    assert "2 cells for 2 prompts and seeds, 4 rows\n" in attnguide("ablate", "trial.yaml", "--dry-run").out
    Path("rows.yaml").write_text("- prompt: a cat\n- {prompt: a dog, id: dog}\n")
    Path("trial.yaml").write_text("base: {rows: rows.yaml, seed: 0..2}\nparameters:\n  steps: {values: [1, 2]}\n")
    assert "2 cells for 6 prompts and seeds, 12 rows\n" in attnguide("ablate", "trial.yaml", "--dry-run").out


@pytest.mark.usefixtures("no_model")
def test_axes_may_bring_the_prompt(attnguide: Command) -> None:
    Path("trial.yaml").write_text("list:\n  animal:\n    cat: {prompt: a cat}\n    dog: {prompt: a dog}\n")
    assert "2 cells for 1 prompts and seeds, 2 rows\n" in attnguide("ablate", "trial.yaml", "--dry-run").out


LAYOUTS = """\
id,category,prompt,obj1,bbox1
a,one,a red cat,red cat,"0,0,32,32"
b,one,a blue ball,ball,"0,0,16,32"
c,two,a blue cat,cat,"0,0,32,16"
"""
CURVES = """\
base:
  layouts: own.csv
  prompts: 1
  seed: 0..1
  steps: 2
  box_size: 32
  logger: none
  maps: false
curves:
  way:
    added: {method: inject5, method.start: 0, method.scale: {values: [1, 2]}}
    moved: {method: stable, method.scale: {values: [0.5]}}
control: inside
quality: inside
"""


def test_curves_over_layouts(tiny_folder: Path, attnguide: Command) -> None:
    Path("own.csv").write_text(LAYOUTS)
    Path("trial.yaml").write_text(CURVES)
    ended = attnguide("ablate", "trial.yaml", "--model", tiny_folder, "--out", "run", "--categories", "one")
    assert ended.status == 0, ended.err
    assert "way (2) x strength (3)" in ended.out and "3 cells for 2 prompts and seeds, 8 rows, 2 of them plain" in ended.out
    records = read_records("run")
    assert [record["id"] for record in records if record["cell"] == "moved, 0.5"] == ["a-seed0-moved-0.5", "a-seed1-moved-0.5"]
    assert {record["steps"] for record in records} == {"2"} and {record["prompt"] for record in records} == {"a red cat"}
    assert {line["curve"]: line["n"] for line in read_table("run/stability.csv")} == {"added": "2", "moved": "2"}
    assert "stable range of strength" in ended.out and "run/stability.csv" in ended.out
    assert Image.open("run/plots/inside-against-inside.png").size > (100, 100)


@pytest.mark.usefixtures("no_model")
def test_layouts_and_curves_are_chosen_from(attnguide: Command) -> None:
    Path("own.csv").write_text(LAYOUTS)
    Path("trial.yaml").write_text(CURVES)
    said = attnguide("ablate", "trial.yaml", "--prompts", "2", "--way", "moved", "--dry-run").out
    assert "way (1) x strength (1)" in said and "1 cells for 6 prompts and seeds, 12 rows, 6 of them plain" in said
    said = attnguide("ablate", "trial.yaml", "--layouts", "development", "--categories", "boxes", "counting", "--dry-run").out
    assert "3 cells for 4 prompts and seeds, 16 rows, 4 of them plain" in said
    ended = attnguide("ablate", "trial.yaml", "--way", "moved", "--strength", "2", "--dry-run")
    assert ended.status == 2 and "no cell has way moved, strength 2" in ended.err


def test_what_is_drawn_is_replaced_as_a_whole(attnguide: Command) -> None:
    """Layouts in the place of the base's prompt with its regions, and a prompt in the place of layouts."""
    Path("trial.yaml").write_text(f"{BASE}parameters:\n  method: {{values: [inject1, inject2]}}\n")
    words = ("--layouts", "development", "--categories", "boxes", "--prompts", "2", "--dry-run")
    said = attnguide("ablate", "trial.yaml", *words).out
    assert "2 cells for 2 prompts and seeds, 6 rows, 2 of them plain" in said
    Path("trial.yaml").write_text("base: {layouts: development}\nparameters:\n  method: {values: [inject1]}\n")
    said = attnguide("ablate", "trial.yaml", "--prompt=a red cat", "--region", "red cat=0,0,1,1", "--dry-run").out
    assert "1 cells for 1 prompts and seeds, 2 rows" in said


BASE = "base: {prompt: a red cat, regions: ['red cat=0,0,1,1']}\n"
WRONG = [
    (
        ["trial.yaml"],
        "base:\n  prompt: a cat\n  regions: ['cat=0,0,2,1']\nparameters: {cfg_scale: {values: [1, 2]}}\n",
        ["trial.yaml, line 3", "'cat'", "0,0,2,1"],
    ),
    ([], "", ["file: expected an ablation's YAML file"]),
    (["gone.yaml"], "", ["'gone.yaml' does not exist"]),
    (["trial.yaml"], "parameters: [a\n", ["trial.yaml, line 2", "not valid YAML"]),
    (["trial.yaml"], f"{BASE}parameters:\n  stpes: {{values: [1]}}\n", ["trial.yaml, line 3", "did you mean 'steps'"]),
    (
        ["trial.yaml"],
        f"{BASE}parameters:\n  method: {{values: [mask_guidance]}}\n  method.iterations:\n    values: [1, -1]\n",
        ["trial.yaml, line 5", "cell 'mask_guidance, -1'", "iterations must be at least 0; got -1"],
    ),
    (
        ["trial.yaml"],
        f"{BASE}parameters:\n  method: {{values: [inject1]}}\n  cfg_scale: {{values: [1, 2]}}\n"
        "  method.levels: {values: [[0], coarse]}\n",
        [
            "trial.yaml, line 5",
            "cell 'inject1, 1, coarse'",
            "must be a list of whole numbers, like [0, 1]; got 'coarse'",
        ],
    ),
    (
        ["trial.yaml", "--dry-run"],
        f"{BASE}list:\n  way:\n    good: {{method: inject1}}\n    bad: {{method: best_of_k, method.k: 0}}\n",
        ["trial.yaml, line 5", "cell 'bad'", "k must be a whole number of at least 1; got 0"],
    ),
    (
        ["trial.yaml", "--dry-run"],
        "base:\n  prompt: a red cat\n  regions: ['red cat=0,0,1,1']\n  methods: [{name: mask_guidance, iterations: -1}]\n"
        "parameters:\n  cfg_scale: {values: [1, 2]}\n",
        ["trial.yaml, line 4", "iterations must be at least 0; got -1"],
    ),
    (
        ["trial.yaml"],
        "base: {prompt: a cat, regions: ['dog=0,0,1,1']}\nparameters:\n  steps: {values: [1]}\n",
        ["trial.yaml", "'dog'"],
    ),
    (["trial.yaml", "--steps", "7"], f"{BASE}parameters:\n  steps: {{values: [1, 2]}}\n", ["steps", "one of 1, 2", "'7'"]),
    (["trial.yaml", "--steps"], f"{BASE}parameters:\n  steps: {{values: [1, 2]}}\n", ["steps", "got nothing"]),
    (["trial.yaml", "--stepz", "7"], f"{BASE}parameters:\n  cfg_scale: {{values: [1, 2]}}\n", ["'--stepz'", "did you mean"]),
    (["trial.yaml"], "base:\n  layouts: gone.csv\nparameters:\n  steps: {values: [1]}\n", ["trial.yaml, line 2", "'gone.csv'"]),
    (
        ["trial.yaml"],
        "base:\n  layouts: development\n  categories: [boxs]\nparameters:\n  steps: {values: [1]}\n",
        ["trial.yaml, line 3", "categories", "did you mean 'boxes'"],
    ),
    (["trial.yaml"], "base:\n  prompts: 0\nparameters:\n  steps: {values: [1]}\n", ["trial.yaml, line 2", "at least 1", "0"]),
    (["trial.yaml", "--prompts", "2"], f"{BASE}parameters:\n  steps: {{values: [1]}}\n", ["prompts: expected layouts", "2"]),
    (
        ["trial.yaml", "--layouts", "development", "--prompt", "a red circle"],
        f"{BASE}parameters:\n  steps: {{values: [1]}}\n",
        ["layouts: expected either layouts, rows or a prompt"],
    ),
    (["trial.yaml", "--resume"], f"{BASE}parameters:\n  steps: {{values: [1, 2]}}\n", ["resume", "--out"]),
]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(("words", "text", "said"), WRONG, ids=[" ".join(said) for _, _, said in WRONG])
def test_mistakes_are_told_before_anything_is_done(words: list[str], text: str, said: list[str], attnguide: Command) -> None:
    if text:
        Path("trial.yaml").write_text(text)
    before = _files(Path())
    ended = attnguide("ablate", *words)
    assert ended.status == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1
    for part in said:
        assert part in ended.err
    assert _files(Path()) == before


def test_help_tells_how(attnguide: Command) -> None:
    ended = attnguide("ablate", "--help")
    assert ended.status == 0 and "--dry-run" in ended.out and "wandb sweep" in ended.out
    assert "ablate" in attnguide("--help").out
