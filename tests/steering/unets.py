"""Tiny pipelines around a UNet of kinds that :mod:`tests.steering.pipelines` does not have, and calls of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor

from tests import tiny
from tests.models import families
from tests.steering import pipelines
from tests.steering.pipelines import awake, picture

HEIGHT, WIDTH = 32, 48

Call = Callable[..., Tensor]
KINDS: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {}
"""Kind -> a new pipeline, and what its call is given."""


def _kind(name: str) -> Callable[[Callable[[], tuple[Any, dict[str, Any]]]], Any]:
    def register(build: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
        KINDS[name] = build
        return build

    return register


def _from(base: Any, kind: str, **parts: Any) -> Any:
    """A pipeline of diffusers on another's parts, some of them new."""
    return getattr(diffusers, kind).from_pipe(base, torch_dtype=base.dtype, **parts)


def _unet(base: Any, **settings: Any) -> Any:
    """A new UNet of other settings, with whatever begins as zeros awake."""
    config = {key: value for key, value in {**base.unet.config, **settings}.items() if key != "_use_default_values"}
    network = awake(diffusers.UNet2DConditionModel.from_config(config))
    with torch.no_grad():
        for name, module in network.named_modules():
            if name.endswith("attn2"):
                module.to_q.weight *= 6.0
    return network.eval()


def _size() -> dict[str, Any]:
    return {"height": HEIGHT, "width": WIDTH}


def _control(base: Any) -> Any:
    return awake(diffusers.ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8, 16)))


@_kind("two_controlnets")
def _two_controlnets() -> tuple[Any, dict[str, Any]]:
    base = families.shared("sd")
    pipeline = _from(base, "StableDiffusionControlNetPipeline", controlnet=[_control(base), _control(base)])
    pictures = [picture(1, HEIGHT, WIDTH), picture(2, HEIGHT, WIDTH)]
    return pipeline, {"image": pictures, "controlnet_conditioning_scale": [0.7, 0.5]}


@_kind("guess_mode")
def _guess_mode() -> tuple[Any, dict[str, Any]]:
    base = families.shared("sd")
    pipeline = _from(base, "StableDiffusionControlNetPipeline", controlnet=_control(base))
    return pipeline, {"image": picture(1, HEIGHT, WIDTH), "guess_mode": True}


def _union() -> Any:
    base = families.shared("sdxl")
    config = {key: value for key, value in base.unet.config.items() if key != "_use_default_values"}
    accepts = set(diffusers.ControlNetUnionModel._get_init_keys(diffusers.ControlNetUnionModel))
    own = {key: value for key, value in config.items() if key in accepts}
    settings = {
        "num_control_type": 2,
        "num_trans_channel": 16,
        "num_trans_head": 2,
        "num_proj_channel": 16,
        "conditioning_embedding_out_channels": (8, 16),
    }
    return awake(diffusers.ControlNetUnionModel(**{**own, **settings}))


@_kind("union")
def _union_pipeline() -> tuple[Any, dict[str, Any]]:
    pipeline = _from(families.shared("sdxl"), "StableDiffusionXLControlNetUnionPipeline", controlnet=_union())
    return pipeline, {"control_image": [picture(1, HEIGHT, WIDTH)], "control_mode": [1], **_size()}


@_kind("gligen")
def _gligen() -> tuple[Any, dict[str, Any]]:
    base = families.shared("sd")
    parts = {**base.components, "unet": _unet(base, attention_type="gated")}
    parts.pop("image_encoder")
    pipeline = diffusers.StableDiffusionGLIGENPipeline(**parts, requires_safety_checker=False)
    boxes = {"gligen_phrases": ["red cat"], "gligen_boxes": [[0.0, 0.0, 0.5, 1.0]], "gligen_scheduled_sampling_beta": 0.5}
    return pipeline, {**boxes, **_size()}


@_kind("adapter")
def _adapter() -> tuple[Any, dict[str, Any]]:
    base = families.shared("sd")
    adapter = diffusers.T2IAdapter(channels=(16, 32), num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
    parts = {**base.components, "adapter": awake(adapter)}
    parts.pop("image_encoder")
    pipeline = diffusers.StableDiffusionAdapterPipeline(**parts, requires_safety_checker=False)
    return pipeline, {"image": picture(1, HEIGHT, WIDTH), **_size()}


@_kind("adapter_xl")
def _adapter_xl() -> tuple[Any, dict[str, Any]]:
    base = families.shared("sdxl")
    adapter = diffusers.T2IAdapter(channels=(16, 32), num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl")
    pipeline = _from(base, "StableDiffusionXLAdapterPipeline", adapter=awake(adapter))
    return pipeline, {"image": picture(1, HEIGHT, WIDTH), **_size()}


@_kind("depth")
def _depth() -> tuple[Any, dict[str, Any]]:
    base = families.shared("sd")
    parts = {name: base.components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    further = {"unet": _unet(base, in_channels=5), "depth_estimator": None, "feature_extractor": None}
    pipeline = diffusers.StableDiffusionDepth2ImgPipeline(**parts, **further)
    depth = torch.rand(1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))
    return pipeline, {"image": picture(1, HEIGHT, WIDTH), "strength": 0.6, "depth_map": depth}


@_kind("ip_adapter")
def _ip_adapter() -> tuple[Any, dict[str, Any]]:
    from diffusers.image_processor import IPAdapterMaskProcessor

    base = tiny.pipeline(seed=4)
    base.unet._load_ip_adapter_weights([_ip_weights(base.unet)])
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, :, : WIDTH // 2] = 1
    masks = IPAdapterMaskProcessor().preprocess([mask], height=HEIGHT, width=WIDTH)
    states = torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(2))
    given = {"ip_adapter_image_embeds": [states], "cross_attention_kwargs": {"ip_adapter_masks": [masks]}}
    return base, {**given, **_size()}


def _ip_weights(unet: Any) -> dict[str, Any]:
    """Weights of an IP-Adapter with four picture tokens, as the library's checkpoints hold them."""
    generator = torch.Generator().manual_seed(1)

    def weight(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": weight(4 * width, 12),
        "proj.bias": weight(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    attention: dict[str, Tensor] = {}
    number = 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            module = unet.get_submodule(name.removesuffix(".processor"))
            for part in ("k", "v"):
                attention[f"{number}.to_{part}_ip.weight"] = weight(module.to_k.out_features, width)
            number += 2
    return {"image_proj": projection, "ip_adapter": attention}


@_kind("lcm")
def _lcm() -> tuple[Any, dict[str, Any]]:
    base = families.shared("sd")
    scheduler = diffusers.LCMScheduler.from_config(base.scheduler.config)
    pipeline = _from(base, "LatentConsistencyModelPipeline", unet=_unet(base, time_cond_proj_dim=8), scheduler=scheduler)
    return pipeline, {**_size(), "original_inference_steps": 50, "num_inference_steps": 4}


@_kind("instruct_pix2pix")
def _instruct_pix2pix() -> tuple[Any, dict[str, Any]]:
    base = families.shared("sd")
    pipeline = _from(base, "StableDiffusionInstructPix2PixPipeline", unet=_unet(base, in_channels=8))
    return pipeline, {"image": picture(1, HEIGHT, WIDTH)}


@_kind("instruct_pix2pix_xl")
def _instruct_pix2pix_xl() -> tuple[Any, dict[str, Any]]:
    base = families.shared("sdxl")
    pipeline = _from(base, "StableDiffusionXLInstructPix2PixPipeline", unet=_unet(base, in_channels=8))
    return pipeline, {"image": picture(1, HEIGHT, WIDTH), **_size()}


@_kind("refiner")
def _refiner() -> tuple[Any, dict[str, Any]]:
    base = families.shared("sdxl")
    # It is told five numbers: four of sizes and crops, and an aesthetic score.
    unet = _unet(base, cross_attention_dim=tiny.CHANNELS, projection_class_embeddings_input_dim=12 + 5 * 8)
    scheduler = type(base.scheduler).from_config(base.scheduler.config)
    parts = {**base.components, "unet": unet, "text_encoder": None, "tokenizer": None, "scheduler": scheduler}
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)
    noisy = torch.randn(1, 4, HEIGHT // 2, WIDTH // 2, generator=torch.Generator().manual_seed(6))
    return pipeline, {"image": noisy, "denoising_start": 0.5}


@functools.cache
def shared(name: str) -> tuple[Any, Mapping[str, Any]]:
    """One pipeline of a kind for all tests that leave it as it is, and its call's arguments."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        pipeline, given = KINDS[name]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, given


def sample(name: str, prompt: Any = tiny.PROMPT, **settings: Any) -> Tensor:
    """Latents that a kind's pipeline makes, of four steps."""
    if name in pipelines.KINDS:
        return pipelines.sample(name, prompt, **settings)
    pipeline, given = shared(name)
    common = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(3), "output_type": "latent"}
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        found: Tensor = pipeline(prompt=prompt, **{**common, **given, **settings})[0]
    return found


def pipeline_of(name: str) -> Any:
    """The shared pipeline of a kind."""
    return pipelines.shared(name) if name in pipelines.KINDS else shared(name)[0]
