"""Interception on a bare attention module of the library, and on the tiny UNet."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention as AttentionModule
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

from attnguide.attention.attach import CaptureError, attach, stop_after
from attnguide.attention.capture import Probe, Quantity, Recorder
from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site, SiteSelector
from attnguide.sampling.cfg import pass_context
from attnguide.types import PassContext, Step
from tests import tiny
from tests.reference import attention as reference

SITE = Site("attn", "cross", 3, 4, 2)
STEP = Step.at_sigma(0, 4, 999.0, 14.6)
QUANTITIES: tuple[Quantity, ...] = ("query", "key", "value", "scores", "original_probs", "probs", "output")


def _module(dtype: torch.dtype = torch.float64) -> AttentionModule:
    torch.manual_seed(0)
    return AttentionModule(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4).to(dtype).eval().requires_grad_(False)


def _inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(2, 12, 8, generator=random).to(dtype), torch.randn(2, 5, 6, generator=random).to(dtype)


def _context(kind: str = "denoise") -> PassContext:
    return pass_context(STEP, kind, (0, 1), ("cond",))  # type: ignore[arg-type]


def _everything(module: AttentionModule, edits: tuple[Edit, ...] = ()) -> tuple[Tensor, dict[Quantity, Tensor]]:
    recorders = {quantity: Recorder() for quantity in QUANTITIES}
    states, text = _inputs()
    probes = [Probe(quantity, recorder) for quantity, recorder in recorders.items()]
    with attach({SITE: module}, probes, edits) as attention, attention.during(_context()):
        result = module(states, text)
    return result, {quantity: recorder.tensors[SITE] for quantity, recorder in recorders.items()}


def test_quantities_against_reference() -> None:
    module = _module()
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
    module = _module()
    states, text = _inputs()
    _, seen = _everything(module)
    torch.testing.assert_close(seen["query"].transpose(1, 2).flatten(2), module.to_q(states))
    torch.testing.assert_close(seen["key"].transpose(1, 2).flatten(2), module.to_k(text))
    torch.testing.assert_close(seen["value"].transpose(1, 2).flatten(2), module.to_v(text))


@torch.no_grad()
def test_reading_changes_no_bit() -> None:
    module = _module(torch.float32)
    states, text = _inputs(torch.float32)
    plain = module(states, text)
    with attach({SITE: module}, [Probe(quantity, Recorder()) for quantity in QUANTITIES]) as attention:
        outside = module(states, text)
        with attention.during(_context()):
            inside = module(states, text)
    assert torch.equal(plain, outside) and torch.equal(plain, inside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_float32(dtype: torch.dtype) -> None:
    module, recorder = _module(dtype), Recorder()
    states, text = _inputs(dtype)
    with attach({SITE: module}, [Probe("probs", recorder)]) as attention, attention.during(_context()):
        result = module(states, text)
    assert recorder.tensors[SITE].dtype == torch.float32 and result.dtype == dtype
    torch.testing.assert_close(recorder.tensors[SITE].sum(-1), torch.ones(2, 2, 12))


def test_probs_carry_a_gradient() -> None:
    module, recorder = _module(), Recorder()
    states, text = _inputs()

    def probs(given: Tensor) -> Tensor:
        with attach({SITE: module}, [Probe("probs", recorder)]) as attention, attention.during(_context()):
            module(given, text[:1])
        return recorder.tensors[SITE]

    assert torch.autograd.gradcheck(probs, (states[:1].clone().requires_grad_(True),))


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_masks_of_the_library_are_respected(kind: str) -> None:
    class Masked(nn.Module):
        def forward(self, query: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, query, query, attn_mask=mask)

    module, recorder = Masked(), Recorder()
    query = _inputs()[0].view(2, 1, 12, 8)
    allowed = torch.ones(12, 12, dtype=torch.bool).tril()
    mask = allowed if kind == "boolean" else torch.zeros(12, 12, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    plain = module(query, mask)
    with attach({SITE: module}, [Probe("probs", recorder)], [_Nothing()]) as attention, attention.during(_context()):
        explicit = module(query, mask)
    torch.testing.assert_close(explicit, plain)
    assert recorder.tensors[SITE].triu(1).abs().max() == 0


def test_causal_attention_cannot_be_read() -> None:
    class Causal(nn.Module):
        def forward(self, query: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, query, query, is_causal=True)

    with attach({SITE: Causal()}, [Probe("probs", Recorder())]) as attention, attention.during(_context()):
        with pytest.raises(CaptureError, match="'attn' uses causal"):
            Causal.forward(attention._modules[SITE], torch.zeros(1, 1, 12, 2))  # the class's own forward is not intercepted
            attention._modules[SITE](torch.zeros(1, 1, 12, 2))


class _Calls(nn.Module):
    """Attention calls over so many queries and keys each; the last one's output is given out."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, states: Tensor, encoder_hidden_states: Any = None) -> Tensor:
        for queries, keys in self.shapes:
            key = torch.ones(1, 2, keys, 4)
            result = F.scaled_dot_product_attention(torch.ones(1, 2, queries, 4), key, key)
        return result


def _text(tokens: int) -> Tensor:
    return torch.zeros(1, tokens, 8)


@pytest.mark.parametrize(
    ("kind", "shapes", "text", "served"),
    [
        ("cross", [(12, 5), (12, 3)], None, (12, 5)),  # text, then image prompts
        ("cross", [(12, 3), (12, 5)], _text(5), (12, 5)),
        ("cross", [(12, 3), (12, 5)], (_text(5), [_text(3)]), (12, 5)),
        ("self", [(5, 5), (12, 5), (12, 12)], _text(5), (12, 12)),
        ("joint", [(20, 20), (32, 32)], _text(20), (32, 32)),
        ("joint", [(20, 20), (12, 32)], _text(20), (12, 32)),
        ("joint", [(5, 5), (17, 17)], None, (17, 17)),
    ],
)
def test_the_call_of_a_site_is_known_by_its_shape(kind: Any, shapes: Any, text: Any, served: tuple[int, int]) -> None:
    site, module, recorder = Site("attn", kind, 3, 4, 2), _Calls(*shapes), Recorder()
    chosen = SiteSelector(kind)
    with attach({site: module}, [Probe("probs", recorder, chosen)], [_Nothing(sites=chosen)]) as attention:
        with attention.during(_context()):
            module(_text(12), encoder_hidden_states=text)
    assert recorder.tensors[site].shape[-2:] == served


def test_a_module_without_the_call_of_its_site_is_refused() -> None:
    module = _Calls((20, 20), (12, 20))
    with attach({SITE: module}, [_probe()]) as attention, attention.during(_context()):
        said = (
            r"site 'attn' \(cross\) made attention calls over 20x20, 12x20 .* none is that of a 3x4 map and a text of 7 tokens"
        )
        with pytest.raises(CaptureError, match=said):
            module(_text(12), _text(7))


@dataclass
class _Nothing(Edit):
    """Acts, and changes nothing."""

    stages: frozenset[Stage] = frozenset({"probs"})
    sites: SiteSelector = field(default_factory=SiteSelector)


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
    module = _module()
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

    module = _module()
    states, text = _inputs()
    recorder = Recorder()
    with attach({SITE: module}, [Probe("output", recorder)], [Values()]) as attention, attention.during(_context()):
        module(states, text)
    plain = _everything(module)[1]
    torch.testing.assert_close(recorder.tensors[SITE], (2 * plain["scores"]).softmax(-1) @ (plain["value"] + 1))


def test_edits_apply_in_the_order_given() -> None:
    @dataclass
    class Double(_Nothing):
        def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
            return 2 * probs

    @dataclass
    class PlusOne(_Nothing):
        def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
            return probs + 1

    module = _module()
    plain = _everything(module)[1]["probs"]
    torch.testing.assert_close(_everything(module, (Double(), PlusOne()))[1]["probs"], 2 * plain + 1)
    torch.testing.assert_close(_everything(module, (PlusOne(), Double()))[1]["probs"], 2 * (plain + 1))


def test_probes_see_only_their_kinds_of_pass() -> None:
    module, recorder = _module(), Recorder()
    states, text = _inputs()
    with attach({SITE: module}, [Probe("probs", recorder, kinds=frozenset({"guide"}))]) as attention:
        with attention.during(_context("denoise")):
            module(states, text)
        assert not recorder.tensors
        with attention.during(_context("guide")):
            module(states, text)
    assert set(recorder.tensors) == {SITE}


def test_a_site_that_records_nothing_names_its_processor() -> None:
    module = _module()
    module.set_processor(AttnProcessor())
    with attach({SITE: module}, [Probe("probs", Recorder())]) as attention, attention.during(_context()):
        with pytest.raises(CaptureError, match=r"site 'attn' ran without .*its processor is AttnProcessor"):
            module(*_inputs())


def test_nothing_matched_raises_before_anything_is_installed() -> None:
    module = _module()
    for probes, edits in (
        ([Probe("probs", Recorder(), SiteSelector(kind="self"))], []),
        ([], [_Nothing(sites=SiteSelector(names=("x",)))]),
    ):
        with pytest.raises(ValueError, match="No attention site matches"), attach({SITE: module}, probes, edits):
            raise AssertionError("attached")
        assert "forward" not in vars(module)


# ------------------------------------------------------------------------------------------------- as it was found


class NetworkState:
    """Everything of a network that attaching could leave changed."""

    def __init__(self, network: nn.Module) -> None:
        self.processors = {name: m.processor for name, m in network.named_modules() if hasattr(m, "processor")}
        self.instance_attributes = {name: set(vars(m)) for name, m in network.named_modules()}
        self.hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in network.named_modules()}
        self.training = {name: m.training for name, m in network.named_modules()}
        self.requires_grad = {name: p.requires_grad for name, p in network.named_parameters()}
        self.weights = {name: p.detach().clone() for name, p in network.named_parameters()}

    def assert_same(self, other: "NetworkState") -> None:
        assert self.processors.keys() == other.processors.keys()
        assert all(self.processors[name] is other.processors[name] for name in self.processors)
        assert self.instance_attributes == other.instance_attributes
        assert self.hooks == other.hooks
        assert self.training == other.training
        assert self.requires_grad == other.requires_grad
        assert all(torch.equal(self.weights[name], other.weights[name]) for name in self.weights)


@pytest.fixture
def unet() -> Iterator[nn.Module]:
    network = tiny.model().networks["unet"]
    before = NetworkState(network)
    yield network
    before.assert_same(NetworkState(network))


def _probe() -> Probe:
    return Probe("probs", Recorder())


def _forward(unet: nn.Module) -> Tensor:
    result: Tensor = unet(torch.ones(1, 4, 16, 16), torch.tensor(5), torch.ones(1, tiny.LENGTH, tiny.CHANNELS)).sample
    return result


def test_left_as_found(unet: nn.Module) -> None:
    before = NetworkState(unet)
    with attach(tiny.model().attention_modules(32, 32), [_probe()], [_Nothing()]) as attention:
        before.assert_same(NetworkState(unet))  # nothing is in place between passes
        with torch.no_grad(), attention.during(pass_context(STEP, "denoise", (0,), ("cond",))):
            assert sum(len(module._forward_hooks) for module in unet.modules()) == len(attention._modules)
            _forward(unet)
    before.assert_same(NetworkState(unet))


def test_left_as_found_after_an_exception(unet: nn.Module) -> None:
    before = NetworkState(unet)
    with pytest.raises(KeyError), attach(tiny.model().attention_modules(32, 32), [_probe()]):
        raise KeyError
    before.assert_same(NetworkState(unet))


def test_left_as_found_after_an_exception_inside_a_pass(unet: nn.Module) -> None:
    def explode(site: Site, tensor: Tensor, context: PassContext) -> None:
        raise ZeroDivisionError

    before = NetworkState(unet)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        with attach(tiny.model().attention_modules(32, 32), [Probe("probs", explode)]) as attention:
            with attention.during(pass_context(STEP, "denoise", (0,), ("cond",))):
                _forward(unet)
    before.assert_same(NetworkState(unet))
    assert attention._latest is None and _get_current_function_mode() is None


def test_nested_and_left_as_found(unet: nn.Module) -> None:
    before = NetworkState(unet)
    modules = tiny.model().attention_modules(32, 32)
    outer, inner = Recorder(), Recorder()
    context = pass_context(STEP, "denoise", (0,), ("cond",))
    with pytest.raises(KeyError), ExitStack() as stack, torch.no_grad():
        first = stack.enter_context(attach(modules, [Probe("probs", outer)]))
        middle = NetworkState(unet)
        with attach(modules, [Probe("probs", inner)]) as second:
            with second.during(context):
                _forward(unet)
            assert inner.tensors and not outer.tensors
        middle.assert_same(NetworkState(unet))
        with first.during(context):
            _forward(unet)
        assert outer.tensors.keys() == inner.tensors.keys()
        assert all(torch.equal(outer.tensors[site], inner.tensors[site]) for site in outer.tensors)
        raise KeyError
    before.assert_same(NetworkState(unet))


def test_a_forward_of_the_user_s_own_is_kept() -> None:
    module = _module()
    calls = []

    def own(*args: Tensor) -> Tensor:
        calls.append(1)
        result: Tensor = type(module).forward(module, *args)
        return result

    module.forward = own
    with attach({SITE: module}, [_probe()]) as attention, attention.during(_context()):
        module(*_inputs())
    assert module.forward is own and calls == [1]


# ------------------------------------------------------------------------------------------------------ stop after


class _Counter:
    """Counts the leaf modules that run."""

    def __init__(self, network: nn.Module) -> None:
        self.ran: list[str] = []
        leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
        self._handles = [
            module.register_forward_hook(lambda _module, _args, _result, name=name: self.ran.append(name))
            for name, module in leaves
        ]

    def __enter__(self) -> "_Counter":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def test_stop_after_computes_no_further(unet: nn.Module) -> None:
    names = [name for name, _ in unet.named_modules() if name.endswith("attn2")]
    last = "mid_block.attentions.0.transformer_blocks.0.attn2"
    with torch.no_grad():
        with _Counter(unet) as whole:
            _forward(unet)
        with _Counter(unet) as part, stop_after([unet.get_submodule(last), unet.get_submodule(names[0])]):
            _forward(unet)
            raise AssertionError("the pass went on")
    assert part.ran == whole.ran[: len(part.ran)]
    assert part.ran[-1].startswith(last)
    assert not any(name.startswith(("up_blocks", "conv_out")) for name in part.ran)
    assert len(part.ran) < 0.7 * len(whole.ran)


def test_stop_after_nothing() -> None:
    with pytest.raises(ValueError, match="at least one module"), stop_after([]):
        raise AssertionError("entered")


def test_stop_after_lets_other_exceptions_through(unet: nn.Module) -> None:
    with pytest.raises(ZeroDivisionError), stop_after([unet]):
        raise ZeroDivisionError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_are_formed_wide(dtype: torch.dtype) -> None:
    """A product of queries and keys may exceed what half precision holds before it is scaled."""
    query, key = (torch.full((1, 1, 1, 64), 60.0, dtype=dtype) for _ in range(2))
    recorder, site = Recorder(), Site("attn", "cross", 1, 1, 1)
    module = _Direct()
    with attach({site: module}, [Probe("scores", recorder)]) as attention, attention.during(_context()):
        module(query, key, key)
    assert recorder.tensors[site].item() == pytest.approx(60.0**2 * 64 / 8)


class _Direct(nn.Module):
    """Nothing but the call that is intercepted."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


# --------------------------------------------------------------------------------------------- a part of the batch


@dataclass
class _PlusOne(_Nothing):
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
    context = pass_context(STEP, "denoise", (0, 1, 2, 3), ("cond",))
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
    module, recorder = _module(), Recorder()
    edit = _PlusOne(at=(1,))
    with attach({SITE: module}, [Probe("probs", recorder)], [edit]) as attention, attention.during(_context()):
        module(*_inputs())
    assert len(recorder.tensors[SITE]) == 2 and edit.seen == [((0, 1), 2)]


# ------------------------------------------------------------------------------------------------------ autocast


@torch.no_grad()
@pytest.mark.parametrize("lowered", [torch.bfloat16, torch.float16])
def test_autocast_lowers_neither_scores_nor_probs(lowered: torch.dtype) -> None:
    query, key, value = (torch.randn(2, 2, 12, 8, generator=torch.Generator().manual_seed(n)) * 4 for n in range(3))
    module = _Direct()

    def run(*edits: Edit) -> tuple[Tensor, Tensor]:
        recorder, site = Recorder(), Site("attn", "self", 3, 4, 2)
        with attach({site: module}, [Probe("probs", recorder)], edits) as attention, attention.during(_context()):
            return module(query, key, value), recorder.tensors[site]

    exact = run()[1]
    with torch.autocast("cpu", lowered):
        fused = module(query, key, value)
        (read, probs), (edited, edited_probs) = run(), run(_Nothing())
    assert probs.dtype == edited_probs.dtype == torch.float32
    assert torch.equal(probs, exact) and torch.equal(edited_probs, exact)
    assert read.dtype == edited.dtype == fused.dtype == lowered and torch.equal(read, fused)
    torch.testing.assert_close(edited.float(), exact @ value, atol=0.05, rtol=0.02)


# ------------------------------------------------------------------------------- sites that fired, and what was expected


class _Block(nn.Module):
    """Modules one after the other; a cache or a compiler may pass over some."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_Calls((12, 12)) for _ in range(count))
        self.skipped: set[int] = set()

    def forward(self) -> None:
        for number, part in enumerate(self.parts):
            if number not in self.skipped:
                part(_text(12))


def _sites(block: _Block) -> dict[Site, nn.Module]:
    return {Site(f"parts.{number}", "self", 3, 4, 2): part for number, part in enumerate(block.parts)}


@pytest.mark.parametrize("skipped", [{0, 1, 2, 3}, {3}, {1, 2}])
def test_a_site_that_does_not_run_is_an_error(skipped: set[int]) -> None:
    block = _Block(4)
    block.skipped = skipped
    with attach(_sites(block), [], [_Nothing()]) as attention:
        said = rf"site 'parts.{min(skipped)}'.* did not run in a pass that .*\({4 - len(skipped)} others did\)"
        with pytest.raises(CaptureError, match=said), attention.during(_context()):
            block()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in block.parts)


def test_an_idle_edit_expects_nothing() -> None:
    @dataclass
    class Idle(_Nothing):
        def active(self, context: PassContext) -> bool:
            return False

    block = _Block(2)
    with attach(_sites(block), [], [Idle()]) as attention, attention.during(_context()):
        assert not any(part._forward_hooks for part in block.parts)


def test_a_pass_that_stops_early_owes_only_what_lies_before() -> None:
    block = _Block(4)
    sites = _sites(block)
    until = [list(sites)[1]]

    def run() -> None:
        with attach(sites, [], [_Nothing()]) as attention, attention.during(_context(), until):
            with stop_after([sites[until[0]]]):
                block()

    run()
    block.skipped = {0}
    with pytest.raises(CaptureError, match=r"'parts.0' did not run"):
        run()
    block.skipped = {1}  # then nothing stops the pass
    with pytest.raises(CaptureError, match=r"'parts.1' did not run"):
        run()


def test_compiled_modules_run_as_written_where_they_are_read() -> None:
    block, recorder = _Block(3), Recorder()
    sites = _sites(block)
    compiled: list[str] = []

    def code(*args: Any) -> None:
        compiled.append("ran")

    block._compiled_call_impl = code
    with attach(sites, [Probe("probs", recorder)], [], block) as attention:
        with pytest.warns(UserWarning, match="_Block is compiled; passes in which attention is read"):
            with attention.during(_context()):
                block()
        with attention.during(_context("guide")):  # nothing is read in this one
            block()
    assert len(recorder.tensors) == 3 and compiled == ["ran"] and block._compiled_call_impl is code


def test_what_others_hooked_in_is_named() -> None:
    class BlockCacheHook:
        pass

    block = _Block(2)
    block.skipped = {1}
    block._diffusers_hook = SimpleNamespace(hooks={"cache": BlockCacheHook()})
    with attach(_sites(block), [_probe()], [], block) as attention:
        with pytest.raises(CaptureError, match=r"disable the cache.*hooks of other libraries here: BlockCacheHook"):
            with attention.during(_context()):
                block()


# ---------------------------------------------------------------------------------------------- what others install


def _wrapped(module: nn.Module) -> Any:
    """What a library does that wraps ``forward``; the function that it keeps is given back."""
    old = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return old(*args, **kwargs)

    module.forward = forward
    return old


@pytest.mark.parametrize("leaves", ["inside", "after"])
def test_wrappers_of_others_that_come_in_between(leaves: str) -> None:
    module, recorder = _module(), Recorder()
    states, text = _inputs()
    plain = module(states, text)
    with attach({SITE: module}, [Probe("probs", recorder)]) as attention:
        with attention.during(_context()):
            old = _wrapped(module)
            module(states, text)
            if leaves == "inside":
                module.forward = old
        if leaves == "after":
            module.forward = old
    assert recorder.tensors and not module._forward_hooks and not module._forward_pre_hooks
    assert torch.equal(module(states, text), plain)


@torch.no_grad()
def test_passes_that_end_in_another_order_than_they_began() -> None:
    module, first, second = _module(), Recorder(), Recorder()
    states, text = _inputs()
    plain = module(states, text)
    with attach({SITE: module}, [Probe("probs", first)]) as one, attach({SITE: module}, [Probe("probs", second)]) as two:
        early, late = one.during(_context()), two.during(_context())
        early.__enter__()
        late.__enter__()
        module(states, text)
        assert first.tensors and second.tensors
        early.__exit__(None, None, None)
        first.clear(), second.clear()
        module(states, text)
        assert second.tensors and not first.tensors
        late.__exit__(None, None, None)
    assert not module._forward_hooks and not module._forward_pre_hooks
    assert torch.equal(module(states, text), plain) and _get_current_function_mode() is None


def test_an_interrupt_inside_a_module_leaves_nothing() -> None:
    def interrupted(site: Site, tensor: Tensor, context: PassContext) -> None:
        raise KeyboardInterrupt

    module = _module()
    with attach({SITE: module}, [Probe("probs", interrupted)]) as attention:
        with pytest.raises(KeyboardInterrupt), attention.during(_context()):
            module(*_inputs())
    assert _get_current_function_mode() is None and not module._forward_hooks


def test_another_thread_s_pass_is_neither_read_nor_stopped() -> None:
    module, recorder = _module(), Recorder()
    with attach({SITE: module}, [Probe("probs", recorder)]) as attention, attention.during(_context()), stop_after([module]):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(module, *_inputs()).result() is not None
        assert not recorder.tensors
        module(*_inputs())
        raise AssertionError("the pass went on")
    assert recorder.tensors
