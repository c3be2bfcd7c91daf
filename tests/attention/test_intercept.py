"""The intercepted call on a bare attention module of the library: what it shows, and how edits change it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention as AttentionModule
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from attnguide.attention.attach import CaptureError, attach
from attnguide.attention.capture import Probe, Quantity, Recorder
from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.cfg import pass_context
from attnguide.types import PassContext
from tests.attention import library as lib
from tests.reference import attention as reference


def _everything(module: AttentionModule, edits: tuple[Edit, ...] = ()) -> tuple[Tensor, dict[Quantity, Tensor]]:
    recorders = {quantity: Recorder() for quantity in lib.QUANTITIES}
    states, text = lib.inputs()
    probes = [Probe(quantity, recorder) for quantity, recorder in recorders.items()]
    with attach({lib.SITE: module}, probes, edits) as attention, attention.during(lib.context()):
        result = module(states, text)
    return result, {quantity: recorder.tensors[lib.SITE] for quantity, recorder in recorders.items()}


def test_quantities_against_reference() -> None:
    module = lib.module()
    _, seen = _everything(module)
    query, key, value = (seen[name].numpy() for name in ("query", "key", "value"))
    assert seen["probs"].shape == (2, 2, 12, 5)
    for batch in range(2):
        for head in range(2):
            q, k, v = query[batch, head], key[batch, head], value[batch, head]
            probs = reference.probs(q, k)
            np.testing.assert_allclose(seen["scores"][batch, head], reference.scores(q, k), rtol=1e-9)
            np.testing.assert_allclose(seen["probs"][batch, head], probs, rtol=1e-9)
            np.testing.assert_allclose(seen["original_probs"][batch, head], probs, rtol=1e-9)
            np.testing.assert_allclose(seen["output"][batch, head], reference.output(probs, v), rtol=1e-9)


def test_inputs_are_the_module_s_projections() -> None:
    module = lib.module()
    states, text = lib.inputs()
    _, seen = _everything(module)
    torch.testing.assert_close(seen["query"].transpose(1, 2).flatten(2), module.to_q(states))
    torch.testing.assert_close(seen["key"].transpose(1, 2).flatten(2), module.to_k(text))
    torch.testing.assert_close(seen["value"].transpose(1, 2).flatten(2), module.to_v(text))


@torch.no_grad()
def test_reading_changes_no_bit() -> None:
    module = lib.module(torch.float32)
    states, text = lib.inputs(torch.float32)
    plain = module(states, text)
    with attach({lib.SITE: module}, [Probe(quantity, Recorder()) for quantity in lib.QUANTITIES]) as attention:
        outside = module(states, text)
        with attention.during(lib.context()):
            inside = module(states, text)
    assert torch.equal(plain, outside) and torch.equal(plain, inside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_float32(dtype: torch.dtype) -> None:
    module, recorder = lib.module(dtype), Recorder()
    states, text = lib.inputs(dtype)
    with attach({lib.SITE: module}, [Probe("probs", recorder)]) as attention, attention.during(lib.context()):
        result = module(states, text)
    assert recorder.tensors[lib.SITE].dtype == torch.float32 and result.dtype == dtype
    torch.testing.assert_close(recorder.tensors[lib.SITE].sum(-1), torch.ones(2, 2, 12))


def test_probs_carry_a_gradient() -> None:
    module, recorder = lib.module(), Recorder()
    states, text = lib.inputs()

    def probs(given: Tensor) -> Tensor:
        with attach({lib.SITE: module}, [Probe("probs", recorder)]) as attention, attention.during(lib.context()):
            module(given, text[:1])
        return recorder.tensors[lib.SITE]

    assert torch.autograd.gradcheck(probs, (states[:1].clone().requires_grad_(True),))


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_masks_of_the_library_are_respected(kind: str) -> None:
    class Masked(nn.Module):
        def forward(self, query: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, query, query, attn_mask=mask)

    module, recorder = Masked(), Recorder()
    query = lib.inputs()[0].view(2, 1, 12, 8)
    allowed = torch.ones(12, 12, dtype=torch.bool).tril()
    mask = allowed if kind == "boolean" else torch.zeros(12, 12, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    plain = module(query, mask)
    with (
        attach({lib.SITE: module}, [Probe("probs", recorder)], [lib.Nothing()]) as attention,
        attention.during(lib.context()),
    ):
        explicit = module(query, mask)
    torch.testing.assert_close(explicit, plain)
    assert recorder.tensors[lib.SITE].triu(1).abs().max() == 0


def test_causal_attention_cannot_be_read() -> None:
    class Causal(nn.Module):
        def forward(self, query: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, query, query, is_causal=True)

    with attach({lib.SITE: Causal()}, [Probe("probs", Recorder())]) as attention, attention.during(lib.context()):
        with pytest.raises(CaptureError, match="'attn' uses causal"):
            Causal.forward(attention._modules[lib.SITE], torch.zeros(1, 1, 12, 2))  # the class's own forward is not intercepted
            attention._modules[lib.SITE](torch.zeros(1, 1, 12, 2))


@pytest.mark.parametrize(
    ("kind", "shapes", "text", "served"),
    [
        ("cross", [(12, 5), (12, 3)], None, (12, 5)),  # text, then image prompts
        ("cross", [(12, 3), (12, 5)], lib.text(5), (12, 5)),
        ("cross", [(12, 3), (12, 5)], (lib.text(5), [lib.text(3)]), (12, 5)),
        ("self", [(5, 5), (12, 5), (12, 12)], lib.text(5), (12, 12)),
        ("joint", [(20, 20), (32, 32)], lib.text(20), (32, 32)),
        ("joint", [(20, 20), (12, 32)], lib.text(20), (12, 32)),
        ("joint", [(5, 5), (17, 17)], None, (17, 17)),
    ],
)
def test_the_call_of_a_site_is_known_by_its_shape(kind: Any, shapes: Any, text: Any, served: tuple[int, int]) -> None:
    site, module, recorder = Site("attn", kind, 3, 4, 2), lib.Calls(*shapes), Recorder()
    chosen = SiteSelector(kind)
    with attach({site: module}, [Probe("probs", recorder, chosen)], [lib.Nothing(sites=chosen)]) as attention:
        with attention.during(lib.context()):
            module(lib.text(12), encoder_hidden_states=text)
    assert recorder.tensors[site].shape[-2:] == served


def test_a_module_without_the_call_of_its_site_is_refused() -> None:
    module = lib.Calls((20, 20), (12, 20))
    with attach({lib.SITE: module}, [lib.probe()]) as attention, attention.during(lib.context()):
        said = (
            r"site 'attn' \(cross\) made attention calls over 20x20, 12x20 .* none is that of a 3x4 map and a text of 7 tokens"
        )
        with pytest.raises(CaptureError, match=said):
            module(lib.text(12), lib.text(7))


@dataclass
class _Everything(Edit):
    """Changes every stage in a way that is easy to repeat."""

    sites: SiteSelector = field(default_factory=SiteSelector)
    stages: frozenset[Stage] = frozenset({"qkv", "scores", "probs"})

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        return query * 2, key, value + 1

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        return scores.clone().index_fill_(-1, torch.tensor([1]), 0.25)

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        return probs + 0.5


def test_stages_act_in_order_and_probes_see_before_and_after() -> None:
    module = lib.module()
    _, plain = _everything(module)
    _, edited = _everything(module, (_Everything(),))
    for name in ("query", "key", "value"):
        assert torch.equal(edited[name], plain[name])
    torch.testing.assert_close(edited["scores"], 2 * plain["scores"])
    torch.testing.assert_close(edited["original_probs"], (2 * plain["scores"]).softmax(-1))
    changed = 2 * plain["scores"]
    changed[..., 1] = 0.25
    torch.testing.assert_close(edited["probs"], changed.softmax(-1) + 0.5)
    torch.testing.assert_close(edited["output"], (changed.softmax(-1) + 0.5) @ (plain["value"] + 1))


def test_an_edit_of_values_alone_keeps_the_fused_kernel() -> None:
    @dataclass
    class Values(_Everything):
        stages: frozenset[Stage] = frozenset({"qkv"})

    module = lib.module()
    states, text = lib.inputs()
    recorder = Recorder()
    with (
        attach({lib.SITE: module}, [Probe("output", recorder)], [Values()]) as attention,
        attention.during(lib.context()),
    ):
        module(states, text)
    plain = _everything(module)[1]
    torch.testing.assert_close(recorder.tensors[lib.SITE], (2 * plain["scores"]).softmax(-1) @ (plain["value"] + 1))


def test_edits_apply_in_the_order_given() -> None:
    @dataclass
    class Double(lib.Nothing):
        def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
            return 2 * probs

    @dataclass
    class PlusOne(lib.Nothing):
        def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
            return probs + 1

    module = lib.module()
    plain = _everything(module)[1]["probs"]
    torch.testing.assert_close(_everything(module, (Double(), PlusOne()))[1]["probs"], 2 * plain + 1)
    torch.testing.assert_close(_everything(module, (PlusOne(), Double()))[1]["probs"], 2 * (plain + 1))


def test_probes_see_only_their_kinds_of_pass() -> None:
    module, recorder = lib.module(), Recorder()
    states, text = lib.inputs()
    with attach({lib.SITE: module}, [Probe("probs", recorder, kinds=frozenset({"guide"}))]) as attention:
        with attention.during(lib.context("denoise")):
            module(states, text)
        assert not recorder.tensors
        with attention.during(lib.context("guide")):
            module(states, text)
    assert set(recorder.tensors) == {lib.SITE}


def test_a_site_that_records_nothing_names_its_processor() -> None:
    module = lib.module()
    module.set_processor(AttnProcessor())
    with attach({lib.SITE: module}, [Probe("probs", Recorder())]) as attention, attention.during(lib.context()):
        with pytest.raises(CaptureError, match=r"site 'attn' ran without .*its processor is AttnProcessor"):
            module(*lib.inputs())


def test_nothing_matched_raises_before_anything_is_installed() -> None:
    module = lib.module()
    for probes, edits in (
        ([Probe("probs", Recorder(), SiteSelector(kind="self"))], []),
        ([], [lib.Nothing(sites=SiteSelector(names=("x",)))]),
    ):
        with pytest.raises(ValueError, match="No attention site matches"), attach({lib.SITE: module}, probes, edits):
            raise AssertionError("attached")
        assert "forward" not in vars(module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_are_formed_wide(dtype: torch.dtype) -> None:
    """A product of queries and keys may exceed what half precision holds before it is scaled."""
    query, key = (torch.full((1, 1, 1, 64), 60.0, dtype=dtype) for _ in range(2))
    recorder, site = Recorder(), Site("attn", "cross", 1, 1, 1)
    module = _Direct()
    with attach({site: module}, [Probe("scores", recorder)]) as attention, attention.during(lib.context()):
        module(query, key, key)
    assert recorder.tensors[site].item() == pytest.approx(60.0**2 * 64 / 8)


class _Direct(nn.Module):
    """Nothing but the call that is intercepted."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


# --------------------------------------------------------------------------------------------- a part of the batch


@dataclass
class _PlusOne(lib.Nothing):
    """Adds 1 to the scores of the first token of some batch elements, and says which."""

    at: tuple[int, ...] = ()
    stages: frozenset[Stage] = frozenset({"scores"})
    seen: list[tuple[tuple[int, ...], int]] = field(default_factory=list)

    def touches(self, context: PassContext) -> list[int]:
        return [position for position, row in enumerate(context.rows) if row in self.at]

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        self.seen.append((context.rows, len(scores)))
        changed = scores.clone()
        changed[self.touches(context), :, :, 0] += 1
        return changed


@torch.no_grad()
@pytest.mark.parametrize("parts", [[(1, 2)], [(0, 3)], [(1,), (3,)], [()], [(0, 1, 2, 3)]])
def test_elements_that_nobody_changes_keep_the_fused_kernel(parts: list[tuple[int, ...]]) -> None:
    module, site = _Direct(), Site("attn", "cross", 3, 4, 2)
    query, key = (torch.randn(4, 2, cells, 8, generator=torch.Generator().manual_seed(cells)) for cells in (12, 5))
    context = pass_context(lib.STEP, "denoise", (0, 1, 2, 3), ("cond",))
    edits = [_PlusOne(at=part) for part in parts]
    with attach({site: module}, [], edits) as attention, attention.during(context):
        edited = module(query, key, key)
    plain = module(query, key, key)
    touched = sorted({row for part in parts for row in part})
    rest = [row for row in range(4) if row not in touched]
    assert torch.equal(edited[rest], plain[rest])
    bias = torch.zeros(4, 1, 1, 5)
    bias[touched, :, :, 0] = 1
    torch.testing.assert_close(edited, F.scaled_dot_product_attention(query, key, key, attn_mask=bias))
    assert all(edit.seen == ([(tuple(touched), len(touched))] if touched else []) for edit in edits)


@torch.no_grad()
def test_a_reader_of_probs_sees_the_whole_batch() -> None:
    module, recorder = lib.module(), Recorder()
    edit = _PlusOne(at=(1,))
    with attach({lib.SITE: module}, [Probe("probs", recorder)], [edit]) as attention, attention.during(lib.context()):
        module(*lib.inputs())
    assert len(recorder.tensors[lib.SITE]) == 2 and edit.seen == [((0, 1), 2)]


# ------------------------------------------------------------------------------------------------------ autocast


@torch.no_grad()
@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
def test_autocast_lowers_neither_scores_nor_probs(lowered: torch.dtype) -> None:
    query, key, value = (torch.randn(2, 2, 12, 8, generator=torch.Generator().manual_seed(n)) * 4 for n in range(3))
    module = _Direct()

    def run(*edits: Edit) -> tuple[Tensor, Tensor]:
        recorder, site = Recorder(), Site("attn", "self", 3, 4, 2)
        with attach({site: module}, [Probe("probs", recorder)], edits) as attention, attention.during(lib.context()):
            return module(query, key, value), recorder.tensors[site]

    exact = run()[1]
    with torch.autocast("cpu", lowered):
        fused = module(query, key, value)
        (read, probs), (edited, edited_probs) = run(), run(lib.Nothing())
    assert probs.dtype == edited_probs.dtype == torch.float32
    assert torch.equal(probs, exact) and torch.equal(edited_probs, exact)
    assert read.dtype == edited.dtype == fused.dtype == lowered and torch.equal(read, fused)
    torch.testing.assert_close(edited.float(), exact @ value, atol=0.05, rtol=0.02)
