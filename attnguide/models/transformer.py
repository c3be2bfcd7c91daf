"""Common part of transformer adapters: sites of attention blocks, schedule shifts by size, timesteps."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attnguide.attention.attach import stop_after
from attnguide.attention.sites import Site, SiteKind, Span, depths, place_at
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.models.offload import computing_device
from attnguide.models.schedulers import NoiseScheduler, make_discrete, make_flow, size_shift
from attnguide.models.support import decoder_problems, plain_module
from attnguide.types import Step

Blocks = Mapping[SiteKind, tuple[Span | None, Span | None]]
"""Blocks of one attention call by site kind, each a pair of query rows and key columns."""

CROSS: Blocks = {"cross": (None, None)}
"""A whole call of cross-attention: image queries, text keys."""

SELF: Blocks = {"self": (None, None)}
"""A whole call of image self-attention."""


def text_first(cells: int, skip: int = 0) -> Blocks:
    """The blocks of joint attention over ``[text, image]``.

    Args:
        cells: Image positions.
        skip: Positions before the text that are no text (register tokens).
    """
    image: Span = (-cells, None)
    return {"cross": (image, (skip, -cells)), "self": (image, image), "joint": (None, None)}


def image_first(cells: int, text: int | None = None) -> Blocks:
    """The blocks of joint attention over ``[image, text]``.

    Args:
        cells: Image positions.
        text: First text position, where the image is padded; right behind the image when ``None``.
    """
    image: Span = (0, cells)
    return {"cross": (image, (cells if text is None else text, None)), "self": (image, image), "joint": (None, None)}


class TransformerAdapter(ModelAdapter):
    """Base of the adapters of pipelines around a ``transformer``.

    A family says how its prompts are read (:meth:`tokenize`, :meth:`encode_prompt`), which attention calls there are
    (:meth:`attentions`) and how the network is called (:meth:`forward`).

    Args:
        pipeline: The user's pipeline; it is read and run, never changed.
        name: For people.

    Attributes:
        flow: Whether the network was trained by flow matching; else it predicts noise.
        encoders: Names of the pipeline's text encoders.
    """

    flow: ClassVar[bool] = True
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)

    def __init__(self, pipeline: Any, name: str = "pipeline") -> None:
        super().__init__(pipeline, name)
        self.transformer = plain_module(pipeline.transformer)
        if self.transformer is not pipeline.transformer:
            told = "the transformer runs as it is, not compiled, so that its attention can be read"
            warnings.warn(f"{name}: {told}.", stacklevel=3)

    @property
    def cuts_padding(self) -> bool:
        return True

    @classmethod
    def problems(cls, pipeline: Any) -> Iterator[str]:
        yield from decoder_problems(plain_module(pipeline.vae))

    @property
    def device(self) -> torch.device:
        return computing_device(self.pipeline, self.transformer)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        encoders = {name: getattr(self.pipeline, name) for name in self.encoders}
        parts = {"transformer": self.transformer, "vae": self.vae, **encoders}
        return {name: network for name, network in parts.items() if network is not None}

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def patch(self) -> int:
        """Latent cells along one side of an image token."""
        return int(self.transformer.config.patch_size)

    @property
    def widest(self) -> int | None:
        """Most image tokens along one side that the network has position encodings for; ``None`` for no limit."""
        return None

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.transformer.config.in_channels)

    @property
    def default_size(self) -> tuple[int, int]:
        side = self.transformer.config.sample_size * self.factor
        return side, side

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        step = self.factor * self.patch
        for name, side in (("height", height), ("width", width)):
            if side % step:
                raise ValueError(f"{name} must be a multiple of {step} for {self.name}; got {side}.")
            if self.widest is not None and side > self.widest * step:
                raise ValueError(
                    f"{name} must be at most {self.widest * step} for {self.name}, which knows no more; got {side}."
                )
        return self.channels, height // self.factor, width // self.factor

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of image tokens of a picture of this size in pixels."""
        _, rows, columns = self.latent_shape(height, width)
        return rows // self.patch, columns // self.patch

    @abstractmethod
    def attentions(self, cells: int) -> Iterator[tuple[str, Blocks]]:
        """Module paths of attention in execution order, with the blocks of a call over ``cells`` image tokens."""

    def attention_modules(self, height: int, width: int) -> Mapping[Site, nn.Module]:
        rows, columns = self.grid(height, width)
        found = list(self.attentions(rows * columns))
        level = self.patch.bit_length() - 1
        modules: dict[Site, nn.Module] = {}
        for depth, (name, blocks) in zip(depths(len(found)), found, strict=True):
            module = self.transformer.get_submodule(name)
            heads = int(getattr(module, "heads", 0) or module.num_heads)
            for kind, (queries, keys) in blocks.items():
                site = Site(name, kind, rows, columns, heads, place_at(depth), level, depth, queries, keys)
                modules[site] = module
        return modules

    @abstractmethod
    def forward(self, latents: Tensor, step: Step, conditioning: Conditioning) -> Tensor:
        """Run the network once; returns its prediction, ``batch channels height width``."""

    def predict(
        self, latents: Tensor, step: Step, conditioning: Conditioning, *, until: Collection[Site] | None = None
    ) -> Tensor | None:
        if until is None:
            return self.forward(latents, step, conditioning)
        names = dict.fromkeys(site.name for site in until)  # a module may carry several sites
        with stop_after([self.transformer.get_submodule(name) for name in names]):
            self.forward(latents, step, conditioning)
        return None

    @property
    def inversion_scheduler(self) -> str:
        return "euler" if self.flow else "ddim"

    def make_scheduler(self, name: str | None, steps: int, latent_shape: tuple[int, int, int] | None = None) -> NoiseScheduler:
        own = self.pipeline.scheduler
        if not self.flow:
            return make_discrete(own, name, steps, self.device)
        shape = latent_shape or self.latent_shape(*self.default_size)
        mu = self.size_shift(steps, shape) if own.config.get("use_dynamic_shifting") else None
        return make_flow(own, name, steps, self.device, sigmas=self.sigmas(steps), mu=mu)

    def sigmas(self, steps: int) -> Sequence[float] | None:
        """Sigmas before the schedule's shift, where the family's pipeline passes them to the scheduler; else ``None``."""
        return None

    def size_shift(self, steps: int, latent_shape: tuple[int, int, int]) -> float:
        """Shift ``mu`` of a schedule with dynamic shifting, for latents of this shape."""
        _, rows, columns = latent_shape
        return size_shift((rows // self.patch) * (columns // self.patch), self.pipeline.scheduler.config)

    def timesteps(self, latents: Tensor, step: Step, scale: float = 1.0) -> Tensor:
        """The step's timestep divided by ``scale``, one per batch element, float32."""
        return (torch.tensor(step.timestep, device=latents.device, dtype=torch.float32) / scale).expand(len(latents))


def joint_processor() -> Any:
    """Diffusers' default joint attention processor of Stable Diffusion 3."""
    from diffusers.models.attention_processor import JointAttnProcessor2_0

    return JointAttnProcessor2_0()
