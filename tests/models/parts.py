"""Parts of the tiny pipelines: text encoders, autoencoders, schedulers, and the list of families."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from tests import tiny

WIDTH = 16
"""Channels of a text state, unless a family joins several."""

SHARPNESS = 6.0
"""Factor on the queries of attention, or on the scale of their norm."""

_QUERIES = ("attn.to_q", "attn2.to_q")
_NORMS = ("attn.norm_q", "attention.norm_q")

_Builder = Callable[[], Any]
BUILDERS: dict[str, tuple[str, _Builder]] = {}
"""Each family's pipeline class and how its tiny pipeline is built."""


def family(name: str, pipeline: str) -> Callable[[_Builder], _Builder]:
    def register(build: _Builder) -> _Builder:
        BUILDERS[name] = (pipeline, build)
        return build

    return register


def sharpened(network: nn.Module) -> nn.Module:
    """Queries after their norm, where there is one, so that the norm does not undo it."""
    modules = dict(network.named_modules())
    normed = {name.rpartition(".")[0] for name in modules if name.endswith(_NORMS)}
    with torch.no_grad():
        for name, module in modules.items():
            here = name.endswith(_NORMS) or (name.endswith(_QUERIES) and name.rpartition(".")[0] not in normed)
            if here and module.weight is not None:  # AuraFlow's norm has no weight
                module.weight *= SHARPNESS
    return network.eval()


def autoencoder(channels: int = 4, **settings: Any) -> Any:
    """An autoencoder without the convolutions beside the latents, which transformers' pipelines have left out."""
    config = {
        "block_out_channels": (8, 8),
        "latent_channels": channels,
        "norm_num_groups": 4,
        "sample_size": 32,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 1.5,
        "shift_factor": 0.06,
    }
    return diffusers.AutoencoderKL(**{**config, **settings}).eval()


def clip(kind: Any, reader: Any, **settings: Any) -> Any:
    return kind(transformers.CLIPTextConfig(**tiny.text_config(reader, tiny.LENGTH, num_hidden_layers=2, **settings))).eval()


def t5(reader: Any, kind: str = "T5") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(reader),
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=reader.pad_token_id,
        eos_token_id=reader.eos_token_id,
    )
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def decoder(reader: Any, layers: int = 2, **settings: Any) -> dict[str, Any]:
    """Settings of a text encoder that is a language model of causal attention."""
    config = {
        "vocab_size": len(reader),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "pad_token_id": reader.pad_token_id,
        "eos_token_id": reader.eos_token_id,
        "bos_token_id": reader.bos_token_id,
    }
    return {**config, **settings}


ROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}


def flow(**settings: Any) -> Any:
    """The scheduler of nearly all transformers."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def dynamic_flow(**settings: Any) -> Any:
    common = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256}
    return flow(**{**common, "max_image_seq_len": 4096, "shift": 3.0, **settings})


def sized(built: Any, side: int = 16) -> Any:
    """A pipeline whose default size is its own attribute, not the network's."""
    built.default_sample_size = side
    return built
