"""How the pipelines of a family call their network, as data: what the loop side knows of a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from attnguide.types import Branch


class Packing(Protocol):
    """Another shape of latents, in which a family's network and scheduler have them."""

    def unpack(self, packed: Tensor) -> Tensor:
        """Latents ``batch channels height width``."""

    def pack(self, latents: Tensor, packed: Tensor) -> Tensor:
        """Latents in the shape of ``packed``; what that holds beside latents (a mask, a further picture) is kept.

        ``packed`` is what the network reads or gives, or what the scheduler moves.
        """


class ChannelsBehind:
    """Latents as they are; where the network reads more channels (inpainting), these stand behind.

    Args:
        channels: Of the latents.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def unpack(self, packed: Tensor) -> Tensor:
        return packed[:, : self.channels]

    def pack(self, latents: Tensor, packed: Tensor) -> Tensor:
        return latents if packed.shape[1] == self.channels else torch.cat([latents, packed[:, self.channels :]], 1)


def channels_behind(network: Any, arguments: Mapping[str, Any]) -> Packing:
    """Latents of as many channels as the network gives."""
    return ChannelsBehind(network.config.out_channels)


def as_it_is(answer: Any) -> Tensor:
    """The answer of most networks."""
    found: Tensor = answer
    return found


def as_it_was(answer: Tensor, given: Any) -> Any:
    """See :func:`as_it_is`."""
    return answer


Halves = tuple[tuple[Branch, ...], ...]
"""The calls of the network that one evaluation consists of, in order, each with the branches that its batch holds."""


@dataclass(frozen=True)
class Encoded:
    """One call of the pipeline's prompt encoder.

    Attributes:
        prompt: The texts, where the pipeline was given any.
        second: Those of a second text encoder, where it was given others.
        images: Pictures of each prompt.
        answer: What it gave.
        negative: The negative prompts, where it was given any.
    """

    prompt: str | Sequence[str] | None
    second: str | Sequence[str] | None
    images: int
    answer: Any
    negative: str | Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class Texts:
    """What a pipeline encoded for one call.

    Attributes:
        encoded: The encoder's call for the prompts.
        cond: Text states for all rows, ``batch tokens channels``.
        uncond: Of the negative prompts; ``None`` without.
    """

    encoded: Encoded
    cond: Tensor
    uncond: Tensor | None = None


def both_halves(encoded: Sequence[Encoded], states: Any) -> Texts:
    """Where the newest call of the encoder gives both halves side by side."""
    cond, uncond = encoded[-1].answer[:2]
    return Texts(encoded[-1], cond, uncond if isinstance(uncond, Tensor) else None)


def one_batch(pipeline: Any, blocks: int) -> Halves:
    """Both halves in one batch, the unconditional one first, and a perturbed one behind (PAG)."""
    perturbed = bool(getattr(pipeline, "do_perturbed_attention_guidance", False))
    both = getattr(pipeline, "do_classifier_free_guidance", None)
    if both is None:  # a pipeline that keeps it to itself
        both = blocks - perturbed > 1
    halves: tuple[Branch, ...] = ("uncond", "cond") if both else ("cond",)
    return ((*halves, "perturbed") if perturbed else halves,)


@dataclass(frozen=True)
class ControlForm:
    """How a family's ControlNets are called, and what of their answer its network reads.

    Attributes:
        latents: Name of the ControlNet's argument for the latents, which are packed as the network's.
        residuals: Names of the network's arguments.
        answer: From a ControlNet's answer to what these are.
    """

    latents: str = "sample"
    residuals: tuple[str, ...] = ("down_block_additional_residuals", "mid_block_additional_residual")
    answer: Callable[[Any], Sequence[Any]] = lambda given: given[:2]


@dataclass(frozen=True)
class CallForm:
    """How the pipelines of a family call their network.

    Attributes:
        network: Name of the pipeline's part.
        latents: Name of the network's argument for the latents.
        timestep: For the time.
        states: For the text states, ``batch tokens channels``.
        time_scale: What the network is told over :attr:`~attnguide.types.Step.timestep`, less ``time_offset``.
        time_offset: What it is told at timestep 0.
        extra: Where further text states (:attr:`~attnguide.models.base.Conditioning.extra`) stand among the arguments: keys of
            nested mappings, by name.
        whole: Arguments without a batch axis, whatever their first axis says; names of nested ones joined by dots.
        halves: The calls of one evaluation, for a pipeline whose batch holds so many blocks of rows.
        encoder: Name of the method that encodes prompts.
        encodes: What has that method: the pipeline in most cases.
        encoded: From the calls of that method, and the text states of the network's first call, to the texts of the
            pipeline's call that follows.
        packing: From the network and the arguments of a call to the shape of its latents.
        apart: Name of the text's mask where the picture follows right behind each row's own words, so that rows whose texts
            differ in length cannot share a pass.
        opened: Arguments with whatever belongs to rows in tensors whose first axis is the batch.
        closed: Back to what the network takes.
        control: Of its ControlNets.
        answer: From the network's answer to a tensor as the scheduler takes it, and back, told what the network gave.
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
