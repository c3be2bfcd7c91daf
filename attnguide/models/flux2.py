"""FLUX.2 pipelines: joint attention of image and the states of a language model, which reads the prompt in a chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, format_input
from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.models.fitting import Reads
from attnguide.models.flux import PackedTransformer
from attnguide.models.readers import TextReader
from attnguide.models.support import plain_module, text_problems
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Step

LONGEST = 512
"""Positions of the text encoder, template included, as the pipelines have it by default."""

_PLACE = "\u0001"
"""Stands for the prompt where a template is written out."""


class Flux2(PackedTransformer):
    """Adapter for ``Flux2Pipeline``, FLUX.2-dev (https://github.com/black-forest-labs/flux2).

    Latents are normalised, with 2x2 cells of the autoencoder packed into channels; noise is drawn in that shape, as the
    pipeline does. The network attends to all positions of the text encoder; those before the prompt belong to the template.
    Guidance is distilled into it: ``cfg_scale`` is a condition. Reference pictures are not supported.
    """

    kinds = ("Flux2Transformer2DModel",)
    reads: ClassVar[Reads] = {"joint_attention_dim": ("text_encoder",) * 3}  # states of three layers
    patch = 1
    language: ClassVar[str] = "mistral"
    """Prefix of the text encoder's ``model_type``; each has its own template."""

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        vae = plain_module(pipeline.vae)
        if type(vae) is not AutoencoderKLFlux2:
            yield f"vae must be an AutoencoderKLFlux2; got {type(vae).__name__}."
        kind = pipeline.text_encoder.config.model_type
        if not kind.startswith(cls.language):
            yield f"text_encoder of {type(pipeline).__name__} must be of the kind {cls.language}; got {kind}."
        tokenizer = getattr(pipeline.tokenizer, "tokenizer", pipeline.tokenizer)
        yield from text_problems(tokenizer, pipeline.text_encoder)

    @property
    def factor(self) -> int:
        return 2 * super().factor

    @property
    def channels(self) -> int:
        return int(self.transformer.config.in_channels)

    @property
    def default_size(self) -> tuple[int, int]:
        side = self.pipeline.default_sample_size * self.factor // 2
        return side, side

    @property
    def guidance_distilled(self) -> bool:
        return True

    def size_shift(self, steps: int, latent_shape: tuple[int, int, int]) -> float:
        _, rows, columns = latent_shape
        return float(compute_empirical_mu(image_seq_len=rows * columns, num_steps=steps))

    def conversation(self, prompt: str) -> str:
        """The text that the text encoder reads, with its template."""
        written = self.pipeline.tokenizer.apply_chat_template(
            format_input([prompt], self.pipeline.system_message), add_generation_prompt=False, tokenize=False
        )
        return str(written[0])

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        tokenizer = getattr(self.pipeline.tokenizer, "tokenizer", self.pipeline.tokenizer)
        before, _, after = self.conversation(_PLACE).partition(_PLACE)
        return TextReader(tokenizer, LONGEST, padded=True, before=before, after=after, special=False).read(prompt)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        uncond = None if negative_prompts is None else self._states([text or "" for text in negative_prompts])
        scales = torch.tensor([1.0] * len(prompts) if cfg_scales is None else list(cfg_scales), device=self.device)
        pair = (scales, None if uncond is None else scales)
        return Conditioning(self._states(prompts), uncond, {"guidance": pair})

    def _states(self, prompts: Sequence[str]) -> Tensor:
        states, _ = self.pipeline.encode_prompt(list(prompts), device=self.device, max_sequence_length=LONGEST)
        encoded: Tensor = states.to(self.dtype)
        return encoded

    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        text, scales = conditioning.cond, conditioning.extra["guidance"][0]
        answer: Tensor = self.transformer(
            hidden_states=latents.flatten(2).transpose(1, 2),
            timestep=self.timesteps(latents, step).to(latents.dtype) / 1000,
            guidance=scales if self.transformer.config.guidance_embeds else None,
            encoder_hidden_states=text,
            txt_ids=self.pipeline._prepare_text_ids(text).to(latents.device),
            img_ids=self.pipeline._prepare_latent_ids(latents).to(latents.device),
            return_dict=False,
        )[0]
        return answer.transpose(1, 2).unflatten(2, latents.shape[-2:])

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, std = self._normaliser(latents)
        return F.pixel_shuffle(latents * std + mean, 2)

    def _scaled(self, latents: Tensor) -> Tensor:
        packed = F.pixel_unshuffle(latents, 2)
        mean, std = self._normaliser(packed)
        return (packed - mean) / std

    def _normaliser(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' channels in training, ``1 channels 1 1`` each."""
        norm = self.vae.bn
        std = torch.sqrt(norm.running_var.view(1, -1, 1, 1) + self.vae.config.batch_norm_eps)
        return norm.running_mean.view(1, -1, 1, 1).to(like), std.to(like)


class Flux2Klein(Flux2):
    """Adapter for ``Flux2KleinPipeline``: both halves of classifier-free guidance, or none where the model is distilled."""

    language = "qwen3"

    @property
    def guidance_distilled(self) -> bool:
        return bool(self.pipeline.config.is_distilled)

    def conversation(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return str(self.pipeline.tokenizer.apply_chat_template(messages, **settings))
