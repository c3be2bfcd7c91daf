"""What README and docs show is run: Python blocks on a model with random weights, commands up to their settings."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import attnguide.methods
from attnguide.cli import main
from attnguide.cli.opening import check_on_model
from attnguide.cli.plan import Plan
from attnguide.engine.observer import Observer, UpdateEvent
from attnguide.models.unet import StableDiffusion
from attnguide.prompt.tokens import token_indices
from attnguide.run_folder.files import write_atomic
from attnguide.run_folder.records import RECORD_COLUMNS, read_records
from attnguide.run_folder.tables import append_table
from attnguide.sampling.table import sample_batch
from attnguide.types import Region, Sample, SampleResult
from tests import tiny
from tests.models import families

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BOXES = {"red circle": (0.05, 0.25, 0.45, 0.75), "blue square": (0.55, 0.25, 0.95, 0.75)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StableDiffusion:
    """The model that every name stands for; it reads as much as the embedded one, and takes no more than four steps."""
    held = StableDiffusion(tiny.pipeline(length=77), "tiny")
    make = held.make_scheduler
    monkeypatch.setattr(held, "make_scheduler", lambda name, steps, *shape: make(name, min(steps, 4), *shape))
    for home in ("attnguide.models.load", "attnguide.module"):
        monkeypatch.setattr(f"{home}.load_model", lambda *args, **options: held)
    return held


@pytest.fixture
def names(model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a page's blocks one after the other, as a reader would, in an empty folder; those that name a file become it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(attnguide.methods, "METHODS", dict(attnguide.methods.METHODS))
    return {"__name__": "page"}


def write_named(block: str) -> None:
    """A block that begins with the name of a file becomes it."""
    if named := re.match(r"# (\w+\.(py|yaml))\n", block):
        Path(named[1]).write_text(block)


def run_page(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    for block in blocks(page, "python"):
        write_named(block)
        exec(compile(block, page.name, "exec"), names)
    return names


def test_readme_runs(names: dict[str, Any]) -> None:
    run_page(ROOT / "README.md", names)
    assert {path.name for path in Path().glob("*.png")} == {
        f"{method}-seed{seed}.png" for method in ("plain", "mask_guidance", "stable") for seed in (0, 1)
    }


def test_a_run_under_lightning_runs(names: dict[str, Any]) -> None:
    run_page(ROOT / "docs" / "callbacks.md", names)
    assert len(read_records("runs/step_size")) == 6


if hasattr(diffusers, "OvisImagePipeline"):  # older ones have other examples only

    def test_adding_a_model_runs(names: dict[str, Any]) -> None:
        """An adapter from outside the package draws what the pipeline of diffusers draws, and is steered."""
        found = run_page(ROOT / "docs" / "adding_a_model.md", names | {"pipeline": families.shared("ovis")})
        assert found["results"][0].status == "ok"
        adapter = found["OvisImage"](families.shared("ovis"))
        row = Sample("0", tiny.PROMPT, steps=2, height=32, width=48, cfg_scale=1.0)
        (result,) = sample_batch(adapter, [row])
        assert result.latents is not None and torch.equal(result.latents, families.peer("ovis", row, adapter))
        place = token_indices(adapter.tokenize(tiny.PROMPT), "cat")
        assert [adapter.tokenize(tiny.PROMPT).tokens[position] for position in place] == ["Ġcat"]


def test_adding_a_method_runs(names: dict[str, Any], model: StableDiffusion) -> None:
    run_page(ROOT / "docs" / "adding_a_method.md", names)
    assert [row["method"] for row in read_records("runs/centre")] == ["centre:CentreGuidance"] * 2
    _check_guidance(names["CentreGuidance"](step_size=50.0), model, (0.0, 0.0, 0.5, 0.5))
    _check_guidance(names["WordOverlap"](step_size=50.0), model, None)
    plain, same, sharp = (
        _picture(model, injections=given) for given in ([], [names["Sharpen"](scale=0)], [names["Sharpen"]()])
    )
    assert np.array_equal(plain, same) and not np.array_equal(plain, sharp)


ALONE = ("README.md", "callbacks.md", "adding_a_method.md", "adding_a_model.md", "pipelines.md")
"""Pages that have tests of their own."""


def test_other_pages_run(names: dict[str, Any]) -> None:
    for page in PAGES:
        if page.name not in ALONE:
            run_page(page, dict(names))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_say_whether_they_run(page: Path) -> None:
    """Python and commands are run by this file; ``text`` marks what is not."""
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0 and set(fences[1::2]) <= {""}
    assert set(fences[::2]) <= {"python", "bash", "text", "{eval-rst}"}


def test_pages_take_what_is_public() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            deep = re.findall(r"^(?:from|import) attnguide\.(\S+)", block, re.MULTILINE)
            assert deep == [], page.name


def test_methods_that_are_named_exist() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    section = text[text.index("* Guidance:") : text.index("`mask_guidance`, `stable` and the hand-drawn")]
    told = set(re.findall(r"`(\w+)`", section)) | {f"inject{number}" for number in range(1, 9)}
    assert told == set(attnguide.methods.METHODS), "all of them"


def test_a_loss_takes_at_most_thirty_lines() -> None:
    (block,) = [block for block in blocks(ROOT / "docs" / "adding_a_method.md", "python") if "class CentreGuidance" in block]
    body = block[block.index("class ") :]
    assert len(body.strip().splitlines()) <= 30


def _row(box: tuple[float, float, float, float] | None = None) -> Sample:
    regions = tuple(Region(phrase, box=box or place) for phrase, place in BOXES.items())
    return Sample("r", "a red circle and a blue square", 0, regions, steps=4)


def _picture(model: StableDiffusion, **methods: Any) -> np.ndarray:
    (result,) = attnguide.Sampler(model, **methods).run([_row()])
    assert isinstance(result, SampleResult) and result.image is not None
    return np.asarray(result.image)


class _Losses(Observer):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_guidance_update(self, event: UpdateEvent) -> None:
        self.found.append(event.losses[0])


def _check_guidance(guidance: Any, model: StableDiffusion, box: tuple[float, float, float, float] | None) -> None:
    """Guidance lowers its own loss, against the same run with a step size of nearly nothing."""
    ends = []
    for scale in (1e-9, 1.0):
        watch = _Losses()
        guidance.update = attnguide.Update(guidance.update.step_size, scale)
        attnguide.Sampler(model, guidances=[guidance], observer=watch).run([_row(box)])
        ends.append(watch.found[-1])
    assert ends[1] < ends[0]


WITH_FILES = ("adding_a_method.md",)
"""Pages whose commands are typed beside the files that their blocks are."""

COMMANDS = [
    (page.name, command)
    for page in PAGES
    for block in blocks(page, "bash")
    for line in block.replace("\\\n", " ").splitlines()
    for command in line.split(" && ")
    if command.startswith("attnguide ")
]


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[command for _, command in COMMANDS])
def test_commands_are_understood(
    page: str, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)[1:]
    files = [block for kind in ("python", "text") for block in blocks(ROOT / "docs" / page, kind)] if page in WITH_FILES else []
    monkeypatch.chdir(tmp_path if words[0] == "init" or files else ROOT)
    for block in files:
        write_named(block)
    short_of_running = {"sample": "--print_config", "maps": "--print_config", "eval": "--print_config", "ablate": "--dry-run"}
    if words[0] == "report":  # of a run that the page made before
        append_table(
            tmp_path / words[1] / "records.csv", RECORD_COLUMNS, [dict.fromkeys(RECORD_COLUMNS, "1") | {"regions": ""}]
        )
        monkeypatch.chdir(tmp_path)
    if "--config" in words and not Path(words[words.index("--config") + 1]).exists():
        write_atomic(tmp_path / words[words.index("--config") + 1], "prompt: a cat\n")
        monkeypatch.chdir(tmp_path)
    short = short_of_running.get(words[0])
    assert main([*words, short] if short and short not in words else words) == 0
    assert capsys.readouterr().out


FOLLOWED = {"README.md": 2, "regions.md": 4}
"""Pages whose commands are followed from an empty folder, and how many runs they plan; ``check_stranger.py`` follows all."""


@pytest.mark.parametrize("page", FOLLOWED)
def test_commands_find_their_files(
    page: str, model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them one after the other, from an empty folder: maps are made, and runs planned and checked on a model."""
    planned: list[Plan] = []

    def check(plan: Plan, *args: object) -> int:
        planned.append(plan)
        assert all(row.problem is None for row in check_on_model(model, plan.samples))
        return 0

    monkeypatch.setattr("attnguide.cli.execute.execute", check)
    monkeypatch.chdir(tmp_path)
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    for block in blocks(path, "bash"):
        for command in re.split(r" && |\n", block.replace("\\\n", " ")):
            words = shlex.split(command, comments=True)
            if words[:1] == ["cd"]:
                monkeypatch.chdir(words[1])
            if words[:1] == ["attnguide"]:
                short = ["--steps", "4"] if words[1] == "maps" else []
                assert main([*words[1:], *short]) == 0, (command, capsys.readouterr().err)
    assert len(planned) == FOLLOWED[page] and (page != "regions.md" or Path("maps/red_circle.png").is_file())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    named = re.findall(r"(?<![\w/])(?:scripts|configs|docs|tests)/[\w./]*", text)
    for target in [*linked, *named]:
        file = target.partition("#")[0].rstrip(".")  # what stands behind # is held against headings where the site is built
        assert (page.parent / file).exists() or (ROOT / file).exists(), target


def test_adding_a_method_is_followed_from_outside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files and commands of the page, typed in an empty folder that Python itself does not search."""
    page = ROOT / "docs" / "adding_a_method.md"
    (commands,) = [block for block in blocks(page, "bash") if "overlap" in block]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "word_overlap", raising=False)
    for kind in ("python", "text"):
        for block in blocks(page, kind):
            write_named(block)
    quiet = ["--logger", "none", "--steps", "2"]
    quick = {"sample": [*quiet, "--no-maps"], "ablate": [*quiet, "--no-maps"], "eval": [*quiet, "--best-of", "0"]}
    for command in commands.replace("\\\n", " ").splitlines():
        words = shlex.split(command)[1:]
        assert main([*words, *quick.get(words[0], [])]) == 0, (command, capsys.readouterr().err)
    assert {row["method"] for row in read_records("runs/overlap")} == {"plain", "word_overlap:WordOverlap"}
    assert list(Path("runs/overlap_strength/plots").glob("*-over-method.step_size*.png"))
    assert "word_overlap:WordOverlap" in Path("runs/overlap_table/table.md").read_text()
