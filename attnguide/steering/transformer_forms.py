"""How the pipelines of transformer families call their networks, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.models.language import MASK
from attnguide.steering.errors import SteerError
from attnguide.steering.forms import (
    CallForm,
    ChannelsBehind,
    ControlForm,
    Encoded,
    Halves,
    Packing,
    Texts,
    one_batch,
)
from attnguide.steering.packing import grid_by_places, grid_by_shapes, tokens_of

Arguments = Mapping[str, Any]


def two_calls(pipeline: Any, blocks: int) -> Halves:
    """One call for each CFG half, the conditional one first; without guidance the second call is never made."""
    return ("cond",), ("uncond",)


def cond_first(pipeline: Any, blocks: int) -> Halves:
    """Both CFG halves in one batch, the conditional one first."""
    return (("cond", "uncond") if blocks == 2 else ("cond",),)


def one_call(pipeline: Any, blocks: int) -> Halves:
    """The conditional half alone, for guidance-distilled networks."""
    return (("cond",),)


def halves_at(uncond: int) -> Callable[[Sequence[Encoded], Any], Texts]:
    """Text states where one encoder call returns both halves, the negative prompt's at index ``uncond`` of its output."""

    def texts(encoded: Sequence[Encoded], states: Any) -> Texts:
        answer = encoded[-1].answer
        other = answer[uncond]
        return Texts(encoded[-1], answer[0], other if isinstance(other, Tensor) else None)

    return texts


def halves_in_turn(encoded: Sequence[Encoded], states: Any) -> Texts:
    """Text states where the encoder is called for each half; without guidance there is no second call."""
    last = encoded[-1]
    for first in encoded[-2:-1]:
        cond = first.answer[0]
        if cond.shape == states.shape and torch.equal(cond.to(states), states):
            return Texts(first, cond, last.answer[0])
    return Texts(last, last.answer[0])


# ------------------------------------------------------------------------------------------- arguments that follow the text


def _text_places(name: str, make: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Arguments], dict[str, Any]]:
    """Converter that remakes the text's position ids where methods have lengthened the text states.

    Args:
        name: Name of the position-id argument.
        make: From text states and old position ids to new position ids.
    """

    def closed(arguments: Arguments) -> dict[str, Any]:
        states, places = arguments["encoder_hidden_states"], arguments[name]
        fits = places.shape[-2] == states.shape[1]
        return dict(arguments) if fits else {**arguments, name: make(states, places)}

    return closed


def _blank(states: Tensor, places: Tensor) -> Tensor:
    """Position ids of text at the origin, zeros ``tokens 3``."""
    return places.new_zeros(states.shape[1], places.shape[-1])


def _counted(states: Tensor, places: Tensor) -> Tensor:
    """Position ids ``batch tokens 4`` whose last entry counts the text tokens."""
    counted = places.new_zeros(*states.shape[:2], places.shape[-1])
    counted[..., -1] = torch.arange(states.shape[1], device=places.device, dtype=places.dtype)
    return counted


def _qwen_opened(arguments: Arguments) -> dict[str, Any]:
    """Arguments with a text mask of True where there is none."""
    states, mask = arguments["encoder_hidden_states"], arguments["encoder_hidden_states_mask"]
    whole = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return {**arguments, "encoder_hidden_states_mask": whole if mask is None else mask}


def _qwen_closed(arguments: Arguments) -> dict[str, Any]:
    """Arguments without a text mask that masks nothing, and with ``img_shapes`` for each batch element (all are equal)."""
    mask = arguments["encoder_hidden_states_mask"]
    shapes = arguments["img_shapes"][:1] * len(arguments["hidden_states"])
    return {**arguments, "encoder_hidden_states_mask": None if bool(mask.all()) else mask, "img_shapes": shapes}


def _krea_closed(arguments: Arguments) -> dict[str, Any]:
    """Arguments with zeros put before ``position_ids`` ``tokens 3`` for added text tokens."""
    places, cells = arguments["position_ids"], arguments["hidden_states"].shape[1]
    missing = arguments["encoder_hidden_states"].shape[1] + cells - len(places)
    return {**arguments, "position_ids": F.pad(places, (0, 0, missing, 0))} if missing else dict(arguments)


def _krea_places(arguments: Arguments) -> tuple[int, int]:
    pictures = arguments["position_ids"][-arguments["hidden_states"].shape[1] :]
    return grid_by_places("places")({"places": pictures})


def _chroma_opened(arguments: Arguments) -> dict[str, Any]:
    """Arguments with the text's part of the attention mask; the image's part masks nothing."""
    mask = arguments["attention_mask"][:, : arguments["encoder_hidden_states"].shape[1]]
    return {**arguments, "attention_mask": mask}


def _chroma_closed(arguments: Arguments) -> dict[str, Any]:
    placed = _text_places("txt_ids", _blank)(arguments)
    mask = placed["attention_mask"]
    return {**placed, "attention_mask": torch.cat([mask, mask.new_ones(len(mask), placed["hidden_states"].shape[1])], 1)}


def _whole_network(arguments: Arguments) -> dict[str, Any]:
    """Arguments of a Stable Diffusion 3 call.

    Raises:
        SteerError: If the call leaves blocks out (skip-layer guidance).
    """
    if arguments.get("skip_layers") is not None:
        raise SteerError(
            "Skip-layer guidance calls the network without the blocks in which attention is read: call the pipeline without "
            "skip_guidance_layers."
        )
    return dict(arguments)


def _z_opened(arguments: Arguments) -> dict[str, Any]:
    """Arguments with the lists of pictures and texts stacked into tensors, texts padded under a mask."""
    states, mask = _padded(arguments["cap_feats"])
    return {**arguments, "x": torch.stack(arguments["x"]).squeeze(2), "cap_feats": states, MASK: mask}


def _z_closed(arguments: Arguments) -> dict[str, Any]:
    closed = {name: value for name, value in arguments.items() if name != MASK}
    closed["cap_feats"] = [row[mask] for row, mask in zip(arguments["cap_feats"], arguments[MASK], strict=True)]
    closed["x"] = list(arguments["x"].unsqueeze(2).unbind(0))
    return closed


def _padded(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts ``tokens channels`` of different lengths padded to ``batch tokens channels``, and a mask of their tokens."""
    length = max(map(len, texts))
    states = torch.stack([F.pad(text, (0, 0, 0, length - len(text))) for text in texts])
    lengths = torch.tensor([len(text) for text in texts], device=states.device)
    return states, torch.arange(length, device=states.device) < lengths[:, None]


def _z_texts(encoded: Sequence[Encoded], states: Any) -> Texts:
    """Text states from lists of both halves, repeated for the pictures of each prompt, as the pipeline does afterwards."""
    cond, uncond = encoded[-1].answer
    if not cond:
        return Texts(encoded[-1], states)
    each = max(1, len(states) // (len(cond) + len(uncond)))
    both = _padded([*cond, *uncond])[0].repeat_interleave(each, 0)
    own = both[: len(cond) * each]
    return Texts(encoded[-1], own, both[len(own) :] if uncond else None)


def _without_cache(arguments: Arguments) -> dict[str, Any]:
    """Arguments without the cache of the text's keys and values, since methods may change the text states."""
    return {**_qwen_opened(arguments), "kv_cache": None, "kv_cache_mode": None}


def read_list(answer: Any) -> Tensor:
    """The network's list of ``channels 1 height width`` as one negated tensor, as the scheduler takes it."""
    return -torch.stack([one.float() for one in answer]).squeeze(2)


def write_list(answer: Tensor, given: Any) -> Any:
    """Inverse of :func:`read_list`."""
    return [one.unsqueeze(1).to(given[0].dtype) for one in -answer]


def read_negated(answer: Any) -> Tensor:
    """Negated output of a network whose time runs from noise to data."""
    return -answer


def write_negated(answer: Tensor, given: Any) -> Any:
    """Inverse of :func:`read_negated`."""
    return -answer


def _own_channels(network: Any, arguments: Arguments) -> Packing:
    """Packing with as many channels as the network's input; its output may have variance channels behind."""
    return ChannelsBehind(network.config.in_channels)


# ----------------------------------------------------------------------------------------------------------------- families

_TRANSFORMER = CallForm(network="transformer", latents="hidden_states")
_SHARE = replace(_TRANSFORMER, time_scale=0.001)

SD3 = replace(
    _TRANSFORMER,
    opened=_whole_network,
    extra={"pooled": ("pooled_projections",)},
    control=ControlForm("hidden_states", ("block_controlnet_hidden_states",), lambda given: given[:1]),
)
PIXART = replace(
    _TRANSFORMER, extra={"mask": ("encoder_attention_mask",)}, encoded=halves_at(2), packing=_own_channels, halves=one_batch
)
AURAFLOW = replace(_SHARE, encoded=halves_at(2))
LUMINA2 = replace(
    _TRANSFORMER,
    time_scale=-0.001,
    time_offset=1.0,
    extra={MASK: ("encoder_attention_mask",)},
    halves=two_calls,
    encoded=halves_at(2),
    answer=(read_negated, write_negated),
    apart="encoder_attention_mask",
    packing=_own_channels,
)
FLUX = replace(
    _SHARE,
    extra={"pooled": ("pooled_projections",), "guidance": ("guidance",)},
    whole=frozenset({"txt_ids", "img_ids"}),
    halves=two_calls,
    encoded=halves_in_turn,
    packing=tokens_of(grid_by_places("img_ids"), 2),
    closed=_text_places("txt_ids", _blank),
    control=ControlForm("hidden_states", ("controlnet_block_samples", "controlnet_single_block_samples")),
)
CHROMA = replace(
    FLUX,
    extra={"mask": ("attention_mask",)},
    encoded=halves_at(3),
    opened=_chroma_opened,
    closed=_chroma_closed,
)
FLUX2 = replace(
    FLUX,
    extra={"guidance": ("guidance",)},
    whole=frozenset(),
    halves=one_call,
    packing=tokens_of(grid_by_places("img_ids"), 1),
    closed=_text_places("txt_ids", _counted),
)
FLUX2_KLEIN = replace(FLUX2, extra={}, halves=two_calls)
QWEN_IMAGE = replace(
    _SHARE,
    extra={MASK: ("encoder_hidden_states_mask",)},
    halves=two_calls,
    encoded=halves_in_turn,
    packing=tokens_of(grid_by_shapes(0), 2),
    opened=_qwen_opened,
    closed=_qwen_closed,
    control=ControlForm("hidden_states", ("controlnet_block_samples",), lambda given: (given,)),
)
QWEN_IMAGE_21 = replace(QWEN_IMAGE, packing=tokens_of(grid_by_shapes(-1), 1, first=False), opened=_without_cache)
KREA2 = replace(
    _SHARE,
    extra={MASK: ("encoder_attention_mask",)},
    whole=frozenset({"position_ids"}),
    halves=two_calls,
    encoded=halves_in_turn,
    packing=tokens_of(_krea_places, 2),
    closed=_krea_closed,
)
Z_IMAGE = replace(
    _TRANSFORMER,
    latents="x",
    timestep="t",
    states="cap_feats",
    time_scale=-0.001,
    time_offset=1.0,
    extra={MASK: (MASK,)},
    halves=cond_first,
    encoded=_z_texts,
    opened=_z_opened,
    closed=_z_closed,
    answer=(read_list, write_list),
    packing=_own_channels,
    control=ControlForm("x", ("controlnet_block_samples",), lambda given: (given,)),
)
