"""Every shipped configuration is run by the command in its first lines, for two steps on a model with random weights."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from attnguide.cli import main
from attnguide.methods import METHODS
from attnguide.run_folder.records import read_records
from attnguide.types import verdict
from tests import joint, tiny

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "ablations")
ABLATIONS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs" / "ablations").glob("*.yaml"))
SMALL = ["--height", "32", "--width", "32", "--device", "cpu", "--dtype", "fp32", "--batch-size", "4"]
ONE_PROCESS = ["--trainer.devices", "1", "--trainer.num_nodes", "1", "--trainer.strategy", "auto"]
QUIET = ["--no-maps", "--no-norms", "--logger", "none"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.pipeline(length=77).save_pretrained(folder)  # reads as much as the models that the commands are for
    yield str(folder)


@pytest.fixture(scope="module")
def joint_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return joint.save(tmp_path_factory.mktemp("models") / "joint")


def command_of(path: Path) -> list[str]:
    """The words of the command that a file's first comment holds."""
    words = ""
    for line in (ROOT / path).read_text(encoding="utf-8").splitlines():
        assert line.startswith("# "), f"{path} must begin with a comment that holds the command which runs it"
        words += line.removeprefix("# ").rstrip("\\")
        if not line.endswith("\\"):
            break
    return shlex.split(words)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_configuration_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    words = command_of(path)
    assert words[:2] == ["attnguide", "sample"] and str(path) in words
    monkeypatch.chdir(tmp_path)
    keys = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    pictures = [method["source_image"] for method in keys.get("methods", []) if "source_image" in method]
    for name in [*words, *pictures]:
        if name.startswith("configs/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "layouts.csv").write_text(f'prompt,obj1,bbox1\n{tiny.PROMPT},red cat,"0,0,256,512"\n')
    steps = "4" if keys.get("scheduler") == "pndm" else "2"  # its Runge-Kutta start takes no fewer
    model = request.getfixturevalue("joint_model" if "true_cfg_scale" in keys else "model")
    small = [*SMALL, "--steps", steps, *(ONE_PROCESS if "trainer" in keys else [])]
    seed = [] if "--seed" in words or "--rows" in words else ["--seed", "0"]
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = main([*_fewer_seeds(words[1:]), *seed, *small, *QUIET, "--model", model, "--out", "run"])
    assert status == 0, said.getvalue()
    records = read_records("run")
    assert records and all(verdict(record["status"]) == "ok" for record in records)
    for record in records:
        assert Image.open(f"run/samples/{record['id']}.png").size == (32, 32)
    for method in keys.get("methods", []):
        assert any(method["name"] in record["method"] for record in records)


@pytest.mark.parametrize("path", ABLATIONS, ids=str)
def test_ablation_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A corner of its grid: the last value of every axis, one seed; a W&B agent would type what is in the file's command."""
    words = command_of(path)
    assert words == ["attnguide", "ablate", str(path)]
    content = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    assert content["command"] == [*words, "${args}"]
    assert content["method"] == "grid" and content["parameters"]  # which W&B needs
    monkeypatch.chdir(ROOT)
    run = str(tmp_path / "run")
    model = request.getfixturevalue("joint_model" if "true_cfg_scale" in content["base"] else "model")
    small = ["--seed", "0", "--steps", "2", *SMALL, *QUIET, "--model", model, "--out", run]
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        assert main([*words[1:], "--dry-run"]) == 0, said.getvalue()
        assert main([*words[1:], *_last_values(content), *small]) == 0, said.getvalue()
    records = read_records(run)
    steered = [record for record in records if not record["cell"].startswith("plain")]
    prompts = {(record["prompt"], record["regions"]) for record in steered}
    assert len(steered) == len(prompts) > 0 and all(verdict(record["status"]) == "ok" for record in records)
    assert steered[0]["method"] != "plain" and Path(run, "summary.csv").is_file()


def _last_values(content: dict[str, Any]) -> list[str]:
    """``--axis value`` for every axis of an ablation."""
    last = {name: spec["values"][-1] for name, spec in content.get("parameters", {}).items() if "values" in spec}
    assert {*content.get("list", ()), *content.get("paired", ()), *content.get("curves", ())} <= set(
        last
    )  # all of it can be told to W&B
    for name, curves in content.get("curves", {}).items():
        listed = [value["values"][-1] for value in curves[last[name]].values() if isinstance(value, dict)]
        last["strength"] = listed[0]
    if "layouts" in content["base"]:
        last |= {"prompts": 1, "categories": content["base"]["categories"][0]}
    return [word for name, value in last.items() for word in (f"--{name}", str(value))]


def _fewer_seeds(words: list[str]) -> list[str]:
    return ["0" if before == "--seed" else word for before, word in zip(["", *words], words, strict=False)]


def test_every_method_has_a_configuration() -> None:
    named = {path.stem for path in CONFIGS if path.parent.name == "methods"}
    assert set(METHODS) <= named
