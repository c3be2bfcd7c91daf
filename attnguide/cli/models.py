"""``attnguide models``: lists the values that ``--model`` takes."""

from __future__ import annotations

from collections.abc import Sequence

from attnguide.cli.arguments import parse
from attnguide.cli.values import Setting

MODELS: dict[str, str] = {
    "shapes": "embedded: coloured shapes on plain backgrounds, no download",
    "shapes-mmdit": 'the same world, embedded, in FLUX.1\'s format; wants --true-cfg-scale 2 --negative-prompt ""',
    "FOLDER": "a pipeline in diffusers format (Stable Diffusion, XL, 3, PixArt, FLUX, ...), as save_pretrained writes it",
    "FILE.safetensors": "Stable Diffusion 1.x, 2.x or XL as a single checkpoint; offline with --model-config FOLDER",
    "OWNER/NAME": "its hub id, e.g. stable-diffusion-v1-5/stable-diffusion-v1-5; read from the local cache if offline",
}


def settings() -> list[Setting]:
    """Settings of ``attnguide models``: none."""
    return []


def run(argv: Sequence[str]) -> int:
    """Print a line for each kind of value."""
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
