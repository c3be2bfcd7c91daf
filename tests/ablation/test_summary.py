"""Means with intervals from records."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnguide.ablation.summary import cell_table, estimate, metrics_of, seed_std, summarise, write_summary
from attnguide.run_folder.tables import read_table

SPREAD = ("seed_std", "to_plain", "to_plain_low", "to_plain_high")


def record(id: str, cell: str, scale: str, hit: str, status: str = "ok") -> dict[str, str]:
    """A line of ``records.csv``."""
    return {
        "id": id,
        "prompt": "a red circle",
        "seed": id,
        "method": "inject1",
        "cell": cell,
        "axis.scale": scale,
        "hit": hit,
        "unet_forwards": "8",
        "seconds": "1.5",
        "status": status,
    }


RECORDS = [
    record("0", "a", "1", "0"),
    record("1", "a", "1", "1"),
    record("2", "b", "2", "0.25"),
    record("3", "b", "2", "", "nan"),
]


def test_metrics_are_the_numbers_about_rows() -> None:
    assert metrics_of(RECORDS) == ["hit", "unet_forwards", "seconds"]
    assert metrics_of(RECORDS, costs=False) == ["hit"]
    assert metrics_of([*RECORDS, {"later": "1"}]) == ["hit", "later", "unet_forwards", "seconds"]


def test_an_interval_holds_its_mean_and_narrows_with_rows() -> None:
    few = estimate(RECORDS[:2], "hit")
    many = estimate([{**RECORDS[index % 2], "seed": str(index)} for index in range(100)], "hit")
    assert few is not None and many is not None
    assert (few.mean, few.low, few.high, few.n) == (0.5, 0, 1, 2)
    assert many.mean == 0.5 and 0.35 < many.low < 0.5 < many.high < 0.65 and many.n == 100
    assert estimate(RECORDS, "absent") is None


def test_seeds_of_a_prompt_are_drawn_together() -> None:
    hits = {"a": "1", "b": "0", "c": "1", "d": "0"}
    rows = [{"prompt": name, "seed": str(seed), "hit": hit} for name, hit in hits.items() for seed in range(16)]
    apart = [{**row, "prompt": "one", "seed": str(index)} for index, row in enumerate(rows)]
    by_prompt, by_seed = estimate(rows, "hit"), estimate(apart, "hit")
    assert by_prompt is not None and by_seed is not None
    assert (by_prompt.mean, by_prompt.n, by_prompt.clusters) == (0.5, 64, 4) and by_seed.clusters == 64
    assert by_prompt.high - by_prompt.low > 2.5 * (by_seed.high - by_seed.low)


def test_cells_are_compared_with_plain_twins_pair_by_pair(tmp_path: Path) -> None:
    plain = [
        {**record(f"{seed}-plain", "plain", "", hit), "seed": seed, "method": "plain"} for seed, hit in (("0", "0"), ("1", "1"))
    ]
    twenty = [{**row, "id": f"{row['id']}-20", "cell": "plain, 20", "steps": "20", "hit": "0.5"} for row in plain]
    steered = [
        record("0", "a", "1", "0.5"),
        record("1", "a", "1", "1"),
        {**record("2", "b", "2", "0.75"), "seed": "0", "steps": "20"},
    ]
    strayed = [record("0", "c", "3", "1"), {**record("1", "c", "3", "1"), "seed": "1000004"}]
    write_summary(tmp_path / "summary.csv", [*plain, *twenty, *steered, *strayed])
    lines = read_table(tmp_path / "summary.csv")
    found = {(line["cell"], line["metric"]): [line[name] for name in SPREAD[1:]] for line in lines}
    mean, low, high = map(float, found["a", "hit"])
    assert mean == 0.25 and (low, high) == (0.0, 0.5)
    assert float(found["b", "hit"][0]) == 0.25  # of the plain picture with as many steps
    assert found["c", "hit"] == ["", "", ""]  # one of its two rows has no twin
    assert found["plain", "hit"] == ["", "", ""] and float(found["a", "failed"][0]) == 0


def test_summary_has_a_line_for_each_cell_and_metric(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.csv", RECORDS)
    lines = read_table(tmp_path / "summary.csv")
    assert list(lines[0]) == ["cell", "axis.scale", "metric", "mean", "low", "high", "n", "clusters", *SPREAD]
    found = {(line["cell"], line["metric"]): line for line in lines}
    assert (found["a", "hit"]["mean"], found["a", "hit"]["n"]) == ("0.5", "2")
    assert (found["b", "hit"]["mean"], found["b", "hit"]["n"], found["b", "hit"]["axis.scale"]) == ("0.25", "1", "2")
    assert (found["b", "failed"]["mean"], found["b", "failed"]["n"]) == ("0.5", "2")


def test_a_cell_whose_rows_all_failed_is_there() -> None:
    lines = summarise([record("0", "a", "1", "", "stopped")])
    assert [line["mean"] for line in lines if line["metric"] == "failed"] == [1.0]


def test_table_of_cells() -> None:
    told = cell_table(RECORDS).splitlines()
    assert told[0].split() == ["cell", "rows", "hit", "forwards", "seconds"]
    assert told[1].split() == ["a", "2", "0.500", "8.000", "1.500"]
    assert cell_table(RECORDS, limit=1).splitlines()[-1] == "and 1 more cells, see summary.csv"


@pytest.mark.parametrize("value", ["0.25", "1"])
def test_one_row_has_no_spread(value: str) -> None:
    found = estimate([record("0", "a", "1", value)], "hit")
    assert found is not None and found.low == found.high == found.mean == float(value)


def test_spread_over_seeds_is_within_prompts() -> None:
    """Variances 0.5 and 2 within prompts; what prompts differ by does not count, nor does a prompt with one seed."""
    values = {"a": ("0", "1"), "b": ("11", "13"), "c": ("7",)}
    records = [{**record("0", "x", "1", hit), "prompt": prompt} for prompt, hits in values.items() for hit in hits]
    assert seed_std(records, "hit") == pytest.approx(((0.5 + 2) / 2) ** 0.5)
    assert seed_std(records[-1:], "hit") is None
    assert {line["seed_std"] for line in summarise(records) if line["metric"] == "seconds"} == {0.0}
