"""Stable Diffusion 1's original checkpoint layout, written from a pipeline: the reverse of what diffusers reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def checkpoint(pipeline: Any) -> dict[str, Tensor]:
    """All weights of a pipeline with a UNet, an autoencoder and a CLIP text encoder, under their original names."""
    unet = _renamed(pipeline.unet.state_dict(), _unet_rules(pipeline.unet.config.layers_per_block + 1))
    vae = _renamed(pipeline.vae.state_dict(), _vae_rules(len(pipeline.vae.config.block_out_channels)))
    vae = {name: _as_convolution(name, value) for name, value in vae.items()}
    text = {
        f"text_model.{name.removeprefix('text_model.')}": value for name, value in pipeline.text_encoder.state_dict().items()
    }
    parts = {"model.diffusion_model.": unet, "first_stage_model.": vae, "cond_stage_model.transformer.": text}
    return {prefix + name: value.contiguous() for prefix, part in parts.items() for name, value in part.items()}


def _renamed(state: dict[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = value
    return found


def _unet_rules(per_block: int) -> list[Rule]:
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
    resnet |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    outer = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    outer |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}

    def place(side: str, first: int, part: str) -> Callable[[re.Match[str]], str]:
        return lambda found: f"{side}.{first + int(found[1]) * per_block + int(found[2])}.{part}"

    return [
        *((rf"(resnets\.\d+)\.{name}\b", rf"\1.{new}") for name, new in resnet.items()),
        *((rf"^{re.escape(name)}\b", new) for name, new in outer.items()),
        (r"^down_blocks\.(\d+)\.resnets\.(\d+)", place("input_blocks", 1, "0")),
        (r"^down_blocks\.(\d+)\.attentions\.(\d+)", place("input_blocks", 1, "1")),
        (r"^down_blocks\.(\d+)\.downsamplers\.(0)\.conv", place("input_blocks", per_block, "0.op")),
        (r"^up_blocks\.(\d+)\.resnets\.(\d+)", place("output_blocks", 0, "0")),
        (r"^up_blocks\.(\d+)\.attentions\.(\d+)", place("output_blocks", 0, "1")),
        (r"^up_blocks\.(\d+)\.upsamplers\.(0)\.conv", place("output_blocks", per_block - 1, "2.conv")),
        (r"^mid_block\.resnets\.(\d)", lambda found: f"middle_block.{2 * int(found[1])}"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
    ]


def _vae_rules(blocks: int) -> list[Rule]:
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", r"to_out\.0": "proj_out"}
    return [
        *((rf"(attentions\.0)\.{name}\b", rf"\1.{new}") for name, new in attention.items()),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
        (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d+)\.resnets", lambda found: f"up.{blocks - 1 - int(found[1])}.block"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{blocks - 1 - int(found[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
    ]


def _as_convolution(name: str, value: Tensor) -> Tensor:
    """The autoencoder's attention was written with 1x1 convolutions."""
    return value[:, :, None, None] if "attn_1" in name and value.ndim == 2 else value
