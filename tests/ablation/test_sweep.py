"""The ablations as W&B reads them: what its schema describes, what its agent types, and that this runs."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

from attnguide.ablation.file import KEYS, SWEEP_KEYS, read_ablation
from attnguide.cli import ablate
from attnguide.cli.settings import run_settings
from attnguide.run_folder.records import read_records
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
OF_WANDB = {"method", "parameters", "name", "project", *SWEEP_KEYS}
OF_OURS = {"base", "list", "paired", "curves", "strength", "control", "quality"}
"""W&B's schema has no place for these: it warns of them, creates the sweep, and leaves them alone."""


def _read(path: Path) -> dict[str, Any]:
    found = load_sweep_config(str(path))
    assert found is not None
    return found


def _grid(parameters: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, dict[str, Any]]]:
    """What W&B hands its agents, one after the other."""
    values = [spec["values"] if "values" in spec else [spec["value"]] for spec in parameters.values()]
    for chosen in itertools.product(*values):
        yield {name: {"value": value} for name, value in zip(parameters, chosen, strict=True)}


def test_every_key_is_wandb_s_or_ours() -> None:
    assert OF_WANDB | OF_OURS == set(KEYS) and not OF_WANDB & OF_OURS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_wandb_reads_is_in_its_schema(path: Path) -> None:
    """Its published schema, by hand; the package that holds it is not part of wandb."""
    config = _read(path)
    assert set(config) <= OF_WANDB | OF_OURS
    assert config["method"] == "grid" and config["parameters"]
    for name, spec in config["parameters"].items():
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name)
        assert list(spec) == ["value"] or (list(spec) == ["values"] and spec["values"])
    assert json.loads(json.dumps(config)) == config  # how W&B's client sends it


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_run_of_a_sweep_is_a_cell(path: Path) -> None:
    """Of a file with curves: all strengths of one."""
    config, known = _read(path), ablate.settings()
    readers = {setting.name: setting.read for setting in run_settings()}
    readers |= {setting.name: setting.read for setting in known if setting.name in ("layouts", "categories", "prompts")}
    whole, seen = read_ablation(path, readers), set()
    for arguments in _grid(config["parameters"]):
        words = create_sweep_command_args({"args": arguments})["args"]
        picked, left = ablate._picked(whole, words, known)
        assert left == [] and (len(picked.cells) == 1 or "curves" in config)
        seen |= {cell.name for cell in picked.cells}
    assert seen == {cell.name for cell in whole.cells}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_runs_the_file_itself(path: Path) -> None:
    assert create_sweep_command(_read(path)["command"]) == ["attnguide", "ablate", str(path.relative_to(ROOT)), "${args}"]


def test_the_agent_s_command_is_a_run(tmp_path: Path) -> None:
    """As W&B's agent starts it, in a process of its own that finds the sweep in its environment."""
    path = ROOT / "configs" / "ablations" / "function_scale.yaml"
    config = _read(path)
    arguments = list(_grid(config["parameters"]))[7]
    words = [word for word in create_sweep_command(config["command"]) if word != "${args}"]
    assert words.pop(0) == "attnguide"
    tiny.pipeline(length=77).save_pretrained(tmp_path / "tiny")
    small = [
        "--model",
        "tiny",
        "--seed",
        "3",
        "--no-plain",
        "--steps",
        "2",
        "--height",
        "64",
        "--width",
        "64",
        "--device",
        "cpu",
    ]
    (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True)
    (tmp_path / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    agent = {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "run1", "WANDB_PROJECT": "trial"}
    ended = subprocess.run(
        [sys.executable, "-m", "attnguide", *words, *create_sweep_command_args({"args": arguments})["args"], *small],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **agent, "WANDB_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("function_scale_") and folder.name.endswith("_run1")
    (record,) = read_records(folder)
    assert (record["cell"], record["axis.method"], record["axis.method.scale"]) == ("inject2, 2", "inject2", "2")
    assert (record["status"].partition(":")[0], record["seed"], record["height"]) == ("ok", "3", "64")
    assert list(folder.glob("wandb/offline-run-*-run1")), ended.stdout
