"""Stable Diffusion 1.x and 2.x pipelines: a UNet with cross-attention to one text encoder."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTokenizerFast

from attnguide.attention.attach import stop_after
from attnguide.attention.sites import Site, SiteKind, depths
from attnguide.models.base import Conditioning, ModelAdapter, Picture
from attnguide.models.chunks import ChunkedClip
from attnguide.models.fitting import Reads
from attnguide.models.offload import computing_device
from attnguide.models.schedulers import NoiseScheduler, make_discrete
from attnguide.models.support import plain_module
from attnguide.models.texts import ReadsWeights
from attnguide.models.unet_problems import unet_problems
from attnguide.prompt.expansion import follow, spread
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.types import Step
from attnguide.weighted import WeightedPrompt, unweighted

_RUNNING = ("down", "mid", "up")
"""Prefixes of a UNet's parts in execution order."""


class StableDiffusion(ModelAdapter, ReadsWeights):
    """Adapter for ``StableDiffusionPipeline``, and for ``LatentConsistencyModelPipeline`` with the same parts.

    Prompts with weights are read chunk by chunk; the network's cross-attention then has a multiple of CLIP's 77 keys.

    Parts in different precisions work together: text states are cast to the UNet's, latents to the autoencoder's.

    Args:
        pipeline: The user's pipeline; it is read and run, never changed.
        name: For people.
    """

    reads: ClassVar[Reads] = {"cross_attention_dim": ("text_encoder",)}

    def __init__(self, pipeline: Any, name: str = "pipeline") -> None:
        super().__init__(pipeline, name)
        self._unet = plain_module(pipeline.unet)
        if self._unet is not pipeline.unet:
            warnings.warn(f"{name}: the UNet runs as it is, not compiled, so that its attention can be read.", stacklevel=3)
        self._fast: dict[str, Any] = {}

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from unet_problems(pipeline)

    @property
    def device(self) -> torch.device:
        return computing_device(self.pipeline, self._unet)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._unet.dtype
        return dtype

    @property
    def _factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def default_size(self) -> tuple[int, int]:
        sample = self._unet.config.sample_size
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return height * self._factor, width * self._factor

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        parts = {"unet": self._unet, "vae": self.vae, "text_encoder": self.pipeline.text_encoder}
        checker = getattr(self.pipeline, "safety_checker", None)
        return {**parts, "safety_checker": checker} if isinstance(checker, nn.Module) else parts

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return self._tokenized(prompt, "tokenizer")

    def _tokenized(self, prompt: str, part: str) -> TokenizedPrompt:
        """Tokens of one of the pipeline's tokenizers."""
        tokenizer = getattr(self.pipeline, part)
        length = tokenizer.model_max_length
        read = self._as_read(prompt, tokenizer)
        origin = follow(prompt, read, tokenizer.added_tokens_encoder)
        reader = self._reader(part)
        encoded = reader(read, padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        if reader is not tokenizer and ids != tokenizer(read, padding="max_length", truncation=True)["input_ids"]:
            raise ValueError(
                f"The tokenizer {type(tokenizer).__name__} cannot tell which tokens stand for which words of {prompt!r}."
            )
        # By position, not by number: Stable Diffusion 2 pads with the token of "!", which a prompt may contain.
        end = ids.index(tokenizer.eos_token_id, 1)
        offsets = tuple(
            spread(origin, span) if 0 < position < end else None for position, span in enumerate(encoded["offset_mapping"])
        )
        whole = reader(read, return_offsets_mapping=True)["offset_mapping"]
        # The end token takes the last position, so the token that stood there is the first to be cut off.
        lost = prompt[spread(origin, whole[length - 1])[0] :].strip() if len(whole) > length else ""
        return TokenizedPrompt(prompt, tuple(tokenizer.convert_ids_to_tokens(ids)), offsets, tuple(ids), lost)

    def _reader(self, part: str) -> Any:
        """A tokenizer of the pipeline; a slow (pure Python) one is replaced by a fast copy, which returns offsets."""
        tokenizer, fast = getattr(self.pipeline, part), self._fast.get(part)
        if tokenizer.is_fast:
            return tokenizer
        if fast is None or len(fast) != len(tokenizer):  # names of embeddings may have been added
            fast = CLIPTokenizerFast(**{"__slow_tokenizer": tokenizer})
            added = sorted(tokenizer.added_tokens_decoder.items())
            fast.add_tokens([token for number, token in added if number >= len(fast)])
            self._fast[part] = fast
        fast.pad_token = tokenizer.pad_token
        return fast

    def _as_read(self, prompt: str, tokenizer: Any) -> str:
        """The prompt as the pipeline tokenizes it: a textual-inversion name with several vectors becomes one name for each."""
        expand = getattr(self.pipeline, "maybe_convert_prompt", None)
        return prompt if expand is None else str(expand(prompt, tokenizer))

    def _clip(self, part: str = "", *, penultimate: bool = False) -> ChunkedClip:
        """One of the pipeline's text encoders, for prompts with weights."""
        tokenizer, encoder = (getattr(self.pipeline, f"{name}{part}") for name in ("tokenizer", "text_encoder"))

        def expand(text: str) -> str:
            return self._as_read(text, tokenizer)

        return ChunkedClip(tokenizer, self._reader(f"tokenizer{part}"), encoder, self.device, expand, penultimate)

    def tokenize_weighted(self, prompt: WeightedPrompt) -> TokenizedPrompt:
        return self._clip().read(prompt)

    @torch.no_grad()
    def encode_weighted(
        self,
        prompts: Sequence[WeightedPrompt],
        negative_prompts: Sequence[WeightedPrompt | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        states = self._clip().states([*prompts, *said(negative_prompts)]).to(self.dtype)
        cond, uncond = states[: len(prompts)], states[len(prompts) :]
        extra = self._guidance_states(len(prompts), cfg_scales)
        return Conditioning(cond, None if negative_prompts is None else uncond, extra)

    def call_arguments(self, conditioning: Conditioning) -> Mapping[str, Tensor]:
        found = {"prompt_embeds": conditioning.cond, "negative_prompt_embeds": conditioning.uncond}
        return {name: states for name, states in found.items() if states is not None}

    @property
    def guidance_distilled(self) -> bool:
        return self._unet.config.time_cond_proj_dim is not None

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        negative = None if negative_prompts is None else [text or "" for text in negative_prompts]
        cond, uncond = self.pipeline.encode_prompt(list(prompts), self.device, 1, negative is not None, negative)
        extra = self._guidance_states(len(prompts), cfg_scales)
        return Conditioning(cond.to(self.dtype), None if negative is None else uncond.to(self.dtype), extra)

    def _guidance_states(self, rows: int, cfg_scales: Sequence[float] | None) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Embeddings of the rows' CFG scales for a guidance-distilled UNet; empty for another UNet."""
        if not self.guidance_distilled:
            return {}
        weights = torch.tensor([1.0] * rows if cfg_scales is None else list(cfg_scales))
        # In the papers' convention a weight of 0 is no guidance.
        states = self.pipeline.get_guidance_scale_embedding(weights - 1, self._unet.config.time_cond_proj_dim)
        return {"timestep_cond": (states.to(self.device, self.dtype), None)}

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self._factor
        for name, side in (("height", height), ("width", width)):
            if side % factor:
                raise ValueError(f"{name} must be a multiple of {factor} for {self.name}; got {side}.")
        return self._unet.config.in_channels, height // factor, width // factor

    def attention_modules(self, height: int, width: int) -> Mapping[Site, nn.Module]:
        modules: dict[Site, nn.Module] = {}
        # GLIGEN's gated attention, over image and box tokens, has no map of the image alone.
        every = [(name, module) for name, module in self._unet.named_modules() if ".fuser." not in name]
        found = [(name, module) for name, module in every if isinstance(module, Attention)]
        running = sorted((name for name, _ in found), key=lambda name: _RUNNING.index(name.partition("_")[0]))
        depth = dict(zip(running, depths(len(running)), strict=True))
        for name, module in found:
            kind: SiteKind = "cross" if module.is_cross_attention else "self"
            site = self._site(name, kind, module.heads, height, width)
            modules[replace(site, depth=depth[name])] = module
        return modules

    def feature_modules(self, height: int, width: int) -> Mapping[Site, nn.Module]:
        """Last convolution of each residual block, whose output is the block's residual."""
        blocks = [(name, module) for name, module in self._unet.named_modules() if isinstance(module, ResnetBlock2D)]
        return {self._site(f"{name}.conv2", "feature", 0, height, width): block.conv2 for name, block in blocks}

    def _site(self, name: str, kind: SiteKind, heads: int, height: int, width: int) -> Site:
        """The site of a module, for a picture of this size in pixels."""
        _, rows, columns = self.latent_shape(height, width)
        depth = len(self._unet.config.down_block_types)
        parts = name.split(".")
        place = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}[parts[0]]
        level = depth - 1 if place == "mid" else int(parts[1]) if place == "down" else depth - 1 - int(parts[1])
        return Site(name, kind, -(-rows // 2**level), -(-columns // 2**level), heads, place, level)

    def predict(
        self, latents: Tensor, step: Step, conditioning: Conditioning, *, until: Collection[Site] | None = None
    ) -> Tensor | None:
        timestep = torch.tensor(step.timestep, device=latents.device, dtype=torch.float32)
        if timestep == timestep.round():
            timestep = timestep.long()
        arguments = {"encoder_hidden_states": conditioning.cond, "return_dict": False, **self._extra(conditioning, latents)}
        if until is None:
            answer: Tensor = self._unet(latents, timestep, **arguments)[0]
            return answer
        with stop_after([self._unet.get_submodule(site.name) for site in until]):
            self._unet(latents, timestep, **arguments)
        return None

    def _extra(self, conditioning: Conditioning, inputs: Tensor) -> dict[str, Any]:
        """Further arguments of the UNet for a pass over ``inputs``."""
        return {name: states for name, (states, _) in conditioning.extra.items()}

    def make_scheduler(self, name: str | None, steps: int, latent_shape: tuple[int, int, int] | None = None) -> NoiseScheduler:
        return make_discrete(self.pipeline.scheduler, name, steps, self.device)

    def _pictures(self, pixels: Tensor) -> list[Picture]:
        """Pixels ``batch 3 height width`` in [-1, 1] as pictures that the pipeline's safety checker, if any, lets pass."""
        unsafe = self._unsafe(pixels)
        images = self._postprocessed(pixels.detach())
        refused = Picture(None, "the pipeline's safety checker holds the picture back")
        return [refused if blocked else Picture(image) for image, blocked in zip(images, unsafe, strict=True)]

    def _postprocessed(self, pixels: Tensor) -> list[Image.Image]:
        # Denormalise always, as diffusers does: the processor's own setting is for pictures that are read.
        shift = [True] * len(pixels)
        images: list[Image.Image] = self.pipeline.image_processor.postprocess(pixels, "pil", shift)
        return images

    def _unsafe(self, pixels: Tensor) -> list[bool]:
        checker = getattr(self.pipeline, "safety_checker", None)
        if checker is None:
            return [False] * len(pixels)
        # The checker blackens pictures in place.
        _, found = self.pipeline.run_safety_checker(pixels.clone(), self.device, getattr(checker, "dtype", self.dtype))
        return [bool(flag) for flag in found] if isinstance(found, Sequence) else [bool(found)] * len(pixels)


def plain_processor() -> Any:
    """Diffusers' default attention processor."""
    return AttnProcessor2_0()


def said(prompts: Sequence[WeightedPrompt | None] | None) -> list[WeightedPrompt]:
    """Texts of the unconditional half; the empty text for rows without a negative prompt."""
    return [unweighted("") if prompt is None else prompt for prompt in prompts or ()]
