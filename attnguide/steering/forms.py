"""How the pipelines of a family call their network, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from attnguide.types import Branch


class Packing(Protocol):
    """Conversion between a family's shape of latents and ``batch channels height width``."""

    def unpack(self, packed: Tensor) -> Tensor:
        """Latents ``batch channels height width``."""

    def pack(self, latents: Tensor, packed: Tensor) -> Tensor:
        """Latents in the shape of ``packed``, whose further channels or tokens (a mask, another picture) are kept.

        ``packed`` is an input or output of the network or of the scheduler.
        """


class ChannelsBehind:
    """Latents ``batch channels height width``, followed by further channels where the network reads some (inpainting).

    Args:
        channels: Number of latent channels.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def unpack(self, packed: Tensor) -> Tensor:
        return packed[:, : self.channels]

    def pack(self, latents: Tensor, packed: Tensor) -> Tensor:
        return latents if packed.shape[1] == self.channels else torch.cat([latents, packed[:, self.channels :]], 1)


def channels_behind(network: Any, arguments: Mapping[str, Any]) -> Packing:
    """Packing of latents with as many channels as the network's output."""
    return ChannelsBehind(network.config.out_channels)


def as_it_is(answer: Any) -> Tensor:
    """Identity, for networks whose output the scheduler takes as it is."""
    found: Tensor = answer
    return found


def as_it_was(answer: Tensor, given: Any) -> Any:
    """See :func:`as_it_is`."""
    return answer


Halves = tuple[tuple[Branch, ...], ...]
"""Network calls of one evaluation in order, each as the branches of its batch."""


@dataclass(frozen=True)
class Encoded:
    """One call of the pipeline's prompt encoder.

    Attributes:
        prompt: The prompts; ``None`` where the pipeline was given text states.
        second: Different prompts of a second or third text encoder; ``None`` without.
        images: Pictures per prompt.
        answer: Output of the encoder.
        negative: The negative prompts; ``None`` without.
    """

    prompt: str | Sequence[str] | None
    second: str | Sequence[str] | None
    images: int
    answer: Any
    negative: str | Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class Texts:
    """Text states that a pipeline encoded for one call.

    Attributes:
        encoded: The encoder's call for the prompts.
        cond: Text states of all rows, ``batch tokens channels``.
        uncond: Text states of the negative prompts; ``None`` without.
    """

    encoded: Encoded
    cond: Tensor
    uncond: Tensor | None = None


def both_halves(encoded: Sequence[Encoded], states: Any) -> Texts:
    """Text states where one call of the encoder returns both CFG halves as its first two outputs."""
    cond, uncond = encoded[-1].answer[:2]
    return Texts(encoded[-1], cond, uncond if isinstance(uncond, Tensor) else None)


def one_batch(pipeline: Any, blocks: int) -> Halves:
    """Both CFG halves in one batch, the unconditional one first, then a perturbed branch with PAG."""
    perturbed = bool(getattr(pipeline, "do_perturbed_attention_guidance", False))
    both = getattr(pipeline, "do_classifier_free_guidance", None)
    if both is None:  # the pipeline has no such property
        both = blocks - perturbed > 1
    halves: tuple[Branch, ...] = ("uncond", "cond") if both else ("cond",)
    return ((*halves, "perturbed") if perturbed else halves,)


@dataclass(frozen=True)
class ControlForm:
    """How a family's ControlNets are called, and how the network takes their residuals.

    Attributes:
        latents: Name of the ControlNet's argument for the latents, which are packed as the network's.
        residuals: Names of the network's arguments for the residuals.
        answer: From a ControlNet's output to the values of these arguments.
    """

    latents: str = "sample"
    residuals: tuple[str, ...] = ("down_block_additional_residuals", "mid_block_additional_residual")
    answer: Callable[[Any], Sequence[Any]] = lambda given: given[:2]


@dataclass(frozen=True)
class CallForm:
    """How the pipelines of a family call their network.

    Attributes:
        network: Name of the network among the pipeline's parts.
        latents: Name of the network's argument for the latents.
        timestep: Name of the argument for the timestep.
        states: Name of the argument for the text states, ``batch tokens channels``.
        time_scale: Factor in the timestep argument ``time_scale * Step.timestep + time_offset``.
        time_offset: Value of the timestep argument at timestep 0.
        extra: Paths (keys of nested mappings) of further text states among the arguments, by name in
            :attr:`~attnguide.models.base.Conditioning.extra`.
        whole: Arguments without a batch axis, whatever their shape; names of nested ones joined by dots.
        halves: From the pipeline and the number of blocks of rows in its batch to the network calls of one evaluation.
        encoder: Name of the method that encodes prompts.
        encodes: From the pipeline to the object with that method, usually the pipeline itself.
        encoded: From the calls of that method and the text states of the first network call to the texts of the pipeline's
            call.
        packing: From the network and the arguments of a call to the packing of its latents.
        apart: Name of the text mask argument where image tokens follow right behind each row's own text, so that rows whose
            texts differ in length cannot share a pass.
        opened: Converts the network's arguments so that all per-row values are tensors with a batch axis.
        closed: Inverse of ``opened``.
        control: How the family's ControlNets are called.
        answer: From the network's output to a tensor as the scheduler takes it, and back (given that tensor and the output).
    """

    network: str = "unet"
    latents: str = "sample"
    timestep: str = "timestep"
    states: str = "encoder_hidden_states"
    time_scale: float = 1.0
    time_offset: float = 0.0
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    halves: Callable[[Any, int], Halves] = one_batch
    encoder: str = "encode_prompt"
    encodes: Callable[[Any], Any] = lambda pipeline: pipeline
    encoded: Callable[[Sequence[Encoded], Any], Texts] = both_halves
    packing: Callable[[Any, Mapping[str, Any]], Packing] = channels_behind
    apart: str | None = None
    opened: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    closed: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    control: ControlForm = ControlForm()
    answer: tuple[Callable[[Any], Tensor], Callable[[Tensor, Any], Any]] = (as_it_is, as_it_was)


UNET = CallForm(
    extra={"text_embeds": ("added_cond_kwargs", "text_embeds")},
    whole=frozenset({"timestep", "cross_attention_kwargs.ip_adapter_masks", "cross_attention_kwargs.scale"}),
)
"""Stable Diffusion 1, 2 and XL."""
