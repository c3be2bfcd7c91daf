"""Krea 2 pipelines: a single-stream transformer on image and text, the text being states of several language-model layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.models.fitting import Reads
from attnguide.models.frames import FrameAutoencoding, frame_problems
from attnguide.models.language import MASK, LanguageModelAdapter, language_problems, packed, unpacked
from attnguide.models.readers import TextReader, with_offsets
from attnguide.models.schedulers import size_shift
from attnguide.models.support import plain_module
from attnguide.models.transformer import Blocks, text_first
from attnguide.prompt.tokens import Segment, TokenizedPrompt
from attnguide.types import Step

LONGEST = 512
"""Positions of the text, as the pipeline has it by default."""

_DISTILLED_SHIFT = 1.15
"""Schedule shift ``mu`` of the distilled few-step model, for every picture size."""

_SIZES = {"max_image_seq_len": 6400}
"""The pipeline's defaults for entries that the scheduler's config lacks."""


class Krea2(FrameAutoencoding, LanguageModelAdapter):
    """Adapter for ``Krea2Pipeline``.

    The text has 512 positions: the prompt without the template's prefix, masked padding, and the template's suffix. The
    pipeline's ``guidance_scale`` is the weight of ``cond - uncond`` added to ``cond``, which is ``cfg_scale - 1`` here.
    """

    kinds = ("Krea2Transformer2DModel",)
    reads: ClassVar[Reads] = {"text_hidden_dim": ("text_encoder",)}
    packs = 4

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from frame_problems(plain_module(pipeline.vae), "AutoencoderKLQwenImage")
        yield from language_problems(pipeline.tokenizer, pipeline.text_encoder)

    @property
    def factor(self) -> int:
        return int(self.pipeline.vae_scale_factor)

    @property
    def patch(self) -> int:
        return int(self.pipeline.patch_size)

    @property
    def channels(self) -> int:
        return int(self.transformer.config.in_channels // self.patch**2)

    @property
    def default_size(self) -> tuple[int, int]:
        return 1024, 1024

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        pipeline = self.pipeline
        dropped, behind = pipeline.prompt_template_encode_start_idx, pipeline.prompt_template_encode_num_suffix_tokens
        limit = LONGEST + dropped - behind
        reader = TextReader(
            pipeline.tokenizer, limit, padded=True, before=pipeline.prompt_template_encode_prefix, dropped=dropped
        )
        read = reader.read(prompt)
        tokenizer = with_offsets(pipeline.tokenizer)
        ids = tokenizer(pipeline.prompt_template_encode_suffix)["input_ids"]
        end, start = read.segments[0].end, len(read.tokens)
        return replace(
            read,
            tokens=(*read.tokens, *tokenizer.convert_ids_to_tokens(ids)),
            offsets=(*read.offsets, *[None] * len(ids)),
            ids=(*read.ids, *ids),
            segments=(Segment(0, end, end, start),),  # no end token of its own: padding lies between words and template
        )

    def states(self, prompt: str, *, negative: bool) -> tuple[Tensor, Tensor | None]:
        states, mask = self.pipeline.encode_prompt([prompt], self.device, max_sequence_length=LONGEST)
        return states, mask

    def attentions(self, cells: int) -> Iterator[tuple[str, Blocks]]:
        for index in range(len(self.transformer.transformer_blocks)):
            yield f"transformer_blocks.{index}.attn", text_first(cells)

    def size_shift(self, steps: int, latent_shape: tuple[int, int, int]) -> float:
        if self.pipeline.config.is_distilled:
            return _DISTILLED_SHIFT
        _, rows, columns = latent_shape
        return size_shift((rows // self.patch) * (columns // self.patch), {**_SIZES, **self.pipeline.scheduler.config})

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        rows, columns = (side // self.patch for side in latents.shape[-2:])
        trained = self.pipeline.scheduler.config.num_train_timesteps
        answer = self.transformer(
            hidden_states=packed(latents, self.patch),
            encoder_hidden_states=conditioning.cond,
            timestep=self.timesteps(latents, step, trained).to(latents.dtype),
            position_ids=self.pipeline.prepare_position_ids(conditioning.cond.shape[1], rows, columns, latents.device),
            encoder_attention_mask=conditioning.extra[MASK][0],
            return_dict=False,
        )[0]
        return unpacked(answer, latents, self.patch)
