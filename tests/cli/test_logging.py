"""What the commands leave in the loggers, read back from W&B's own file and held against the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.wandb_file import WandbRun, read_wandb

DOCS = Path(__file__).parents[2] / "docs" / "logging.md"


def _patterns() -> dict[str, str]:
    """Keys in the first column of the documentation's table, as patterns."""
    cells = [line.split("|")[1] for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    keys = [key for cell in cells for key in re.findall(r"`([^`]+)`", cell)]
    return {key: re.sub(r"<[^>]+>", "[^/]+", re.sub(r"([.+()])", r"\\\1", key)) for key in keys}


@pytest.fixture(scope="module")
def found(demo: Path) -> WandbRun:
    return read_wandb(demo)


def test_the_demonstration_makes_few_charts_that_name_no_row(found: WandbRun) -> None:
    charts = found.charts()
    assert len(charts) <= 15, sorted(charts)
    assert {"guide/loss/mask_guidance", "guide/inside/stable", "pictures/inject5", "rows"} <= charts
    assert not any("seed" in key for key in found.keys())


def test_means_by_method_come_with_each_batch_and_once_a_row_count(found: WandbRun) -> None:
    curve = found.curve("progress/inside/stable", "progress/rows")
    assert [rows for rows, _ in curve] == sorted({rows for rows, _ in curve}), "no two values at one place"
    assert curve[-1][1] == pytest.approx(found.summary["mean/inside/stable"])


def test_runs_of_every_command_make_few_charts(found: WandbRun, ablation: tuple[Path, str], evaluation: Path) -> None:
    """``pytest -s`` prints the charts that W&B makes by itself, and the number of keys."""
    for name, run in (("sample", found), ("ablate", read_wandb(ablation[0])), ("eval", read_wandb(evaluation))):
        charts = sorted(run.charts())
        print(f"\n{name}: {len(charts)} charts of {len(run.keys())} keys: {', '.join(charts)}")
        methods = run.config["methods"].split(", ")
        fixed = {
            key for key in charts if not key.startswith(("guide/", "pictures/")) or key in ("pictures/maps", "pictures/sheet")
        }
        assert len(charts) <= 15 and len(charts) <= len(fixed) + 3 * len(methods), charts
        assert len(fixed) <= (10 if name == "ablate" else 6), fixed


def test_the_summary_has_means_by_method_and_the_configuration_is_flat(found: WandbRun) -> None:
    assert {f"n/{method}" for method in ("plain", "inject5", "mask_guidance", "stable")} <= set(found.summary)
    assert {"mean/inside/plain", "std/inside/stable", "mean/region_hit/stable", "mean/failed/plain"} <= set(found.summary)
    assert found.summary["n/plain"] == 3
    assert found.run.job_type == "sample" and found.config["command"] == "sample"
    config = {name: value for name, value in found.config.items() if name != "_wandb"}
    assert all(isinstance(value, str | int | float) for value in config.values()), config
    assert config["inject5/scale"] == 2.0 and config["seeds"] == 3 and config["version/attnguide"]


def test_artifacts_hold_the_files_of_the_run(found: WandbRun) -> None:
    files = dict(found.artifacts.values())
    assert {"records.csv", "config.yaml", "report.html", "sheet.png"} <= set(files["attnguide-results"])
    assert "maps/seed0-stable/_overview.png" in files["attnguide-maps"]


def test_a_comparison_has_its_table_and_the_same_names(evaluation: Path) -> None:
    compared = read_wandb(evaluation)
    assert compared.run.job_type == "eval" and compared.config["command"] == "eval"
    assert {"eval/table", "eval/sheets", "pictures/inject5", "rows"} <= compared.keys(), compared.keys()
    assert compared.summary["n/inject5"] == 1


def test_every_key_is_documented(found: WandbRun, ablation: tuple[Path, str], evaluation: Path) -> None:
    patterns = _patterns()
    logged = found.keys() | read_wandb(ablation[0]).keys() | read_wandb(evaluation).keys()
    unknown = [key for key in logged - {"trainer/global_step"} if not any(re.fullmatch(p, key) for p in patterns.values())]
    assert not unknown
    on_request = ("rows/loss/", "rows/inside/", "rows/step", "ablation/stability", "pictures/cell")
    absent = [key for key, p in patterns.items() if not any(re.fullmatch(p, name) for name in logged)]
    assert [key for key in absent if not key.startswith(on_request) and key != "guide/loss/<method>/<guidance>"] == []


def test_an_ablation_says_its_axes_file_and_base(ablation: tuple[Path, str]) -> None:
    found = read_wandb(ablation[0])
    assert found.run.job_type == "ablate"
    config = found.config
    assert config["axis/method"] == "inject1, inject5" and config["axis/method_scale"] == "1, 2.5"
    assert config["ablation/name"] == "trial" and str(config["ablation/file"]).endswith("trial.yaml")
    assert config["ablation/cells"] == 4 and config["base/steps"] == 2 and config["rows"] == 10
    assert "samples" not in config and config["prompt"]
    assert found.summary["cell/inside/inject5/2_5"] > 0 and found.summary["mean/inside/inject1"] > 0
