"""TACA for FLUX: a whole call of joint attention, with the 512 text positions and the factor of the published code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attnguide.attention.attend import attend
from attnguide.attention.blocks import Columns
from attnguide.attention.sites import Site
from attnguide.attention.visitors import Visitors
from attnguide.engine.cfg import pass_context
from attnguide.injection.taca import Taca
from attnguide.types import Step
from references.base import Comparison, Reference, compared
from references.foreign import load
from references.tensors import HEADS, targets

TEXT, SIDE, CHANNELS = 512, 6, 8 * HEADS


def _flex(query: Tensor, key: Tensor, value: Tensor, score_mod: Callable[..., Tensor]) -> Tensor:
    """Stands for torch's: attention whose scores a function changes by their places."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    rows, columns = torch.meshgrid(torch.arange(query.shape[2]), torch.arange(key.shape[2]), indexing="ij")
    return score_mod(scores, None, None, rows, columns).softmax(-1) @ value


def _module() -> SimpleNamespace:
    """Stands for diffusers' attention module: nothing is projected or normalised."""

    def same(states: Tensor) -> Tensor:
        return states

    layers = dict.fromkeys(("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"), same)
    norms = dict.fromkeys(("norm_q", "norm_k", "norm_added_q", "norm_added_k"))
    return SimpleNamespace(**layers, **norms, to_out=(same, same), heads=HEADS)


def _ours(picture: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """What the picture and the text are given out."""
    states = torch.cat([text, picture], 1).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    cells = picture.shape[1]
    site = Site("attn", "cross", SIDE, SIDE, HEADS, "block", 1, 0.0, (-cells, None), (0, -cells))
    context = pass_context(Step.at_sigma(0, 30, 999.0, 5.0), "denoise", [0], ("uncond", "cond"))
    edits = list(Taca().edits(targets()))
    output = attend([Visitors(site, context, (), edits, Columns())], {}, states, states, states)
    found = output.transpose(1, 2).flatten(2)
    return found[:, TEXT:], found[:, :TEXT]


def compare(clone: Path) -> Iterator[Comparison]:
    """Both halves of classifier-free guidance; weak scores and strong ones."""
    known: dict[str, Any] = {"flex_attention": _flex}
    theirs = load(clone / "infer" / "pipeline_taca_flux.py", ["mod_flux_attn_processor_call"], known)
    source = torch.Generator().manual_seed(0)
    for strength in (0.5, 1.0, 2.0):
        sizes = (SIDE * SIDE, TEXT)
        picture, text = ((strength * torch.randn(2, count, CHANNELS, generator=source)).requires_grad_(True) for count in sizes)
        published = theirs["mod_flux_attn_processor_call"](None, _module(), picture, text)
        for name, one, other in zip(("picture", "text"), published, _ours(picture, text), strict=True):
            yield compared(f"{name}, strength {strength:g}", one, other, [picture, text])


REFERENCE = Reference("taca", "Vchitect/TACA", compare)
