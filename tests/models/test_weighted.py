"""Prompts with weights and of any length under CLIP: positions, states equal to compel's, pictures equal to the pipelines'."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType
from torch import Tensor

from attnguide import prompt_embeds
from attnguide.models.load import adapt
from attnguide.models.sdxl import StableDiffusionXL
from attnguide.models.texts import encode_prompts, read_prompt
from attnguide.models.unet import StableDiffusion
from attnguide.prompt.tokens import token_indices
from attnguide.sampling.check import check_rows
from attnguide.sampling.table import sample_batch
from attnguide.types import Sample
from attnguide.weighted import read_weights
from tests import tiny
from tests.closeness import assert_close
from tests.models import families, xl

LONG = "a (red cat:1.3), " * 6 + "a [dog] BREAK a (blue ball:0.7)"
"""Three chunks of 24: one ends behind a comma, the last part has one of its own."""

LONGER = "a dog, " * 20
"""Of nothing but commas, hence three chunks."""

AT = tiny.LENGTH


@functools.cache
def sdxl() -> StableDiffusionXL:
    adapter = adapt(xl.shared_pipeline(), "xl")
    assert isinstance(adapter, StableDiffusionXL)
    return adapter


def model_of(family: str) -> StableDiffusion:
    return sdxl() if family == "xl" else tiny.model()


FAMILIES = pytest.mark.parametrize("family", ["sd", "xl"])


@FAMILIES
def test_without_signs_a_short_prompt_is_read_as_it_is_without_weights(family: str) -> None:
    model = model_of(family)
    plain, read = model.tokenize(tiny.PROMPT), read_prompt(model, read_weights(tiny.PROMPT))
    assert (plain.ids, plain.offsets, plain.segments, plain.text) == (read.ids, read.offsets, read.segments, read.text)
    before = model.encode_prompt([tiny.PROMPT], ["a dog"])
    after = encode_prompts(model, [read_weights(tiny.PROMPT)], [read_weights("a dog")])
    assert before.uncond is not None and after.uncond is not None
    assert_close(after.cond, before.cond, 1e-6)
    assert_close(after.uncond, before.uncond, 1e-6)
    for name, (pooled, negative) in before.extra.items():
        assert_close(after.extra[name][0], pooled, 1e-6)
        assert negative is not None
        assert_close(after.extra[name][1], negative, 1e-6)


@FAMILIES
def test_words_stand_where_their_chunks_do(family: str) -> None:
    read = read_prompt(model_of(family), read_weights(LONG))
    assert [(one.start, one.stop, one.sink) for one in read.segments] == [(at, at + AT, at) for at in (0, AT, 2 * AT)]
    assert read.chunks == 3 and len(read.ids) == 3 * AT
    ends = [one.end for one in read.segments]
    assert [read.tokens[end] for end in ends] == ["<|endoftext|>"] * 3
    assert all(read.tokens[sink] == "<|startoftext|>" for sink in read.sinks)
    for phrase, occurrence, chunk in (("red cat", 0, 0), ("red cat", 5, 1), ("dog", None, 1), ("blue ball", None, 2)):
        places = token_indices(read, phrase, occurrence)
        assert [read.tokens[place].removesuffix("</w>") for place in places] == phrase.split()
        assert all(place // AT == chunk for place in places)
    words = "".join(read.text[slice(*span)] for span in read.offsets if span)
    assert words == read.text.replace(" ", "").replace("dog,", "dog")  # the comma between two parts is not read


@FAMILIES
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("a (red cat:1.3) and a dog", "a (red cat)1.3 and a dog"),
        ("a (red cat:0.5) and a (dog:0.2)", "a (red cat)0.5 and a (dog)0.2"),
        ("a (dog:1.5), " * 8 + "a (ball:0.3)", "a (dog)1.5, " * 8 + "a (ball)0.3"),
        ("a (red cat:1.3) BREAK a dog", '("a (red cat)1.3", "a dog").and()'),
    ],
    ids=["more", "less", "long", "parts"],
)
def test_states_are_those_of_compel(family: str, ours: str, theirs: str) -> None:
    model, pipeline = model_of(family), model_of(family).pipeline
    kind = ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED
    if family == "xl":
        kind = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    parts = ("", "_2") if family == "xl" else ("",)
    expected = torch.cat(
        [
            Compel(
                getattr(pipeline, f"tokenizer{part}"),
                getattr(pipeline, f"text_encoder{part}"),
                truncate_long_prompts=False,
                returned_embeddings_type=kind,
            )(theirs)
            for part in parts
        ],
        -1,
    )
    assert_close(encode_prompts(model, [read_weights(ours)], None).cond, expected, 1e-6)


def test_a_weight_moves_the_state_away_from_that_of_nothing() -> None:
    model, empty = tiny.model(), tiny.model().encode_prompt([""], None).cond[0]
    plain, heavy = (encode_prompts(model, [read_weights(text)], None).cond[0] for text in ("a red cat", "a (red:1.5) cat"))
    assert_close(heavy[2], empty[2] + 1.5 * (plain[2] - empty[2]), 1e-5)
    assert_close(torch.cat([heavy[:2], heavy[3:]]), torch.cat([plain[:2], plain[3:]]), 1e-6)


@FAMILIES
@pytest.mark.parametrize("negative", [None, "(blurry:1.2)", LONGER], ids=["none", "short", "longer"])
def test_a_plain_row_equals_the_pipeline_s_with_the_same_states(family: str, negative: str | None) -> None:
    model = model_of(family)
    row = tiny.row(prompt="a (red cat:1.3), " * 6 + "a ball", methods=(), regions=(), negative_prompt=negative)
    (result,) = sample_batch(model, [_weighted(row)])
    states = prompt_embeds(model.pipeline, row.prompt, negative)
    assert {half.shape[1] for name, half in states.items() if "pooled" not in name} == {(3 if negative == LONGER else 2) * AT}
    assert result.latents is not None and torch.equal(result.latents, _peer(model.pipeline, row, states))


def _weighted(row: Sample) -> Sample:
    return Sample(**{**vars(row), "prompt_syntax": "weights"})


def _peer(pipeline: Any, row: Sample, states: dict[str, Tensor]) -> Tensor:
    found: Tensor = pipeline(
        **states,
        num_inference_steps=row.steps,
        guidance_scale=row.cfg_scale,
        generator=torch.Generator().manual_seed(row.seed),
        output_type="latent",
    ).images[0]
    return found


def test_names_of_embeddings_stand_for_all_their_vectors() -> None:
    pipeline = tiny.pipeline()
    vectors = torch.ones(2, tiny.CHANNELS)
    pipeline.load_textual_inversion({"<thing>": vectors}, token="<thing>")
    read = read_prompt(StableDiffusion(pipeline), read_weights("a (<thing>:1.3) and a [dog]"))
    assert [read.tokens[place] for place in token_indices(read, "<thing>")] == ["<thing>", "<thing>_1"]
    assert read.tokens[token_indices(read, "dog")[0]] == "dog</w>"
    assert torch.isfinite(prompt_embeds(pipeline, "a (<thing>:1.3) and a [dog]")["prompt_embeds"]).all()


def test_encoders_whose_weights_wait_elsewhere_work_where_they_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny.shared_pipeline()
    expected = prompt_embeds(pipeline, "a (cat:1.3) and a [dog]")["prompt_embeds"]
    monkeypatch.setattr(type(pipeline.text_encoder), "device", torch.device("meta"))  # as under sequential offloading
    assert torch.equal(prompt_embeds(pipeline, "a (cat:1.3) and a [dog]")["prompt_embeds"], expected)


def test_other_families_refuse_weights_by_name() -> None:
    model = adapt(families.shared("sd35"), "sd35")
    with pytest.raises(ValueError, match=r"prompt_syntax 'weights' is for Stable Diffusion 1, 2 and XL, .* sd35"):
        check_rows(model, [_weighted(tiny.row(methods=()))])


def test_a_long_plain_prompt_is_refused_with_the_way_that_reads_it() -> None:
    with pytest.raises(ValueError, match="Shorten it, or set prompt_syntax to 'weights'"):
        check_rows(tiny.model(), [tiny.row(prompt="a cat " * AT, regions=())])


@pytest.mark.parametrize(
    ("pipeline", "negative", "message"),
    [
        (object(), None, "prompt_embeds is for pipelines with a UNet and CLIP's text encoders .* got 'object'"),
        (tiny.shared_pipeline(), ["a", "b"], "negative_prompt must be one, or one for each of 1 prompts; got 2"),
    ],
    ids=["pipeline", "number"],
)
def test_refusals_of_prompt_embeds(pipeline: Any, negative: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompt_embeds(pipeline, "a cat", negative)
