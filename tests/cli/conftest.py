"""The command run inside the test's process, in an empty working directory, on a model with random weights."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from attnguide.cli import main
from tests import tiny


@dataclass(frozen=True)
class Outcome:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str


FILE = f"""\
base:
  prompt: {tiny.PROMPT}
  regions: ["red cat=0,0,0.5,1", "blue ball=0.5,0.25,1,1"]
  steps: 2
  maps: false
  logger: none
method: grid
parameters:
  method: {{values: [inject1, inject5]}}
  method.scale: {{values: [1, 2.5]}}
  method.start: {{value: 0}}
  seed: {{values: [0, 1]}}
  cfg_scale: {{value: 4}}
command: [attnguide, ablate, trial.yaml, "${{args}}"]
"""
"""An ablation of four cells, for :func:`ablation`."""

Command = Callable[..., Outcome]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ablation(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of one ablation with W&B, beside its file, and what it said."""
    folder, said = tmp_path_factory.mktemp("ablations"), io.StringIO()
    (folder / "trial.yaml").write_text(FILE)
    words = ["ablate", str(folder / "trial.yaml"), "--model", str(tiny_folder), "--out", str(folder / "run")]
    with redirect_stdout(said), redirect_stderr(io.StringIO()):
        assert main([*words, "--logger", "wandb"]) == 0
    return folder / "run", said.getvalue()


@pytest.fixture(scope="session")
def evaluation(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of one prompt with W&B."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "rows.csv").write_text('id,prompt,obj1,bbox1\n000,a red cat and a blue ball,red cat,"0,0,0.5,1"\n')
    words = ["eval", str(folder / "rows.csv"), "--model", str(tiny_folder), "--method", "inject5", "--steps", "1"]
    with redirect_stdout(io.StringIO()), redirect_stderr(said := io.StringIO()):
        status = main([*words, "--logger", "wandb", "--out", str(folder / "run")])
    assert status == 0, said.getvalue()
    return folder / "run"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demonstration, with few steps, in W&B."""
    folder = tmp_path_factory.mktemp("demonstration") / "demo"
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert main(["sample", "--steps", "2", "--logger", "wandb", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def attnguide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def run(*words: str | Path) -> Outcome:
        capsys.readouterr()
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err)

    return run


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is a failure of the test."""

    def load(*args: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("attnguide.models.load.load_model", load)
