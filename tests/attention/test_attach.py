"""What is installed is taken out again, acts in its own pass alone, and says what did not run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

from attnguide.attention.attach import CaptureError, attach, stop_after
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.types import PassContext
from tests import tiny
from tests.attention import library as lib

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


def _forward(unet: nn.Module) -> Tensor:
    result: Tensor = unet(torch.ones(1, 4, 16, 16), torch.tensor(5), torch.ones(1, tiny.LENGTH, tiny.CHANNELS)).sample
    return result


def test_left_as_found(unet: nn.Module) -> None:
    before = NetworkState(unet)
    with attach(tiny.model().attention_modules(32, 32), [lib.probe()], [lib.Nothing()]) as attention:
        before.assert_same(NetworkState(unet))  # nothing is in place between passes
        with torch.no_grad(), attention.during(pass_context(lib.STEP, "denoise", (0,), ("cond",))):
            assert sum(len(module._forward_hooks) for module in unet.modules()) == len(attention._modules)
            _forward(unet)
    before.assert_same(NetworkState(unet))


def test_left_as_found_after_an_exception(unet: nn.Module) -> None:
    before = NetworkState(unet)
    with pytest.raises(KeyError), attach(tiny.model().attention_modules(32, 32), [lib.probe()]):
        raise KeyError
    before.assert_same(NetworkState(unet))


def test_left_as_found_after_an_exception_inside_a_pass(unet: nn.Module) -> None:
    def explode(site: Site, tensor: Tensor, context: PassContext) -> None:
        raise ZeroDivisionError

    before = NetworkState(unet)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        with attach(tiny.model().attention_modules(32, 32), [Probe("probs", explode)]) as attention:
            with attention.during(pass_context(lib.STEP, "denoise", (0,), ("cond",))):
                _forward(unet)
    before.assert_same(NetworkState(unet))
    assert attention._latest is None and _get_current_function_mode() is None


def test_nested_and_left_as_found(unet: nn.Module) -> None:
    before = NetworkState(unet)
    modules = tiny.model().attention_modules(32, 32)
    outer, inner = Recorder(), Recorder()
    context = pass_context(lib.STEP, "denoise", (0,), ("cond",))
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
    module = lib.module()
    calls = []

    def own(*args: Tensor) -> Tensor:
        calls.append(1)
        result: Tensor = type(module).forward(module, *args)
        return result

    module.forward = own
    with attach({lib.SITE: module}, [lib.probe()]) as attention, attention.during(lib.context()):
        module(*lib.inputs())
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


# ------------------------------------------------------------------------------- sites that fired, and what was expected


class _Block(nn.Module):
    """Modules one after the other; a cache or a compiler may pass over some."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(lib.Calls((12, 12)) for _ in range(count))
        self.skipped: set[int] = set()

    def forward(self) -> None:
        for number, part in enumerate(self.parts):
            if number not in self.skipped:
                part(lib.text(12))


def _sites(block: _Block) -> dict[Site, nn.Module]:
    return {Site(f"parts.{number}", "self", 3, 4, 2): part for number, part in enumerate(block.parts)}


@pytest.mark.parametrize("skipped", [{0, 1, 2, 3}, {3}, {1, 2}])
def test_a_site_that_does_not_run_is_an_error(skipped: set[int]) -> None:
    block = _Block(4)
    block.skipped = skipped
    with attach(_sites(block), [], [lib.Nothing()]) as attention:
        said = rf"site 'parts.{min(skipped)}'.* did not run in a pass that .*\({4 - len(skipped)} others did\)"
        with pytest.raises(CaptureError, match=said), attention.during(lib.context()):
            block()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in block.parts)


def test_an_idle_edit_expects_nothing() -> None:
    @dataclass
    class Idle(lib.Nothing):
        def active(self, context: PassContext) -> bool:
            return False

    block = _Block(2)
    with attach(_sites(block), [], [Idle()]) as attention, attention.during(lib.context()):
        assert not any(part._forward_hooks for part in block.parts)


def test_a_pass_that_stops_early_owes_only_what_lies_before() -> None:
    block = _Block(4)
    sites = _sites(block)
    until = [list(sites)[1]]

    def run() -> None:
        with attach(sites, [], [lib.Nothing()]) as attention, attention.during(lib.context(), until):
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
            with attention.during(lib.context()):
                block()
        with attention.during(lib.context("guide")):  # nothing is read in this one
            block()
    assert len(recorder.tensors) == 3 and compiled == ["ran"] and block._compiled_call_impl is code


def test_what_others_hooked_in_is_named() -> None:
    class BlockCacheHook:
        pass

    block = _Block(2)
    block.skipped = {1}
    block._diffusers_hook = SimpleNamespace(hooks={"cache": BlockCacheHook()})
    with attach(_sites(block), [lib.probe()], [], block) as attention:
        with pytest.raises(CaptureError, match=r"disable the cache.*hooks of other libraries here: BlockCacheHook"):
            with attention.during(lib.context()):
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
    module, recorder = lib.module(), Recorder()
    states, text = lib.inputs()
    plain = module(states, text)
    with attach({lib.SITE: module}, [Probe("probs", recorder)]) as attention:
        with attention.during(lib.context()):
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
    module, first, second = lib.module(), Recorder(), Recorder()
    states, text = lib.inputs()
    plain = module(states, text)
    with (
        attach({lib.SITE: module}, [Probe("probs", first)]) as one,
        attach({lib.SITE: module}, [Probe("probs", second)]) as two,
    ):
        early, late = one.during(lib.context()), two.during(lib.context())
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

    module = lib.module()
    with attach({lib.SITE: module}, [Probe("probs", interrupted)]) as attention:
        with pytest.raises(KeyboardInterrupt), attention.during(lib.context()):
            module(*lib.inputs())
    assert _get_current_function_mode() is None and not module._forward_hooks


def test_another_thread_s_pass_is_neither_read_nor_stopped() -> None:
    module, recorder = lib.module(), Recorder()
    with (
        attach({lib.SITE: module}, [Probe("probs", recorder)]) as attention,
        attention.during(lib.context()),
        stop_after([module]),
    ):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(module, *lib.inputs()).result() is not None
        assert not recorder.tensors
        module(*lib.inputs())
        raise AssertionError("the pass went on")
    assert recorder.tensors
