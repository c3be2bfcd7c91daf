"""Qwen-Image pipelines: joint attention of image and the states of a language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.models.compiled import plain_module
from attnguide.models.fitting import Reads
from attnguide.models.frames import FrameAutoencoding, frame_problems
from attnguide.models.language import LanguageModelAdapter, language_problems, packed, text_mask, unpacked
from attnguide.models.readers import TextReader
from attnguide.models.transformer import Blocks, text_first
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Step


class QwenImage(FrameAutoencoding, LanguageModelAdapter):
    """Adapter for ``QwenImagePipeline`` (https://arxiv.org/abs/2508.02324).

    A prompt is read inside a template, whose first 34 tokens are cut off. ``cfg_scale`` is the pipeline's ``true_cfg_scale``;
    the combined prediction is rescaled to the norm of the conditional one for each image token, as the pipeline does. A row
    without a negative prompt has an empty one.
    """

    kinds = ("QwenImageTransformer2DModel",)
    reads: ClassVar[Reads] = {"joint_attention_dim": ("text_encoder",)}
    packs = 4

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from frame_problems(plain_module(pipeline.vae), "AutoencoderKLQwenImage")
        yield from language_problems(pipeline.tokenizer, pipeline.text_encoder)
        if plain_module(pipeline.transformer).config.guidance_embeds:
            yield "transformer reads the guidance weight as a condition (guidance_embeds), which is not supported."

    @property
    def factor(self) -> int:
        return int(self.pipeline.vae_scale_factor)

    @property
    def channels(self) -> int:
        return int(self.transformer.config.in_channels // self.patch**2)

    @property
    def default_size(self) -> tuple[int, int]:
        side = self.pipeline.default_sample_size * self.factor
        return side, side

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        before, after = self.pipeline.prompt_template_encode.split("{}")
        dropped = self.pipeline.prompt_template_encode_start_idx
        limit = self.pipeline.tokenizer_max_length + dropped
        return TextReader(self.pipeline.tokenizer, limit, before=before, after=after, dropped=dropped).read(prompt)

    def states(self, prompt: str, *, negative: bool) -> tuple[Tensor, Tensor | None]:
        states, mask = self.pipeline.encode_prompt([prompt], self.device)
        return states, mask

    def attentions(self, cells: int) -> Iterator[tuple[str, Blocks]]:
        for index in range(len(self.transformer.transformer_blocks)):
            yield f"transformer_blocks.{index}.attn", text_first(cells)

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        rows, columns = (side // self.patch for side in latents.shape[-2:])
        answer = self.transformer(
            hidden_states=packed(latents, self.patch),
            timestep=self.timesteps(latents, step).to(latents.dtype) / 1000,
            encoder_hidden_states=conditioning.cond,
            encoder_hidden_states_mask=text_mask(conditioning),
            img_shapes=[[(1, rows, columns)]] * len(latents),
            return_dict=False,
        )[0]
        return unpacked(answer, latents, self.patch)

    def after_cfg(self, combined: Tensor, cond: Tensor) -> Tensor:
        wanted, tokens = packed(cond, self.patch).norm(dim=-1, keepdim=True), packed(combined, self.patch)
        return unpacked(tokens * (wanted / tokens.norm(dim=-1, keepdim=True)), combined, self.patch)
