"""The arms of ``bench_cost.py`` and ``bench_time.py`` over a UNet of Stable Diffusion XL's architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from bench_cost import BareModel, Bench, Case
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from attnguide.models.load import DTYPES
from attnguide.models.sdxl import StableDiffusionXL

SIZES = 6
"""Number of values of the picture's size that the network takes as a condition."""


@dataclass(frozen=True)
class CaseXL(Case):
    """One comparison on Stable Diffusion XL's architecture; ``heads`` is the number of channels of a head.

    Attributes:
        depths: Transformer blocks of an attention block, finest level first; the finest level has no attention.
        pooled: Channels of the pooled text.
        told: Channels of each number of the picture's size.
    """

    channels: tuple[int, ...] = (320, 640, 1280)
    heads: int = 64
    latent: int = 128
    depths: tuple[int, ...] = (1, 2, 10)
    pooled: int = 1280
    told: int = 256

    text = 2048

    def unet(self) -> nn.Module:
        deeper = len(self.channels) - 1
        unet: nn.Module = UNet2DConditionModel(
            sample_size=self.latent,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
            up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
            transformer_layers_per_block=self.depths,
            attention_head_dim=tuple(width // self.heads for width in self.channels),  # diffusers' name for their number
            cross_attention_dim=self.text,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=self.told,
            projection_class_embeddings_input_dim=self.pooled + SIZES * self.told,
            norm_num_groups=min(32, self.channels[0] // 4),
        )
        return unet


SDXL = CaseXL()
SMALL_XL = CaseXL(channels=(64, 128, 256), heads=32, latent=64, depths=(1, 1, 2), pooled=64, told=16)
"""A fifth of the width, blocks of a fifth of the depth."""


class BareXL(BareModel, StableDiffusionXL):
    """The adapter around a UNet alone, whose further inputs come from the adapter of the family."""


class BenchXL(Bench):
    """All arms over one UNet; diffusers has no attend-and-excite for this family."""

    case: CaseXL
    arms = ("plain", "loop", "attnguide", "fused", "injected")

    def _further(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        states = torch.randn(2, self.case.batch, self.case.pooled).to(DTYPES[self.case.dtype])
        return {"text_embeds": (states[0], states[1])}

    def model(self) -> BareModel:
        return BareXL(self.unet, self.scheduler, self.states)

    def _embeddings(self) -> dict[str, Any]:
        cond, uncond = self.states.extra["text_embeds"]
        return {**super()._embeddings(), "pooled_prompt_embeds": cond, "negative_pooled_prompt_embeds": uncond}

    @cached_property
    def pipelines(self) -> Mapping[str, Any]:
        absent = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        built = StableDiffusionXLPipeline(**absent, unet=self.unet, scheduler=self.scheduler, add_watermarker=False)
        built.set_progress_bar_config(disable=True)
        return {"plain": built}
