"""Problems of UNet pipelines: UNets and text encoders that this package would run differently from diffusers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusers import UNet2DConditionModel

from attnguide.models.support import decoder_problems, plain_module, text_problems

_BLOCKS = frozenset(
    {"CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2DCrossAttn", "UNetMidBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
)

_CHANNELS = {
    5: "a depth map as well (depth-to-image)",
    7: "a small picture as well (upscaling)",
    8: "a picture as well (instruct-pix2pix)",
    9: "a mask and a masked picture as well (inpainting)",
}
"""Further inputs of a UNet beside latents, by its number of input channels."""

_CONDITIONS = {
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "addition_embed_type": "added conditions (sizes, pooled text or images)",
    "encoder_hid_dim_type": "image prompts (IP-Adapter)",
    "addition_time_embed_dim": "added conditions (sizes)",
}
"""Config entries of a UNet with further conditions beside latents, timestep and text."""

_UNLOAD = " Call pipeline.unload_ip_adapter() first."


def unet_problems(pipeline: Any, second_encoder: Any = None) -> Iterator[str]:
    """Problems of a UNet pipeline; each check assumes that the earlier ones passed.

    Args:
        pipeline: Pipeline with all its parts.
        second_encoder: The second text encoder, of a pipeline with two.
    """
    unet, vae = plain_module(pipeline.unet), plain_module(pipeline.vae)
    if type(unet) is not UNet2DConditionModel:
        yield f"unet must be a UNet2DConditionModel; got {type(unet).__name__}."
    yield from decoder_problems(vae)
    yield from _channel_problems(unet.config, vae.config.latent_channels)
    yield from _condition_problems(unet.config, second_encoder)
    yield from _unet_problems(unet)
    yield from text_problems(pipeline.tokenizer, pipeline.text_encoder)
    if second_encoder is not None:
        yield from text_problems(pipeline.tokenizer_2, second_encoder)
        if pipeline.tokenizer.model_max_length != pipeline.tokenizer_2.model_max_length:
            yield "tokenizer and tokenizer_2 must read equally many tokens, whose states lie side by side."
    if getattr(pipeline, "safety_checker", None) is not None and getattr(pipeline, "feature_extractor", None) is None:
        name = type(pipeline).__name__
        yield f"{name} has a safety_checker without the feature_extractor that it needs; set both, or neither."


def _channel_problems(config: Any, channels: int) -> Iterator[str]:
    if config.in_channels == config.out_channels == channels:
        return
    what = _CHANNELS.get(config.in_channels, "something else")
    reads = f": such a UNet reads {what}, which is not supported." if config.in_channels != channels else "."
    yield (
        f"unet must read and predict the vae's {channels} latent channels; it reads {config.in_channels} and predicts "
        f"{config.out_channels}{reads}"
    )


def _condition_problems(config: Any, second_encoder: Any) -> Iterator[str]:
    """Problems of further conditions of a UNet; SDXL's must be six sizes and the pooled text."""
    sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": config.get("addition_time_embed_dim")}
    known = {} if second_encoder is None else sizes
    for setting, what in _CONDITIONS.items():
        if config.get(setting) != known.get(setting):
            way = _UNLOAD if setting == "encoder_hid_dim_type" else ""
            yield f"unet reads {what}, which are not supported ({setting}={config[setting]!r}).{way}"
    if second_encoder is None:
        return
    reads, text = config.projection_class_embeddings_input_dim, second_encoder.config.projection_dim
    if reads != text + 6 * config.addition_time_embed_dim:
        yield (
            f"unet must read six sizes and the pooled text, {text + 6 * config.addition_time_embed_dim} channels; it reads "
            f"{reads}, as the refiner of SDXL does, which is not supported."
        )


def _unet_problems(unet: Any) -> Iterator[str]:
    config = unet.config
    if getattr(unet, "encoder_hid_proj", None) is not None:
        yield "unet reads its text states through a projection (encoder_hid_proj), which is not supported."
    kind = config.get("attention_type", "default")
    if kind != "default":
        yield f"unet has attention of the type {kind!r} (GLIGEN), which is not supported."
    others = {*config.down_block_types, config.mid_block_type, *config.up_block_types} - _BLOCKS - {None}
    if others:
        yield f"unet has blocks that are not supported: {', '.join(sorted(others))}."
    adapters = {type(one).__name__ for one in unet.attn_processors.values() if "IPAdapter" in type(one).__name__}
    if adapters:
        yield f"unet has a loaded IP-Adapter ({', '.join(sorted(adapters))}).{_UNLOAD}"
