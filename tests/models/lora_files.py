"""Files of LoRAs with random weights for pipelines of random weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict


def save_lora(pipeline: Any, folder: Path, *, seed: int = 0, text: bool = False) -> Path:
    """A LoRA of rank 2 for a pipeline's network, and for its text encoder; the pipeline stays as it is."""
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    parts = {f"{name}_lora_layers": _factors(getattr(pipeline, name), ("to_q", "to_v"), seed)}
    if text:
        parts["text_encoder_lora_layers"] = _factors(pipeline.text_encoder, ("q_proj",), seed)
    type(pipeline).save_lora_weights(str(folder), **parts)
    return folder / "pytorch_lora_weights.safetensors"


def _factors(network: Any, layers: tuple[str, ...], seed: int) -> dict[str, torch.Tensor]:
    twin = copy.deepcopy(network)
    twin.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=list(layers)))
    source = torch.Generator().manual_seed(seed)
    return {key: torch.randn(value.shape, generator=source) * 0.3 for key, value in get_peft_model_state_dict(twin).items()}
