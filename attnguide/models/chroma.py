"""Chroma pipelines: FLUX.1's blocks without distilled guidance, with attention to T5's padding lowered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.models.fitting import Reads
from attnguide.models.flux import LONGEST, PackedTransformer
from attnguide.models.readers import TextReader, expansion
from attnguide.models.support import text_problems
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Step


class Chroma(PackedTransformer):
    """Adapter for ``ChromaPipeline`` (https://huggingface.co/lodestones/Chroma1-HD).

    Diffusers adds its mask to the scores as a float (1 between words, the first padding token and the picture, else 0), so
    padding is attended to less instead of never; the same is done here.
    """

    kinds = ("ChromaTransformer2DModel",)
    reads: ClassVar[Reads] = {"joint_attention_dim": ("text_encoder",)}

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from super().problems(pipeline)
        yield from text_problems(pipeline.tokenizer, pipeline.text_encoder)
        if getattr(pipeline.transformer, "encoder_hid_proj", None) is not None:
            yield "transformer has a loaded IP-Adapter. Call pipeline.unload_ip_adapter() first."

    def sigmas(self, steps: int) -> Sequence[float] | None:
        shares: list[float] = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).tolist()
        return shares

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        tokenizer = self.pipeline.tokenizer
        return TextReader(tokenizer, LONGEST, padded=True, expand=expansion(self.pipeline, tokenizer)).read(prompt)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        negative = None if negative_prompts is None else [text or "" for text in negative_prompts]
        cond, _, mask, uncond, _, other = self.pipeline.encode_prompt(
            list(prompts),
            negative,
            device=self.device,
            do_classifier_free_guidance=negative is not None,
            max_sequence_length=LONGEST,
        )
        pair = (mask.to(self.dtype), None if negative is None else other.to(self.dtype))
        return Conditioning(cond.to(self.dtype), None if negative is None else uncond.to(self.dtype), {"mask": pair})

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        text, (rows, columns) = conditioning.cond, (side // self.patch for side in latents.shape[-2:])
        mask = conditioning.extra["mask"][0]
        answer = self.transformer(
            hidden_states=self.pack(latents),
            timestep=self.timesteps(latents, step).to(latents.dtype) / 1000,
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=latents.device, dtype=text.dtype),
            img_ids=self.pipeline._prepare_latent_image_ids(len(latents), rows, columns, latents.device, text.dtype),
            attention_mask=torch.cat([mask, mask.new_ones(len(mask), rows * columns)], 1),
            return_dict=False,
        )[0]
        return self.unpack(answer, latents)
