"""``attnguide models``: what ``--model`` takes."""

from __future__ import annotations

from collections.abc import Sequence

from attnguide.cli.arguments import parse
from attnguide.cli.values import Setting

MODELS: dict[str, str] = {
    "shapes": "embedded: coloured shapes on plain backgrounds, no download",
    "FOLDER": "Stable Diffusion 1.x or 2.x in diffusers format, as DiffusionPipeline.save_pretrained writes it",
    "FILE.safetensors": "Stable Diffusion 1.x or 2.x as a single checkpoint; offline with --model-config FOLDER",
    "OWNER/NAME": "a hub id, e.g. stable-diffusion-v1-5/stable-diffusion-v1-5; from the local cache where offline",
}


def settings() -> list[Setting]:
    """Everything ``attnguide models`` can be told: nothing."""
    return []


def run(argv: Sequence[str]) -> int:
    """Print one line a kind of model."""
    parse(
        "attnguide models",
        argv,
        settings(),
        description="List what --model takes.",
        examples="example:\n  attnguide sample --model shapes",
    )
    width = max(map(len, MODELS))
    print("\n".join(f"{name:<{width}}  {summary}" for name, summary in MODELS.items()))
    return 0
