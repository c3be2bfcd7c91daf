"""``attnguide dashboard``: every name of every panel is one that the run logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnguide.callbacks import RunFolder
from attnguide.dashboard.layout import keys_of, sections
from attnguide.dashboard.names import names_of_folder
from attnguide.dashboard.workspace import report
from tests.wandb_file import WandbRun, read_wandb

from .conftest import FILE, Command


def _panels(workspace: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    bank = workspace["spec"]["section"]["panelBankConfig"]
    return {section["name"]: section["panels"] for section in bank["sections"]}


def _shown(panel: dict[str, Any]) -> set[str]:
    """Names of what a panel shows, those of the configuration as ``config:...``."""
    config = panel["config"]
    columns = [column["accessor"] for column in config.get("columns", ())]
    axes = [config[name] for name in ("xAxis", "yAxis", "targetKey") if isinstance(config.get(name), str)]
    listed = [*config.get("metrics", ()), *config.get("mediaKeys", ())]
    return {str(name).removeprefix("summary:") for name in (*columns, *axes, *listed)}


def _logged(run: WandbRun) -> set[str]:
    media = {key.partition("._type")[0] for key in run.summary if key.endswith("._type")}
    config = {f"config:{name}.value" for name in run.config}
    return run.keys() | set(run.summary) | media | config


@pytest.mark.parametrize("of", ["demo", "ablation", "evaluation"])
def test_no_panel_is_empty(of: str, request: pytest.FixtureRequest, attnguide: Command) -> None:
    given = request.getfixturevalue(of)
    folder: Path = given if isinstance(given, Path) else given[0]
    ended = attnguide("dashboard", folder, "--out", f"{of}.json", "--entity", "me")
    assert ended.status == 0 and "wandb login" in ended.out, ended.err
    written = json.loads(Path(f"{of}.json").read_text())
    panels = _panels(written["workspace"])
    own = {"demo": {"Maps"}, "ablation": {"Maps", "Ablation"}, "evaluation": {"Comparison"}}
    assert set(panels) == {"Pictures", "Cost and quality", "Did guidance work", "Rows"} | own[of]
    logged = _logged(read_wandb(folder))
    for name, found in panels.items():
        for panel in found:
            shown = _shown(panel)
            assert shown <= logged, (name, shown - logged)
            if panel["viewType"] == "Weave":  # a table, named inside of an expression
                shown = {key for key in ("rows", "eval/table") if f'"{key}"' in json.dumps(panel)} & logged
            assert shown or panel["viewType"] == "Run Comparer", panel
    assert [section["heading"] for section in written["report"]] == list(panels)


def test_a_stopped_ablation_logs_what_its_dashboard_shows(
    tiny_folder: Path, attnguide: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    def count(self: RunFolder, *given: Any) -> None:
        kept(self, *given)
        ended.extend(result.sample.id for result in given[-1])
        if len(ended) >= 6:
            raise RuntimeError("the cable was pulled")

    kept = RunFolder.on_sample_end
    monkeypatch.setattr(RunFolder, "on_sample_end", count)
    Path("trial.yaml").write_text(FILE)
    words = ["--model", tiny_folder, "--batch-size", "2", "--logger", "wandb", "--out", "run"]
    said = attnguide("ablate", "trial.yaml", *words)
    assert said.status == 1 and "the cable was pulled" in said.err and 6 <= len(ended) < 10
    run = read_wandb(Path("run"))
    assert {"ablation/summary", "ablation/sheets"} <= run.keys() >= names_of_folder(Path("run")).history


def test_the_grid_of_pictures_is_pinned_with_seeds_across(demo: Path) -> None:
    first = sections(names_of_folder(demo))[0]
    assert first.pinned and first.panels[0].grid
    methods = ("plain", "inject5", "mask_guidance", "stable")
    assert first.panels[0].keys == tuple(f"pictures/{method}" for method in methods)


def test_the_report_has_the_same_panels(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = "wandb_workspaces.reports.v2.interface"
    monkeypatch.setattr(f"{library}._get_api", lambda: None)
    monkeypatch.setattr(f"{library}.execute_graphql", lambda *_: {"project": {"internalId": "1"}})
    plans = sections(names_of_folder(demo))
    model = report(plans, "me", "trial")._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    text = json.dumps(model)
    missing = [key for key in keys_of(plans) if json.dumps(key).strip('"') not in text and key != "rows"]
    assert missing == [] and all(plan.name in text for plan in plans)


@pytest.mark.parametrize(
    ("words", "says"),
    [([], "run: expected the folder of a run"), (["nowhere"], "holds no run"), (["me/project"], "needs a key")],
)
def test_what_cannot_be_arranged_is_said_in_one_line(words: list[str], says: str, attnguide: Command) -> None:
    ended = attnguide("dashboard", *words)
    assert ended.status == 2 and says in ended.err and ended.err.count("\n") == 1
