from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attnguide.attention.sites import Site
from attnguide.injection.aligned_attention import AlignedCrossAttention
from attnguide.injection.local_blend import LocalBlend
from attnguide.injection.prompt_to_prompt import PromptToPrompt
from attnguide.methods import build_method
from attnguide.types import Sample, Step
from tests import tiny
from tests.closeness import assert_close
from tests.injection import common
from tests.reference import prompt_to_prompt as reference

ALL = ("uncond", "cond", "source_uncond", "source")
EARLY = Step.at_sigma(0, 10, 901.0, 8.4)
SOURCES = ["a blue cat and a red fox", "a cat and a dog", "a blue dog left of a blue ball", "a dog right of a cat"]


def _rows(**options: Any) -> list[Sample]:
    return common.four_rows("prompt_to_prompt", [{"source_prompt": source, **options} for source in SOURCES])


def _sources_of(row: Sample, source: str, edit: str) -> list[dict[int, float]]:
    """By hand: all words are one token but "fox", which is three."""
    new, old = row.prompt.split(), source.split()
    found: list[dict[int, float]] = [{0: 1.0}]
    at = 1
    for mine, other in zip(new, old, strict=True):
        length = 3 if other == "fox" else 1
        if edit == "replace" or mine == other:
            found.append({at + offset: 1.0 for offset in range(length)})
        else:
            found.append({})
        at += length
    return found + [{at + offset: 1.0} if at + offset < tiny.LENGTH else {} for offset in range(tiny.LENGTH - len(found))]


@pytest.mark.parametrize("edit", ["replace", "refine"])
def test_equals_the_slow_reference(edit: Any) -> None:
    rows, scales = common.four_rows("prompt_to_prompt"), [1.0, 0.0, 0.5, 1.0]
    method = PromptToPrompt(
        source_prompt=SOURCES,
        edit=edit,
        scale=scales,
        reweight=[{"red cat": 2.0}, None, {"ball": -1.0}, None],
        word_windows=[None, None, {"dog": (0.5, 1.0)}, None],
    )
    context = common.context_of(4, ALL, EARLY)
    probs = common.random_scores(context, common.CROSS).softmax(-1)
    edited = method.edits(common.targets_of(rows, SOURCES))[0].probs(probs, common.CROSS, context)
    for untouched in (slice(0, 4), slice(8, 16)):
        assert torch.equal(edited[untouched], probs[untouched])
    for index, row in enumerate(rows):
        factors, shares = [1.0] * tiny.LENGTH, [scales[index]] * tiny.LENGTH
        if index == 0:
            factors[2] = factors[3] = 2.0
        if index == 2:
            factors[8], shares[3] = -1.0, 0.0
        expected = reference.edited_probs(
            probs[4 + index].numpy(), probs[12 + index].numpy(), _sources_of(row, SOURCES[index], edit), factors, shares
        )
        np.testing.assert_allclose(edited[4 + index].numpy(), expected, rtol=0, atol=1e-6)


def test_self_attention_becomes_the_source_s_on_small_maps() -> None:
    cross, own = PromptToPrompt(source_prompt="a dog").edits(common.targets_of(common.four_rows("x"), SOURCES))
    context = common.context_of(4, ALL, EARLY)
    probs = common.random_scores(context, common.SELF).softmax(-1)
    edited = own.probs(probs, common.SELF, context)
    assert torch.equal(edited[4:8], probs[12:]) and torch.equal(edited[:4], probs[:4]) and torch.equal(edited[8:], probs[8:])
    assert own.sites.chosen([common.SELF, Site("x", "self", 17, 16, 1)]) == {common.SELF} and cross is not own


def test_windows() -> None:
    cross, own = PromptToPrompt().edits(common.targets_of([tiny.row()], [tiny.PROMPT]))
    contexts = [common.context_of(1, ALL, Step.at_sigma(index, 50, 500.0, 1.0)) for index in range(50)]
    assert sum(cross.active(context) for context in contexts) == 40
    assert [own.active(context) for context in contexts] == [True] * 20 + [False] * 30
    more = PromptToPrompt(cross_stop=0.3, quirks="reference").edits(common.targets_of([tiny.row()], [tiny.PROMPT]))[0]
    contexts = [common.context_of(1, ALL, Step.at_sigma(index, 9, 500.0, 1.0)) for index in range(9)]
    assert sum(more.active(context) for context in contexts) == 3  # 0.3 of ten, not of nine


def _shares(method: PromptToPrompt, prompt: str, step: Step) -> list[bool]:
    """Which of the prompt's tokens are edited in a step."""
    (edit, *_) = method.edits(common.targets_of([tiny.row(prompt=prompt, regions=())], [prompt]))
    assert isinstance(edit, AlignedCrossAttention)
    return [edit.covers(step, *span) for span in edit.spans[0]]


@pytest.mark.parametrize("quirks", ["none", "reference"])
def test_windows_have_a_start_for_all_tokens_and_for_words_wherever_they_occur(quirks: Any) -> None:
    """The published schedule: rows of a table of one step more, 1 from ``int(start * rows)`` to ``int(stop * rows)``."""
    prompt = "a cat and a dog and a cat"
    method = PromptToPrompt(cross_start=0.2, cross_stop=0.7, word_windows={"cat": (0.5, 0.9), "dog": (0.0, 0.3)}, quirks=quirks)
    rows = 11 if quirks == "reference" else 10
    words = {2: (0.5, 0.9), 8: (0.5, 0.9), 5: (0.0, 0.3)}
    for index in range(10):
        found = _shares(method, prompt, Step.at_sigma(index, 10, 500.0, 1.0))
        for position in range(tiny.LENGTH):
            start, stop = words.get(position, (0.2, 0.7))
            assert found[position] == (int(start * rows) <= index < int(stop * rows)), (index, position)
    own = PromptToPrompt(self_start=0.2, self_stop=0.5).edits(common.targets_of([tiny.row()], [tiny.PROMPT]))[-1]
    active = [own.active(common.context_of(1, ALL, Step.at_sigma(index, 10, 500.0, 1.0))) for index in range(10)]
    assert active == [2 <= index < 5 for index in range(10)]
    assert len(PromptToPrompt(self_start=0.4, self_stop=0.4).edits(common.targets_of([tiny.row()], [tiny.PROMPT]))) == 1


def test_a_word_means_all_its_occurrences_unless_one_is_named() -> None:
    prompt = "a cat and a dog and a cat"
    targets = common.targets_of([tiny.row(prompt=prompt, regions=())], [prompt])
    for phrase, positions in (("cat", {2, 8}), ("cat[1]", {8}), ("cat [0]", {2}), ("a cat", {1, 2, 7, 8})):
        edit: Any = PromptToPrompt(reweight={phrase: -2.0}).edits(targets)[0]
        assert {position for position, factor in enumerate(edit.factors[0].tolist()) if factor == -2.0} == positions
        blend: Any = PromptToPrompt(blend=f"dog,{phrase}").edits(targets)[0]
        assert set(blend.words[0][0]) == positions | {5}
    with pytest.raises(ValueError, match=r"occurs 2 times in the prompt .*, got 2"):
        PromptToPrompt(reweight={"cat[2]": 2.0}).edits(targets)


def test_rows_of_a_batch_equal_rows_alone() -> None:
    extra: list[dict[str, Any]] = [{"reweight": {"cat": 3.0}}, {"scale": 0.5}, {"blend": "dog"}, {}]
    options = [{"source_prompt": source, **more} for source, more in zip(SOURCES, extra, strict=True)]
    common.assert_rows_equal_rows_alone(common.four_rows("prompt_to_prompt", options))


def test_scale_zero_is_no_method_and_costs_nothing() -> None:
    common.assert_no_method(_rows(scale=0.0, blend="a"))


def test_the_same_prompt_is_no_method() -> None:
    rows = common.four_rows("prompt_to_prompt")
    plain = common.latents_of([replace(row, methods=()) for row in rows])
    assert_close(common.latents_of(rows), plain)


def test_each_prompt_has_its_own_trajectory() -> None:
    """With everything replaced in one step, only the text states differ; with nothing replaced, nothing does."""
    row = replace(_rows(cross_stop=0.0, self_stop=0.0)[0], scheduler="euler_ancestral")
    plain = common.latents_of([replace(row, methods=())])
    assert_close(common.latents_of([row]), plain)


def test_local_blend_keeps_the_source_outside_the_words() -> None:
    rows = [tiny.row("0"), tiny.row("1", "a dog and a cat", regions=())]
    sources = ["a red dog and a blue ball", "a ball and a cat"]
    method = PromptToPrompt(source_prompt=sources, blend=["cat", None], blend_source=["dog", None], blend_threshold=0.9)
    edit: Any = method.edits(common.targets_of(rows, sources))[0]
    context = common.context_of(2, ALL, EARLY)
    site = replace(common.CROSS, height=4, width=6)
    total = {"own": np.zeros((4, 6)), "source": np.zeros((4, 6))}
    for seed in (1, 2):
        probs = common.random_scores(context, site, seed).softmax(-1)
        edit.probs(probs, site, context)
        total["own"] += probs[2, :, :, 3].mean(0).reshape(4, 6).numpy()
        total["source"] += probs[6, :, :, 3].mean(0).reshape(4, 6).numpy()
    latents, source = torch.zeros(2, 4, 8, 12), torch.ones(2, 4, 8, 12)
    blended = edit.after_step(latents, source, EARLY)
    inside = reference.blend_mask(total["source"], total["own"], 8, 12, 0.9)
    assert 0 < inside.mean() < 1
    assert np.array_equal(blended[0, 0].numpy() == 0, inside)
    assert torch.equal(blended[1], latents[1])  # a row without blend words


@pytest.mark.parametrize("quirks", ["none", "reference"])
def test_blend_reads_the_prompt_s_own_maps_or_the_edited_ones(quirks: Any) -> None:
    """With everything replaced, edited maps are the source's: then both prompts blend by the same map."""
    method = PromptToPrompt(source_prompt="a red dog and a blue ball", blend="cat", blend_source="dog", quirks=quirks)
    edits = method.edits(common.targets_of([tiny.row()], ["a red dog and a blue ball"]))
    context = common.context_of(1, ALL, EARLY)
    probs = common.random_scores(context, common.CROSS).softmax(-1)
    for edit in edits:
        if edit.sites.chosen([common.CROSS]):
            probs = edit.probs(probs, common.CROSS, context)
    (blend,) = (edit for edit in edits if isinstance(edit, LocalBlend))
    (sums,) = blend._sums.values()
    assert torch.equal(sums[0], sums[1]) == (quirks == "reference")


def test_blending_changes_the_picture_s_rest_only() -> None:
    row = _rows(blend="cat", blend_source="cat", blend_threshold=0.8, cross_stop=0.0, self_stop=0.0)[0]
    blended = common.latents_of([row])
    source = common.latents_of([replace(row, prompt=SOURCES[0], regions=(), methods=())])
    same = (blended - source).abs().amax(1) < 1e-5 * float(source.abs().max())
    assert 0 < float(same.float().mean()) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edit": "swap"}, "edit must be one of replace, refine; got 'swap'"),
        ({"cross_stop": 1.5}, r"cross_start and cross_stop must be start <= stop, both in \[0, 1\]; got \(0.0, 1.5\)"),
        ({"self_start": 0.5}, r"self_start and self_stop must be start <= stop, both in \[0, 1\]; got \(0.5, 0.4\)"),
        ({"word_windows": {"cat": [0.9, 0.5]}}, r"window of 'cat' must be start <= stop, both in \[0, 1\]; got \[0.9, 0.5\]"),
        ({"blend_start": 2.0}, r"blend_start must lie in \[0, 1\]; got 2.0"),
        ({"scale": float("inf")}, "scale must be finite; got inf"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("prompt_to_prompt", options)


def test_phrases_that_do_not_occur() -> None:
    with pytest.raises(ValueError, match="Phrase 'dog' does not occur"):
        PromptToPrompt(reweight={"dog": 2.0}).edits(common.targets_of([tiny.row()], [tiny.PROMPT]))
    with pytest.raises(ValueError, match="source_prompt must be one value for a row, each row having its own; got"):
        common.latents_of(
            [replace(_rows()[0], methods=(replace(_rows()[0].methods[0], options={"source_prompt": ["a", "b"]}),))]
        )
