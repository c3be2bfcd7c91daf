from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from attnguide.shapes.captions import caption
from attnguide.shapes.layouts import load_layouts
from attnguide.shapes.scene import random_scene
from attnguide.shapes.training.architecture import build_autoencoder, build_text_encoder, build_tokenizer
from attnguide.shapes.training.flow import grid_positions, pack
from attnguide.shapes.training.mmdit import (
    LARGE,
    SMALL,
    TEXT_TOKENS,
    Size,
    build_flow_scheduler,
    build_flux_pipeline,
    build_t5,
    build_t5_tokenizer,
    build_transformer,
    size_of,
    size_of_weights,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_t5_tokenizer()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a red circle", "▁a ▁red ▁circle"),
        ("three purple triangles, two crosses", "▁three ▁pur ple ▁tri angle s , ▁two ▁cross es"),
        ("an orange ring to the left of a heart", "▁an ▁orange ▁ring ▁to ▁the ▁left ▁of ▁a ▁heart"),
    ],
)
def test_words_of_the_world_are_whole_but_for_some(tokenizer: Any, text: str, pieces: str) -> None:
    assert tokenizer.tokenize(text) == pieces.split()


def test_captions_survive_and_end_with_the_end_token(tokenizer: Any) -> None:
    for seed in range(300):
        text = caption(random_scene(seed, held_out=seed % 2 == 0), seed)
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids[-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("layouts", ["benchmark", "development"])
def test_every_prompt_of_the_layouts_fits(tokenizer: Any, layouts: str) -> None:
    assert max(len(tokenizer(layout.prompt).input_ids) for layout in load_layouts(layouts)) <= TEXT_TOKENS


def test_other_text_is_read_by_letters(tokenizer: Any) -> None:
    ids = tokenizer("Zebra 7? 猫").input_ids
    assert re.sub(r"[▁ ]", "", "".join(tokenizer.convert_ids_to_tokens(ids[:-2]))) == "Zebra7?"
    assert ids[-2:] == [tokenizer.unk_token_id, tokenizer.eos_token_id]
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]


def test_packing_and_positions_are_flux_s() -> None:
    latents = torch.randn(2, 8, 4, 6)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 8, 4, 6))
    theirs = FluxPipeline._prepare_latent_image_ids(1, 2, 3, torch.device("cpu"), torch.float32)
    assert torch.equal(grid_positions(2, 3), theirs)


def test_exact_velocities_lead_from_noise_to_the_latents() -> None:
    """``noise - latents`` is the velocity: the scheduler's steps along it end at the latents."""
    latents, noise = torch.randn(2, 64, 32), torch.randn(2, 64, 32)
    scheduler = build_flow_scheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    state = noise
    for step in scheduler.timesteps:
        state = scheduler.step(noise - latents, step, state).prev_sample
    torch.testing.assert_close(state, latents)


def test_parts_fit_each_other(tokenizer: Any) -> None:
    clip = build_tokenizer(300)
    transformer = build_transformer(heads=2, dual=1, single=1)
    pipeline = build_flux_pipeline(
        build_autoencoder(), (clip, build_text_encoder(clip)), (tokenizer, build_t5(tokenizer)), transformer
    )
    states, pooled, positions = pipeline.encode_prompt("a red circle", None, max_sequence_length=TEXT_TOKENS)
    assert states.shape == (1, TEXT_TOKENS, 128) and pooled.shape == (1, 128) and not positions.any()
    assert pipeline.vae.config.shift_factor == 0.0 and pipeline.vae_scale_factor == 8
    assert sum(weight.numel() for weight in build_transformer().parameters()) < 10_000_000  # under 20 MB in float16


def test_text_encoder_carries_the_order_of_words(tokenizer: Any) -> None:
    encoder = build_t5(tokenizer).eval()
    ids = torch.tensor([tokenizer(text).input_ids for text in ("a red circle", "red a circle")])
    with torch.no_grad():
        one, other = encoder(ids).last_hidden_state
    assert not torch.allclose(one[2], other[2], atol=1e-3)  # the same word, after the same words in another order


@pytest.mark.parametrize("size", [SMALL, Size(1, 1, 3), Size(2, 3, 0)], ids=["small", "more-single", "no-single"])
def test_a_transformer_s_size_can_be_read_off_it(size: Size) -> None:
    with torch.device("meta"):
        transformer = build_transformer(*size)
    assert size_of(transformer.config) == size
    assert size_of_weights({f"transformer.{name}": weight for name, weight in transformer.state_dict().items()}) == size


def test_both_sizes_are_small_enough_to_pass_around() -> None:
    """Weights of transformer, T5, CLIP and autoencoder in float16, under 25 MB."""
    others = (build_t5(build_t5_tokenizer()), build_text_encoder(build_tokenizer(300)), build_autoencoder())
    with torch.device("meta"):
        large = build_transformer(*LARGE)
    total = sum(weight.numel() for network in (*others, large) for weight in network.parameters())
    assert 20e6 < 2 * total < 25e6
