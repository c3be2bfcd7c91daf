"""FLUX.1 pipelines: joint attention of image and T5 text; latents are packed into tokens of 2x2 cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.models.fitting import Reads
from attnguide.models.readers import TextReader, beyond, expansion, texts_of
from attnguide.models.support import text_problems
from attnguide.models.transformer import Blocks, TransformerAdapter, text_first
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Sample, Step

LONGEST = 512
"""Positions of T5, as the pipelines have it by default; fewer where the checkpoint's tokenizer says so."""

FEW_STEPS = 8
"""Steps that networks distilled into few steps are sampled with, at most; such networks need no guidance."""


class PackedTransformer(TransformerAdapter):
    """Base of the adapters of FLUX-like transformers: double-stream blocks, then single-stream blocks.

    The loop's latents are ``batch channels height width``; the network reads ``batch tokens channels``, 2x2 cells a token.
    """

    patch = 2
    packs = 4

    @property
    def channels(self) -> int:
        config = self.transformer.config
        return int(config.out_channels or config.in_channels) // 4  # in_channels may include a mask or a further picture

    @property
    def default_size(self) -> tuple[int, int]:
        side = min(self.pipeline.default_sample_size * self.factor, self.vae.config.sample_size)
        return side, side

    def sigmas(self, steps: int) -> Sequence[float] | None:
        if self.pipeline.scheduler.config.get("use_flow_sigmas"):
            return None
        shares: list[float] = np.linspace(1.0, 1 / steps, steps).tolist()
        return shares

    def attentions(self, cells: int) -> Iterator[tuple[str, Blocks]]:
        for part in ("transformer_blocks", "single_transformer_blocks"):
            for index in range(len(getattr(self.transformer, part))):
                yield f"{part}.{index}.attn", text_first(cells)

    def remarks(self, sample: Sample) -> Iterator[str]:
        unread = self.guidance_distilled and not self.transformer.config.guidance_embeds
        if unread and sample.cfg_scale not in (0.0, 1.0, Sample.cfg_scale):  # the last one is what nobody may have asked for
            yield f"cfg_scale has no effect: {self.name} reads no weight of guidance{self._instead}."
        elif unread and sample.steps > FEW_STEPS and "uncond" not in self.halves(sample):
            yield f"Nothing guides these pictures: {self.name} reads no weight of guidance{self._instead}."

    @property
    def _instead(self) -> str:
        other = "; true_cfg_scale above 1 with a negative prompt, which may be empty, guides it" if self.true_cfg else ""
        return f"{other} (FLUX.1-schnell and its like, made for few steps, need none)"

    def pack(self, latents: Tensor) -> Tensor:
        """Latents ``batch channels height width`` as the network reads them, ``batch tokens channels``."""
        return F.pixel_unshuffle(latents, self.patch).flatten(2).transpose(1, 2).contiguous()

    def unpack(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Inverse of :meth:`pack`: tokens as latents of the shape of ``like``."""
        rows, columns = (side // self.patch for side in like.shape[-2:])
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), self.patch)


class Flux(PackedTransformer):
    """Adapter for ``FluxPipeline``: FLUX.1-dev and schnell (https://arxiv.org/abs/2506.15742).

    The network attends to all 512 positions of T5, padding included, and reads only the pooled state of CLIP. Guidance is
    distilled into it: dev reads ``cfg_scale`` as a condition, schnell reads none. Both halves of true classifier-free guidance
    run with ``true_cfg_scale`` above 1 and a negative prompt.
    """

    kinds = ("FluxTransformer2DModel",)
    reads: ClassVar[Reads] = {"joint_attention_dim": ("text_encoder_2",), "pooled_projection_dim": ("text_encoder",)}
    encoders = ("text_encoder", "text_encoder_2")

    @classmethod
    def problems(cls, pipeline: object) -> Iterator[str]:
        yield from super().problems(pipeline)
        for part in ("", "_2"):
            yield from text_problems(getattr(pipeline, f"tokenizer{part}"), getattr(pipeline, f"text_encoder{part}"))
        if getattr(pipeline.transformer, "encoder_hid_proj", None) is not None:  # type: ignore[attr-defined]
            yield "transformer has a loaded IP-Adapter. Call pipeline.unload_ip_adapter() first."

    @property
    def guidance_distilled(self) -> bool:
        return True

    @property
    def true_cfg(self) -> bool:
        return True

    def remarks(self, sample: Sample) -> Iterator[str]:
        yield from super().remarks(sample)
        if beyond(self.pipeline, texts_of(sample, self.halves(sample))):
            yield (
                f"Prompts are longer than the {self.pipeline.tokenizer_max_length} tokens that CLIP reads: {self.name} reads "
                "their beginning with CLIP, for one pooled state, and all of them with T5, where words have their positions."
            )

    @property
    def _longest(self) -> int:
        return min(LONGEST, self.pipeline.tokenizer_2.model_max_length)

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        tokenizer = self.pipeline.tokenizer_2
        return TextReader(tokenizer, self._longest, padded=True, expand=expansion(self.pipeline, tokenizer)).read(prompt)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        cond, pooled = self._states(prompts)
        scales = torch.tensor([1.0] * len(prompts) if cfg_scales is None else list(cfg_scales), device=self.device)
        if negative_prompts is None:
            return Conditioning(cond, None, {"pooled": (pooled, None), "guidance": (scales, None)})
        uncond, other = self._states([text or "" for text in negative_prompts])
        return Conditioning(cond, uncond, {"pooled": (pooled, other), "guidance": (scales, scales)})

    def _states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Text states of T5, ``batch tokens channels``, and pooled states of CLIP, ``batch channels``."""
        states, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), prompt_2=None, device=self.device, max_sequence_length=self._longest
        )
        return states.to(self.dtype), pooled.to(self.dtype)

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        text, (rows, columns) = conditioning.cond, (side // self.patch for side in latents.shape[-2:])
        places = self.pipeline._prepare_latent_image_ids(len(latents), rows, columns, latents.device, text.dtype)
        scales = conditioning.extra["guidance"][0]
        answer = self.transformer(
            hidden_states=self.pack(latents),
            timestep=self.timesteps(latents, step).to(latents.dtype) / 1000,
            guidance=scales if self.transformer.config.guidance_embeds else None,
            pooled_projections=conditioning.extra["pooled"][0],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=latents.device, dtype=text.dtype),
            img_ids=places,
            return_dict=False,
        )[0]
        return self.unpack(answer, latents)
