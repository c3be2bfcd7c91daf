"""Z-Image pipelines: a single-stream transformer on image and text, each padded to a multiple of 32 tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.models.compiled import plain_module
from attnguide.models.fitting import Reads
from attnguide.models.language import MASK, LanguageModelAdapter, language_problems
from attnguide.models.readers import TextReader
from attnguide.models.support import decoder_problems
from attnguide.models.transformer import Blocks, image_first
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Step

LONGEST = 512
"""Tokens of a prompt with its template, as the pipeline has it by default."""

GROUP = 32
"""The network pads image and text to multiples of this many tokens."""


class ZImage(LanguageModelAdapter):
    """Adapter for ``ZImagePipeline`` (https://arxiv.org/abs/2511.22699).

    The pipeline's ``guidance_scale`` is the weight of ``cond - uncond`` added to ``cond``, which is ``cfg_scale - 1`` here.
    Its ``cfg_normalization`` and ``cfg_truncation``, off by default, are not supported.
    """

    kinds = ("ZImageTransformer2DModel",)
    reads: ClassVar[Reads] = {"cap_feat_dim": ("text_encoder",)}

    repacks_text = True

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from decoder_problems(plain_module(pipeline.vae))
        yield from language_problems(pipeline.tokenizer, pipeline.text_encoder)
        if getattr(plain_module(pipeline.transformer), "siglip_embedder", None) is not None:
            yield "transformer reads pictures as well (siglip_feat_dim), which is not supported."

    @property
    def patch(self) -> int:
        return int(self.transformer.config.all_patch_size[0])

    @property
    def latents_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def widest(self) -> int | None:
        return int(min(self.transformer.config.axes_lens[1:]))

    @property
    def default_size(self) -> tuple[int, int]:
        side = min(1024, (self.widest or 0) * self.factor * self.patch)
        return side, side

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        before, after = self._template()
        return TextReader(self.pipeline.tokenizer, LONGEST, before=before, after=after).read(prompt)

    def _template(self) -> tuple[str, str]:
        """Chat template text before and after the prompt."""
        written = self.pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": "\0"}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        before, _, after = written.partition("\0")
        return before, after

    def states(self, prompt: str, *, negative: bool) -> tuple[Tensor, Tensor | None]:
        (states,), _ = self.pipeline.encode_prompt([prompt], self.device, do_classifier_free_guidance=False)
        return states.unsqueeze(0), None

    def attentions(self, cells: int) -> Iterator[tuple[str, Blocks]]:
        for index in range(len(self.transformer.layers)):
            yield f"layers.{index}.attention", image_first(cells, -(-cells // GROUP) * GROUP)

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        texts = [row[mask] for row, mask in zip(conditioning.cond, conditioning.extra[MASK][0], strict=True)]
        pictures = list(latents.to(self.dtype).unsqueeze(2).unbind(0))
        time = (1000 - self.timesteps(latents, step)) / 1000
        answer = self.transformer(pictures, time, texts, return_dict=False)[0]
        return -torch.stack([one.float() for one in answer]).squeeze(2)
