"""Qwen-Image 2.1 pipelines: a single-stream transformer in which text attends to text, and the image to text and image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.models.compiled import plain_module
from attnguide.models.fitting import Reads
from attnguide.models.frames import FrameAutoencoding, frame_problems
from attnguide.models.language import LanguageModelAdapter, language_problems, packed, unpacked
from attnguide.models.readers import TextReader
from attnguide.models.transformer import Blocks
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Step

LONGEST = 8192
"""Positions that the network's rotary embedding knows."""

_SLOT = 4
"""Image tokens per position of ``img_mask`` (groups of 2x2)."""


class QwenImage21(FrameAutoencoding, LanguageModelAdapter):
    """Adapter for ``QwenImage21Pipeline``, text to image.

    A module makes two attention calls, with text queries and with image queries; the sites are blocks of the second. The
    pipeline caches the text's keys and values, which are the same at every step; here they are recomputed. ``cfg_scale`` is
    the pipeline's ``true_cfg_scale``; a row without a negative prompt has an empty one.
    """

    one_length = repacks_text = True

    kinds = ("QwenImage21Transformer2DModel",)
    reads: ClassVar[Reads] = {"context_in_dim": ("text_encoder",)}

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from frame_problems(plain_module(pipeline.vae), "AutoencoderKLQwenImage21")
        yield from language_problems(pipeline.processor.tokenizer, pipeline.text_encoder)

    @property
    def factor(self) -> int:
        return int(self.pipeline.vae_scale_factor)

    @property
    def default_size(self) -> tuple[int, int]:
        return 1024, 1024

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        step = 2 * self.factor  # the picture's tokens are counted in groups of 2 x 2
        for name, side in (("height", height), ("width", width)):
            if side % step:
                raise ValueError(f"{name} must be a multiple of {step} for {self.name}; got {side}.")
        return self.channels, height // self.factor, width // self.factor

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        before, after = self.pipeline.prompt_template_t2i.split("{}")
        tokenizer, dropped = self.pipeline.processor.tokenizer, self.pipeline._drop_idx
        return TextReader(tokenizer, LONGEST, before=before, after=after, dropped=dropped).read(prompt)

    def states(self, prompt: str, *, negative: bool) -> tuple[Tensor, Tensor | None]:
        states, mask, _ = self.pipeline.encode_prompt([prompt], device=self.device)
        return states, mask

    def sigmas(self, steps: int) -> Sequence[float]:
        own = self.pipeline.config.sample_sigmas
        return own if own is not None and len(own) == steps else super().sigmas(steps)

    def attentions(self, cells: int) -> Iterator[tuple[str, Blocks]]:
        blocks: Blocks = {"cross": (None, (0, -cells)), "self": (None, (-cells, None))}
        for index in range(len(self.transformer.transformer_blocks)):
            yield f"transformer_blocks.{index}.attn", blocks

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        batch, _, rows, columns = latents.shape
        text, cells = conditioning.cond.shape[1], rows * columns
        slots = torch.arange(text + cells // _SLOT, device=latents.device) >= text
        answer = self.transformer(
            hidden_states=packed(latents, 1),
            timestep=self.timesteps(latents, step).to(latents.dtype) / 1000,
            encoder_hidden_states=conditioning.cond,
            encoder_hidden_states_mask=None,
            img_shapes=[[(1, rows, columns)]] * batch,
            img_mask=slots.expand(batch, -1),
            return_dict=False,
        )[0]
        return unpacked(answer[:, -cells:], latents, 1)

    def encode_image(self, images: Sequence[Image.Image]) -> Tensor:
        return super().encode_image([image.convert("RGBA") for image in images])
