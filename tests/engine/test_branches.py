"""Passes with more than two branches: who reads what, and that nobody outside notices."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.branches import Branches, common_source, source_prompts
from attnguide.engine.cfg import pass_context
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.injection.base import Injection, LatentsEdit, Source
from attnguide.models.base import Conditioning
from attnguide.prompt.targets import Targets
from attnguide.sampling.check import check_rows
from attnguide.sampling.sampler import Sampler
from attnguide.types import Branch, MethodConfig, PassContext, Sample, Step
from tests import tiny
from tests.closeness import assert_close

STEP = Step.at_sigma(0, 2, 901.0, 8.0)
OTHERS = ("a dog", "a blue cat")


class _Watches(LatentsEdit):
    """Remembers the source's latents; changes nothing unless told to."""

    sites = SiteSelector(kind="cross")

    def __init__(self, spoil: int | None = None) -> None:
        self.seen: list[Tensor] = []
        self.steps: list[int] = []
        self.spoil = spoil

    def active(self, context: PassContext) -> bool:
        return False

    def after_step(self, latents: Tensor, source: Tensor | None, step: Step) -> Tensor:
        self.steps.append(step.index)
        if source is not None:
            self.seen.append(source.clone())
            if step.index == self.spoil:
                source[0] = float("nan")  # as a source that overflowed
        return latents


class _Reads(Injection):
    """Asks for a source and does nothing with it."""

    name = "reads"
    needs_regions = None

    def __init__(self, prompts: str | Sequence[str | None] | None = OTHERS, spoil: int | None = None) -> None:
        self.source = Source(prompts)
        self.watches = _Watches(spoil)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [self.watches]


class _Extra(Injection):
    """Asks for a branch and remembers what was answered."""

    name = "extra"
    needs_regions = None

    def __init__(self, branch: Branch, source: Source | None = None) -> None:
        self.branch, self.source = branch, source
        self.answers: list[Mapping[Branch, Tensor]] = []

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return []

    def branches(self, step: Step) -> tuple[Branch, ...]:
        return (self.branch,) if step.index == 0 else ()

    def correct(self, noise_pred: Tensor, answers: Mapping[Branch, Tensor], step: Step) -> Tensor:
        self.answers.append(answers)
        return noise_pred


class _Sizes(Observer):
    def __init__(self) -> None:
        self.sizes: set[int] = set()
        self.branches: set[str] = set()

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        def record(site: Site, tensor: Tensor, context: PassContext) -> None:
            self.branches |= set(context.branches)
            self.sizes.add(len(context.positions("cond")))

        return [Probe("query", record)]

    def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
        self.sizes.add(len(latents))

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        self.sizes |= {len(latents), len(noise_pred)}


def _rows(**settings: object) -> list[Sample]:
    common = {"regions": (), "steps": 2, "scheduler": "euler_ancestral", **settings}
    return [tiny.row("0", seed=3, **common), tiny.row("1", "a red ball", seed=4, cfg_scale=2.0, **common)]


def _latents(rows: Sequence[Sample], injections: Sequence[Injection] = (), observer: Observer | None = None) -> Tensor:
    results = Sampler(tiny.model(), injections=injections, observer=observer or Observer()).run(rows)
    return torch.stack([result.latents for result in results if result.latents is not None])


@pytest.mark.parametrize("scheduler", ["euler_ancestral", "unipc", "heun"])
def test_a_source_is_the_other_prompt_s_own_picture_and_the_rows_do_not_notice(scheduler: str) -> None:
    """Also where the scheduler draws noise: source and row draw the same."""
    rows, method, observer = _rows(scheduler=scheduler), _Reads(), _Sizes()
    latents = _latents(rows, [method], observer)
    scale = float(latents.abs().max())
    assert_close(latents, _latents(rows))
    alone = _latents([replace(row, prompt=other) for row, other in zip(rows, OTHERS, strict=True)])
    torch.testing.assert_close(method.watches.seen[-1].float(), alone, rtol=0, atol=1e-5 * scale)
    assert observer.sizes == {2} and observer.branches == {"uncond", "cond", "source_uncond", "source"}
    assert method.watches.steps == ([0, 1] if scheduler != "heun" else [1, 2])


def test_without_classifier_free_guidance() -> None:
    rows, method, observer = [replace(row, cfg_scale=1.0) for row in _rows()], _Reads(), _Sizes()
    latents = _latents(rows, [method], observer)
    assert_close(latents, _latents(rows))
    assert observer.branches == {"cond", "source"}


def test_a_shared_source_reads_the_row_s_latents_and_only_when_asked_for() -> None:
    rows, method = _rows(), _Extra("source", Source(OTHERS, "shared"))
    results = Sampler(tiny.model(), injections=[method]).run(rows)
    assert [sorted(answers) for answers in method.answers] == [["cond", "source", "uncond"], ["cond", "uncond"]]
    other = _Extra("perturbed")
    _latents([replace(row, prompt=prompt) for row, prompt in zip(rows, OTHERS, strict=True)], [other])
    torch.testing.assert_close(method.answers[0]["source"], other.answers[0]["cond"], rtol=0, atol=1e-4)
    assert [result.cost.unet_forwards for result in results] == [5, 5]


def test_a_perturbed_branch_without_an_edit_answers_as_the_conditional_one() -> None:
    method = _Extra("perturbed")
    _latents(_rows(), [method])
    torch.testing.assert_close(method.answers[0]["perturbed"], method.answers[0]["cond"], rtol=0, atol=1e-4)
    assert sorted(method.answers[1]) == ["cond", "uncond"]


def test_a_source_that_breaks_takes_its_row_along() -> None:
    results = Sampler(tiny.model(), injections=[_Reads(spoil=0)]).run(_rows())
    assert results[0].status.startswith("latents are not finite after step 0") and results[0].image is None
    assert results[1].status == "ok"


def test_layout_and_pairs() -> None:
    states = Conditioning(torch.zeros(2, 3, 4), torch.ones(2, 3, 4))
    branches = Branches.build(2, states, Source(OTHERS), Conditioning(torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 3.0)))
    names = branches.at(STEP, [_Extra("perturbed")])
    assert names == ("uncond", "cond", "perturbed", "source_uncond", "source")
    context = pass_context(STEP, "denoise", [0, 1], names)
    assert branches.for_pass(context).cond[:, 0, 0].tolist() == [1, 1, 0, 0, 0, 0, 3, 3, 2, 2]
    latents = torch.arange(4.0)
    assert [branches.latents(name, latents).tolist() for name in names] == [[0, 1]] * 3 + [[2, 3]] * 2
    context = PassContext(STEP, "denoise", (1, 0, 0, 1, 2), ("cond", "cond", "source", "source", "cond"))
    assert context.paired("cond", "source") == ([0, 1], [3, 2])  # row 2 has no source
    assert context.paired("uncond", "source_uncond") == ([], [])


def test_one_source_for_all_rows() -> None:
    assert source_prompts(Source("a dog"), _rows()) == ["a dog", "a dog"]
    assert source_prompts(Source(["a dog", None]), _rows()) == ["a dog", "a red ball"]
    assert source_prompts(None, _rows()) == []
    with pytest.raises(ValueError, match="Only one method of a row can read another prompt's pass; got reads and reads"):
        common_source([_Reads(), _Reads()])
    with pytest.raises(ValueError, match="source_prompt must be one value, or a list with one per row; got 1 for 2 rows"):
        _latents(_rows(), [_Reads(["a dog"])])


def test_source_prompts_that_are_too_long() -> None:
    long = MethodConfig("masactrl", {"source_prompt": "a cat and " * 20})
    row = tiny.row(methods=(long,))
    with pytest.raises(ValueError, match=r"Row '0': source_prompt .* is longer than the text encoder reads"):
        check_rows(tiny.model(), [row])
    with pytest.raises(ValueError, match="is longer than the text encoder reads"):
        _latents(_rows(), [_Reads("a cat and " * 20)])
