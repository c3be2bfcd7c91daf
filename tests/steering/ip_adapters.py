"""IP-Adapters of random weights on tiny transformers, loaded as the library loads a checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 12
"""Channels of a picture's states."""


def flux_adapter(transformer: Any) -> Any:
    """A copy of a FLUX network whose blocks of two streams also attend to four tokens of a picture."""
    network = copy.deepcopy(transformer)
    channels = network.config.joint_attention_dim
    projection = {"weight": (4 * channels, WIDTH), "bias": (4 * channels,)}
    image = {f"proj.{name}": _noise(*shape) for name, shape in projection.items()}
    image |= {"norm.weight": torch.ones(channels), "norm.bias": torch.zeros(channels)}
    attention: dict[str, Tensor] = {}
    for index in range(len(network.transformer_blocks)):
        for part in ("k", "v"):
            attention[f"{index}.to_{part}_ip.weight"] = _noise(network.inner_dim, channels)
            attention[f"{index}.to_{part}_ip.bias"] = _noise(network.inner_dim)
    network._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": attention}], low_cpu_mem_usage=False)
    return network.eval()


def sd3_adapter(transformer: Any) -> Any:
    """A copy of a Stable Diffusion 3 network whose blocks also attend to the picture beside four tokens of another."""
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    network = copy.deepcopy(transformer)
    head, hidden = network.config.attention_head_dim, 64
    width = head * network.config.num_attention_heads
    projection = IPAdapterTimeImageProjection(WIDTH, width, hidden, heads=1, num_queries=4, timestep_in_dim=16)
    attention: dict[str, Tensor] = {}
    for index in range(len(network.attn_processors)):
        processor = SD3IPAdapterJointAttnProcessor2_0(width, width, head, timesteps_emb_dim=hidden)
        attention |= {f"{index}.{name}": value for name, value in _awake(processor).items()}
    weights = {"image_proj": _awake(projection), "ip_adapter": attention}
    network._load_ip_adapter_weights(weights, low_cpu_mem_usage=False)
    return network.eval()


def states(rows: int) -> Tensor:
    """States of a picture, ``rows 1 channels``."""
    return torch.randn(rows, 1, WIDTH, generator=torch.Generator().manual_seed(2))


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.3


def _awake(module: nn.Module) -> dict[str, Tensor]:
    """A module's state with random values in the place of zeros."""
    return {name: value if bool(value.any()) else _noise(*value.shape) for name, value in module.state_dict().items()}
