"""Tiny pipelines of the kinds that are built from a family's parts: img2img, inpainting, ControlNet and what else there is.

Weights are random, those of a ControlNet's last layers too, which begin as zeros. Pictures are not square, so that rows and
columns cannot be taken for each other unnoticed.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor, nn

from tests import tiny
from tests.models import families
from tests.models.parts import autoencoder, sharpened
from tests.steering import ip_adapters

Parts = Callable[[Any], Mapping[str, Any]]

CONTROL_SCALE = 0.7


@dataclass(frozen=True)
class Kind:
    """A class of pipelines.

    Attributes:
        family: The tiny family whose parts it takes.
        pipeline: Name of the class in diffusers.
        inputs: Names of what its call is given besides a prompt, of :func:`inputs`.
        parts: Further or other parts, made from the family's pipeline.
        settings: Of its call.
    """

    family: str
    pipeline: str
    inputs: tuple[str, ...] = ()
    parts: Parts = field(default=lambda base: {})
    settings: Mapping[str, Any] = field(default_factory=dict)


def size(family: str) -> tuple[int, int]:
    """Height and width of pictures in pixels: 8 x 12 cells on most families' coarsest maps."""
    return (128, 192) if family == "qwen_image_21" else (32, 48)


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Soft spots of colour."""
    spots = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    values = nn.functional.interpolate(spots, (height, width), mode="bilinear")[0]
    return Image.fromarray((values * 255).byte().permute(1, 2, 0).contiguous().numpy())


def inputs(family: str) -> dict[str, Any]:
    """What calls are given, by argument: the mask is white, painted anew, in the right half."""
    height, width = size(family)
    mask = Image.new("L", (width, height))
    mask.paste(255, (width // 2, 0, width, height))
    first, second = picture(1, height, width), picture(2, height, width)
    return {
        "image": first,
        "control_image": second,
        "mask_image": mask,
        "control_mask": mask,
        "image_reference": second,
        "strength": 0.6,
        "controlnet_conditioning_scale": CONTROL_SCALE,
    }


def awake(network: nn.Module, seed: int = 7) -> nn.Module:
    """A network whose zero weights have become random, so that it changes something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if not bool(weight.any()):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return network.eval()


def certain(autoencoder: Any) -> Any:
    """A copy whose latents have no spread, so that it does not matter whether a pipeline draws them for a batch or a row."""
    copied = copy.deepcopy(autoencoder)
    last = getattr(copied, "quant_conv", None) or copied.encoder.conv_out
    half = last.weight.shape[0] // 2
    with torch.no_grad():
        last.weight[half:] = 0.0
        last.bias[half:] = -30.0
    return copied


def _like(network: Any, **settings: Any) -> Any:
    """A new network of other settings."""
    return type(network).from_config(_settings(network, **settings))


def _copy(network: Any) -> Any:
    """A copy, since making a ControlNet of some transformers writes into their configuration."""
    copied = _like(network)
    copied.load_state_dict(network.state_dict())
    return copied.eval()


def _settings(network: Any, **settings: Any) -> dict[str, Any]:
    """A network's configuration with some changes; without the list of values that the library would forget."""
    return {key: value for key, value in {**network.config, **settings}.items() if key != "_use_default_values"}


def _unet_control(base: Any) -> dict[str, Any]:
    network = diffusers.ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8, 16))
    return {"controlnet": awake(network)}


def _two_unet_controls(base: Any) -> dict[str, Any]:
    return {"controlnet": diffusers.MultiControlNetModel([_unet_control(base)["controlnet"] for _ in range(2)])}


def _wide_unet(base: Any) -> dict[str, Any]:
    """Nine channels: latents, mask and masked picture."""
    return {"unet": sharpened(_like(base.unet, in_channels=9))}


def _wide_sd3(base: Any) -> dict[str, Any]:
    """Sixteen channels, without which the pipeline keeps nothing of the picture."""
    return {"transformer": sharpened(_like(base.transformer, in_channels=16, out_channels=16)), "vae": autoencoder(16)}


def _sd3_control(base: Any) -> dict[str, Any]:
    network = diffusers.SD3ControlNetModel.from_transformer(_copy(base.transformer), 2, 0)
    network.config["force_zeros_for_pooled_projection"] = False
    return {"controlnet": awake(network)}


def _sd3_masked_control(base: Any) -> dict[str, Any]:
    network = diffusers.SD3ControlNetModel.from_transformer(_copy(base.transformer), 2, 1)
    return {"controlnet": awake(network)}


def _flux_network(base: Any, channels: int) -> dict[str, Any]:
    """A network that reads further channels behind those of the latents."""
    return {"transformer": sharpened(_like(base.transformer, in_channels=channels, out_channels=16))}


def _chroma_copy(base: Any) -> dict[str, Any]:
    """With a setting that the pipeline asks for, and that the network's class does not have."""
    network = _copy(base.transformer)
    network.register_to_config(guidance_embeds=False)
    return {"transformer": network}


def _flux_control(base: Any) -> dict[str, Any]:
    network = diffusers.FluxControlNetModel.from_transformer(
        base.transformer, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )
    return {"controlnet": awake(network)}


def _qwen_control(base: Any, extra: int = 0) -> dict[str, Any]:
    network = diffusers.QwenImageControlNetModel.from_transformer(
        base.transformer, num_layers=2, attention_head_dim=16, num_attention_heads=2, extra_condition_channels=extra
    )
    return {"controlnet": awake(network)}


def _z_control(base: Any) -> dict[str, Any]:
    network = diffusers.ZImageControlNetModel(
        control_layers_places=[0, 2],
        control_refiner_layers_places=[0],
        control_in_dim=4,
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    return {"controlnet": awake(network)}


_IMAGE, _MASK, _CONTROL = ("image", "strength"), ("image", "mask_image", "strength"), "controlnet_conditioning_scale"
_PAG = {"pag_scale": 2.0}

KINDS: dict[str, Kind] = {
    "sd_img2img": Kind("sd", "StableDiffusionImg2ImgPipeline", _IMAGE),
    "sd_inpaint": Kind("sd", "StableDiffusionInpaintPipeline", _MASK),
    "sd_inpaint_9": Kind("sd", "StableDiffusionInpaintPipeline", _MASK, _wide_unet),
    "sd_controlnet": Kind("sd", "StableDiffusionControlNetPipeline", ("image", _CONTROL), _unet_control),
    "sd_controlnet_img2img": Kind(
        "sd", "StableDiffusionControlNetImg2ImgPipeline", (*_IMAGE, "control_image", _CONTROL), _unet_control
    ),
    "sd_controlnet_inpaint": Kind(
        "sd", "StableDiffusionControlNetInpaintPipeline", (*_MASK, "control_image", _CONTROL), _unet_control
    ),
    "sd_pag": Kind("sd", "StableDiffusionPAGPipeline", settings=_PAG),
    "sdxl_img2img": Kind("sdxl", "StableDiffusionXLImg2ImgPipeline", _IMAGE),
    "sdxl_inpaint": Kind("sdxl", "StableDiffusionXLInpaintPipeline", _MASK),
    "sdxl_controlnet": Kind("sdxl", "StableDiffusionXLControlNetPipeline", ("image", _CONTROL), _unet_control),
    "sdxl_pag": Kind("sdxl", "StableDiffusionXLPAGPipeline", settings=_PAG),
    "pixart_sigma_pag": Kind(
        "pixart_sigma", "PixArtSigmaPAGPipeline", parts=lambda _: {"pag_applied_layers": ["blocks.1"]}, settings=_PAG
    ),
    "sd3_img2img": Kind("sd3", "StableDiffusion3Img2ImgPipeline", _IMAGE),
    "sd3_inpaint": Kind("sd3", "StableDiffusion3InpaintPipeline", _MASK, _wide_sd3),
    "sd3_controlnet": Kind("sd3", "StableDiffusion3ControlNetPipeline", ("control_image", _CONTROL), _sd3_control),
    "sd3_controlnet_inpaint": Kind(
        "sd3",
        "StableDiffusion3ControlNetInpaintingPipeline",
        ("control_image", "control_mask", _CONTROL),
        _sd3_masked_control,
    ),
    "sd3_pag": Kind("sd3", "StableDiffusion3PAGPipeline", parts=lambda _: {"pag_applied_layers": ["blocks.1"]}, settings=_PAG),
    "sd3_ip_adapter": Kind(
        "sd3",
        "StableDiffusion3Pipeline",
        parts=lambda base: {"transformer": ip_adapters.sd3_adapter(base.transformer)},
        settings={"ip_adapter_image_embeds": ip_adapters.states(2)},
    ),
    "flux_img2img": Kind("flux_dev", "FluxImg2ImgPipeline", _IMAGE),
    "flux_inpaint": Kind("flux_dev", "FluxInpaintPipeline", _MASK),
    "flux_fill": Kind("flux_dev", "FluxFillPipeline", ("image", "mask_image"), lambda base: _flux_network(base, 48)),
    "flux_control": Kind("flux_dev", "FluxControlPipeline", ("control_image",), lambda base: _flux_network(base, 32)),
    "flux_control_img2img": Kind(
        "flux_dev", "FluxControlImg2ImgPipeline", (*_IMAGE, "control_image"), lambda base: _flux_network(base, 32)
    ),
    "flux_control_inpaint": Kind(
        "flux_dev", "FluxControlInpaintPipeline", (*_MASK, "control_image"), lambda base: _flux_network(base, 32)
    ),
    "flux_controlnet": Kind("flux_dev", "FluxControlNetPipeline", ("control_image", _CONTROL), _flux_control),
    "flux_controlnet_img2img": Kind(
        "flux_dev", "FluxControlNetImg2ImgPipeline", (*_IMAGE, "control_image", _CONTROL), _flux_control
    ),
    "flux_controlnet_inpaint": Kind(
        "flux_dev", "FluxControlNetInpaintPipeline", (*_MASK, "control_image", _CONTROL), _flux_control
    ),
    "flux_ip_adapter": Kind(
        "flux_dev",
        "FluxPipeline",
        parts=lambda base: {"transformer": ip_adapters.flux_adapter(base.transformer)},
        settings={
            "ip_adapter_image_embeds": [ip_adapters.states(1)],
            "negative_ip_adapter_image_embeds": [torch.zeros_like(ip_adapters.states(1))],
        },
    ),
    "flux_kontext": Kind("flux_dev", "FluxKontextPipeline", ("image",), settings={"max_area": 32 * 48, "_auto_resize": False}),
    "flux2_reference": Kind("flux2", "Flux2Pipeline", settings={"image": picture(4, 64, 64)}),
    "flux2_klein_inpaint": Kind("flux2_klein", "Flux2KleinInpaintPipeline", _MASK),
    "chroma_img2img": Kind("chroma", "ChromaImg2ImgPipeline", _IMAGE),
    "chroma_inpaint": Kind("chroma", "ChromaInpaintPipeline", _MASK, _chroma_copy),
    "qwen_image_img2img": Kind("qwen_image", "QwenImageImg2ImgPipeline", _IMAGE),
    "qwen_image_inpaint": Kind("qwen_image", "QwenImageInpaintPipeline", _MASK),
    "qwen_image_controlnet": Kind("qwen_image", "QwenImageControlNetPipeline", ("control_image", _CONTROL), _qwen_control),
    "qwen_image_controlnet_inpaint": Kind(
        "qwen_image",
        "QwenImageControlNetInpaintPipeline",
        ("control_image", "control_mask", _CONTROL),
        lambda base: _qwen_control(base, 4),
    ),
    "z_image_img2img": Kind("z_image", "ZImageImg2ImgPipeline", _IMAGE),
    "z_image_inpaint": Kind("z_image", "ZImageInpaintPipeline", _MASK),
    "z_image_controlnet": Kind("z_image", "ZImageControlNetPipeline", ("control_image", _CONTROL), _z_control),
}
"""Kinds of pipelines by a name of ours."""


def available() -> list[str]:
    """Kinds that the installed diffusers knows, in the order of this file."""
    return [name for name, kind in KINDS.items() if hasattr(diffusers, kind.pipeline) and kind.family in families.available()]


def build(name: str, base: Any = None) -> Any:
    """A new pipeline of a kind on the parts of its family's shared pipeline, or of one that is given."""
    kind = KINDS[name]
    base = families.shared(kind.family) if base is None else base
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        parts = dict(kind.parts(base))
    parts = {"vae": certain(parts.get("vae", base.vae)), **{name: part for name, part in parts.items() if name != "vae"}}
    built = getattr(diffusers, kind.pipeline).from_pipe(base, torch_dtype=base.dtype, **parts)
    if hasattr(base, "default_sample_size"):
        built.default_sample_size = base.default_sample_size
    built.set_progress_bar_config(disable=True)
    return built


@functools.cache
def shared(name: str) -> Any:
    """One pipeline for all tests that leave it as it is; families' pipelines count as kinds of their own."""
    return build(name) if name in KINDS else families.shared(name)


def family(name: str) -> str:
    """The tiny family of a kind."""
    return KINDS[name].family if name in KINDS else name


def sample(name: str, prompt: str | list[str] = tiny.PROMPT, *, pipeline: Any = None, **settings: Any) -> Tensor:
    """Latents that a kind's pipeline makes as it lays them out: four steps, of which img2img and inpainting make two.

    Args:
        name: Of a kind or of a family.
        prompt: One or several.
        pipeline: Another than the shared one.
        settings: Of its call.
    """
    own: dict[str, Any] = {}
    if name in KINDS:
        given = inputs(KINDS[name].family)
        own = {**{key: given[key] for key in KINDS[name].inputs}, **KINDS[name].settings}
    height, width = size(family(name))
    common = {"num_inference_steps": 4, "height": height, "width": width, "generator": torch.Generator().manual_seed(3)}
    pipeline = shared(name) if pipeline is None else pipeline
    accepts = inspect.signature(pipeline.__call__).parameters  # img2img of UNets takes the picture's size
    common = {key: value for key, value in common.items() if key in accepts}
    with torch.random.fork_rng([]):
        torch.manual_seed(5)  # some draw the latents of a control picture without the generator
        found: Tensor = families.sample(family(name), prompt, pipeline=pipeline, **{**common, **own, **settings})
    return found
