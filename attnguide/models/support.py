"""Which pipelines of diffusers are supported: everything that would be dropped or misread is refused by name."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from attnguide.models.folder import UnsupportedModelError
from attnguide.models.names import PIPELINES

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")

_DECODERS = (AutoencoderKL, AutoencoderTiny)

_BLOCKS = frozenset(
    {"CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
)

_CHANNELS = {
    5: "a depth map as well (depth-to-image)",
    7: "a small picture as well (upscaling)",
    8: "a picture as well (instruct-pix2pix)",
    9: "a mask and a masked picture as well (inpainting)",
}
"""What a UNet reads beside latents, by its input channels."""

_CONDITIONS = {
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "addition_embed_type": "added conditions (sizes, pooled text or images)",
    "encoder_hid_dim_type": "image prompts (IP-Adapter)",
    "addition_time_embed_dim": "added conditions (sizes)",
}
"""Settings of a UNet that asks for more than latents, a timestep and text."""


def plain_module(module: Any) -> Any:
    """The network behind ``torch.compile``'s wrapper, or the network itself."""
    return getattr(module, "_orig_mod", module)


def check_pipeline(pipeline: Any) -> None:
    """Refuse a pipeline that this package would run differently from diffusers.

    Raises:
        UnsupportedModelError: Naming the pipeline's class or part, and what would work.
    """
    if type(pipeline) not in [getattr(diffusers, name) for name in PIPELINES]:
        supported = " and ".join(PIPELINES)
        raise UnsupportedModelError(f"No adapter for {type(pipeline).__name__}; supported are {supported}.{_way(pipeline)}")
    check_parts(pipeline)


def check_parts(pipeline: Any) -> None:
    """Refuse parts of a pipeline that are missing, or that do not fit each other or this package.

    Raises:
        UnsupportedModelError: Naming the part.
    """
    name = type(pipeline).__name__
    missing = [part for part in _PARTS if getattr(pipeline, part, None) is None]
    if missing:
        raise UnsupportedModelError(f"{name} lacks its {' and '.join(missing)}.")
    _check_unet(plain_module(pipeline.unet), plain_module(pipeline.vae))
    _check_text(pipeline.tokenizer, pipeline.text_encoder)
    if getattr(pipeline, "safety_checker", None) is not None and getattr(pipeline, "feature_extractor", None) is None:
        raise UnsupportedModelError(f"{name} has a safety_checker without the feature_extractor that it needs; set both, or neither.")


def _way(pipeline: Any) -> str:
    """How plain text-to-image works with the parts of an unsupported pipeline, if it does."""
    if getattr(pipeline, "text_encoder_2", None) is not None:
        return ""
    try:
        check_parts(pipeline)
    except UnsupportedModelError:
        return ""
    return (
        f" What {type(pipeline).__name__} adds would be dropped; for plain text-to-image with its parts, hand over "
        "StableDiffusionPipeline.from_pipe(pipeline, torch_dtype=pipeline.dtype)."
    )


def _check_unet(unet: Any, vae: Any) -> None:
    if type(unet) is not UNet2DConditionModel:
        raise UnsupportedModelError(f"unet must be a UNet2DConditionModel; got {type(unet).__name__}.")
    if type(vae) not in _DECODERS:
        raise UnsupportedModelError(f"vae must be {' or '.join(kind.__name__ for kind in _DECODERS)}; got {type(vae).__name__}.")
    config, channels = unet.config, vae.config.latent_channels
    if config.in_channels != channels or config.out_channels != channels:
        what = _CHANNELS.get(config.in_channels, "something else")
        raise UnsupportedModelError(
            f"unet must read and predict the vae's {channels} latent channels; it reads {config.in_channels} and predicts "
            f"{config.out_channels}"
            + (f": such a UNet reads {what}, which is not supported." if config.in_channels != channels else ".")
        )
    for setting, what in _CONDITIONS.items():
        if config.get(setting) is not None:
            raise UnsupportedModelError(f"unet reads {what}, which are not supported ({setting}={config[setting]!r}).{_unload(setting)}")
    if getattr(unet, "encoder_hid_proj", None) is not None:
        raise UnsupportedModelError("unet reads its text states through a projection (encoder_hid_proj), which is not supported.")
    kind = config.get("attention_type", "default")
    if kind != "default":
        raise UnsupportedModelError(f"unet has attention of the type {kind!r} (GLIGEN), which is not supported.")
    others = {*config.down_block_types, config.mid_block_type, *config.up_block_types} - _BLOCKS - {None}
    if others:
        raise UnsupportedModelError(f"unet has blocks that are not supported: {', '.join(sorted(others))}.")
    adapters = {type(one).__name__ for one in unet.attn_processors.values() if "IPAdapter" in type(one).__name__}
    if adapters:
        raise UnsupportedModelError(f"unet has a loaded IP-Adapter ({', '.join(sorted(adapters))}).{_unload('encoder_hid_dim_type')}")


def _unload(setting: str) -> str:
    return " Call pipeline.unload_ip_adapter() first." if setting == "encoder_hid_dim_type" else ""


def _check_text(tokenizer: Any, encoder: Any) -> None:
    """The tokenizer's numbers and lengths must be the text encoder's."""
    table: torch.nn.Module = encoder.get_input_embeddings()
    words = int(table.weight.shape[0])  # type: ignore[arg-type, union-attr]
    if len(tokenizer) > words:
        raise UnsupportedModelError(f"tokenizer has {len(tokenizer)} tokens, but the text encoder knows {words}.")
    if tokenizer.eos_token_id is None or len(tokenizer) < 2:
        raise UnsupportedModelError("tokenizer has no vocabulary with an end token; its files are missing or empty.")
    reads = getattr(encoder.config, "max_position_embeddings", None)
    if reads is not None and tokenizer.model_max_length > reads:
        raise UnsupportedModelError(
            f"tokenizer's model_max_length must be at most {reads}, which the text encoder reads; got "
            f"{tokenizer.model_max_length:.6g}."
        )
