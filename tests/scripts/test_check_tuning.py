import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import check_tuning

from attnguide.benchmark import layout_samples
from attnguide.shapes.layouts import Layout
from attnguide.shapes.scene import COLORS
from attnguide.types import Cost, SampleResult
from tests import tiny

PROMPT = "a red circle and a blue square"


def _judged(**scores: tuple[float, float]) -> check_tuning.Judged:
    found: check_tuning.Judged = {}
    for label, (hit, explained) in scores.items():
        value = None if label == "plain" else float(label.removeprefix("s")) / 10
        found[value] = {"region_hit": [hit], "presence": [1.0], "explained": [explained]}
    return found


@pytest.mark.parametrize(
    ("judged", "value"),
    [
        (_judged(plain=(0.1, 0.9), s5=(0.5, 0.9), s10=(0.75, 0.89), s20=(0.8, 0.9)), 1.0),  # 0.65 of 0.7 is enough
        (_judged(plain=(0.1, 0.9), s5=(0.5, 0.9), s10=(0.75, 0.87)), 0.5),  # three points of foreground are too many
        (_judged(plain=(0.1, 0.9), s5=(0.5, 0.9), s10=(0.7, 0.8), s20=(0.9, 0.9)), 0.5),  # what is stronger is not safer again
        (_judged(plain=(0.1, 0.9), s5=(0.1, 0.9)), None),
        (_judged(plain=(0.1, 0.9), s5=(0.8, 0.5)), None),
    ],
    ids=["saturated", "kept", "first-loss", "no-gain", "spoilt"],
)
def test_the_judge_s_choice_by_hand(judged: check_tuning.Judged, value: float | None) -> None:
    assert check_tuning.judged_choice(judged) == value


@pytest.mark.parametrize("guard", check_tuning.GUARDS)
def test_a_loss_that_pictures_cannot_tell_is_allowed(guard: str) -> None:
    def scores(hit: float, kept: list[float]) -> dict[str, list[float]]:
        return {"region_hit": [hit] * 4, **{name: [1.0] * 4 for name in check_tuning.GUARDS}, guard: kept}

    plain = scores(0.0, [1.0, 1.0, 0.5, 0.5])
    unsure = scores(1.0, [1.0, 0.5, 0.5, 0.75])  # 6 points less in the mean, of one picture in four
    sure = scores(1.0, [0.94, 0.94, 0.44, 0.44])  # 6 points less in every one
    assert check_tuning.judged_choice({None: plain, 1.0: unsure}) == 1.0
    assert check_tuning.judged_choice({None: plain, 1.0: sure}) is None


def test_both_choices_are_of_the_same_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout("a0", "boxes", PROMPT, ("red circle", "blue square"), ((0.0, 0.0, 0.5, 1.0), (0.5, 0.25, 1.0, 1.0)))
    rows = layout_samples([layout], range(3), steps=2)
    watched = check_tuning.Watched([layout])
    table = check_tuning.check(tiny.model(), "forward_layout", [0.5, 1.0], rows, watched)
    assert [row["scale"] for row in table] == ["plain", "0.5", "1"] and {*watched.judged} == {None, 0.5, 1.0}
    assert all([len(found) for found in scores.values()] == [3, 3, 3] for scores in watched.judged.values())
    assert sum(row["without_judge"] for row in table) <= 1 and table[0]["without_judge"] == 0
    assert "without a judge" in capsys.readouterr().out


def test_a_bent_shape_is_in_its_place_and_not_recognised() -> None:
    layout = Layout("a0", "boxes", PROMPT, ("red circle", "blue square"), ((0.0, 0.0, 0.5, 1.0), (0.5, 0.25, 1.0, 1.0)))
    picture = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(picture)
    draw.polygon([(10, 40), (50, 50), (20, 60), (54, 80), (12, 90)], fill=COLORS["red"])  # no shape of this world
    draw.rectangle((74, 50, 114, 90), fill=COLORS["blue"])
    (row,) = layout_samples([layout], [0])
    watched = check_tuning.Watched([layout])
    watched.keep(None, [SampleResult(row, picture, None, Cost(0, 0, 0.0, 0.0))])
    (explained,) = watched.judged[None].pop("explained")
    assert watched.judged[None] == {"region_hit": [1.0], "presence": [1.0]} and 0.3 < explained < 0.9
