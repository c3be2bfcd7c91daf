"""Judges by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from attnguide.judges import open_judge, open_judges
from attnguide.judges.names import judge_config, judge_configs
from attnguide.judges.shapes import ShapesJudge

OWN = """
from attnguide.judges import Judge, Seen


class Size(Judge):
    name = "size"

    def __init__(self, *, unit: float = 1.0):
        self.unit = unit

    def look(self, pictures, asked):
        return [Seen(scores={"width": one.width / self.unit}) for one in pictures]


class Other:
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_judge.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "own_judge", raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])


def test_what_is_read() -> None:
    assert judge_config("detector=./owl") == {"name": "detector", "model": "./owl"}
    assert judge_config({"name": "detector=a/b", "threshold": 0.3}) == {"name": "detector", "model": "a/b", "threshold": 0.3}
    assert judge_config(judge_config("clip=x")) == {"name": "clip", "model": "x"}
    assert judge_configs("none") == [] and judge_configs(["shapes"]) == [{"name": "shapes"}]
    assert isinstance(open_judge("shapes"), ShapesJudge)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("shape", r"unknown judge 'shape' .did you mean 'shapes'"),
        ("detector", "expected detector=MODEL"),
        ("clip=", "expected clip=MODEL"),
        (["none", "shapes"], "expected none alone"),
        (["clip=a", "clip=b"], "every judge once"),
        (7, "expected a name"),
        ({"name": "clip=a", "model": "b"}, "twice"),
    ],
    ids=["misspelt", "no model", "empty model", "none and more", "twice", "number", "two models"],
)
def test_what_is_refused(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        judge_configs(value)


def test_a_judge_of_ones_own_from_the_working_directory(own: None) -> None:
    (judge,) = open_judges([{"name": "own_judge:Size", "unit": 2.0}])
    assert judge.name == "size" and getattr(judge, "unit", None) == 2.0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("own_judge:Missing", "has no 'Missing'"),
        ("own_judge:Other", "expected a subclass"),
        ("no_such_module:X", "cannot be imported"),
        ({"name": "own_judge:Size", "units": 1}, "unknown option 'units' .did you mean 'unit'"),
        ({"name": "own_judge:Size", "unit": "m"}, "unit must be a number"),
        ({"name": "shapes", "threshold": 0.5}, "unknown option"),
    ],
    ids=["no class", "no judge", "no module", "option", "type", "shapes option"],
)
def test_judges_that_cannot_be_opened(own: None, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        open_judge(value)  # type: ignore[arg-type]
