"""Gradient checkpointing: what is computed again is read and changed again."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnguide.attention.attach import attach, stop_after
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.cfg import pass_context
from attnguide.types import PassContext, Step
from tests.attention import cases
from tests.closeness import assert_close

CONTEXT = pass_context(Step.at_sigma(0, 4, 999.0, 14.6), "guide", (0,), ("cond",))
COLUMNS = [1, 2]


class _Raised(Edit):
    """Raises one word's scores, and says how often it was asked."""

    stages: frozenset[Stage] = frozenset({"scores"})
    sites = SiteSelector("cross")

    def __init__(self) -> None:
        self.calls = 0

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        assert context is CONTEXT
        self.calls += 1
        return scores + torch.tensor([0.0, 1.0]).to(scores)


@pytest.fixture(params=[cases.unet, cases.flux], ids=["unet", "flux"], scope="module")
def case(request: pytest.FixtureRequest) -> Iterator[cases.Case]:
    found: Case = request.param()
    found[0].requires_grad_(False)
    yield found
    found[0].disable_gradient_checkpointing()  # type: ignore[operator]


def _gradient(case: cases.Case, *, stop: bool) -> tuple[Tensor, int]:
    """The gradient of what was read, and how often the edit acted in the backward pass."""
    network, modules, run, shape = case
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    recorder, edit = Recorder(), _Raised()
    read = list(modules)[: len(modules) // 2] if stop else list(modules)
    with attach(
        modules, [Probe("probs", recorder, SiteSelector("cross"), frozenset({"guide"}))], [edit], network, COLUMNS
    ) as attention:
        with attention.during(CONTEXT, read), stop_after([modules[site] for site in read]):
            run(inputs)
    loss = torch.stack([recorder.tensors[site].square().sum() for site in read]).sum()
    calls = edit.calls
    (gradient,) = torch.autograd.grad(loss, inputs, retain_graph=True)
    repeated = edit.calls - calls
    torch.testing.assert_close(torch.autograd.grad(loss, inputs)[0], gradient)  # a second pass through one graph
    return gradient, repeated


@pytest.mark.parametrize("stop", [False, True])
def test_the_gradient_is_that_of_a_pass_that_keeps_everything(case: cases.Case, stop: bool) -> None:
    network = case[0]
    network.disable_gradient_checkpointing()  # type: ignore[operator]
    plain, none = _gradient(case, stop=stop)
    network.enable_gradient_checkpointing()  # type: ignore[operator]
    functions = {name: module._gradient_checkpointing_func for name, module in _checkpointed(network)}
    found, repeated = _gradient(case, stop=stop)
    assert plain.abs().max() > 0 and none == 0 < repeated
    assert_close(found, plain)
    assert functions and all(module._gradient_checkpointing_func is functions[name] for name, module in _checkpointed(network))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert (
        not torch._C._autograd._saved_tensors_hooks_is_enabled()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


def _checkpointed(network: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in network.named_modules() if getattr(module, "gradient_checkpointing", False)]


def test_what_is_computed_again_is_not_recorded_again(case: cases.Case) -> None:
    """A record that kept it would hold every block's graph until the end of the backward pass."""
    network, modules, run, shape = case
    network.enable_gradient_checkpointing()  # type: ignore[operator]
    recorded: list[tuple[Site, Tensor]] = []
    probe = Probe("probs", lambda site, tensor, _: recorded.append((site, tensor)), SiteSelector("cross"), frozenset({"guide"}))
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with attach(modules, [probe], [], network, COLUMNS) as attention, attention.during(CONTEXT):
        run(inputs)
    count = len(recorded)
    (gradient,) = torch.autograd.grad(torch.stack([tensor.square().sum() for _, tensor in recorded]).sum(), inputs)
    assert len(recorded) == count == len(modules) and gradient.abs().sum() > 0
