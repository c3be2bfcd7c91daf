"""Stable Diffusion 3 and 3.5 pipelines: joint attention of image, CLIP text and T5 text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.models.fitting import Reads
from attnguide.models.readers import TextReader, beyond, texts_of
from attnguide.models.support import text_problems
from attnguide.models.transformer import SELF, Blocks, TransformerAdapter, image_first
from attnguide.prompt.tokens import TokenizedPrompt, joined
from attnguide.types import Sample, Step

LONGEST = 256
"""Positions of T5, as the pipeline has it by default."""


class StableDiffusion3(TransformerAdapter):
    """Adapter for ``StableDiffusion3Pipeline`` (https://arxiv.org/abs/2403.03206), also without T5.

    The states of both CLIP encoders are concatenated along channels at 77 positions, followed by 256 positions of T5; all
    positions are attended to, padding too. A pipeline without T5 has zeros there. The first blocks of 3.5 medium have a
    further image self-attention (``attn2``), which is a site of kind ``self``.

    Skip-layer guidance, an option of the pipeline's call, is not supported.
    """

    kinds = ("SD3Transformer2DModel",)
    reads: ClassVar[Reads] = {"joint_attention_dim": ("text_encoder_3",)}
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from super().problems(pipeline)
        for part in ("", "_2", "_3"):
            encoder, tokenizer = getattr(pipeline, f"text_encoder{part}"), getattr(pipeline, f"tokenizer{part}")
            if (encoder is None) != (tokenizer is None):
                yield f"text_encoder{part} and tokenizer{part} belong together; one of them is missing."
            if encoder is not None:
                yield from text_problems(tokenizer, encoder)
        yield from _pooled_problems(pipeline)
        if getattr(pipeline.transformer, "image_proj", None) is not None:
            yield "transformer has a loaded IP-Adapter. Call pipeline.unload_ip_adapter() first."

    @property
    def widest(self) -> int | None:
        most: int | None = self.transformer.config.pos_embed_max_size
        return most

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Tokens of CLIP, followed by those of T5 where the pipeline has it.

        Raises:
            ValueError: If CLIP's two tokenizers split the prompt differently, so that a word has no common position.
        """
        length = self.pipeline.tokenizer_max_length
        tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        first, second = (TextReader(tokenizer, length, padded=True).read(prompt) for tokenizer in tokenizers)
        if first.offsets != second.offsets:
            raise ValueError(f"The two tokenizers of CLIP in {self.name} cut {prompt!r} differently.")
        if self.pipeline.text_encoder_3 is None:
            return first
        return joined([first, TextReader(self.pipeline.tokenizer_3, LONGEST, padded=True).read(prompt)])

    def remarks(self, sample: Sample) -> Iterator[str]:
        if self.pipeline.text_encoder_3 is not None and beyond(self.pipeline, texts_of(sample, self.halves(sample))):
            yield (
                f"Prompts are longer than the {self.pipeline.tokenizer_max_length} tokens that CLIP reads: {self.name} reads "
                "their beginning with CLIP and all of them with T5, so that words beyond have positions in T5 alone."
            )

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        negative = None if negative_prompts is None else [text or "" for text in negative_prompts]
        cond, uncond, pooled, other = self.pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=negative is not None,
            negative_prompt=negative,
            max_sequence_length=LONGEST,
        )
        pair = (pooled.to(self.dtype), None if negative is None else other.to(self.dtype))
        return Conditioning(cond.to(self.dtype), None if negative is None else uncond.to(self.dtype), {"pooled": pair})

    def attentions(self, cells: int) -> Iterator[tuple[str, Blocks]]:
        for index, block in enumerate(self.transformer.transformer_blocks):
            yield f"transformer_blocks.{index}.attn", image_first(cells)
            if block.use_dual_attention:
                yield f"transformer_blocks.{index}.attn2", SELF

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        answer: Tensor = self.transformer(
            latents,
            encoder_hidden_states=conditioning.cond,
            pooled_projections=conditioning.extra["pooled"][0],
            timestep=self.timesteps(latents, step),
            return_dict=False,
        )[0]
        return answer


def _pooled_problems(pipeline: Any) -> Iterator[str]:
    """Problems where the pooled states of both CLIP encoders do not fit the network, or the encoders are swapped."""
    first, second = (getattr(pipeline, part).config for part in ("text_encoder", "text_encoder_2"))
    reads = pipeline.transformer.config.pooled_projection_dim
    if first.projection_dim + second.projection_dim != reads:
        given = f"{first.projection_dim} and {second.projection_dim}"
        yield f"transformer reads {reads} channels of pooled text; text_encoder and text_encoder_2 give {given}."
    if first.hidden_size > second.hidden_size:
        yield f"text_encoder, of {first.hidden_size} channels, and text_encoder_2, of {second.hidden_size}, are interchanged."
