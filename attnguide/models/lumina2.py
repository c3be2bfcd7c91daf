"""Lumina-Image 2 pipelines: a single-stream transformer in which image tokens follow right behind the text tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from attnguide.attention.sites import SiteKind, Span
from attnguide.models.base import Conditioning
from attnguide.models.fitting import Reads
from attnguide.models.language import MASK, LanguageModelAdapter, language_problems
from attnguide.models.readers import TextReader
from attnguide.models.schedulers import size_shift
from attnguide.models.support import decoder_problems, plain_module
from attnguide.models.transformer import Blocks, text_first
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Step

LONGEST = 256
"""Tokens of a prompt behind the system's, as the pipeline has it by default."""


class Lumina2(LanguageModelAdapter):
    """Adapter for ``Lumina2Pipeline`` (https://arxiv.org/abs/2503.21758).

    The pipeline's system prompt is put before a prompt, not before a negative prompt. The combined prediction is rescaled to
    the norm of the conditional one, for each row of latent cells, as the pipeline does by default.
    """

    one_length = repacks_text = True
    cuts_states = False  # masked padding passes through the text refiner blocks, as in the pipeline

    kinds = ("Lumina2Transformer2DModel",)
    reads: ClassVar[Reads] = {"cap_feat_dim": ("text_encoder",)}

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from decoder_problems(plain_module(pipeline.vae))
        yield from language_problems(pipeline.tokenizer, pipeline.text_encoder)

    @property
    def widest(self) -> int | None:
        return int(min(self.transformer.config.axes_lens[1:]))

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        before = f"{self.pipeline.system_prompt} <Prompt Start> "
        return TextReader(self.pipeline.tokenizer, LONGEST, before=before).read(prompt)

    def states(self, prompt: str, *, negative: bool) -> tuple[Tensor, Tensor | None]:
        both = self.pipeline.encode_prompt(
            [prompt],
            do_classifier_free_guidance=negative,
            negative_prompt=[prompt] if negative else None,
            device=self.device,
            max_sequence_length=LONGEST,
        )
        states, mask = both[2:] if negative else both[:2]
        return states, mask

    def attentions(self, cells: int) -> Iterator[tuple[str, Blocks]]:
        blocks: dict[SiteKind, tuple[Span | None, Span | None]] = dict(text_first(cells))
        del blocks["joint"]
        for index in range(len(self.transformer.layers)):
            yield f"layers.{index}.attn", blocks

    def size_shift(self, steps: int, latent_shape: tuple[int, int, int]) -> float:
        return size_shift(latent_shape[0], self.pipeline.scheduler.config)  # the pipeline takes channels for image tokens

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        trained = self.pipeline.scheduler.config.num_train_timesteps
        answer: Tensor = self.transformer(
            hidden_states=latents,
            timestep=1 - self.timesteps(latents, step, trained),
            encoder_hidden_states=conditioning.cond,
            encoder_attention_mask=conditioning.extra[MASK][0],
            return_dict=False,
        )[0]
        return -answer

    def after_cfg(self, combined: Tensor, cond: Tensor) -> Tensor:
        return combined * (cond.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
