"""Settings: which are tried, on which rows, and which one is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnguide.evaluation.arms import Arm
from attnguide.evaluation.choosing import Score, Tuned, choose, metrics_for, score_of
from attnguide.evaluation.compare import compare
from attnguide.evaluation.development import Parts, split_lines, split_rows
from attnguide.evaluation.entries import Entry
from attnguide.evaluation.grids import candidates, changes, knobs_of
from attnguide.evaluation.tables import markdown
from attnguide.methods import METHODS, Knob, build_method
from attnguide.types import PLAIN, MethodConfig, Sample

# ------------------------------------------------------------------------------------------------------------- the grids


@pytest.mark.parametrize("name", METHODS)
def test_every_declared_setting_is_one_that_the_method_has_and_some_can_be_built(name: str) -> None:
    arm = Arm(name, (MethodConfig(name, {}),))
    knobs = knobs_of(arm)
    declared = METHODS[name].knobs
    assert [knob for _, knob in knobs] == [knob for knob in declared if knob in [one for _, one in knobs]]
    assert bool(knobs) == bool(declared)
    for place, knob in knobs:
        found = candidates(arm, arm.methods, place, knob)
        assert found[0] == arm and len(found) > 1
        assert len({one.name for one in found}) == len(found)
        for one in found:
            build_method(name, one.methods[0].options)


def test_factors_are_of_what_was_given_and_values_stand_for_themselves() -> None:
    arm = Arm("box_diff", (MethodConfig("box_diff", {"step_size": 40.0}),))
    (_, strength), (_, stop) = knobs_of(arm)
    assert [one.methods[0].options["step_size"] for one in candidates(arm, arm.methods, 0, strength)] == [40, 2.5, 10, 160, 640]
    best = (MethodConfig("box_diff", {"step_size": 160.0}),)
    named = [one.name for one in candidates(arm, best, 0, stop)]
    assert named == ["box_diff step_size=160", "box_diff step_size=160 stop=0.3", "box_diff step_size=160 stop=0.8"]
    assert changes(arm, arm.methods) == ""


def test_values_that_a_method_refuses_and_methods_without_a_strength_are_left_out() -> None:
    whole = Arm("forward_layout", (MethodConfig("forward_layout", {"scale": 1.0}),))
    names = [one.name for one in candidates(whole, whole.methods, 0, Knob("scale", factors=(0.5, 4.0)))]
    assert names == ["forward_layout", "forward_layout scale=0.5"]
    assert knobs_of(Arm("best_of_k", (MethodConfig("best_of_k", {}),))) == []
    both = Arm("a", (MethodConfig("masactrl", {}), MethodConfig("inject1", {})))
    assert [(place, knob.option) for place, knob in knobs_of(both)] == [(1, "start"), (1, "scale")]
    assert changes(both, [both.methods[0], MethodConfig("inject1", {"start": 0.9})]) == "inject1.start=0.9"


# ------------------------------------------------------------------------------------------------------------- the split


def rows(*prompts: str, category: str = "x") -> list[Sample]:
    return [Sample(f"{category}{i}", prompt, tags={"category": category}) for i, prompt in enumerate(prompts)]


def test_a_quarter_of_the_prompts_of_each_category_is_tuned_on() -> None:
    asked = [*rows(*map("cat {}".format, range(8))), *rows(*map("dog {}".format, range(7)), category="y")]
    test, development = split_rows(asked)
    assert sorted(row.tags["category"] for row in development) == ["x", "x", "y"] and len(test) == 12
    parts = Parts(test, development[:1], split_lines(test, development))
    assert parts.told == "1 row of 3 of the file's 15 prompts, which are left out of all tables"
    assert Parts(test, development).told == "3 rows of the development file"


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30), st.randoms(use_true_random=False))
def test_no_prompt_is_on_both_sides_and_the_order_of_rows_makes_no_difference(letters: list[str], random: object) -> None:
    asked = [Sample(str(i), letter, tags={"category": "xy"[i % 2]}) for i, letter in enumerate(letters)]
    if len(set(letters)) == 1:
        with pytest.raises(ValueError, match="at least two prompts"):
            split_rows(asked)
        return
    test, development = split_rows(asked)
    assert development and len(test) + len(development) == len(asked)
    assert not {row.prompt for row in test} & {row.prompt for row in development}
    mixed = list(asked)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert {row.id for row in split_rows(mixed)[1]} == {row.id for row in development}


# ------------------------------------------------------------------------------------------------------------ the choice


def pictures(arm: str, hit: float, explained: float | None) -> list[Entry]:
    numbers = {"region_hit": hit, "presence": 0.5} | ({} if explained is None else {"explained": explained})
    return [Entry(f"{arm}{i}", arm, str(i), 0, f"prompt {i}", status="ok", numbers=numbers) for i in range(4)]


def settings(*tried: tuple[float, float | None]) -> tuple[list[Arm], dict[str, list[Entry]]]:
    found = {PLAIN: pictures(PLAIN, 0.1, None if tried[0][1] is None else 0.9)}
    arms = [Arm(f"box_diff {i}", (MethodConfig("box_diff", {"step_size": float(i + 1)}),)) for i in range(len(tried))]
    for arm, (hit, explained) in zip(arms, tried, strict=True):
        found[arm.name] = pictures(arm.name, hit, explained)
    return arms, found


@pytest.mark.parametrize(
    ("tried", "chosen"),
    [
        ([(0.2, 0.9), (0.5, 0.89), (0.9, 0.87)], 1),  # the third loses three points
        ([(0.2, 0.9), (0.5, 0.88), (0.4, 0.95)], 1),  # two points are allowed; more quality than plain is worth nothing
        ([(0.5, 0.9), (0.5, 0.99)], 0),  # equals: what was given
        ([(0.2, 0.7), (0.5, 0.6)], 0),  # all lose more
        ([(0.2, 0.7), (0.05, 0.9)], 1),  # what was given loses too much, the other holds
        ([(0.2, None), (0.5, None)], 1),  # presence bounds it then, which is the same here
    ],
    ids=["bounded", "allowance", "equals", "none holds", "one holds", "no quality"],
)
def test_the_most_control_at_bounded_quality(tried: list[tuple[float, float | None]], chosen: int) -> None:
    arms, entries = settings(*tried)
    found = compare(entries, {})
    metrics = metrics_for(arms[0].methods, found)
    assert metrics == ("region_hit", "explained" if tried[0][1] is not None else "presence")
    assert choose(arms, metrics, found) == arms[chosen]
    score = score_of(arms[0], metrics, found)
    assert score is not None and score.control == pytest.approx(tried[0][0] - 0.1)


def test_methods_without_places_are_chosen_by_presence_and_unjudged_settings_never() -> None:
    arms, entries = settings((0.2, 0.9), (0.5, 0.9))
    entries[arms[1].name] = [replace(one, status="refused: no", numbers={}) for one in entries[arms[1].name]]
    found = compare(entries, {})
    assert score_of(arms[1], ("region_hit", "explained"), found) is None
    assert choose(arms, ("region_hit", "explained"), found) == arms[0]
    assert metrics_for([MethodConfig("attend_and_excite", {})], found) == ("presence", "explained")
    prefixed = {arm: [replace(e, numbers={"detector.presence": 1.0}) for e in own] for arm, own in entries.items()}
    assert metrics_for(arms[0].methods, compare(prefixed, {})) == ("detector.presence", "")


def test_what_was_chosen_stands_in_the_table() -> None:
    _, entries = settings((0.2, 0.9))
    arm = Arm("box_diff", (MethodConfig("box_diff", {"stop": 0.8}),))
    tuned = [
        Tuned(arm, "stop=0.8", 7, ("region_hit", "explained"), Score(0.1, 0.0), Score(0.4, -0.015)),
        Tuned(Arm("masactrl", (MethodConfig("masactrl", {}),))),
        Tuned(arm, "", 3, ("presence", ""), Score(0.0), Score(0.0)),
    ]
    text = markdown(compare(entries, {}), "title", {}, tuned)
    assert "| box_diff | stop=0.8 | 7 | region_hit +10.0 to +40.0 | explained +0.0 to -1.5 |" in text
    assert "| masactrl | as given | 0 | none | none |" in text and "| presence +0.0 to +0.0 | none |" in text
