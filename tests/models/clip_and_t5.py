"""Tiny pipelines whose text encoders are CLIP's, T5's or both."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from torch import nn

from tests import tiny
from tests.models import readers, xl
from tests.models.parts import WIDTH, autoencoder, clip, dynamic_flow, family, flow, sharpened, sized, t5


@family("sd", "StableDiffusionPipeline")
def _stable_diffusion() -> Any:
    return tiny.pipeline()


@family("sdxl", "StableDiffusionXLPipeline")
def _stable_diffusion_xl() -> Any:
    return xl.pipeline()


def _pixart_network(**settings: Any) -> nn.Module:
    config = {
        "sample_size": 16,
        "num_layers": 4,
        "patch_size": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "in_channels": 4,
        "out_channels": 8,
        "cross_attention_dim": 16,
        "caption_channels": WIDTH,
    }
    return sharpened(diffusers.PixArtTransformer2DModel(**{**config, **settings}))


def _pixart(kind: str, **settings: Any) -> Any:
    reader = readers.t5()
    return getattr(diffusers, kind)(
        tokenizer=reader,
        text_encoder=t5(reader),
        vae=tiny.autoencoder(16, scaling_factor=0.13025 if kind == "PixArtSigmaPipeline" else 0.18215).eval(),
        transformer=_pixart_network(**settings),
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )


@family("pixart_alpha", "PixArtAlphaPipeline")
def _pixart_alpha() -> Any:
    return _pixart("PixArtAlphaPipeline", use_additional_conditions=False)


@family("pixart_alpha_1024", "PixArtAlphaPipeline")
def _pixart_alpha_1024() -> Any:
    """The kind that is told resolution and aspect ratio, which the pipeline knows by the network's size; 256 pixels."""
    settings = {"num_attention_heads": 3, "cross_attention_dim": 24}  # the two conditions are a third of the channels each
    return _pixart("PixArtAlphaPipeline", sample_size=128, use_additional_conditions=True, **settings)


@family("pixart_sigma", "PixArtSigmaPipeline")
def _pixart_sigma() -> Any:
    return _pixart("PixArtSigmaPipeline", use_additional_conditions=False)


def _sd3(*, long: bool, **settings: Any) -> Any:
    first, second, third = tiny.tokenizer(), tiny.tokenizer(), readers.t5() if long else None
    config = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        # As in the release, T5's states are wider than the two encoders' of CLIP side by side.
        "joint_attention_dim": 2 * WIDTH if third is None else WIDTH,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 32,
        "pos_embed_max_size": 32,
    }
    projected = transformers.CLIPTextModelWithProjection
    width = WIDTH if third is None else WIDTH // 2
    return diffusers.StableDiffusion3Pipeline(
        transformer=sharpened(diffusers.SD3Transformer2DModel(**{**config, **settings})),
        scheduler=flow(shift=3.0),
        vae=autoencoder(),
        text_encoder=clip(projected, first, hidden_size=width, projection_dim=16),
        tokenizer=first,
        text_encoder_2=clip(projected, second, hidden_size=width, projection_dim=16),
        tokenizer_2=second,
        text_encoder_3=None if third is None else t5(third),
        tokenizer_3=third,
    )


@family("sd3", "StableDiffusion3Pipeline")
def _sd3_withoutt5() -> Any:
    return _sd3(long=False)


@family("sd35", "StableDiffusion3Pipeline")
def _sd35() -> Any:
    """With T5, norms of queries and keys, and a second attention of the picture alone in the first layers."""
    return _sd3(long=True, qk_norm="rms_norm", dual_attention_layers=(0, 1))


def _flux(*, guidance: bool) -> Any:
    first, second = tiny.tokenizer(), readers.t5()
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    )
    built = diffusers.FluxPipeline(
        scheduler=dynamic_flow() if guidance else flow(shift=1.0),
        vae=autoencoder(),
        text_encoder=clip(transformers.CLIPTextModel, first),
        tokenizer=first,
        text_encoder_2=t5(second),
        tokenizer_2=second,
        transformer=sharpened(network),
    )
    return sized(built)


@family("flux_dev", "FluxPipeline")
def _flux_dev() -> Any:
    return _flux(guidance=True)


@family("flux_schnell", "FluxPipeline")
def _flux_schnell() -> Any:
    return _flux(guidance=False)


@family("chroma", "ChromaPipeline")
def _chroma() -> Any:
    reader = readers.t5()
    network = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    built = diffusers.ChromaPipeline(
        scheduler=flow(shift=1.0),
        vae=autoencoder(),
        text_encoder=t5(reader),
        tokenizer=reader,
        transformer=sharpened(network),
    )
    return sized(built)


@family("auraflow", "AuraFlowPipeline")
def _auraflow() -> Any:
    reader = readers.t5()
    network = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=reader,
        text_encoder=t5(reader, "UMT5"),
        vae=tiny.autoencoder(16, scaling_factor=0.13025).eval(),
        transformer=sharpened(network),
        scheduler=flow(shift=1.73),
    )
