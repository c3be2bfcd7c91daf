"""Stable Diffusion 1.x and 2.x pipelines: a UNet with cross-attention to one text encoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from torch import Tensor, nn

from attnguide.attention.attach import stop_after
from attnguide.attention.sites import Site, SiteKind
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.models.schedulers import NoiseScheduler, scheduler_class
from attnguide.prompt.expansion import follow, spread
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Step


class StableDiffusion(ModelAdapter):
    """Adapter for ``StableDiffusionPipeline`` and whatever shares its parts.

    Args:
        pipeline: The user's pipeline; it is read and run, never changed.
        name: For people.
    """

    def __init__(self, pipeline: Any, name: str = "pipeline") -> None:
        self.pipeline = pipeline
        self.name = name
        self._unet = pipeline.unet
        self._vae = pipeline.vae

    @property
    def device(self) -> torch.device:
        parameter: Tensor = next(self._unet.parameters())
        return parameter.device

    @property
    def dtype(self) -> torch.dtype:
        parameter: Tensor = next(self._unet.parameters())
        return parameter.dtype

    @property
    def _factor(self) -> int:
        return 2 ** (len(self._vae.config.block_out_channels) - 1)

    @property
    def default_size(self) -> tuple[int, int]:
        sample = self._unet.config.sample_size
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return height * self._factor, width * self._factor

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        return {"unet": self._unet, "vae": self._vae, "text_encoder": self.pipeline.text_encoder}

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        tokenizer = self.pipeline.tokenizer
        length = tokenizer.model_max_length
        read = self._as_read(prompt)
        origin = follow(prompt, read, tokenizer.added_tokens_encoder)
        encoded = tokenizer(read, padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        # By position, not by number: Stable Diffusion 2 pads with the token of "!", which a prompt may contain.
        end = ids.index(tokenizer.eos_token_id, 1)
        offsets = tuple(
            spread(origin, span) if 0 < position < end else None for position, span in enumerate(encoded["offset_mapping"])
        )
        whole = tokenizer(read, return_offsets_mapping=True)["offset_mapping"]
        # The last place is the end token's, so that what stood there is the first piece that is lost.
        lost = prompt[spread(origin, whole[length - 1])[0] :].strip() if len(whole) > length else ""
        return TokenizedPrompt(prompt, tuple(tokenizer.convert_ids_to_tokens(ids)), offsets, tuple(ids), lost)

    def _as_read(self, prompt: str) -> str:
        """The prompt that the pipeline tokenizes: the name of an embedding with several vectors becomes one name for each."""
        expand = getattr(self.pipeline, "maybe_convert_prompt", None)
        return prompt if expand is None else str(expand(prompt, self.pipeline.tokenizer))

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None) -> Conditioning:
        negative = None if negative_prompts is None else list(negative_prompts)
        cond, uncond = self.pipeline.encode_prompt(list(prompts), self.device, 1, negative is not None, negative)
        return Conditioning(cond, uncond if negative is not None else None)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self._factor
        for name, side in (("height", height), ("width", width)):
            if side % factor:
                raise ValueError(f"{name} must be a multiple of {factor} for {self.name}; got {side}.")
        return self._unet.config.in_channels, height // factor, width // factor

    def attention_modules(self, height: int, width: int) -> Mapping[Site, nn.Module]:
        modules: dict[Site, nn.Module] = {}
        for name, module in self._unet.named_modules():
            if isinstance(module, Attention):
                kind: SiteKind = "cross" if module.is_cross_attention else "self"
                modules[self._site(name, kind, module.heads, height, width)] = module
        return modules

    def feature_modules(self, height: int, width: int) -> Mapping[Site, nn.Module]:
        """Last convolutions of the residual blocks: what a block adds to its input."""
        blocks = [(name, module) for name, module in self._unet.named_modules() if isinstance(module, ResnetBlock2D)]
        return {self._site(f"{name}.conv2", "feature", 0, height, width): block.conv2 for name, block in blocks}

    def _site(self, name: str, kind: SiteKind, heads: int, height: int, width: int) -> Site:
        """The site of a module of a picture of this size in pixels."""
        _, rows, columns = self.latent_shape(height, width)
        depth = len(self._unet.config.down_block_types)
        parts = name.split(".")
        place = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}[parts[0]]
        level = depth - 1 if place == "mid" else int(parts[1]) if place == "down" else depth - 1 - int(parts[1])
        return Site(name, kind, -(-rows // 2**level), -(-columns // 2**level), heads, place, level)

    def predict_noise(
        self, inputs: Tensor, step: Step, conditioning: Conditioning, *, until: Collection[Site] | None = None
    ) -> Tensor | None:
        timestep = torch.tensor(step.timestep, device=inputs.device, dtype=torch.float32)
        if timestep == timestep.round():
            timestep = timestep.long()
        arguments = {"encoder_hidden_states": conditioning.cond, "return_dict": False, **self._extra(conditioning)}
        if until is None:
            answer: Tensor = self._unet(inputs, timestep, **arguments)[0]
            return answer
        with stop_after([self._unet.get_submodule(site.name) for site in until]):
            self._unet(inputs, timestep, **arguments)
        return None

    def _extra(self, conditioning: Conditioning) -> dict[str, Any]:
        """Further arguments of the UNet; a family that has some overrides this."""
        return {}

    def make_scheduler(self, name: str | None, steps: int) -> NoiseScheduler:
        own = self.pipeline.scheduler
        if name is None:
            return NoiseScheduler(own, steps, self.device)
        # A scheduler that never clips does not say so in its configuration; latents must not be clipped to [-1, 1].
        config = {"clip_sample": False, **own.config}
        chosen = scheduler_class(name).from_config(config)
        return NoiseScheduler(chosen, steps, self.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        scaled = (latents / self._vae.config.scaling_factor).to(self._vae.dtype)
        pixels = self._vae.decode(scaled, return_dict=False)[0]
        pictures: list[Image.Image] = self.pipeline.image_processor.postprocess(pixels, output_type="pil")
        return pictures

    @torch.no_grad()
    def encode_image(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self.pipeline.image_processor.preprocess(list(images)).to(self.device, self._vae.dtype)
        latents: Tensor = self._vae.encode(pixels).latent_dist.mode() * self._vae.config.scaling_factor
        return latents
