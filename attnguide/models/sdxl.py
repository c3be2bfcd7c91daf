"""Stable Diffusion XL pipelines: a UNet with cross-attention to two text encoders' states, and added conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attnguide.models.base import Conditioning
from attnguide.models.chunks import ChunkedClip
from attnguide.models.fitting import Reads
from attnguide.models.unet import StableDiffusion, said
from attnguide.models.unet_problems import unet_problems
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.weighted import WeightedPrompt


class StableDiffusionXL(StableDiffusion):
    """Adapter for ``StableDiffusionXLPipeline`` (https://arxiv.org/abs/2307.01952).

    Both text encoders read the same prompt; their states are concatenated along channels, so that a word has one position.
    The UNet reads the picture's size as original and as target size, without a crop, as diffusers does by default.

    Where the pipeline's ``force_zeros_for_empty_prompt`` is set, a negative prompt of ``None`` has states of zero; ``""`` is
    encoded.

    Args:
        pipeline: The user's pipeline; it is read and run, never changed.
        name: For people.
    """

    reads: ClassVar[Reads] = {"cross_attention_dim": ("text_encoder", "text_encoder_2")}

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from unet_problems(pipeline, pipeline.text_encoder_2)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        parts = {"unet": self._unet, "vae": self.vae, "text_encoder": self.pipeline.text_encoder}
        return {**parts, "text_encoder_2": self.pipeline.text_encoder_2}

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Tokens of the first tokenizer; of the second where it is the only one, as in the refiner.

        Raises:
            ValueError: If the two tokenizers split the prompt differently, so that a word has no common position.
        """
        if self.pipeline.tokenizer is None:
            return self._tokenized(prompt, "tokenizer_2")
        return self._same(self._tokenized(prompt, "tokenizer"), self._tokenized(prompt, "tokenizer_2"))

    def tokenize_weighted(self, prompt: WeightedPrompt) -> TokenizedPrompt:
        found = [clip.read(prompt) for clip in self._clips()]
        return self._same(found[0], found[-1])

    def _same(self, first: TokenizedPrompt, second: TokenizedPrompt) -> TokenizedPrompt:
        """The first tokenizer's prompt, if the second has the same offsets; else a ValueError."""
        if first.offsets != second.offsets:
            pairs = zip(first.offsets, second.offsets, strict=False)
            place = next((one or other for one, other in pairs if one != other), None)
            word = first.text[slice(*place)] if place else first.text
            raise ValueError(f"The two tokenizers of {self.name} cut {word!r} differently; no token stands for it in both.")
        return first

    def _clips(self) -> list[ChunkedClip]:
        """The pipeline's text encoders in order; a refiner has only the second."""
        parts = ("_2",) if self.pipeline.tokenizer is None else ("", "_2")
        return [self._clip(part, penultimate=True) for part in parts]

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        negative = None if negative_prompts is None else [text or "" for text in negative_prompts]
        cond, uncond, pooled, negative_pooled = self.pipeline.encode_prompt(
            list(prompts),
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=negative is not None,
            negative_prompt=negative,
        )
        extra = self._guidance_states(len(prompts), cfg_scales)
        if negative is None:
            return Conditioning(cond.to(self.dtype), None, {**extra, "text_embeds": (pooled.to(self.dtype), None)})
        return self._with_pooled((cond, uncond), (pooled, negative_pooled), negative_prompts or (), extra)

    @torch.no_grad()
    def encode_weighted(
        self,
        prompts: Sequence[WeightedPrompt],
        negative_prompts: Sequence[WeightedPrompt | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        texts, rows = [*prompts, *said(negative_prompts)], len(prompts)
        clips = self._clips()
        states, pooled = torch.cat([clip.states(texts) for clip in clips], -1), clips[-1].pooled(texts)
        extra = self._guidance_states(rows, cfg_scales)
        if negative_prompts is None:
            return Conditioning(states.to(self.dtype), None, {**extra, "text_embeds": (pooled.to(self.dtype), None)})
        halves = (states[:rows], states[rows:]), (pooled[:rows], pooled[rows:])
        return self._with_pooled(*halves, negative_prompts, extra)

    def _with_pooled(
        self,
        states: tuple[Tensor, Tensor],
        pooled: tuple[Tensor, Tensor],
        negative_prompts: Sequence[object],
        extra: Mapping[str, tuple[Tensor, Tensor | None]],
    ) -> Conditioning:
        """Conditioning from ``(cond, uncond)`` pairs; zeros for negative prompts of ``None`` if the pipeline forces them."""
        uncond, other = states[1], pooled[1]
        if self.pipeline.config.force_zeros_for_empty_prompt:
            given = torch.tensor([text is not None for text in negative_prompts], device=self.device)
            uncond = torch.where(given[:, None, None], uncond, 0.0)
            other = torch.where(given[:, None], other, 0.0)
        pairs = {"text_embeds": (pooled[0].to(self.dtype), other.to(self.dtype))}
        return Conditioning(states[0].to(self.dtype), uncond.to(self.dtype), {**extra, **pairs})

    def call_arguments(self, conditioning: Conditioning) -> Mapping[str, Tensor]:
        pooled, other = conditioning.extra["text_embeds"]
        found = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": other}
        given = {name: states for name, states in found.items() if states is not None}
        return {**super().call_arguments(conditioning), **given}

    def _extra(self, conditioning: Conditioning, inputs: Tensor) -> dict[str, Any]:
        states = super()._extra(conditioning, inputs)
        height, width = (side * self._factor for side in inputs.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=inputs.device, dtype=conditioning.cond.dtype)
        added = {"text_embeds": states.pop("text_embeds"), "time_ids": sizes.repeat(len(inputs), 1)}
        return {**states, "added_cond_kwargs": added}

    def _unsafe(self, pixels: Tensor) -> list[bool]:
        return [False] * len(pixels)  # such pipelines have no safety checker

    def _postprocessed(self, pixels: Tensor) -> Any:
        watermark = getattr(self.pipeline, "watermark", None)
        shown = pixels if watermark is None else watermark.apply_watermark(pixels)
        return self.pipeline.image_processor.postprocess(shown, "pil")  # by the processor's own setting, other than SD
