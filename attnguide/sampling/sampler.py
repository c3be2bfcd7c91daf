"""The only sampling loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnguide.attention.attach import Attention
from attnguide.attention.capture import Probe
from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site
from attnguide.batching import picture_key
from attnguide.guidance.base import Guidance
from attnguide.injection.base import Injection, LatentsEdit
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.models.schedulers import NoiseScheduler
from attnguide.parsing import shown
from attnguide.prompt.targets import Targets
from attnguide.sampling.arguments import check_model, check_observer, instances
from attnguide.sampling.branches import Branches, common_source, source_prompts
from attnguide.sampling.cfg import combine, pass_context
from attnguide.sampling.effects import Effects
from attnguide.sampling.guide import guide
from attnguide.sampling.guide_run import GuideRun
from attnguide.sampling.ledger import Ledger
from attnguide.sampling.noise import generators, initial_noise
from attnguide.sampling.observer import BatchInfo, Observer
from attnguide.sampling.replay import Replay, invert_sources, with_sources
from attnguide.sampling.texts import read_source, read_whole
from attnguide.sampling.trials import optimise
from attnguide.sampling.windows import warn_of_idle
from attnguide.types import Sample, SampleResult, Step


@dataclass(eq=False)
class Sampler:
    """Samples rows that share a picture size, a scheduler and a number of steps, as one batch.

    Args:
        model: The adapter.
        guidances: Applied one after the other at each step.
        injections: Active in the denoising passes, for all rows or for some (:class:`~attnguide.injection.by_row.ForRows`).
        observer: Told of everything.

    Example::

        result = Sampler(load_model()).run([Sample("0", "a red circle")])[0]
        result.image.save("circle.png")
    """

    model: ModelAdapter
    guidances: Sequence[Guidance] = ()
    injections: Sequence[Injection] = ()
    observer: Observer = field(default_factory=Observer)

    def __post_init__(self) -> None:
        check_model(self.model)
        check_observer(self.observer)
        self.guidances = instances("guidances", self.guidances, Guidance)
        self.injections = instances("injections", self.injections, Injection)

    def run(self, samples: Sequence[Sample], initial_latents: Tensor | None = None) -> list[SampleResult]:
        """Sample one batch.

        Args:
            samples: Rows that can share a batch.
            initial_latents: Unit noise ``batch channels height width`` instead of the rows' seeds' own.

        Raises:
            ValueError: If the rows cannot share a batch, a phrase is not in its prompt, a prompt is too long, a method needs
                regions and no row has any, or ``initial_latents`` has another shape.
        """
        # Gradients must be possible even where the caller switched autograd off for good.
        with torch.inference_mode(False), torch.no_grad(), self.model.evaluating():
            batch = self._prepare(samples, initial_latents)
            latents = self._loop(batch)
            return self._finish(batch, latents)

    def _prepare(self, samples: Sequence[Sample], initial_latents: Tensor | None) -> _Batch:
        samples = instances("samples", samples, Sample)
        if not samples:
            raise ValueError("samples must hold at least one row; got none.")
        keys = {picture_key(sample) for sample in samples}
        if len(keys) > 1:
            raise ValueError(f"Rows of one batch must share height, width, steps and scheduler; got {sorted(map(str, keys))}.")
        model, first = self.model, samples[0]
        ledger = Ledger(len(samples), model.device)
        height, width = first.height or model.default_size[0], first.width or model.default_size[1]
        targets = self._targets(samples)
        for sample in samples:
            model.check_row(sample)
        if self.guidances:
            model.check_gradients()
        scales = [sample.cfg_scale for sample in samples]
        uses_cfg = any("uncond" in model.halves(sample) for sample in samples)
        negative = [sample.negative_prompt for sample in samples] if uses_cfg else None
        scheduler = model.make_scheduler(first.scheduler, first.steps, model.latent_shape(height, width))
        effects = Effects(self._methods(), samples, targets, scheduler.steps)
        conditioning = model.encode_prompt([sample.prompt for sample in samples], negative, scales)
        for injection in self.injections:
            before, conditioning = conditioning, injection.condition(conditioning, targets, model)
            effects.conditioned(injection, before, conditioning)
        others = [prompt.text for prompt in targets.source_prompts]
        source_states = model.encode_prompt(others, negative, scales) if others else None
        negatives = [list(found) for injection in self.injections if (found := injection.negative_prompts(targets))]
        negative_states = model.encode_prompt(negatives[0], None, scales) if negatives else None
        source = common_source(self._methods())
        branches = Branches.build(len(samples), conditioning, source, source_states, negative_states)
        warn_of_idle(self._methods(), scheduler.steps)
        shape, dtype = model.latent_shape(height, width), conditioning.cond.dtype
        replay = invert_sources(model, source, others, scheduler, first.steps, (height, width))
        if replay is not None:
            ledger.forward(replay.rows * replay.path.forwards)
        noise, sources = self._noise(targets, samples, shape, dtype, initial_latents, replay, effects)
        if branches.own_source:  # the same noise at the start, and wherever the scheduler adds some
            twin, twin_sources = self._noise(targets, samples, shape, dtype, initial_latents, replay, effects)
            noise, sources = torch.cat([noise, twin]), sources + twin_sources
        modules = model.attention_modules(height, width)
        every = {**modules, **model.feature_modules(height, width)}
        info = BatchInfo(tuple(samples), targets, tuple(modules), scheduler.steps, model)
        latents = with_sources(replay, noise * scheduler.initial_sigma, len(samples), 0)
        return _Batch(info, conditioning, branches, scheduler, sources, latents, ledger, self.observer, every, effects, replay)

    def _methods(self) -> list[Guidance | Injection]:
        return [*self.guidances, *self.injections]

    def _targets(self, samples: Sequence[Sample]) -> Targets:
        """Words and places of the rows, and the tokens of the prompts they read beside their own."""
        others = source_prompts(common_source(self._methods()), samples)
        tokenized = [read_whole(self.model, sample) for sample in samples]
        read = [read_source(self.model, prompt) for prompt in others]
        targets = Targets.build(samples, tokenized, self.model.device, read)
        for method in self._methods():
            if method.needs_regions and not targets.count:
                raise ValueError(f"Method {method.name!r} needs at least one region; the rows have none.")
            if method.needs_regions == "place" and not bool(targets.placed.any()):
                raise ValueError(f"Method {method.name!r} needs a region with a place; the rows name phrases only.")
        return targets

    def _noise(
        self,
        targets: Targets,
        samples: Sequence[Sample],
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        given: Tensor | None,
        replay: Replay | None,
        effects: Effects,
    ) -> tuple[Tensor, list[torch.Generator]]:
        """Unit noise of every row, ``batch channels height width``, and the generators it was drawn from."""
        sources = generators([sample.seed for sample in samples])
        noise = initial_noise(sources, shape, dtype, self.model.device)
        if given is not None:
            noise = _like(noise, given)
        elif replay is not None:
            noise = replay.noise(noise)
        for injection in self.injections:
            before, noise = noise, injection.initial_noise(noise, targets)
            effects.changed(injection, before, noise)
        return noise, sources

    def _loop(self, batch: _Batch) -> Tensor:
        latents = batch.latents
        probes = list(self.observer.probes(batch.info))
        level = self.model.guidance_level if self.guidances else 0
        targets, watched = batch.info.targets, batch.effects.watched
        own = {guidance: watched(guidance, guidance.edits(targets, level)) for guidance in self.guidances}
        run = batch.guide_run([probe for probe in probes if "guide" in probe.kinds], own)
        edits = [edit for injection in self.injections for edit in watched(injection, injection.edits(targets))]
        edits += [edit for guidance in self.guidances for edit in own[guidance]]
        only_edits = all(injection.mixes for injection in self.injections) and not batch.branches.own_source
        if only_edits and not any(edit.remembers for edit in edits):
            run.every_edit = edits
        for guidance in self.guidances:
            run.sites_of(guidance)
            guidance.start(targets)
        with run.attach(probes, edits) as attention:
            self.observer.on_sample_start(batch.info)
            for step in batch.scheduler.steps:
                self.observer.on_denoise_step_start(step, batch.shown(latents))
                shift = None
                for guidance in self.guidances:
                    if step.begins and batch.alive:
                        with self.model.frozen():
                            before, latents = latents, optimise(run, guidance, latents, step)
                        batch.effects.changed(guidance, before, latents)
                    if guidance.acts(step) and batch.alive:
                        with self.model.frozen():
                            latents, moved = guide(run, guidance, latents, step)
                        shift = moved if shift is None else shift + (0 if moved is None else moved)
                noise_pred = self._predict(batch, attention, latents, step)
                if shift is not None:
                    noise_pred = batch.scheduler.shift_noise(noise_pred, shift, step)
                latents = batch.scheduler.step(noise_pred, step, latents, batch.sources)
                latents = with_sources(batch.replay, latents, batch.branches.rows, step.index + 1)
                latents = batch.after_step(latents, edits, step)
                latents = batch.drop_broken(latents, step)
                self.observer.on_denoise_step_end(step, batch.shown(latents), batch.shown(noise_pred))
                if not batch.alive:
                    break
        return batch.own(latents)

    def _predict(self, batch: _Batch, attention: Attention, latents: Tensor, step: Step) -> Tensor:
        """The network's answer for all latents under the active injections, every branch in one pass."""
        branches = batch.branches.at(step, self.injections)
        context = pass_context(step, "denoise", range(batch.branches.rows), branches)
        parts = [batch.branches.latents(branch, latents) for branch in branches]
        inputs = batch.scheduler.scale_model_input(torch.cat(parts), step)
        with attention.during(context):
            answer = self.model.predict(inputs, step, batch.branches.conditioning(branches))
        assert answer is not None
        batch.ledger.forward(context.rows)
        answers = dict(zip(branches, answer.chunk(len(branches)), strict=True))
        scales = [self.model.combining_scale(sample) for sample in batch.info.samples]
        uncond = answers.get("uncond")
        for injection in self.injections:
            uncond = None if uncond is None else injection.unconditional(uncond, answers, step)
        noise_pred = combine(uncond, answers["cond"], scales)
        for injection in self.injections:
            noise_pred = injection.correct(noise_pred, answers, step)
        if not batch.branches.own_source:
            return noise_pred
        return torch.cat([noise_pred, combine(answers.get("source_uncond"), answers["source"], scales)])

    def _finish(self, batch: _Batch, latents: Tensor) -> list[SampleResult]:
        pictures = self.model.decode(latents)
        for row, picture in enumerate(pictures):
            if picture.image is None and row in batch.alive:
                batch.stop_row(row, picture.status)
        costs = batch.ledger.close()
        results = []
        for row, sample in enumerate(batch.info.samples):
            reason, note = batch.stopped.get(row), batch.effects.note(row)
            results.append(
                SampleResult(
                    sample,
                    None if reason else pictures[row].image,
                    None if reason else latents[row].float().cpu(),
                    costs[row],
                    reason or (f"ok: {note}" if note else "ok"),
                )
            )
        self.observer.on_sample_end(results)
        return results


def _like(noise: Tensor, given: Any) -> Tensor:
    """Initial latents in the precision and on the device of the noise that they replace.

    Raises:
        ValueError: If they are no finite numbers of its shape.
    """
    if not isinstance(given, Tensor) or given.is_complex():
        raise ValueError(f"initial_latents must be a tensor of real numbers; got {shown(given)}.")
    if given.shape != noise.shape:
        raise ValueError(f"initial_latents must have shape {tuple(noise.shape)}; got {tuple(given.shape)}.")
    if not bool(torch.isfinite(found := given.to(noise)).all()):
        raise ValueError("initial_latents must be finite; got infinities or NaN.")
    return found


@dataclass(eq=False)
class _Batch:
    """One batch while it runs."""

    info: BatchInfo
    conditioning: Conditioning
    branches: Branches
    scheduler: NoiseScheduler
    sources: list[torch.Generator]
    latents: Tensor
    ledger: Ledger
    observer: Observer
    modules: dict[Site, nn.Module]
    effects: Effects
    replay: Replay | None = None
    stopped: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.alive = list(range(len(self.info.samples)))

    def guide_run(self, probes: Sequence[Probe], edits: Mapping[Guidance, Sequence[Edit]]) -> GuideRun:
        return GuideRun(
            self.info.model,
            self.scheduler,
            self.conditioning,
            self.info.targets,
            self.modules,
            self.ledger,
            self.observer,
            self.alive,
            self.stop_row,
            probes,
            edits,
            self.sources,
            [self.info.model.combining_scale(sample) for sample in self.info.samples],
            self.branches,
            effects=self.effects,
        )

    def stop_row(self, row: int, reason: str) -> None:
        """Give a row up; the others go on."""
        self.alive.remove(row)
        self.stopped[row] = reason
        self.observer.on_row_stopped(row, reason)

    def own(self, values: Tensor) -> Tensor:
        """The rows' part of all latents, without their sources'."""
        return values[: self.branches.rows]

    def shown(self, values: Tensor) -> Tensor:
        """A copy of the rows' part, for observers: a preview that scales latents in place must not change the picture."""
        return self.own(values).detach().clone()

    def after_step(self, latents: Tensor, edits: Sequence[Edit], step: Step) -> Tensor:
        """Let edits change the rows' latents, where a new denoising step begins or the last one ended."""
        following = self.scheduler.steps[step.index + 1 : step.index + 2]
        if following and not following[0].begins:
            return latents
        source = latents[self.branches.rows :] if self.branches.own_source else None
        for edit in edits:
            if isinstance(edit, LatentsEdit):
                moved = torch.cat([edit.after_step(self.own(latents), source, step), latents[self.branches.rows :]])
                if following:
                    self.scheduler.latents_moved(moved - latents, following[0])
                latents = moved
        return latents

    def drop_broken(self, latents: Tensor, step: Step) -> Tensor:
        """Give up rows whose latents, or whose source's, are no longer finite, and keep their numbers out of the pass."""
        finite = torch.isfinite(latents).flatten(1).all(1).view(-1, self.branches.rows).all(0)
        for row in [row for row in self.alive if not finite[row]]:
            self.stop_row(row, f"latents are not finite after step {step.index}{self._methods(row)}")
        if bool(finite.all()):
            return latents
        every = finite.repeat(len(latents) // self.branches.rows)
        return torch.where(every.view(-1, 1, 1, 1), latents, torch.zeros_like(latents))

    def _methods(self, row: int) -> str:
        name = self.info.samples[row].method
        return f" of {name}" if name != "plain" else ""
