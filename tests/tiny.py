"""A Stable Diffusion pipeline with random weights, small enough to sample in a fraction of a second."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from attnguide.models.unet import StableDiffusion
from attnguide.types import Region, Sample

WORDS = ("a", "red", "blue", "cat", "dog", "ball", "and", "left", "right", "of")
"""Words that are one token each; every other word is spelt character by character."""

PROMPT = "a red cat and a blue ball"
LENGTH = 24
"""Positions that the text encoder reads."""

CHANNELS = 16
"""Of a text state."""


def tokenizer(words: tuple[str, ...] = WORDS, length: int = LENGTH) -> CLIPTokenizer:
    """Byte-level pairs that merge exactly ``words``."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            vocabulary.setdefault(left, len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return from_vocabulary(vocabulary, merges, length)


def from_vocabulary(vocabulary: dict[str, int], merges: list[tuple[str, str]], length: int) -> CLIPTokenizer:
    """CLIP's tokenizer; under transformers 4 the one in plain Python, as pipelines hold it there."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)
    with tempfile.TemporaryDirectory() as folder:
        names, pairs = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        names.write_text(json.dumps(vocabulary))
        pairs.write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]))
        return CLIPTokenizer(str(names), str(pairs), model_max_length=length)


def text_config(reader: CLIPTokenizer, length: int, **settings: Any) -> dict[str, Any]:
    """Settings of a text encoder that reads what ``reader`` writes."""
    config = {
        "vocab_size": len(reader),
        "hidden_size": CHANNELS,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": length,
        "bos_token_id": reader.bos_token_id,
        "eos_token_id": reader.eos_token_id,
        "pad_token_id": reader.pad_token_id,
    }
    return {**config, **settings}


def _text_encoder(reader: CLIPTokenizer, length: int) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**text_config(reader, length)))


def _unet(latent_size: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=latent_size,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=CHANNELS,
        attention_head_dim=2,  # the library means the number of heads
    )


def autoencoder(latent_size: int, **settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=2 * latent_size,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **settings,
    )


def pipeline(seed: int = 0, *, latent_size: int = 16, length: int = LENGTH, sharpness: float = 6.0) -> StableDiffusionPipeline:
    """A new pipeline: pictures have twice the side of the latents, maps are 16x16 (level 0) and 8x8 (level 1).

    Args:
        seed: Of the weights.
        latent_size: Side of the default latents.
        length: Positions that the text encoder reads.
        sharpness: Factor on the queries of cross-attention; random weights alone would attend to every word alike.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        reader = tokenizer(length=length)
        unet, vae, text = _unet(latent_size), autoencoder(latent_size), _text_encoder(reader, length)
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                module.to_q.weight *= sharpness
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    built = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=reader,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    built.set_progress_bar_config(disable=True)
    return built


@functools.cache
def shared_pipeline() -> StableDiffusionPipeline:
    """One pipeline for all tests that leave it as it is."""
    return pipeline()


@functools.cache
def model() -> StableDiffusion:
    """One adapter for all tests that leave it as it is."""
    return StableDiffusion(shared_pipeline(), "tiny")


CAT = Region("red cat", box=(0.0, 0.0, 0.5, 1.0))
BALL = Region("blue ball", box=(0.5, 0.25, 1.0, 1.0))


def row(id: str = "0", prompt: str = PROMPT, **settings: Any) -> Sample:
    """A row of four steps with two regions."""
    return Sample(id, prompt, **{"regions": (CAT, BALL), "steps": 4, "seed": 3, **settings})
