"""Methods that users bring: from a file in the working directory, and from other packages' entry points."""

from __future__ import annotations

import csv
import sys
from importlib import metadata
from pathlib import Path

import pytest

import attnguide
from attnguide.methods import build_method, method_info, method_options
from attnguide.outside import entry_point_targets, find_source, is_target, load_target
from tests import tiny
from tests.cli.conftest import Command

SHARPEN = '''
from attnguide import Edit, Injection, SiteSelector, Window, WindowEdit


class Sharpen(Injection):
    """Scores times one and something.

    Args:
        scale: How much.
    """

    name, needs_regions = "sharpen", None

    def __init__(self, *, scale: float = 0.5, stop: float = 0.5) -> None:
        self.scale, self.window = scale, Window(0.0, stop)

    def edits(self, targets):
        return [_Sharpened(SiteSelector(kind="cross"), ("scores",), self.window, self.scale, len(targets.regions))]


class _Sharpened(WindowEdit):
    def scores(self, scores, site, context):
        return scores * (1 + self.gate(scores, context))


BROKEN = 7
'''
QUIET = ("--logger", "none", "--no-maps", "--no-norms")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside which a command is typed; the console script's folder does not have it in its path."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    Path("sharpening.py").write_text(SHARPEN)
    monkeypatch.delitem(sys.modules, "sharpening", raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(work))])


@pytest.fixture
def attnguide_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    from attnguide.cli import main
    from tests.cli.conftest import Outcome

    monkeypatch.setattr("attnguide.models.load.load_model", lambda *args, **options: tiny.model())

    def run(*words: str | Path) -> Outcome:
        status = main([str(word) for word in words])
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err)

    return run


def records(folder: str) -> list[dict[str, str]]:
    with Path(folder, "records.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def test_targets() -> None:
    assert (
        is_target("a.b:C") and is_target("__main__:C") and not is_target("a") and not is_target("C:\\x") and not is_target("a:")
    )
    assert find_source("sharpening") == str(Path("sharpening.py").resolve()) and find_source("nowhere.at") is None
    path = list(sys.path)
    assert load_target("sharpening:Sharpen").name == "sharpen" and sys.path == path


def test_a_class_says_what_a_list_of_methods_would() -> None:
    info = method_info("sharpening:Sharpen")
    assert (info.family, info.summary, info.needs_regions) == ("injection", "Scores times one and something", None)
    assert method_options("sharpening:Sharpen") == {"scale": 0.5, "stop": 0.5}
    assert build_method("sharpening:Sharpen", {"scale": 2.0}).scale == 2.0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sharpening:BROKEN", "must be a subclass of attnguide.Guidance or attnguide.Injection"),
        ("sharpening:Nothing", "has no 'Nothing'"),
        ("nowhere:Sharpen", "cannot be imported"),
        ("sharpen", "or name your own as module:Class"),
    ],
    ids=["no class", "no such class", "no module", "no colon"],
)
def test_what_is_no_method(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        method_info(name)


def test_python_takes_it() -> None:
    row = {"model": tiny.model(), "steps": 2, "seed": [0]}
    ((plain,), (sharp,)) = (attnguide.sample("a red cat", method=name, **row) for name in (None, "sharpening:Sharpen"))
    assert plain.image is not None and sharp.image is not None and plain.image.tobytes() != sharp.image.tobytes()


def test_a_command_its_configuration_and_its_ablation_take_it(attnguide_here: Command) -> None:
    words = ("a red cat", "--method", "sharpening:Sharpen", "--method.scale", 1.5, "--steps", 2)
    ended = attnguide_here("sample", *words, *QUIET, "--out", "run")
    assert ended.status == 0, ended.err
    plain, sharp = records("run")
    assert (
        sharp["id"] == "seed0-sharpening_Sharpen" and sharp["method"] == "sharpening:Sharpen" and plain["id"] == "seed0-plain"
    )
    assert attnguide_here("sample", "--config", "run/config.yaml", "--out", "again").status == 0
    assert [row["options"] for row in records("again")] == [row["options"] for row in records("run")]
    Path("scales.yaml").write_text(
        "base: {prompt: a red cat, steps: 2, seed: 0}\nmethod: grid\nparameters:\n  method: {value: 'sharpening:Sharpen'}\n"
        "  sharpening:Sharpen.scale: {values: [0.5, 1.0]}\n"
    )
    ended = attnguide_here("ablate", "scales.yaml", *QUIET, "--out", "ablated")
    assert ended.status == 0, ended.err
    assert {row["axis.sharpening:Sharpen.scale"] for row in records("ablated") if row["options"]} == {"0.5", "1"}
    assert "Scores times one and something" in attnguide_here("methods", "sharpening:Sharpen").out


def test_a_misspelt_option_is_one_line(attnguide_here: Command) -> None:
    ended = attnguide_here("sample", "a red cat", "--method", "sharpening:Sharpen", "--method.scal", 1.5)
    assert ended.status == 2 and "has no option 'scal' (did you mean 'scale'?)" in ended.err and ended.err.count("\n") == 1


def test_entry_points_are_names(monkeypatch: pytest.MonkeyPatch, attnguide_here: Command) -> None:
    point = metadata.EntryPoint("sharpened", "sharpening:Sharpen", "attnguide.methods")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == point.group else [])
    entry_point_targets.cache_clear()
    try:
        assert method_info("sharpened").target == "sharpening:Sharpen"
        assert "sharpened" in attnguide_here("methods").out
        ended = attnguide_here("sample", "a red cat", "--method", "sharpened", "--steps", 2, *QUIET, "--out", "run")
        assert ended.status == 0 and records("run")[1]["method"] == "sharpened"
    finally:
        entry_point_targets.cache_clear()
