"""A row that cannot be made ends alone, with the reason as its status."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from attnguide.engine.observer import BatchInfo, Observer
from attnguide.guidance.mask_guidance import MaskGuidance
from attnguide.sampling.problems import require_rows
from attnguide.sampling.table import plan_batches, sample_batch, sample_each, sample_rows
from attnguide.types import Cost, MethodConfig, Region, Sample, SampleResult, verdict
from tests import tiny

GUIDED = (MethodConfig("mask_guidance", {"stop": 1.0}),)
SYNGEN = (MethodConfig("syngen"),)


class _Told(Observer):
    """Keeps what it is told of rows, and may break."""

    def __init__(self, breaks: bool = False) -> None:
        self.begun: list[list[str]] = []
        self.ended: list[str] = []
        self.given_up: list[str] = []
        self.breaks = breaks

    def on_sample_start(self, info: BatchInfo) -> None:
        self.begun.append([sample.id for sample in info.samples])
        if self.breaks:
            raise OSError("no space left")

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        self.ended += [result.sample.id for result in results]

    def on_rows_given_up(self, results: Sequence[SampleResult]) -> None:
        self.given_up += [result.sample.id for result in results]


def test_a_status_in_one_word() -> None:
    statuses = ("ok", "ok: x did nothing", "refused: too long", "failed: x", "latents are not finite after step 2", "okay")
    assert [verdict(status) for status in statuses] == ["ok", "ok", "refused", "failed", "failed", "failed"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"regions": (Region("cow", box=(0, 0, 1, 1)),)}, "Phrase 'cow' does not occur in the prompt"),
        ({"prompt": "a red cat and a blue ball " * 5}, "longer than the text encoder reads"),
        ({"problem": "the box has no area"}, "the box has no area"),
        ({"methods": SYNGEN, "prompt": "a cat", "regions": ()}, "needs a noun with a modifier"),
        ({"regions": ()}, "Method 'mask_guidance' needs at least one region"),
        ({"regions": (Region("red cat"),)}, "Method 'mask_guidance' needs a region with a place"),
    ],
)
def test_a_row_that_cannot_be_taken_costs_nothing_and_stops_nobody(settings: dict[str, Any], reason: str) -> None:
    good = tiny.row("good", steps=2, methods=GUIDED)
    bad = tiny.row("bad", **{"methods": GUIDED, "steps": 2, **settings})
    told = _Told()
    results = {result.sample.id: result for result in sample_rows(tiny.model(), [good, bad], observer=told)}
    (alone,) = sample_batch(tiny.model(), [good])
    assert results["bad"].status.startswith("refused: ") and reason in results["bad"].status
    assert results["bad"].image is None and results["bad"].latents is None and results["bad"].cost == Cost(0, 0, 0.0, 0.0)
    assert results["good"].status == "ok" and results["good"].latents is not None and alone.latents is not None
    assert torch.equal(results["good"].latents, alone.latents)
    assert told.begun == [["good"]] and told.ended == ["good"] and told.given_up == ["bad"]


def test_within_a_batch_the_others_are_sampled_together() -> None:
    rows = [tiny.row(str(index), steps=1, methods=GUIDED) for index in range(3)]
    rows[1] = tiny.row("1", "a dog", steps=1, methods=GUIDED, regions=(Region("cat", box=(0, 0, 1, 1)),))
    told = _Told()
    results = sample_each(tiny.model(), rows, told)
    assert [verdict(result.status) for result in results] == ["ok", "refused", "ok"] and told.begun == [["0", "2"]]


def test_a_table_of_which_nothing_would_come_is_refused() -> None:
    bad = [tiny.row(id, methods=GUIDED, regions=(Region("cow", box=(0, 0, 1, 1)),)) for id in ("a", "b")]
    with pytest.raises(ValueError, match="Row 'a': Phrase 'cow' does not occur"):
        next(sample_rows(tiny.model(), bad))
    with pytest.raises(ValueError, match="too thin"):  # the plain twin alone is not what was asked for
        require_rows([tiny.row("a-plain"), tiny.row("a", methods=GUIDED, problem="too thin")])
    require_rows([tiny.row("a"), tiny.row("b", methods=GUIDED, problem="too thin")])
    with pytest.raises(ValueError, match="Row 'b': too thin"):
        require_rows([tiny.row("a"), tiny.row("b", methods=GUIDED, problem="too thin")], strict=True)


def test_what_is_no_row_s_own_affair_refuses_all() -> None:
    for methods, settings in ((("mask_gidance", {}), {}), (("mask_guidance", {"x": 1}), {}), (("pag", {}), {"scheduler": "x"})):
        rows = [tiny.row("a"), tiny.row("b", methods=(MethodConfig(*methods),), **settings)]  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"Row 'b': .*([Uu]nknown|has no option)"):
            next(sample_rows(tiny.model(), rows))


def test_rows_with_problems_take_no_place_in_batches() -> None:
    rows = [tiny.row("a"), tiny.row("b", problem="x"), tiny.row("c"), tiny.row("d", methods=GUIDED, problem="x")]
    assert [[row.id for row in batch] for batch in plan_batches(rows, 2)] == [["b", "d"], ["a", "c"]]


def _broken_loss(monkeypatch: pytest.MonkeyPatch, error: BaseException, prompt: str = "a dog") -> None:
    """Mask guidance raises an error wherever a row of one prompt takes part."""
    loss = MaskGuidance.loss

    def breaks(self: MaskGuidance, maps: Any, targets: Any, step: Any) -> Any:
        if any(tokens.text == prompt for tokens in targets.tokenized):
            raise error
        return loss(self, maps, targets, step)

    monkeypatch.setattr(MaskGuidance, "loss", breaks)


def _three() -> list[Sample]:
    dog = tiny.row("dog", "a dog", steps=2, methods=GUIDED, regions=(Region("dog", box=(0, 0, 0.5, 1)),))
    return [tiny.row("a", steps=2, methods=GUIDED), dog, tiny.row("b", steps=2, methods=GUIDED, seed=5)]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("of a kind\nnobody foresaw"), "failed: of a kind nobody foresaw"),
        (RuntimeError("sizes differ"), "failed: RuntimeError: sizes differ"),
        (KeyError("cow"), "failed: KeyError: 'cow'"),
    ],
)
def test_an_unforeseen_error_ends_the_row_that_raises_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    _broken_loss(monkeypatch, error)
    told = _Told()
    results = list(sample_rows(tiny.model(), [*_three(), tiny.row("plain", steps=1)], observer=told))
    assert {result.sample.id: result.status for result in results} == {"a": "ok", "dog": status, "b": "ok", "plain": "ok"}
    assert told.given_up == ["dog"] and sorted(told.ended) == ["a", "b", "plain"]
    assert told.begun == [["a", "dog", "b"], ["a"], ["dog"], ["b"], ["plain"]]


@pytest.mark.parametrize("error", [KeyboardInterrupt("x"), MemoryError("x"), torch.cuda.OutOfMemoryError("x")])
def test_interrupts_and_lack_of_memory_end_the_table(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    _broken_loss(monkeypatch, error)
    advice = "x" if isinstance(error, KeyboardInterrupt) else "x; what helps: a batch size below 3, smaller pictures"
    with pytest.raises(type(error), match=advice):
        list(sample_rows(tiny.model(), _three()))


def test_an_error_of_the_observer_ends_the_table() -> None:
    """A full disk is no row's fault."""
    with pytest.raises(OSError, match="no space left"):
        list(sample_rows(tiny.model(), _three(), observer=_Told(breaks=True)))
