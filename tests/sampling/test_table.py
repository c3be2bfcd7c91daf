import pytest
import torch

from attnguide.sampling.observer import BatchInfo, Observer
from attnguide.sampling.table import plan_batches, sample_batch, sample_rows
from attnguide.types import MethodConfig, Region, Sample
from tests import tiny

INJECT = (MethodConfig("inject5", {"start": 0.0}),)


def _ids(batches: list[list[Sample]]) -> list[list[str]]:
    return [[row.id for row in rows] for rows in batches]


def test_rows_that_can_share_a_batch_do_in_the_order_of_their_firsts() -> None:
    rows = [
        tiny.row("a"),
        tiny.row("b", methods=INJECT),
        tiny.row("c", "a dog", regions=(), cfg_scale=1.0),
        tiny.row("d", steps=5),
        tiny.row("e", methods=INJECT),
        tiny.row("f"),
    ]
    assert _ids(plan_batches(rows, 8)) == [["a", "c", "f"], ["b", "e"], ["d"]]
    assert _ids(plan_batches(rows, 2)) == [["a", "c"], ["f"], ["b", "e"], ["d"]]
    assert _ids(plan_batches(rows, 1)) == [["a"], ["c"], ["f"], ["b"], ["e"], ["d"]]
    assert plan_batches([], 3) == []


def test_batch_size_is_checked() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        plan_batches([tiny.row()], 0)


class _Batches(Observer):
    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def on_sample_start(self, info: BatchInfo) -> None:
        self.rows.append([sample.id for sample in info.samples])


def test_results_come_batch_by_batch() -> None:
    observer = _Batches()
    rows = [tiny.row("a", steps=1), tiny.row("b", steps=1, methods=INJECT), tiny.row("c", steps=1)]
    results = sample_rows(tiny.model(), rows, batch_size=4, observer=observer)
    assert observer.rows == []
    assert next(results).sample.id == "a"
    assert observer.rows == [["a", "c"]]
    assert [result.sample.id for result in results] == ["c", "b"]
    assert observer.rows == [["a", "c"], ["b"]]


def test_bad_rows_are_refused_before_anything_is_sampled() -> None:
    observer = _Batches()
    rows = [tiny.row("a"), tiny.row("b", methods=INJECT, regions=(Region("red cat"),))]
    with pytest.raises(ValueError, match="'inject5' needs a region with a place; row 'b'"):
        next(sample_rows(tiny.model(), rows, observer=observer))
    assert observer.rows == []


def test_methods_of_the_rows_act() -> None:
    row = tiny.row(steps=2)
    plain = sample_batch(tiny.model(), [row])[0].latents
    steered = sample_batch(tiny.model(), [tiny.row(steps=2, methods=INJECT)])[0].latents
    assert plain is not None and steered is not None and not torch.equal(plain, steered)
