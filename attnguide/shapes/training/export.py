"""Exports a trained pipeline as a folder that diffusers opens."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn


def save_pipeline(pipeline: DiffusionPipeline, target: Path) -> None:
    """Write ``pipeline`` in float16 safetensors, without this machine's paths, for transformers 4 and 5 alike.

    Raises:
        ValueError: If a weight is not finite, or too large for float16.
    """
    _require_finite(pipeline)
    pipeline.to(dtype=torch.float16).save_pretrained(target, safe_serialization=True)
    _forget_paths(target)
    _readable_by_older_versions(target)


def _require_finite(pipeline: DiffusionPipeline) -> None:
    largest = torch.finfo(torch.float16).max
    for part, network in pipeline.components.items():
        for name, weight in network.named_parameters() if isinstance(network, nn.Module) else ():
            if not bool((weight.abs() <= largest).all()):
                raise ValueError(f"weights must be finite in float16; {part}.{name} is not.")


def _forget_paths(folder: Path) -> None:
    """Remove local paths that the libraries write into configuration files."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def _readable_by_older_versions(folder: Path) -> None:
    """Rename classes and weights so that transformers 4 and 5 both load the folder: fast tokenizers, prefix ``text_model.``.

    Otherwise version 4 would look for other tokenizer files, and initialise weights at random whose names it misses.
    """
    index = folder / "model_index.json"
    text = index.read_text()
    for name in ("CLIPTokenizer", "T5Tokenizer"):
        text = text.replace(f'"{name}"', f'"{name}Fast"')
    index.write_text(text)
    for path in folder.glob("tokenizer*/tokenizer_config.json"):
        config = json.loads(path.read_text())
        if config.get("extra_special_tokens") == []:  # version 4 expects a mapping, and fails on a list
            del config["extra_special_tokens"]
            path.write_text(json.dumps(config, indent=2) + "\n")
    weights = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
