"""A Stable Diffusion XL pipeline with random weights, small enough to sample in a fraction of a second."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests import tiny

POOLED, SIZES = 12, 8
"""Channels of the pooled text, and of each of the six sizes."""


def _unet(**settings: Any) -> UNet2DConditionModel:
    config: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 2 * tiny.CHANNELS,
        "attention_head_dim": (2, 4),  # the library means the number of heads
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZES,
        "projection_class_embeddings_input_dim": POOLED + 6 * SIZES,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**{**config, **settings})


def pipeline(seed: int = 0, **unet: Any) -> StableDiffusionXLPipeline:
    """A new pipeline: pictures have twice the side of the latents, all maps are 8x8 (level 1)."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        readers = tiny.tokenizer(), tiny.tokenizer()
        common = tiny.text_config(readers[0], tiny.LENGTH, num_hidden_layers=2)
        first = CLIPTextModel(CLIPTextConfig(**common))
        second = CLIPTextModelWithProjection(CLIPTextConfig(**common, projection_dim=POOLED))
        network, vae = _unet(**unet), tiny.autoencoder(16, scaling_factor=0.13025)
    with torch.no_grad():
        for name, module in network.named_modules():
            if name.endswith("attn2"):
                module.to_q.weight *= 6.0
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    built = StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=first.eval(),
        text_encoder_2=second.eval(),
        tokenizer=readers[0],
        tokenizer_2=readers[1],
        unet=network.eval(),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    built.set_progress_bar_config(disable=True)
    return built


@functools.cache
def shared_pipeline() -> StableDiffusionXLPipeline:
    """One pipeline for all tests that leave it as it is."""
    return pipeline()
