"""Stable Diffusion XL pipelines: a UNet with cross-attention to the states of two text encoders, and added conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attnguide.models.base import Conditioning
from attnguide.models.fitting import Reads
from attnguide.models.unet import StableDiffusion
from attnguide.models.unet_problems import unet_problems
from attnguide.prompt.tokens import TokenizedPrompt


class StableDiffusionXL(StableDiffusion):
    """Adapter for ``StableDiffusionXLPipeline`` (https://arxiv.org/abs/2307.01952).

    Both text encoders read the same prompt; their states lie side by side in the channels of one token, so that a word has one
    position. The UNet is told the picture's size as original and as target size, without a crop, as diffusers does.

    Where the pipeline's ``force_zeros_for_empty_prompt`` is set, the states of a negative prompt that was not given are zero;
    the empty text is encoded.

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
            ValueError: If the second tokenizer cuts the prompt elsewhere, so that a word has no position of its own.
        """
        if self.pipeline.tokenizer is None:
            return self._tokenized(prompt, "tokenizer_2")
        first = self._tokenized(prompt, "tokenizer")
        second = self._tokenized(prompt, "tokenizer_2")
        if first.offsets != second.offsets:
            pairs = zip(first.offsets, second.offsets, strict=False)
            place = next((one or other for one, other in pairs if one != other), None)
            word = prompt[slice(*place)] if place else prompt
            raise ValueError(f"The two tokenizers of {self.name} cut {word!r} differently; no token stands for it in both.")
        return first

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
        if self.pipeline.config.force_zeros_for_empty_prompt:
            said = torch.tensor([text is not None for text in negative_prompts or ()], device=self.device)
            uncond = torch.where(said[:, None, None], uncond, 0.0)
            negative_pooled = torch.where(said[:, None], negative_pooled, 0.0)
        pairs = {"text_embeds": (pooled.to(self.dtype), negative_pooled.to(self.dtype))}
        return Conditioning(cond.to(self.dtype), uncond.to(self.dtype), {**extra, **pairs})

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
