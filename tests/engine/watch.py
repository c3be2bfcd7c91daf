"""Observers and snapshots for tests of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attnguide.engine.observer import Observer, UpdateEvent
from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection
from attnguide.sampling.sampler import Sampler
from attnguide.types import Sample, SampleResult, Step, verdict
from tests import tiny


class Watch(Observer):
    """Keeps everything the loop tells."""

    def __init__(self) -> None:
        self.events: list[UpdateEvent] = []
        self.stopped: list[tuple[int, str]] = []
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []
        self.noise: list[Tensor] = []

    def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
        self.before.append(latents.clone())

    def on_guidance_update(self, event: UpdateEvent) -> None:
        self.events.append(event)

    def on_denoise_step_end(self, step: Step, latents: Tensor, noise_pred: Tensor) -> None:
        self.after.append(latents.clone())
        self.noise.append(noise_pred.clone())

    def on_row_stopped(self, row: int, reason: str) -> None:
        self.stopped.append((row, reason))

    def of_row(self, row: int) -> list[tuple[int, int, bool]]:
        """Step, iteration and whether it moved, for each time the row was judged."""
        return [(e.step.index, e.iteration, e.moved[e.rows.index(row)]) for e in self.events if row in e.rows]


def run(
    rows: Sequence[Sample],
    guidances: Sequence[Guidance] = (),
    injections: Sequence[Injection] = (),
    observer: Observer | None = None,
) -> list[SampleResult]:
    """Sample on the shared tiny model."""
    return Sampler(tiny.model(), guidances, injections, observer or Observer()).run(rows)


def latents(result: SampleResult) -> Tensor:
    """Final latents of a row that was not stopped."""
    assert verdict(result.status) == "ok" and result.image is not None and result.latents is not None
    return result.latents


def final(*methods: Guidance | Injection, **settings: Any) -> Tensor:
    """Final latents of one tiny row under some methods."""
    guidances = [method for method in methods if isinstance(method, Guidance)]
    injections = [method for method in methods if isinstance(method, Injection)]
    return latents(run([tiny.row(**settings)], guidances, injections)[0])


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """First inputs of every call of a module."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().clone()))
    try:
        yield seen
    finally:
        handle.remove()


def network_state(network: nn.Module) -> dict[str, Any]:
    """Everything of a network that sampling could leave changed; compare with ``==``."""
    modules = dict(network.named_modules())
    return {
        "processors": {name: id(m.processor) for name, m in modules.items() if hasattr(m, "processor")},
        "attributes": {name: sorted(vars(m)) for name, m in modules.items()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()},
        "training": {name: m.training for name, m in modules.items()},
        "requires_grad": {name: p.requires_grad for name, p in network.named_parameters()},
        "gradients": [name for name, p in network.named_parameters() if p.grad is not None],
        "weights": {name: p.detach().double().sum().item() for name, p in network.named_parameters()},
        "grad_mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


@contextmanager
def left_as_found(network: nn.Module) -> Iterator[dict[str, Any]]:
    """Asserts that the network leaves the block as it entered it, also when the block raises."""
    before = network_state(network)
    try:
        yield before
    finally:
        assert network_state(network) == before


def at_step(index: int, action: Callable[[], None]) -> Observer:
    """An observer that acts at the start of one step."""

    class Acting(Observer):
        def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
            if step.index == index:
                action()

    return Acting()
