"""Scores that are multiplied, and attention that is blended with a second one, against explicit attention."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnguide.attention.attach import attach
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteKind, SiteSelector
from attnguide.engine.cfg import pass_context
from attnguide.types import PassContext, Step

STEP = Step.at_sigma(0, 4, 999.0, 14.6)
CELLS, TEXT = 12, 5
IMAGE, WORDS = slice(TEXT, None), slice(0, TEXT)
FACTOR = torch.tensor([1.5, 1.0]).view(2, 1, 1, 1)


class _Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask)


@dataclass
class _Louder(Edit):
    """Multiplies the scores of words."""

    sites: SiteSelector
    whole_text: bool = False
    stages = frozenset({"gain"})

    def gain(self, site: Site, context: PassContext, device: torch.device) -> Tensor | None:
        return FACTOR


@dataclass
class _Second(Edit):
    """Half of the first row's attention is one that sees the first key alone."""

    sites: SiteSelector
    stages = frozenset({"blend"})

    def blend(
        self, site: Site, queries: int, keys: int, context: PassContext, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        first = torch.zeros(1, 1, 1, keys, dtype=torch.bool)
        first[..., 0] = True
        return torch.tensor([0.5, 0.0]).view(2, 1, 1, 1), first.expand(-1, -1, queries, -1)


def _inputs(queries: int = TEXT + CELLS, keys: int = TEXT + CELLS, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    query, key, value = (2 * torch.randn(2, 3, n, 8, generator=random, dtype=torch.float64) for n in (queries, keys, keys))
    return query, key, value


def _sites() -> dict[SiteKind, Site]:
    spans: dict[SiteKind, Any] = {
        "cross": ((-CELLS, None), (0, -CELLS)),
        "self": ((-CELLS, None), (-CELLS, None)),
        "joint": (None, None),
    }
    return {kind: Site("attn", kind, 3, 4, 3, "down", 1, 0.0, *blocks) for kind, blocks in spans.items()}


def _run(edits: list[Edit], inputs: tuple[Tensor, ...], columns: list[int] | None = None, probe: Probe | None = None) -> Tensor:
    module = _Attention()
    modules = dict.fromkeys(_sites().values(), module)
    context = pass_context(STEP, "denoise", (0, 1), ("cond",))
    with attach(modules, [probe] if probe else [], edits, columns=columns) as attention, attention.during(context):
        output: Tensor = module(*inputs)
        return output


def _louder(inputs: tuple[Tensor, ...], words: Any = WORDS) -> Tensor:
    """Probabilities with the scores of some columns multiplied for the image's queries."""
    query, key = inputs[:2]
    scores = query @ key.mT / 8**0.5
    scores[:, :, IMAGE, words] *= FACTOR
    return scores.softmax(-1)


@pytest.mark.parametrize("columns", [None, [1, 3]])
@pytest.mark.parametrize("whole", [False, True])
def test_scores_of_a_block_are_multiplied_for_its_queries_alone(columns: list[int] | None, whole: bool) -> None:
    inputs = _inputs()
    found = _run([_Louder(SiteSelector("cross"), whole)], inputs, columns)
    expected = _louder(inputs, WORDS if whole or columns is None else columns) @ inputs[2]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:, :, WORDS], _Attention()(*inputs)[:, :, WORDS], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["cross", "self"])
def test_what_is_read_has_the_factor(kind: SiteKind) -> None:
    inputs, recorder = _inputs(), Recorder()
    output = _run([_Louder(SiteSelector("cross"))], inputs, probe=Probe("probs", recorder, SiteSelector(kind)))
    probs = _louder(inputs)
    (found,) = recorder.tensors.values()
    torch.testing.assert_close(found, probs[:, :, IMAGE, WORDS if kind == "cross" else IMAGE], rtol=0, atol=1e-12)
    torch.testing.assert_close(output, probs @ inputs[2], rtol=0, atol=1e-12)


def test_cross_attention_as_a_whole() -> None:
    inputs = _inputs(CELLS, TEXT)
    site = Site("attn", "cross", 3, 4, 3)
    module = _Attention()
    context = pass_context(STEP, "denoise", (0, 1), ("cond",))
    with attach({site: module}, edits=[_Louder(SiteSelector("cross"))]) as attention, attention.during(context):
        found = module(*inputs)
    expected = (FACTOR * (inputs[0] @ inputs[1].mT / 8**0.5)).softmax(-1) @ inputs[2]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["joint", "self", "cross"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_second_attention_has_its_share_of_the_block_s_queries(kind: SiteKind, masked: bool) -> None:
    inputs = _inputs()
    mask = torch.ones(1, 1, 1, TEXT + CELLS, dtype=torch.bool)
    mask[..., 2] = False
    whole = (*inputs, mask) if masked else inputs
    found, plain = _run([_Second(SiteSelector(kind))], whole), _Attention()(*whole)
    keys = range(TEXT + CELLS)
    blocks = {
        "joint": ([0], keys),
        "self": ([TEXT, *range(TEXT)], range(TEXT, TEXT + CELLS)),
        "cross": ([0, *range(TEXT, 17)], keys),
    }
    allowed = torch.zeros(TEXT + CELLS, dtype=torch.bool)
    allowed[blocks[kind][0]] = True  # the block's first key, and what lies outside of the block
    scores = (inputs[0] @ inputs[1].mT / 8**0.5).masked_fill(~(allowed & mask[0, 0, 0] if masked else allowed), float("-inf"))
    expected = plain.clone()
    rows = slice(None) if kind == "joint" else IMAGE
    expected[0, :, rows] = (plain[0] / 2 + (scores.softmax(-1) @ inputs[2])[0] / 2)[:, rows]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_blocks_of_different_queries_cannot_both_be_multiplied() -> None:
    with pytest.raises(ValueError, match="_Louder multiplies scores of other queries than an edit before it"):
        _run([_Louder(SiteSelector("cross")), _Louder(SiteSelector("joint"))], _inputs())
