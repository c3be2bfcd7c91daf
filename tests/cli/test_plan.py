"""From settings to rows, without a model."""

from __future__ import annotations

import time
from typing import Any

import pytest

from attnguide.cli.errors import UsageError
from attnguide.cli.plan import DEMO, Plan, make_plan
from attnguide.cli.sample import settings
from attnguide.rows.samples import sample_to_dict
from attnguide.shapes.expectation import expectation_from_prompt
from attnguide.types import MethodConfig

PROMPT = "a red cat and a blue ball"
PLACE = ["red cat=0,0,0.5,1"]


def plan(**given: Any) -> Plan:
    known = {setting.name: setting for setting in settings()}
    asked = {name: setting.default for name, setting in known.items()}
    return make_plan(asked | {name: known[name](value) for name, value in given.items()})


def ids(made: Plan) -> list[str]:
    return [sample.id for sample in made.samples]


def test_nothing_asked_is_the_demonstration() -> None:
    made = plan()
    assert {sample.prompt for sample in made.samples} == {DEMO["prompt"]}
    assert {sample.method for sample in made.samples} == {"plain", *(method["name"] for method in DEMO["methods"])}
    assert all(len(sample.regions) == 2 for sample in made.samples)
    assert len(made.samples) == len(DEMO["seed"]) * (1 + len(DEMO["methods"]))


def test_the_demonstration_can_be_judged() -> None:
    expected = expectation_from_prompt(DEMO["prompt"])
    assert expected is not None and len(expected.names) == 2
    assert {region.phrase for region in plan().samples[0].regions} == set(expected.names)


def test_runs_begun_in_the_same_second_have_folders_of_their_own() -> None:
    folders = []
    for _ in range(3):
        folders.append(plan().folder)
        time.sleep(0.002)
    assert len(set(folders)) == 3


def test_the_demonstration_under_other_methods_and_seeds() -> None:
    made = plan(methods=["mask_guidance", "inject1"], seed=[4])
    assert ids(made) == ["seed4-plain", "seed4-mask_guidance_inject1"]


def test_a_prompt_alone_is_plain_and_a_place_asks_for_the_default_method() -> None:
    assert ids(plan(prompt=PROMPT)) == ["seed0-plain"]
    assert ids(plan(prompt=PROMPT, regions=["red cat"])) == ["seed0-plain"]
    assert ids(plan(prompt=PROMPT, regions=PLACE)) == ["seed0-plain", "seed0-forward_layout"]
    assert ids(plan(prompt=PROMPT, regions=PLACE, methods=["plain"])) == ["seed0-plain"]


def test_twins_stand_before_what_is_compared_with_them() -> None:
    made = plan(prompt=PROMPT, regions=PLACE, seed="1..2", compare=True, methods=["inject1", "inject2"])
    assert ids(made) == [f"seed{seed}-{name}" for seed in (1, 2) for name in ("plain", "inject1", "inject2")]
    assert ids(plan(prompt=PROMPT, regions=PLACE, plain=False)) == ["seed0-forward_layout"]


def test_options_reach_the_rows() -> None:
    made = plan(prompt=PROMPT, regions=PLACE, methods=[{"name": "mask_guidance", "scale": 2}], steps="7", scheduler="euler")
    assert made.samples[1].methods == (MethodConfig("mask_guidance", {"scale": 2}),)
    assert {(sample.steps, sample.scheduler) for sample in made.samples} == {(7, "euler")}


def test_rows_keep_their_own_methods_and_share_twins() -> None:
    own = {"prompt": PROMPT, "regions": PLACE, "methods": "inject1"}
    made = plan(rows=[{**own, "id": "a"}, {**own, "id": "b", "methods": []}, {**own, "id": "c"}], methods=["inject2"])
    assert [(sample.id, sample.method) for sample in made.samples] == [
        ("a-plain", "plain"),
        ("a", "inject1"),
        ("b-inject2", "inject2"),
        ("c", "inject1"),
    ]


def test_the_kept_configuration_makes_the_same_plan() -> None:
    for made in (plan(), plan(rows=[{"prompt": PROMPT, "regions": PLACE}], seed=[1, 2], methods=["inject1"])):
        again = plan(**made.kept_config)
        assert [sample_to_dict(sample) for sample in again.samples] == [sample_to_dict(sample) for sample in made.samples]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt": PROMPT, "rows": [{"prompt": PROMPT}]}, "both"),
        ({"regions": PLACE}, "prompt: expected"),
        ({"prompt": PROMPT, "resume": True}, "resume: expected --out"),
        ({"prompt": PROMPT, "box_size": 64}, "box_size: expected --rows"),
        ({"prompt": PROMPT, "methods": ["mask_guidance"]}, "needs at least one region"),
    ],
)
def test_contradictions(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(**given)


def test_a_weight_below_one_is_named() -> None:
    assert plan(prompt=PROMPT, cfg_scale=0.5).notes == ("cfg scale 0.5: switches classifier-free guidance off, as 1 does",)
    assert plan(prompt=PROMPT, cfg_scale=1.0).notes == ()
    for wrong in (-3.0, 1e9):
        with pytest.raises(UsageError, match=rf"cfg_scale must lie in \[0, 1000\]; got {wrong}"):
            plan(prompt=PROMPT, cfg_scale=wrong)


def test_rows_that_name_no_method_are_guided_where_regions_have_places() -> None:
    placed = {"prompt": PROMPT, "regions": PLACE}
    rows = [{**placed, "id": "a"}, {**placed, "id": "b", "methods": "plain"}, {"prompt": PROMPT, "id": "c"}]
    made = plan(rows=rows, plain=False)
    assert [(sample.id, sample.method) for sample in made.samples] == [
        ("a-forward_layout", "forward_layout"),
        ("b", "plain"),
        ("c", "plain"),
    ]
    assert [(row.id, row.method) for row in plan(**made.kept_config).samples] == [(row.id, row.method) for row in made.samples]
