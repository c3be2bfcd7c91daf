"""The rows that are sampled together: their inputs before the first step, and which of them still run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnguide.attention.attach import Attention, attach
from attnguide.attention.capture import Probe
from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site
from attnguide.batching import picture_key
from attnguide.engine.branches import Branches, common_source, encode_branches, read_rows, source_prompts
from attnguide.engine.effects import Effects, warn_of_idle
from attnguide.engine.inversion import Replay, invert_sources
from attnguide.engine.ledger import Ledger
from attnguide.engine.noise import generators, initial_noise
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection
from attnguide.models.base import ModelAdapter
from attnguide.models.schedulers import NoiseScheduler
from attnguide.prompt.targets import Targets
from attnguide.text.parsing import shown
from attnguide.types import PassContext, Sample, Step


@dataclass(eq=False)
class Batch:
    """Rows on one network, with their tensors and counters.

    Latents are ``batch channels height width`` in the scheduler's scale; where sources have trajectories of their own, the
    batch axis is ``[rows; sources]``.

    Attributes:
        model: The adapter.
        samples: One per row.
        targets: Words and places of the rows.
        branches: Text states of both halves of classifier-free guidance and of further branches.
        scheduler: Noise scheduler of all rows.
        generators: One CPU generator per batch element of ``latents``.
        latents: Initial latents.
        modules: Attention and feature modules by site.
        ledger: Counts network passes.
        observer: Notified of rows that stop and of guidance updates.
        effects: Whether each method changed each row.
        replay: Inverted trajectories of source pictures; ``None`` where there are none.
        alive: Rows that still run.
        stopped: Reason for each row that was stopped.
    """

    model: ModelAdapter
    samples: Sequence[Sample]
    targets: Targets
    branches: Branches
    scheduler: NoiseScheduler
    generators: list[torch.Generator]
    latents: Tensor
    modules: Mapping[Site, nn.Module]
    ledger: Ledger
    observer: Observer
    effects: Effects
    replay: Replay | None = None
    alive: list[int] = field(init=False)
    stopped: dict[int, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.alive = list(range(len(self.samples)))

    @property
    def info(self) -> BatchInfo:
        """Description of the batch for observers."""
        sites = tuple(site for site in self.modules if site.kind != "feature")
        return BatchInfo(tuple(self.samples), self.targets, sites, self.scheduler.steps, self.model)

    @property
    def cfg_scales(self) -> list[float]:
        """Classifier-free guidance weight of every row."""
        return [self.model.combining_scale(sample) for sample in self.samples]

    def attach(self, probes: Sequence[Probe] = (), edits: Sequence[Edit] = ()) -> AbstractContextManager[Attention]:
        """Attach probes and edits to the network."""
        return attach(self.modules, probes, edits, self.model.network, self.columns, self.targets.owned)

    @property
    def columns(self) -> tuple[int, ...] | None:
        """Text positions that methods see, without further texts appended to the rows' prompts; ``None`` for all."""
        read, own = self.branches.states["cond"].cond.shape[1], len(self.targets.tokenized[0].tokens)
        return tuple(range(own)) if self.targets.columns is None and read > own else self.targets.columns

    def answer(self, inputs: Tensor, context: PassContext) -> Tensor:
        """The network's prediction in one whole pass, counted: ``batch channels height width``.

        Args:
            inputs: Scaled network input, one for each element of the context.
            context: Step, kind, rows and branches of the pass.
        """
        answer = self.model.predict(inputs, context.step, self.branches.for_pass(context))
        assert answer is not None
        self.ledger.forward(context.rows)
        return answer

    def stop(self, row: int, reason: str) -> None:
        """Stop a row for this reason; the others go on."""
        self.alive.remove(row)
        self.stopped[row] = reason
        self.observer.on_row_stopped(row, reason)

    def stop_broken(self, rows: Sequence[int], fine: Tensor, reason: str) -> None:
        """Stop those of ``rows`` that are False in ``fine``, a bool tensor of the same length."""
        for row, good in zip(rows, fine.tolist(), strict=True):
            if not good and row in self.alive:
                self.stop(row, reason)

    def own(self, values: Tensor) -> Tensor:
        """The rows' part of latents or predictions, without the sources'."""
        return values[: len(self.samples)]

    def shown(self, values: Tensor) -> Tensor:
        """A copy of the rows' part, for observers: a preview that scales latents in place must not change the picture."""
        return self.own(values).detach().clone()

    def moved(self, latents: Tensor, change: Tensor, step: Step) -> Tensor:
        """``latents + change``; the scheduler is notified, as multistep solvers compare with the previous step's latents."""
        self.scheduler.latents_moved(change, step)
        return latents + change

    def replayed(self, latents: Tensor, index: int) -> Tensor:
        """Latents ``[rows; sources]`` with the sources' part replaced by the inverted trajectory at ``index``, if any."""
        if self.replay is None:
            return latents
        rows = len(self.samples)
        return torch.cat([latents[:rows], self.replay.source(latents[rows:], index)])

    def without_broken(self, latents: Tensor, step: Step) -> Tensor:
        """Stop rows whose latents, or whose source's, are not finite; their latents are set to 0 so that passes stay finite."""
        rows = len(self.samples)
        finite = torch.isfinite(latents).flatten(1).all(1).view(-1, rows).all(0)
        for row in [row for row in self.alive if not finite[row]]:
            method = self.samples[row].method
            of = f" of {method}" if method != "plain" else ""
            self.stop(row, f"latents are not finite after step {step.index}{of}")
        if bool(finite.all()):
            return latents
        every = finite.repeat(len(latents) // rows)
        return torch.where(every.view(-1, 1, 1, 1), latents, torch.zeros_like(latents))


def make_batch(
    model: ModelAdapter,
    samples: Sequence[Sample],
    guidances: Sequence[Guidance],
    injections: Sequence[Injection],
    observer: Observer,
    initial_latents: Tensor | None = None,
) -> Batch:
    """Tokenize, encode and draw noise for rows, before the first step.

    Args:
        model: The adapter.
        samples: Rows of one picture size, scheduler and number of steps.
        guidances: Methods that need gradients; they may need places or a source.
        injections: Methods that edit attention; they may change text states and the initial noise.
        observer: Notified while the batch runs.
        initial_latents: Unit noise ``batch channels height width`` instead of the noise of the rows' seeds.

    Raises:
        ValueError: If the rows cannot share a batch, a phrase is not in its prompt, a prompt is too long, a method needs
            regions and no row has any, or ``initial_latents`` has another shape.
    """
    _check_alike(samples)
    ledger, first = Ledger(len(samples), model.device), samples[0]
    methods: list[Guidance | Injection] = [*guidances, *injections]
    size = first.height or model.default_size[0], first.width or model.default_size[1]
    source = common_source(methods)
    targets = _targets(model, samples, methods)
    for sample in samples:
        model.check_row(sample)
    if guidances:
        model.check_gradients()
    shape = model.latent_shape(*size)
    scheduler = model.make_scheduler(first.scheduler, first.steps, shape)
    effects = Effects(methods, samples, targets, scheduler.steps)
    branches = encode_branches(model, samples, targets, injections, source, effects)
    warn_of_idle(methods, scheduler.steps)
    prompts = [prompt.prompt for prompt in targets.source_prompts]
    replay = invert_sources(model, source, prompts, scheduler, first.steps, size)
    if replay is not None:
        ledger.forward(replay.rows * replay.path.forwards)
    start = _Start(shape, model.latents_dtype, model.device, initial_latents, replay)
    noise, sources = start.draw(samples, targets, injections, effects)
    if branches.own_source:  # sources get the rows' initial noise, and generators that add the same noise later
        twin, twin_sources = start.draw(samples, targets, injections, effects)
        noise, sources = torch.cat([noise, twin]), sources + twin_sources
    modules = {**model.attention_modules(*size), **model.feature_modules(*size)}
    latents = noise * scheduler.initial_sigma
    batch = Batch(model, samples, targets, branches, scheduler, sources, latents, modules, ledger, observer, effects, replay)
    batch.latents = batch.replayed(latents, 0)
    return batch


def _check_alike(samples: Sequence[Sample]) -> None:
    if not samples:
        raise ValueError("samples must hold at least one row; got none.")
    keys = {picture_key(sample) for sample in samples}
    if len(keys) > 1:
        told = sorted(map(str, keys))
        raise ValueError(f"Rows of one batch must share height, width, steps, scheduler and prompt_syntax; got {told}.")


def _targets(model: ModelAdapter, samples: Sequence[Sample], methods: Sequence[Guidance | Injection]) -> Targets:
    """Words and places of the rows, with the tokenized source prompts of methods that read a source."""
    others = source_prompts(common_source(methods), samples)
    tokenized, read = read_rows(model, samples, others)
    targets = Targets.build(samples, tokenized, model.device, read, cuts_padding=model.cuts_padding)
    for method in methods:
        if method.needs_regions and not targets.count:
            raise ValueError(f"Method {method.name!r} needs at least one region; the rows have none.")
        if method.needs_regions == "place" and not bool(targets.placed.any()):
            raise ValueError(f"Method {method.name!r} needs a region with a place; the rows name phrases only.")
    return targets


@dataclass(frozen=True, eq=False)
class _Start:
    """Origin of the rows' unit noise: given, inverted from a picture, or drawn from their seeds.

    Attributes:
        shape: ``channels height width`` of a row's latents.
        dtype: Dtype of the noise.
        device: Device of the noise.
        given: Noise of all rows that replaces the seeds' noise.
        replay: Inverted pictures, whose noise replaces their rows' noise.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    given: Tensor | None
    replay: Replay | None

    def draw(
        self, samples: Sequence[Sample], targets: Targets, injections: Sequence[Injection], effects: Effects
    ) -> tuple[Tensor, list[torch.Generator]]:
        """Unit noise ``batch channels height width`` after the injections' changes, and the generators it was drawn from."""
        sources = generators([sample.seed for sample in samples])
        noise = initial_noise(sources, self.shape, self.dtype, self.device)
        if self.given is not None:
            noise = _like(noise, self.given)
        elif self.replay is not None:
            noise = self.replay.noise(noise)
        for injection in injections:
            before, noise = noise, injection.initial_noise(noise, targets)
            effects.changed(injection, before, noise)
        return noise, sources


def _like(noise: Tensor, given: Any) -> Tensor:
    """Given initial latents, cast to dtype and device of the noise that they replace.

    Raises:
        ValueError: If they are not a finite real tensor of the noise's shape.
    """
    if not isinstance(given, Tensor) or given.is_complex():
        raise ValueError(f"initial_latents must be a tensor of real numbers; got {shown(given)}.")
    if given.shape != noise.shape:
        raise ValueError(f"initial_latents must have shape {tuple(noise.shape)}; got {tuple(given.shape)}.")
    if not bool(torch.isfinite(found := given.to(noise)).all()):
        raise ValueError("initial_latents must be finite; got infinities or NaN.")
    return found
