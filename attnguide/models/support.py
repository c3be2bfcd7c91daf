"""Which pipelines of diffusers are supported: everything that would be dropped or misread is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import diffusers
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from attnguide.models.folder import UnsupportedModelError
from attnguide.models.names import PIPELINES, supported_pipelines

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

_UNLOAD = " Call pipeline.unload_ip_adapter() first."


def plain_module(module: Any) -> Any:
    """The network behind ``torch.compile``'s wrapper, or the network itself."""
    return getattr(module, "_orig_mod", module)


def check_pipeline(pipeline: Any) -> None:
    """Refuse a pipeline that this package would run differently from diffusers.

    Raises:
        UnsupportedModelError: Naming the pipeline's class or part, and what would work.
    """
    if type(pipeline) not in [getattr(diffusers, name) for name in PIPELINES]:
        name = type(pipeline).__name__
        raise UnsupportedModelError(f"No adapter for {name}; supported are {supported_pipelines()}.{_way(pipeline)}")
    check_parts(pipeline)


def check_parts(pipeline: Any) -> None:
    """Refuse parts of a pipeline that are missing, or that do not fit each other or this package.

    Raises:
        UnsupportedModelError: Naming the part.
    """
    problem = next(_problems(pipeline, type(pipeline).__name__), None)
    if problem is not None:
        raise UnsupportedModelError(problem)


def _way(pipeline: Any) -> str:
    """How plain text-to-image works with the parts of an unsupported pipeline, if it does."""
    kind = "StableDiffusionPipeline" if getattr(pipeline, "text_encoder_2", None) is None else "StableDiffusionXLPipeline"
    if next(_problems(pipeline, kind), None) is not None:
        return ""
    return (
        f" What {type(pipeline).__name__} adds would be dropped; for plain text-to-image with its parts, hand over "
        f"{kind}.from_pipe(pipeline, torch_dtype=pipeline.dtype)."
    )


def _problems(pipeline: Any, kind: str) -> Iterator[str]:
    """What is not supported of the parts of a pipeline of this kind; each problem supposes that there is no earlier one."""
    name = type(pipeline).__name__
    missing = [part for part in PIPELINES[kind] if getattr(pipeline, part, None) is None]
    if missing:
        yield f"{name} lacks its {' and '.join(missing)}."
    yield from _weight_problems(pipeline, PIPELINES[kind])
    unet, vae = plain_module(pipeline.unet), plain_module(pipeline.vae)
    if type(unet) is not UNet2DConditionModel:
        yield f"unet must be a UNet2DConditionModel; got {type(unet).__name__}."
    if type(vae) not in _DECODERS:
        yield f"vae must be {' or '.join(kind.__name__ for kind in _DECODERS)}; got {type(vae).__name__}."
    yield from _channel_problems(unet.config, vae.config.latent_channels)
    second = pipeline.text_encoder_2 if "text_encoder_2" in PIPELINES[kind] else None
    yield from _condition_problems(unet.config, second)
    yield from _unet_problems(unet)
    yield from _text_problems(pipeline.tokenizer, pipeline.text_encoder)
    if second is not None:
        yield from _text_problems(pipeline.tokenizer_2, second)
        if pipeline.tokenizer.model_max_length != pipeline.tokenizer_2.model_max_length:
            yield "tokenizer and tokenizer_2 must read equally many tokens, whose states lie side by side."
    if getattr(pipeline, "safety_checker", None) is not None and getattr(pipeline, "feature_extractor", None) is None:
        yield f"{name} has a safety_checker without the feature_extractor that it needs; set both, or neither."


def _weight_problems(pipeline: Any, parts: Iterable[str]) -> Iterator[str]:
    """Weights on the device ``meta`` hold nothing, unless hooks of accelerate bring them in when they are needed."""
    for part in parts:
        network = plain_module(getattr(pipeline, part))
        modules = list(network.modules()) if hasattr(network, "modules") else []
        empty = any(weight.is_meta for module in modules for weight in module.parameters(recurse=False))
        if empty and not any(hasattr(module, "_hf_hook") for module in modules):
            yield f"{part} has weights on the device 'meta', which holds none: load them first."


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
    """What a UNet reads beside latents, a timestep and text; that of SDXL are six sizes and the pooled text."""
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


def _text_problems(tokenizer: Any, encoder: Any) -> Iterator[str]:
    """The tokenizer's numbers and lengths must be the text encoder's."""
    words = encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > words:
        yield f"tokenizer has {len(tokenizer)} tokens, but the text encoder knows {words}."
    if tokenizer.eos_token_id is None or len(tokenizer) < 2:
        yield "tokenizer has no vocabulary with an end token; its files are missing or empty."
    reads = getattr(encoder.config, "max_position_embeddings", None)
    if reads is not None and tokenizer.model_max_length > reads:
        yield (
            f"tokenizer's model_max_length must be at most {reads}, which the text encoder reads; got "
            f"{tokenizer.model_max_length:.6g}."
        )
