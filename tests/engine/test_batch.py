"""The rows that are sampled together, and which of them still run."""

import torch

from attnguide.engine.batch import Batch, make_batch
from attnguide.types import Sample
from tests import tiny
from tests.engine.watch import Watch


def _batch(watch: Watch, *rows: Sample) -> Batch:
    with torch.no_grad(), tiny.model().evaluating():
        return make_batch(tiny.model(), rows or [tiny.row("0"), tiny.row("1", seed=4)], [], [], watch)


def test_rows_stop_alone_and_once() -> None:
    watch = Watch()
    batch = _batch(watch)
    batch.stop_broken([0, 1], torch.tensor([True, False]), "loss of a method is not finite at step 0")
    batch.stop_broken([1], torch.tensor([False]), "another reason")
    assert batch.alive == [0] and watch.stopped == [(1, "loss of a method is not finite at step 0")]
    assert batch.stopped == {1: "loss of a method is not finite at step 0"}


def test_latents_that_are_not_finite_leave_the_pass() -> None:
    watch = Watch()
    batch = _batch(watch)
    latents = batch.latents.clone()
    latents[0, 0, 0, 0] = float("inf")
    kept = batch.without_broken(latents, batch.scheduler.steps[2])
    assert not kept[0].any() and torch.equal(kept[1], latents[1])
    assert watch.stopped == [(0, "latents are not finite after step 2")] and batch.alive == [1]


def test_a_row_s_latents_are_those_of_its_seed_alone() -> None:
    together, alone = _batch(Watch()), _batch(Watch(), tiny.row("1", seed=4))
    assert torch.equal(together.latents[1:], alone.latents)


def test_what_observers_are_told() -> None:
    batch = _batch(Watch())
    assert [sample.id for sample in batch.info.samples] == ["0", "1"] and batch.info.steps == batch.scheduler.steps
    assert {site.kind for site in batch.info.sites} == {"cross", "self"} and "feature" in {s.kind for s in batch.modules}
    shown = batch.shown(batch.latents)
    shown += 1
    assert not torch.equal(shown, batch.latents)
