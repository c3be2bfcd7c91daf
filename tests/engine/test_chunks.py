"""Prompts that are read in chunks: words are steered in every chunk, rows of a batch equal rows alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.sites import SiteSelector
from attnguide.engine.branches import read_rows
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.injection.dense_diffusion import DenseDiffusion
from attnguide.injection.regional_prompts import RegionalPrompts
from attnguide.models.texts import encode_prompts
from attnguide.prompt.targets import Targets
from attnguide.sampling.check import check_rows
from attnguide.sampling.table import sample_batch, sample_each, sample_rows
from attnguide.types import MapSource, MethodConfig, Region, Sample
from attnguide.weighted import in_chunks, read_weights
from tests import tiny
from tests.closeness import assert_close

AT = tiny.LENGTH
FILLING = "a (red ball:1.2), " * 5
REGIONS = (Region("red cat", box=(0, 0, 0.5, 1)), Region("dog", box=(0.5, 0, 1, 1)))


def row(id: str = "0", prompt: str = f"a (red cat:1.3), {FILLING}a [dog]", *names: str, **settings: Any) -> Sample:
    named = tuple(map(MethodConfig, names))
    return tiny.row(id, prompt, **{"regions": REGIONS, "methods": named, "prompt_syntax": "weights", "steps": 2, **settings})


def targets_of(sample: Sample) -> Targets:
    tokenized, _ = read_rows(tiny.model(), [sample])
    return Targets.build([sample], tokenized, "cpu")


def latents(sample: Sample) -> Tensor:
    (result,) = sample_batch(tiny.model(), [sample])
    assert result.latents is not None, result.status
    return result.latents


class Reader(Observer):
    """Probs before and after edits, of one site."""

    def __init__(self) -> None:
        self.before, self.after = Recorder(), Recorder()

    def probes(self, info: BatchInfo) -> tuple[Probe, ...]:
        cross = SiteSelector("cross")
        return Probe("original_probs", self.before, cross), Probe("probs", self.after, cross)


def test_targets_know_every_chunk() -> None:
    targets = targets_of(row())
    (cat, dog), (prompt,) = targets.token_indices[0], targets.tokenized
    assert all(place < AT for place in cat) and all(AT < place < 2 * AT for place in dog)
    assert [prompt.tokens[place] for place in (*cat, *dog)] == ["red</w>", "cat</w>", "dog</w>"]
    assert targets.tokens.shape == (1, 2, 2 * AT) and targets.sinks[0].nonzero()[:, 0].tolist() == [0, AT]
    assert targets.last_tokens[0, 0].nonzero()[:, 0].tolist() == [cat[-1]]
    assert targets.ends[0].nonzero()[:, 0].tolist() == [segment.end for segment in prompt.segments]
    competing = targets.competing(False)[0]
    assert bool(competing[[*cat, *dog]].all()) and not bool(competing[[0, AT]].any())


def test_a_phrase_over_two_chunks_is_whole() -> None:
    across = row(prompt="a (red:1.1) BREAK (cat:1.2) on a", regions=(Region("red, cat", box=(0, 0, 0.5, 1)),))
    targets = targets_of(across)
    assert targets.token_indices == (((2, AT + 1),),)
    assert targets.last_tokens[0, 0].nonzero()[:, 0].tolist() == [AT + 1]


def test_an_edit_changes_the_words_of_both_chunks_alone() -> None:
    reader = Reader()
    sample_batch(tiny.model(), [row("0", row().prompt, "forward_layout", steps=1)], reader)
    (cat, dog) = targets_of(row()).token_indices[0]
    for site, after in reader.after.tensors.items():
        before = reader.before.tensors[site]
        assert after.shape[-1] == 2 * AT
        changed = (after - before).abs().amax((0, 1, 2)) > 1e-4
        assert sorted({*cat, *dog}) == changed.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("method", ["mask_guidance", "stable", "dense_diffusion", "regional_prompts"])
def test_methods_act_and_without_strength_do_not(method: str) -> None:
    sample = row("0", row().prompt, method)
    plain = latents(row())
    assert not torch.equal(latents(sample), plain)
    key = "step_size" if method == "mask_guidance" else "scale"
    assert_close(latents(replace(sample, methods=(MethodConfig(method, {key: 0.0}),))), plain)


def test_rows_of_other_lengths_are_those_of_a_table() -> None:
    rows = [row("0"), row("1", "a (red cat:1.3) and a dog"), row("2", f"{FILLING * 2} a red cat, a dog"), row("3")]
    found = {result.sample.id: result for result in sample_rows(tiny.model(), rows, batch_size=4)}
    assert [found[one.id].status for one in rows] == ["ok"] * 4
    for one in rows[1:3]:  # alone in their number of chunks
        kept = found[one.id].latents
        assert kept is not None and torch.equal(kept, latents(one))
    (wanted,) = sample_each(tiny.model(), rows, wanted={3})
    both = found["3"].latents
    assert wanted.latents is not None and both is not None and torch.equal(wanted.latents, both)


def test_syntax_keeps_rows_apart() -> None:
    plain = row("1", "a red cat and a dog", prompt_syntax="plain")
    found = list(sample_rows(tiny.model(), [row("0", plain.prompt), plain], batch_size=2))
    first, second = (result.latents for result in found)
    assert first is not None and second is not None
    assert_close(first, second)


def test_a_source_prompt_is_read_like_the_row_s() -> None:
    long = FILLING + "a red dog and a [dog]"
    sample = row("0", "a (red cat:1.3) and a dog", steps=3)
    sample = replace(sample, methods=(MethodConfig("prompt_to_prompt", {"source_prompt": long, "edit": "refine"}),))
    check_rows(tiny.model(), [sample])
    assert not torch.equal(latents(sample), latents(replace(sample, methods=())))
    swapped = {"source_prompt": "a red ball, BREAK " + (FILLING * 2)[18:] + "a red dog", "edit": "replace"}
    method = MethodConfig("prompt_to_prompt", swapped)
    with pytest.raises(ValueError, match=r"chunk by chunk, but '.*' and the word it stands for are read in different chunks"):
        check_rows(tiny.model(), [row(prompt=FILLING * 2 + "a red cat", regions=(), methods=(method,))])


def test_further_texts_end_in_empty_chunks() -> None:
    model, sample = tiny.model(), row("0", row().prompt, "regional_prompts")
    states = encode_prompts(model, [read_weights(sample.prompt)], [None])
    found = RegionalPrompts().condition(states, targets_of(sample), model)
    assert found.cond.shape[1] == 3 * 2 * AT
    alone = encode_prompts(model, [in_chunks("red cat", 2), in_chunks("dog", 2)], None).cond
    assert_close(found.cond[0, 2 * AT :], alone.flatten(0, 1), 1e-6)


def test_a_spliced_phrase_keeps_its_weight() -> None:
    model, sample = tiny.model(), row(prompt="a dog and a (red cat:1.3)")
    states = encode_prompts(model, [read_weights(sample.prompt)], None)
    spliced = DenseDiffusion().condition(states, targets_of(sample), model).cond[0]
    alone = encode_prompts(model, [read_weights("(red cat:1.3)")], None).cond[0]
    assert_close(spliced[[5, 6]], alone[[1, 2]], 1e-6)
    assert torch.equal(spliced[:2], states.cond[0, :2])


def test_a_place_can_come_from_another_picture_of_such_a_prompt() -> None:
    regions = (Region("dog", source=MapSource("seed", seed=7)), Region("red cat", box=(0, 0, 0.5, 1)))
    (result,) = sample_rows(tiny.model(), [row("0", row().prompt, "mask_guidance", regions=regions)])
    assert result.status == "ok" and result.cost.unet_forwards > 2 * 2 * 2


def test_a_negative_prompt_that_is_longer_lengthens_the_prompt() -> None:
    sample = row(prompt="a (red cat:1.3) and a dog", negative_prompt=FILLING + "a blue ball")
    ((prompt,), _) = read_rows(tiny.model(), [sample])
    assert prompt.chunks == 2 and [one.end for one in prompt.segments] == [7, AT + 1]
    ((alone,), _) = read_rows(tiny.model(), [replace(sample, cfg_scale=1.0)])  # nothing reads the negative one
    assert alone.chunks == 1
