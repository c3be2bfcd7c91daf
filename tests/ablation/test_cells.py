"""Cells times prompts and seeds."""

from __future__ import annotations

import argparse
import json

import pytest

from attnguide.ablation.cells import Row, expand
from attnguide.batching import batch_key
from attnguide.cli import values
from attnguide.types import Region, Sample

from .conftest import Read

SUBJECTS = [Sample(f"seed{seed}", "a red cat", seed, (Region("red cat", box=(0, 0, 0.5, 1)),), steps=4) for seed in (0, 1)]


def _expand(read: Read, text: str, *, plain: bool = False, base: tuple[dict[str, object], ...] = ()) -> list[Row]:
    return expand(read(text), SUBJECTS, base, values.methods, plain=plain)


def test_rows_carry_cell_and_axes(read: Read) -> None:
    rows = _expand(read, "parameters:\n  method: {values: [inject1, inject3]}\n  method.scale: {values: [-1, 2.5]}\n")
    assert len(rows) == 2 * 2 * 2
    first, last = rows[0].sample, rows[-1].sample
    assert (first.id, last.id) == ("seed0-inject1--1", "seed1-inject3-2.5")
    assert last.tags == {"cell": "inject3, 2.5", "axis.method": "inject3", "axis.method.scale": 2.5}
    assert (last.method, last.methods[0].options, last.seed, last.regions[0].box) == (
        "inject3",
        {"scale": 2.5},
        1,
        SUBJECTS[1].regions[0].box,
    )


def test_cells_that_differ_per_row_share_a_batch(read: Read) -> None:
    rows = _expand(read, "parameters:\n  method: {value: inject5}\n  method.scale: {values: [1, 2, 3]}\n")
    assert len({batch_key(row.sample) for row in rows}) == 1 and len(rows) == 6


def test_options_reach_their_methods(read: Read) -> None:
    text = "list:\n  a:\n    x: {method: mask_guidance+inject5, mask_guidance.step_size: 3, inject5.scale: 2}\n"
    methods = _expand(read, text)[0].sample.methods
    assert {config.name: config.options for config in methods} == {"mask_guidance": {"step_size": 3}, "inject5": {"scale": 2}}


def test_base_methods_keep_their_options(read: Read) -> None:
    base = ({"name": "inject5", "start": 0.5},)
    row = _expand(read, "parameters:\n  method.scale: {values: [1, 2]}\n", base=base)[0].sample
    assert row.methods[0].options == {"start": 0.5, "scale": 1}


def test_plain_rows_come_once_for_each_picture_they_are_compared_with(read: Read) -> None:
    text = "parameters:\n  method: {values: [inject1, inject3]}\n  steps: {values: [2, 3]}\n"
    plain = [row for row in _expand(read, text, plain=True) if not row.sample.methods]
    assert [row.sample.id for row in plain] == ["seed0-plain-2", "seed1-plain-2", "seed0-plain-3", "seed1-plain-3"]
    assert plain[0].sample.tags == {"cell": "plain, 2", "axis.steps": 2}
    assert [row.subject for row in plain] == ["seed0", "seed1"] * 2


def test_a_plain_cell_is_its_own_comparison(read: Read) -> None:
    rows = _expand(read, "list:\n  way:\n    none: {method: plain}\n    some: {method: inject1}\n", plain=True)
    assert [row.sample.tags["cell"] for row in rows] == ["none", "none", "some", "some"]


def test_names_that_read_alike_in_files_are_numbered(read: Read) -> None:
    text = "list:\n  way:\n    a b: {steps: 2}\n    a/b: {steps: 3}\n    A*b: {steps: 5}\n"
    assert [row.sample.id for row in _expand(read, text)][::2] == ["seed0-a_b", "seed0-a_b-2", "seed0-A_b-3"]


WRONG = [
    ("parameters:\n  method.scale:\n    values: [1]\n", 3, ["method.scale", "exactly one method", "it has plain"]),
    ("parameters:\n  inject1.scale: {values: [1]}\n  method: {values: [inject2]}\n", 2, ["'inject1'", "it has inject2"]),
    ("parameters:\n  method: {values: [inject1]}\n  method.step_size: {values: [1]}\n", 3, ["inject1", "'step_size'"]),
    (
        "parameters:\n  method: {values: [inject1]}\n  method.scale: {values: [1]}\n  inject1.scale: {values: [2]}\n",
        4,
        ["same as method.scale"],
    ),
    ("list:\n  a:\n    x: {method: inject1}\n    y:\n      method: inject1\n      regions: ['dog=0,0,1,1']\n", 4, ["'dog'"]),
    ("list:\n  a:\n    x: {method: mask_guidance, regions: []}\n", 3, ["mask_guidance", "region"]),
]


@pytest.mark.parametrize(("text", "line", "said"), WRONG, ids=[json.dumps(said) for _, _, said in WRONG])
def test_cells_that_cannot_be_are_told_by_line(read: Read, text: str, line: int, said: list[str]) -> None:
    with pytest.raises((ValueError, argparse.ArgumentTypeError)) as caught:
        _expand(read, text)
    assert f"trial.yaml, line {line}: " in str(caught.value)
    for part in said:
        assert part in str(caught.value)
