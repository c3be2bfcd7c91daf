"""ConceptAttention's maps against its formula, and what reading them leaves as it was."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnguide
from attnguide.engine.observer import Observers, SomeRows
from attnguide.figures.concepts import ConceptMaps
from attnguide.models.base import ModelAdapter
from attnguide.models.load import adapt
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Sample, SampleResult
from tests import tiny
from tests.models import families

CONCEPTS = ("cat", "dog", "ball")
SIZE = {"height": 32, "width": 48}
CELLS = (8, 12)


@functools.cache
def model(family: str, *, double: bool = False) -> ModelAdapter:
    return adapt(families.build(family).to(torch.float64) if double else families.shared(family), family)


def row(id: str = "0", **settings: Any) -> Sample:
    return tiny.row(id, **{"steps": 2, **SIZE, "methods": (), "regions": (), "cfg_scale": 1.0, **settings})


def read(adapter: ModelAdapter, *rows: Sample, **options: Any) -> list[ConceptMaps]:
    reader = attnguide.ConceptAttention(CONCEPTS, **options)
    Sampler(adapter, observer=reader).run(rows)
    return reader.rows


def stacked(values: Any) -> np.ndarray:
    assert tuple(values) == CONCEPTS
    return np.stack(list(values.values()))


# ----------------------------------------------------------------------------------------------- FLUX.1's formula by hand


def _modulated(states: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    centred = states - states.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift


def _heads(states: Tensor, projection: nn.Module, norm: nn.Module | None) -> Tensor:
    """``heads tokens channels`` of one element; queries and keys are divided by their root mean square."""
    found = projection(states).unflatten(-1, (2, 16)).transpose(0, 1)
    if norm is None:
        return found
    return found / (found.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def _turns(places: Tensor) -> Tensor:
    """Unit complex numbers ``tokens 8`` for places ``tokens 3``: 2, 2 and 4 frequencies."""
    parts = []
    for axis, width in enumerate((4, 4, 8)):
        rates = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        parts.append(places[:, axis, None] * rates)
    angles = torch.cat(parts, 1)
    return torch.polar(torch.ones_like(angles), angles)


def _turned(states: Tensor, turns: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(states.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)


def _block(block: Any, picture: Tensor, others: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What attention gives out for the picture and for the tokens beside it, and these tokens behind the block."""
    mine = block.norm1.linear(F.silu(time)).chunk(6)
    theirs = block.norm1_context.linear(F.silu(time)).chunk(6)
    own, beside, attn = _modulated(picture, mine[0], mine[1]), _modulated(others, theirs[0], theirs[1]), block.attn
    rows, columns = torch.meshgrid(torch.arange(CELLS[0]), torch.arange(CELLS[1]), indexing="ij")
    cells = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).double()
    turns = _turns(torch.cat([torch.zeros(len(others), 3, dtype=torch.float64), cells]))
    query = torch.cat([_heads(beside, attn.add_q_proj, attn.norm_added_q), _heads(own, attn.to_q, attn.norm_q)], 1)
    key = torch.cat([_heads(beside, attn.add_k_proj, attn.norm_added_k), _heads(own, attn.to_k, attn.norm_k)], 1)
    value = torch.cat([_heads(beside, attn.add_v_proj, None), _heads(own, attn.to_v, None)], 1)
    weights = (_turned(query, turns) @ _turned(key, turns).transpose(1, 2) / 4).softmax(-1)
    out = (weights @ value).transpose(0, 1).flatten(1)
    o_others, o_picture = attn.to_add_out(out[: len(others)]), attn.to_out[0](out[len(others) :])
    others = others + theirs[2] * o_others
    return o_picture, o_others, others + theirs[5] * block.ff_context(_modulated(others, theirs[3], theirs[4]))


@contextmanager
def _inputs(adapter: ModelAdapter) -> Iterator[list[dict[str, Tensor]]]:
    """What each call of the blocks is given, in order."""
    seen: list[dict[str, Tensor]] = []
    names = ("hidden_states", "encoder_hidden_states", "temb")

    def before(block: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append({name: kwargs[name][0].clone() for name in names})

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in adapter.network.transformer_blocks]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("depths", [(0.0, 1.0), (10 / 19, 18 / 19)], ids=["all blocks", "the default"])
def test_maps_are_those_of_the_formula(depths: tuple[float, float]) -> None:
    """Every part of it is computed here from the blocks' inputs in a run that nobody reads: attention, streams, products."""
    adapter = model("flux_dev", double=True)
    with _inputs(adapter) as seen:
        sample_batch(adapter, [row()])
    (found,) = read(adapter, row(), depths=depths)
    with torch.no_grad():
        states = adapter.encode_prompt(CONCEPTS, None).cond[:, 0]  # T5 has no start token: the word is the first
        scores = []
        for step in range(2):
            concepts = adapter.network.get_submodule("context_embedder")(states)
            for index, block in enumerate(adapter.network.transformer_blocks):
                given = seen[2 * step + index]
                picture, time = given["hidden_states"], given["temb"]
                o_picture, _, _ = _block(block, picture, given["encoder_hidden_states"], time)
                _, o_concepts, concepts = _block(block, picture, concepts, time)
                if depths[0] <= (index + 0.5) / 2 < depths[1]:
                    scores.append(o_concepts @ o_picture.T)
        assert len(scores) == (4 if depths[0] == 0 else 2)
        mean = torch.stack(scores).mean(0).unflatten(1, CELLS)
    np.testing.assert_allclose(stacked(found.scores), mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stacked(found.maps), mean.softmax(0).numpy(), rtol=1e-5)
    assert np.ptp(stacked(found.maps), axis=(1, 2)).min() > 1e-3, "a map that is flat shows nothing"


# ------------------------------------------------------------------------------------------ what reading leaves as it was


def _equal(first: SampleResult, second: SampleResult) -> bool:
    assert first.latents is not None and second.latents is not None
    return torch.equal(first.latents, second.latents)


@pytest.mark.parametrize("family", ["flux_dev", "sd35"])
@pytest.mark.parametrize("method", ["plain", "inject5", "mask_guidance", "fused"])
def test_pictures_are_the_same_to_the_bit(family: str, method: str) -> None:
    options = {"fused": True, "space": "noise"} if method == "fused" else {}
    name = "mask_guidance" if method == "fused" else method
    methods = () if method == "plain" else (MethodConfig(name, options),)
    steered = row(methods=methods, regions=tiny.row("0").regions, cfg_scale=3.0)
    adapter, reader = model(family), attnguide.ConceptAttention(CONCEPTS)
    alone = sample_batch(adapter, [steered])[0]
    assert _equal(alone, sample_batch(adapter, [steered], observer=reader)[0])
    shares = stacked(reader[0].maps)
    assert shares.shape == (3, *CELLS)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)


def test_blocks_that_are_computed_again_for_gradients_are_read_once() -> None:
    """Where a denoising pass has a gradient, checkpointing gives blocks their arguments by position, and runs them again."""
    fused = MethodConfig("mask_guidance", {"fused": True, "space": "noise"})
    adapter, steered = adapt(families.build("flux_dev"), "flux"), row(methods=(fused,), regions=tiny.row("0").regions)
    found = []
    for _ in range(2):
        reader = attnguide.ConceptAttention(CONCEPTS)
        sample_batch(adapter, [steered], observer=reader)
        found.append(stacked(reader[0].scores))
        adapter.enable_checkpointing()
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_other_readers_see_the_networks_own_calls_alone() -> None:
    watches = [attnguide.Watch(), attnguide.Watch()]
    Sampler(model("flux_dev"), observer=watches[0]).run([row()])
    both = Observers([attnguide.ConceptAttention(CONCEPTS, depths=(0, 1)), watches[1]])
    Sampler(model("flux_dev"), observer=both).run([row()])
    for word, maps in watches[0][0].maps.items():
        assert np.array_equal(maps, watches[1][0].maps[word])


def _hooks(adapter: ModelAdapter) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in adapter.network.modules())


def test_hooks_are_taken_out_after_an_exception() -> None:
    adapter = model("flux_dev")
    before, plain = _hooks(adapter), sample_batch(adapter, [row()])[0]

    def broken(module: nn.Module, args: Any, result: Any) -> None:
        raise RuntimeError("broken")

    handle = adapter.network.transformer_blocks[1].ff.register_forward_hook(broken)
    reader = attnguide.ConceptAttention(CONCEPTS)
    with pytest.raises(RuntimeError, match="broken"):
        Sampler(adapter, observer=reader).run([row()])
    handle.remove()
    assert _hooks(adapter) == before
    again = Sampler(adapter, observer=reader).run([row()])[0]
    assert _equal(plain, again) and len(reader) == 1


# --------------------------------------------------------------------------------------------------------- rows and steps


@pytest.mark.parametrize("family", ["flux_dev", "sd35"])
def test_a_row_is_the_same_in_a_batch_and_alone(family: str) -> None:
    """Both halves of guidance are in the pass, of which the conditional one is read."""
    guided = {"cfg_scale": 3.0} if family == "sd35" else {"true_cfg_scale": 3.0}
    rows = [row("0", negative_prompt="blue", **guided), row("1", prompt="a dog", seed=4, negative_prompt="red", **guided)]
    adapter = model(family, double=True)
    together = read(adapter, *rows)
    for one, other in zip(together, [read(adapter, each)[0] for each in rows], strict=True):
        np.testing.assert_allclose(stacked(one.scores), stacked(other.scores), rtol=1e-5, atol=1e-6)
    assert np.abs(stacked(together[0].maps) - stacked(together[1].maps)).max() > 1e-4
    some = attnguide.ConceptAttention(CONCEPTS)
    Sampler(adapter, observer=SomeRows(some, [1])).run(rows)
    np.testing.assert_allclose(stacked(some[0].scores), stacked(together[1].scores), rtol=1e-6)


def test_the_conditional_half_is_read_in_the_steps_asked_for() -> None:
    adapter = model("sd35", double=True)
    first = [read(adapter, row(cfg_scale=scale), steps=(0, 0.5))[0] for scale in (1.0, 3.0)]
    np.testing.assert_allclose(stacked(first[0].scores), stacked(first[1].scores), rtol=1e-5, atol=1e-6)
    (late,), (whole,) = read(adapter, row(), steps=(0.5, 1)), read(adapter, row())
    mean = (stacked(first[0].scores) + stacked(late.scores)) / 2
    np.testing.assert_allclose(stacked(whole.scores), mean, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("family", "network"),
    [("sd", "UNet2DConditionModel"), ("chroma", "ChromaTransformer2DModel"), ("qwen_image", "QwenImageTransformer2DModel")],
)
def test_other_networks_are_refused_by_name(family: str, network: str) -> None:
    side = {"height": 32, "width": 32}
    with pytest.raises(ValueError, match=f"FLUX.1 and Stable Diffusion 3; {network}"):
        read(model(family), row(**side))


def test_blocks_that_others_hook_are_refused() -> None:
    adapter = adapt(families.build("flux_schnell"), "flux")
    adapter.network.transformer_blocks[0].attn._hf_hook = object()
    with pytest.raises(ValueError, match=r"transformer_blocks\.0 \(object\)"):
        read(adapter, row())


@pytest.mark.parametrize(
    ("concepts", "options", "said"),
    [
        (["cat"], {}, "at least two"),
        ("cat", {}, "at least two"),
        (["red cat", "dog"], {}, "single words; got 'red cat'"),
        (["cat", ""], {}, "single words; got ''"),
        (["cat", "cat"], {}, "differ"),
        (["cat", "dog"], {"depths": (0.5, 0.2)}, "depths must be a range"),
        (["cat", "dog"], {"steps": (0.0, 2.0)}, "steps must be a range"),
    ],
    ids=["one", "text", "two words", "empty", "twice", "depths", "steps"],
)
def test_wrong_concepts_are_refused(concepts: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attnguide.ConceptAttention(concepts, **options)


def test_depths_without_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the 2 blocks"):
        read(model("flux_dev"), row(), depths=(0.3, 0.4))
