"""Whether the parts of a pipeline belong together: their classes, their channels, and the scale of latents."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import transformers
from torch import nn

from attnguide.models.compiled import plain_module
from attnguide.models.folder import UnsupportedModelError
from attnguide.models.names import FAMILIES

Reads = Mapping[str, tuple[str, ...]]
"""Text encoders whose states are concatenated along channels, by the network's config entry with their total width."""

_SMALL = "AutoencoderTiny"
"""A small autoencoder that may replace any ``AutoencoderKL``."""

_LEGACY = "Transformer2DModel"
"""Former class name of PixArt's transformers; diffusers loads the right class for it."""

_SCALES = {
    0.18215: "Stable Diffusion 1 and 2, and PixArt-alpha",
    0.13025: "Stable Diffusion XL, PixArt-Sigma and AuraFlow",
    1.5305: "Stable Diffusion 3",
    0.3611: "FLUX.1, Chroma, Lumina 2 and Z-Image",
}
"""Scaling factors of published autoencoders and the families that use them; the number of channels tells them not apart."""

_OF = {
    "StableDiffusionPipeline": 0.18215,
    "LatentConsistencyModelPipeline": 0.18215,
    "StableDiffusionXLPipeline": 0.13025,
    "PixArtAlphaPipeline": 0.18215,
    "PixArtSigmaPipeline": 0.13025,
    "AuraFlowPipeline": 0.13025,
    "StableDiffusion3Pipeline": 1.5305,
    "FluxPipeline": 0.3611,
    "ChromaPipeline": 0.3611,
    "Lumina2Pipeline": 0.3611,
    "ZImagePipeline": 0.3611,
}
"""Scaling factor of each pipeline's published autoencoder."""


@cache
def wanted_classes(kind: str) -> Mapping[str, type[nn.Module]]:
    """Class of each network of a diffusers pipeline by part, from its constructor's annotations."""
    try:
        hints = typing.get_type_hints(getattr(diffusers, kind).__init__)
    except (AttributeError, NameError):  # of a version that does not know it, or does not say
        return {}
    family = FAMILIES[kind]
    parts = [part for part in (*family.parts, *family.optional) if part.startswith(("unet", "transformer", "vae", "text_"))]
    return {part: hints[part] for part in parts if isinstance(hints.get(part), type) and issubclass(hints[part], nn.Module)}


def stands_for(found: type, wanted: type) -> bool:
    """Whether a network of class ``found`` may take the place of one of class ``wanted``.

    A language model may lack the vision part of a wanted vision-language model.
    """
    if issubclass(found, wanted) or (found.__name__ == _SMALL and wanted.__name__ == "AutoencoderKL"):
        return True
    own, asked = _kind(found), _kind(wanted)
    return bool(own) and own != asked and asked.startswith(own)


def _kind(network: type) -> str:
    """The ``model_type`` of a class of transformers; empty for other classes."""
    return str(getattr(getattr(network, "config_class", None), "model_type", ""))


# ----------------------------------------------------------------------------------------------------- before loading


def check_index(index: Mapping[str, Any], folder: Path | None = None) -> None:
    """Refuse a pipeline's configuration whose parts are of classes that the pipeline does not take.

    Args:
        index: ``model_index.json`` of a supported pipeline.
        folder: Folder with the parts' own configurations, which must name the same classes.

    Raises:
        UnsupportedModelError: Naming part and class.
    """
    for part, wanted in wanted_classes(index["_class_name"]).items():
        library, name = index.get(part) or (None, None)
        found = getattr({"diffusers": diffusers, "transformers": transformers}.get(str(library)), str(name), None)
        if not isinstance(found, type) or name == _LEGACY:
            continue
        if not stands_for(found, wanted):
            raise UnsupportedModelError(
                f"model_index.json names a {name} as its {part}; {index['_class_name']} needs a {wanted.__name__}"
            )
        said = None if folder is None else _said(folder / part / "config.json")
        if said is not None and not _same(found, said):
            kind = said.get("_class_name") or said.get("model_type")
            raise UnsupportedModelError(
                f"model_index.json names a {name} as its {part}, but {part}/config.json is that of a {kind}"
            )


def _said(path: Path) -> dict[str, Any] | None:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _same(found: type, said: Mapping[str, Any]) -> bool:
    """Whether a configuration belongs to the class; one of a vision-language model contains that of its text encoder."""
    if "_class_name" in said:
        return bool(said["_class_name"] in (found.__name__, _LEGACY))
    own, kind = _kind(found), str(said.get("model_type") or "")
    return not own or not kind or own.startswith(kind) or "text_config" in said


# ------------------------------------------------------------------------------------------------------- of held parts


def class_problems(pipeline: Any, kind: str) -> Iterator[str]:
    """Problems of text encoders of another class than the pipeline takes; adapters check networks and autoencoders."""
    for part, wanted in wanted_classes(kind).items():
        encoder = plain_module(getattr(pipeline, part, None)) if part.startswith("text_") else None
        if isinstance(encoder, nn.Module) and not stands_for(type(encoder), wanted):
            yield f"{part} must be a {wanted.__name__}; got {type(encoder).__name__}."


def width_problems(pipeline: Any, network: str, reads: Reads) -> Iterator[str]:
    """Problems where the channels of text states that the network reads are not the sum of the text encoders' channels."""
    config = plain_module(getattr(pipeline, network)).config
    for setting, parts in reads.items():
        encoders = [plain_module(getattr(pipeline, part, None)) for part in parts]
        widths = [text_width(encoder) for encoder in encoders if encoder is not None]
        asked = config.get(setting)
        if len(widths) == len(parts) and isinstance(asked, int) and sum(widths) != asked:
            givers = " and ".join(dict.fromkeys(parts))
            yield f"{network} reads text states of {asked} channels ({setting}); {givers} gives {sum(widths)}."


def text_width(encoder: Any) -> int:
    """Channels of a text encoder's states."""
    return int(encoder.config.get_text_config().hidden_size)


def channel_problems(pipeline: Any, packs: int) -> Iterator[str]:
    """Problems where a transformer does not read the autoencoder's latent channels.

    Args:
        pipeline: Pipeline with a transformer and an autoencoder.
        packs: Latent cells packed into the channels of one token before the network reads them.
    """
    config = plain_module(pipeline.vae).config
    channels = config.get("latent_channels") or config.get("z_dim")
    reads = plain_module(pipeline.transformer).config.in_channels
    if channels and reads != packs * channels:
        cells = "" if packs == 1 else f" of {packs} cells each"
        yield f"transformer reads latents of {reads // packs} channels{cells}; the vae has {channels}."


def doubtful_scale(pipeline: Any, kind: str) -> str | None:
    """Warning if the autoencoder's scaling factor is that of another family; ``None`` otherwise."""
    factor = plain_module(pipeline.vae).config.get("scaling_factor")
    if kind not in _OF or factor not in _SCALES or factor == _OF[kind]:
        return None
    return (
        f"the vae scales latents by {factor:g}, as those of {_SCALES[factor]} do; that of a {kind} scales by {_OF[kind]:g}. "
        "If it is another model's, its pictures are wrong"
    )
