"""The joint-attention model of the shapes world with random weights and few of them, as a folder that commands open."""

from __future__ import annotations

from pathlib import Path

from attnguide.shapes.training.architecture import build_autoencoder, build_text_encoder, build_tokenizer
from attnguide.shapes.training.export import save_pipeline
from attnguide.shapes.training.mmdit import build_flux_pipeline, build_t5, build_t5_tokenizer, build_transformer


def save(folder: Path) -> str:
    """Write it; a picture has 128 pixels a side and 8x8 image tokens, and there are three blocks."""
    tokenizer, pieces = build_tokenizer(300), build_t5_tokenizer()
    clip, t5 = build_text_encoder(tokenizer), build_t5(pieces)
    network = build_transformer(heads=1, dual=1, single=2)
    save_pipeline(build_flux_pipeline(build_autoencoder(), (tokenizer, clip), (pieces, t5), network), folder)
    return str(folder)
