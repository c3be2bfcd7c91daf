from dataclasses import replace
from typing import Any

import pytest
import torch

from attnguide.engine.observer import BatchInfo, Observer
from attnguide.sampling.table import fitting_batch_size, plan_batches, sample_batch, sample_rows
from attnguide.types import MethodConfig, Region, Sample
from tests import tiny

INJECT = (MethodConfig("inject5", {"start": 0.0}),)
GUIDED = (MethodConfig("mask_guidance"),)


def _ids(batches: list[list[Sample]]) -> list[list[str]]:
    return [[row.id for row in rows] for rows in batches]


def test_rows_that_can_share_a_batch_do_in_the_order_of_their_firsts() -> None:
    rows = [
        tiny.row("a"),
        tiny.row("b", methods=GUIDED),
        tiny.row("c", "a dog", regions=(), cfg_scale=1.0),
        tiny.row("d", steps=5),
        tiny.row("e", methods=GUIDED),
        tiny.row("f"),
    ]
    assert _ids(plan_batches(rows, 8)) == [["a", "f"], ["b", "e"], ["c"], ["d"]]  # c has no unconditional half
    assert _ids(plan_batches(rows, 1)) == [["a"], ["f"], ["b"], ["e"], ["c"], ["d"]]
    assert plan_batches([], 3) == []
    guided = replace(rows[0], true_cfg_scale=2.0, negative_prompt="")  # two halves where guidance is distilled
    assert _ids(plan_batches([guided, rows[5]], 8)) == [["a"], ["f"]]


def _named(*rows: tuple[str, str], **settings: Any) -> list[Sample]:
    """Rows by id and method."""
    methods = {"plain": (), "guided": GUIDED, "pag": (MethodConfig("pag"),), "inject5": INJECT}
    return [tiny.row(id, methods=methods.get(name, (MethodConfig(name),)), **settings) for id, name in rows]


def test_what_is_left_over_of_methods_that_mix_is_sampled_together() -> None:
    rows = _named(("a", "inject1"), ("b", "guided"), ("c", "inject8"), ("d", "plain"), ("e", "inject1"), ("f", "pag"))
    assert _ids(plan_batches(rows, 8)) == [["a", "e", "c", "d"], ["b"], ["f"]]
    assert _ids(plan_batches(rows, 3)) == [["a", "e", "c"], ["d"], ["b"], ["f"]]
    assert _ids(plan_batches(rows, 2)) == [["a", "e"], ["b"], ["c", "d"], ["f"]]  # whole batches of one method first


def test_both_of_a_row_s_methods_must_mix() -> None:
    both = (*INJECT, *GUIDED)
    rows = [tiny.row("a"), tiny.row("b", methods=both), tiny.row("c", methods=INJECT), tiny.row("d", methods=both)]
    assert _ids(plan_batches(rows, 8)) == [["a", "c"], ["b", "d"]]


def test_mixing_makes_no_row_dearer_and_keeps_pictures_of_other_shapes_apart() -> None:
    """Beside a row with an unconditional half one without would be computed with it."""
    rows = _named(("a", "inject1"), ("b", "plain")) + _named(("c", "inject5"), ("d", "inject3"), cfg_scale=1.0)
    assert _ids(plan_batches(rows, 8)) == [["a", "b"], ["c", "d"]]
    mixed = _named(("a", "inject1"), ("b", "guided")) + _named(("c", "inject1"), ("d", "guided"), cfg_scale=1.0)
    assert _ids(plan_batches(mixed, 8)) == [["a"], ["b"], ["c"], ["d"]]
    rows = _named(("a", "inject1")) + _named(("b", "inject3"), steps=5) + _named(("c", "inject5"), height=40)
    assert _ids(plan_batches(rows, 8)) == [["a"], ["b"], ["c"]]


def test_small_pictures_come_in_large_batches() -> None:
    def most(*sizes: int) -> int:
        return fitting_batch_size(tiny.model(), [tiny.row(str(size), height=size, width=size) for size in sizes])

    assert [most(16), most(64), most(104), most(128), most(512)] == [16, 16, 12, 8, 8]
    assert most(16, 104) == 12 and fitting_batch_size(tiny.model(), [tiny.row()]) == 16


def test_every_device_has_some_of_the_rows() -> None:
    rows = [tiny.row(str(index)) for index in range(41)]
    assert [fitting_batch_size(tiny.model(), rows, devices) for devices in (1, 2, 4, 64)] == [16, 16, 11, 1]


def test_batch_size_is_checked() -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1; got 0"):
        plan_batches([tiny.row()], 0)


class _Batches(Observer):
    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def on_sample_start(self, info: BatchInfo) -> None:
        self.rows.append([sample.id for sample in info.samples])


def test_results_come_batch_by_batch() -> None:
    observer = _Batches()
    rows = [tiny.row("a", steps=1), tiny.row("b", steps=1, methods=GUIDED), tiny.row("c", steps=1)]
    results = sample_rows(tiny.model(), rows, batch_size=4, observer=observer)
    assert observer.rows == []
    assert next(results).sample.id == "a"
    assert observer.rows == [["a", "c"]]
    assert [result.sample.id for result in results] == ["c", "b"]
    assert observer.rows == [["a", "c"], ["b"]]


def test_strict_refuses_all_rows_before_anything_is_sampled() -> None:
    observer = _Batches()
    rows = [tiny.row("a"), tiny.row("b", methods=INJECT, regions=(Region("red cat"),))]
    with pytest.raises(ValueError, match="Row 'b': Method 'inject5' needs a region with a place"):
        next(sample_rows(tiny.model(), rows, observer=observer, strict=True))
    assert observer.rows == []


def test_methods_of_the_rows_act() -> None:
    row = tiny.row(steps=2)
    plain = sample_batch(tiny.model(), [row])[0].latents
    steered = sample_batch(tiny.model(), [tiny.row(steps=2, methods=INJECT)])[0].latents
    assert plain is not None and steered is not None and not torch.equal(plain, steered)
