"""AuraFlow pipelines: joint attention of the picture with register tokens and the states of UMT5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.models.fitting import Reads
from attnguide.models.readers import TextReader
from attnguide.models.support import text_problems
from attnguide.models.transformer import Blocks, TransformerAdapter, text_first
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Step

LONGEST = 256
"""Positions of the text encoder, as the pipeline has it by default."""


class AuraFlow(TransformerAdapter):
    """Adapter for ``AuraFlowPipeline`` (https://huggingface.co/fal/AuraFlow-v0.3).

    Register tokens precede the text in attention and are left out of maps; padding has states of zero and is attended to.
    """

    kinds = ("AuraFlowTransformer2DModel",)
    reads: ClassVar[Reads] = {"joint_attention_dim": ("text_encoder",)}

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from super().problems(pipeline)
        yield from text_problems(pipeline.tokenizer, pipeline.text_encoder)

    @property
    def widest(self) -> int | None:
        return int(self.transformer.config.pos_embed_max_size**0.5)  # positions of a square

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return TextReader(self.pipeline.tokenizer, LONGEST, padded=True).read(prompt)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        negative = None if negative_prompts is None else [text or "" for text in negative_prompts]
        cond, _, uncond, _ = self.pipeline.encode_prompt(
            list(prompts), negative, negative is not None, device=self.device, max_sequence_length=LONGEST
        )
        return Conditioning(cond.to(self.dtype), None if negative is None else uncond.to(self.dtype))

    def attentions(self, cells: int) -> Iterator[tuple[str, Blocks]]:
        registers = self.transformer.register_tokens.shape[1]
        for part in ("joint_transformer_blocks", "single_transformer_blocks"):
            for index in range(len(getattr(self.transformer, part))):
                yield f"{part}.{index}.attn", text_first(cells, registers)

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        answer: Tensor = self.transformer(
            latents,
            encoder_hidden_states=conditioning.cond,
            timestep=self.timesteps(latents, step, 1000).to(latents.dtype),
            return_dict=False,
        )[0]
        return answer
