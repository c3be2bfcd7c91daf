"""PixArt pipelines: a transformer with cross-attention to T5's states, whose padding is masked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.models.fitting import Reads
from attnguide.models.readers import TextReader
from attnguide.models.support import text_problems
from attnguide.models.transformer import CROSS, SELF, Blocks, TransformerAdapter
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Step


class PixArtAlpha(TransformerAdapter):
    """Adapter for ``PixArtAlphaPipeline`` (https://arxiv.org/abs/2310.00426).

    Prompts are lower-cased, as the pipeline does, and read up to 120 tokens; its optional caption cleaning (links, quotation
    marks, with the packages bs4 and ftfy) is not done. Pictures have the size that was asked for, as with
    ``use_resolution_binning=False``; the pipeline's default samples at the nearest trained size and crops. The 1024-pixel
    network reads size and aspect ratio as conditions.

    Attributes:
        longest: Number of T5 positions.
    """

    kinds = ("PixArtTransformer2DModel",)
    reads: ClassVar[Reads] = {"caption_channels": ("text_encoder",)}
    flow = False
    longest = 120

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from super().problems(pipeline)
        yield from text_problems(pipeline.tokenizer, pipeline.text_encoder)
        config = pipeline.transformer.config
        if config.out_channels not in (config.in_channels, 2 * config.in_channels):
            yield (
                f"transformer must predict {config.in_channels} channels, or also their variance; it predicts "
                f"{config.out_channels}."
            )

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return TextReader(self.pipeline.tokenizer, self.longest, spelt=str.lower, stripped=True).read(prompt)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        negative = None if negative_prompts is None else [text or "" for text in negative_prompts]
        cond, mask, uncond, other = self.pipeline.encode_prompt(
            list(prompts),
            negative is not None,
            negative_prompt=negative or "",
            device=self.device,
            max_sequence_length=self.longest,
        )
        return Conditioning(cond.to(self.dtype), None if negative is None else uncond.to(self.dtype), {"mask": (mask, other)})

    def attentions(self, cells: int) -> Iterator[tuple[str, Blocks]]:
        for index in range(len(self.transformer.transformer_blocks)):
            yield f"transformer_blocks.{index}.attn1", SELF
            yield f"transformer_blocks.{index}.attn2", CROSS

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        told = self.timesteps(latents, step)
        answer: Tensor = self.transformer(
            latents,
            encoder_hidden_states=conditioning.cond,
            encoder_attention_mask=conditioning.extra["mask"][0],
            timestep=told.long() if step.timestep == round(step.timestep) else told,
            added_cond_kwargs=self._sizes(latents),
            return_dict=False,
        )[0]
        return answer[:, : self.channels]  # further channels hold the variance, which no scheduler reads

    def _sizes(self, latents: Tensor) -> dict[str, Tensor | None]:
        """Size conditions of the 1024-pixel alpha network; ``None`` for networks without them."""
        if not self.transformer.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.factor for side in latents.shape[-2:])
        size = torch.tensor([height, width], device=latents.device).repeat(len(latents), 1)
        ratio = torch.tensor([height / width], device=latents.device).repeat(len(latents), 1)
        return {"resolution": size.to(latents.dtype), "aspect_ratio": ratio.to(latents.dtype)}


class PixArtSigma(PixArtAlpha):
    """Adapter for ``PixArtSigmaPipeline`` (https://arxiv.org/abs/2403.04692): 300 tokens, other sizes, another autoencoder."""

    longest = 300
