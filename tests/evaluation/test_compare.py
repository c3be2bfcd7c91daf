"""Arms against each other, from entries made by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from attnguide.evaluation.arms import arm_rows, make_arms, slug, tries_for
from attnguide.evaluation.compare import compare, ordered
from attnguide.evaluation.entries import Entry, with_best
from attnguide.evaluation.tables import COLUMNS, latex, markdown, table_lines
from attnguide.report.content import read_tables
from attnguide.types import ExpectedCost, MethodConfig, Region, Sample


def entry(arm: str, subject: str, seed: int, hit: float | None, *, category: str = "boxes", **settings: object) -> Entry:
    numbers = {} if hit is None else {"region_hit": hit, "count_found": 7.0, "clip": hit / 2}
    made = {"status": "ok", "numbers": numbers, "passes": (10, 0), "seconds": 1.0, **settings}
    return Entry(f"{subject}-{arm}-{seed}", arm, subject, seed, f"prompt {subject}", category, **made)  # type: ignore[arg-type]


PLAIN = [entry("plain", subject, seed, float(subject == "a")) for subject in "abc" for seed in (0, 1)]
STEERED = [entry("box_diff", subject, seed, 1.0, passes=(12, 3)) for subject in "abc" for seed in (0, 1)]
TRIES = [replace(one, id=f"{one.id}-try1", attempt=1, numbers={"region_hit": float(one.subject == "b")}) for one in PLAIN]


def test_means_differences_and_order() -> None:
    found = compare({"plain": PLAIN, "box_diff": STEERED}, {"box_diff": "plain"})
    assert found.arms == ["plain", "box_diff"] and found.metrics == ["region_hit", "clip"] and found.categories == []
    plain, steered = found.line("plain", "region_hit"), found.line("box_diff", "region_hit")
    assert plain is not None and steered is not None and steered.to_plain is not None and steered.to_best is not None
    assert plain.mean.mean == pytest.approx(1 / 3) and plain.to_plain is None
    assert steered.to_plain.mean == pytest.approx(2 / 3) == steered.to_best.mean
    assert found.accounts[1].passes == (12.0, 3.0)


def test_intervals_of_a_single_prompt_are_over_pictures() -> None:
    """A bootstrap over one prompt would draw the same pictures each time, and an interval of no width reads as certainty."""
    plain = [entry("plain", "a", seed, float(seed % 2)) for seed in range(8)]
    steered = [entry("box_diff", "a", seed, 1.0) for seed in range(8)]
    found = compare({"plain": plain, "box_diff": steered}, {})
    before, after = found.line("plain", "region_hit"), found.line("box_diff", "region_hit")
    assert before is not None and before.mean.low < 0.5 < before.mean.high and before.mean.clusters == 8
    assert after is not None and after.to_plain is not None and after.to_plain.low < 0.5 < after.to_plain.high


def test_best_of_k_keeps_what_judges_like_best_and_costs_all_tries() -> None:
    best = {one.key: one for one in with_best([*PLAIN, *TRIES], 2)}
    assert {one.arm for one in best.values()} == {"best_of_2"} and len(best) == 6
    assert best["b", 0].id == "b-plain-0-try1" and best["a", 0].id == "a-plain-0"  # which has two numbers, both good
    assert best["c", 1].id == "c-plain-1"  # the first of equals
    assert best["b", 0].passes == (20, 0) and best["b", 0].seconds == 2.0
    assert [one.id for one in with_best([*PLAIN, *TRIES], 1)] == [one.id for one in PLAIN]


def test_failed_rows_count_as_nothing_and_refused_ones_are_left_out() -> None:
    failed = entry("box_diff", "a", 0, None, status="failed: NaN in step 3")
    refused = entry("box_diff", "b", 0, None, status="refused: no place")
    missing = entry("box_diff", "c", 0, None, status="")
    found = compare({"plain": PLAIN, "box_diff": [failed, refused, missing, *STEERED[1::2]]}, {})
    line = found.line("box_diff", "region_hit")
    assert line is not None and line.mean.pictures == 4 and line.mean.mean == 0.75
    account = found.accounts[1]
    assert dict(account.ended) == {"failed": 1, "refused": 1, "missing": 1, "ok": 3}
    assert account.reasons == [("a", "failed: NaN in step 3"), ("b", "refused: no place")]


def test_a_metric_that_does_not_apply_to_a_row_is_no_failure() -> None:
    failed = Entry("x", "box_diff", "d", 0, "a prompt without boxes", "boxes", 0, "failed: x")
    plain = Entry("y", "plain", "d", 0, "a prompt without boxes", "boxes", 0, "ok", {"clip": 0.3})
    found = compare({"plain": [*PLAIN, plain], "box_diff": [*STEERED, failed]}, {})
    hit, clip = found.line("box_diff", "region_hit"), found.line("box_diff", "clip")
    assert hit is not None and clip is not None and (hit.mean.pictures, clip.mean.pictures) == (6, 7)


def test_categories_are_lines_of_their_own() -> None:
    other = [entry("plain", "d", 0, 1.0, category="count"), entry("box_diff", "d", 0, 0.0, category="count")]
    found = compare({"plain": [*PLAIN, other[0]], "box_diff": [*STEERED, other[1]]}, {})
    assert found.categories == ["boxes", "count"]
    line = found.line("box_diff", "region_hit", "count")
    assert line is not None and line.mean.mean == 0.0 and line.to_plain is None


def test_metrics_of_several_judges_stand_in_one_order() -> None:
    names = ["clip", "detector.count", "mine", "shapes.presence", "detector.count_found", "iou", "presence"]
    assert ordered(names) == ["shapes.presence", "presence", "detector.count", "iou", "clip", "mine"]


def test_tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    entries = {"plain": PLAIN, "box_diff a|b_c": STEERED}
    found = compare(entries, {"box_diff a|b_c": "plain"})
    text = markdown(found, "title", {"model": "tiny"})
    assert "| plain | 33.3 [0, 100] |" in text and "| box_diff a\\|b_c | 100.0 [100, 100] |" in text
    assert "* model: tiny" in text and "+66.7 [0, 100]" in text and "against plain" in text
    path = tmp_path_factory.mktemp("tables") / "table.md"
    path.write_text(text)
    titles = [table.title for table in read_tables(path)]
    assert titles == ["Scores", "Difference to plain sampling", "Difference at equal compute", "Rows and cost"]
    scores = read_tables(path)[0]
    assert scores.heads == ["arm", "region_hit", "clip"] and scores.rows[1][0] == "box_diff a|b_c"
    lines = table_lines(found)
    assert all(set(line) <= set(COLUMNS) for line in lines) and len(lines) == 4
    tex = latex(found, "50 % & more")
    assert r"box\_diff a|b\_c & \textbf{100.0}" in tex and r"\caption{50 \% \& more}" in tex
    assert all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in tex.splitlines() if line.endswith(r"\\"))


def test_nobody_looked() -> None:
    silent = [entry("plain", "a", 0, None)]
    text = markdown(compare({"plain": silent}, {}), "title", {})
    assert "Not judged" in text and "| plain | 1 |" in text


REGION = Region("cat", box=(0.0, 0.0, 0.5, 1.0))


def test_rows_of_arms() -> None:
    rows = [Sample("0", "a cat", regions=(REGION,), tags={"category": "x"}), Sample("1", "a dog")]
    chosen = make_arms([[{"name": "box_diff", "step_size": 10.0}], [{"name": "mask_guidance"}, {"name": "inject7"}]])
    assert [arm.name for arm in chosen] == ["plain", "box_diff", "mask_guidance+inject7"]
    made = {row.id: row for row in arm_rows(rows, chosen, [0, 3], 2)}
    assert len(made) == 2 * 2 * (3 + 1)
    assert made["0-box_diff-3"].methods == (MethodConfig("box_diff", {"step_size": 10.0}),)
    assert made["0-plain-3-try1"].seed == 1_000_006 and made["0-plain-3-try1"].tags["attempt"] == 1
    assert made["0-mask_guidance_inject7-0"].tags == {"category": "x", "arm": "mask_guidance+inject7", "subject": "0"}
    assert "needs at least one region" in (made["1-box_diff-0"].problem or "") and made["1-plain-0"].problem is None
    broken = arm_rows([Sample("2", "a cat", problem="no area")], chosen, [0], 3)
    assert [row.id for row in broken] == ["2-plain-0", "2-box_diff-0", "2-mask_guidance_inject7-0"]


def test_arms_of_one_method_are_told_apart_by_options() -> None:
    twice = [[{"name": "stable", "room": 0.8}], [{"name": "stable", "room": 1.0}]]
    assert [arm.name for arm in make_arms(twice)] == ["plain", "stable room=0.8", "stable room=1.0"]
    with pytest.raises(ValueError, match="stable more than once"):
        make_arms([[{"name": "stable"}]] * 2)
    assert slug("stable room=0.8") == "stable_room_0.8"


def test_tries_cost_at_least_as_much() -> None:
    plain = ExpectedCost(60, 0, 60, 0)
    assert tries_for(plain, plain) == 1
    assert tries_for(ExpectedCost(75, 15, 75, 15), plain) == 2  # one and a half, rounded up
    assert tries_for(ExpectedCost(60, 0, 180, 0), plain) == 2  # thresholds decide: between one and three
    assert tries_for(ExpectedCost(60000, 0, 60000, 0), plain) == 16
