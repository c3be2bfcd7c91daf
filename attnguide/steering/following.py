"""One call of a pipeline from its first network pass on: position in the schedule, and the methods' actions there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnguide.engine.cfg import pass_context
from attnguide.engine.steering import Answers
from attnguide.steering.calls import Call
from attnguide.steering.controls import Controls
from attnguide.steering.errors import SteerError
from attnguide.steering.live_scheduler import LiveDiscrete, LiveFlow, same_time
from attnguide.steering.start import Started
from attnguide.types import Branch, Step


class Following:
    """Applies methods to a pipeline's call, evaluation by evaluation.

    Args:
        started: Rows, methods and texts of the call.
        model: The adapter, a :class:`~attnguide.steering.called_model.Called`.
        scheduler: The pipeline's scheduler.
        controls: The pipeline's ControlNets.

    Attributes:
        calls: Network calls so far in the current evaluation.
        last: Latents after the newest step, ``rows channels height width``.
    """

    def __init__(self, started: Started, model: Any, scheduler: LiveDiscrete | LiveFlow, controls: Controls) -> None:
        self.started, self.model, self.scheduler, self.controls = started, model, scheduler, controls
        self.index = self.calls = 0
        self.last: Tensor | None = None
        self._raw: Tensor | None = None
        self._moved: Tensor | None = None
        self._answers: dict[Branch, Tensor] = {}
        self._shift: Tensor | None = None
        self._packing: Any = None

    @property
    def done(self) -> bool:
        """Whether every evaluation was made."""
        return self.index >= len(self.scheduler.steps)

    @property
    def ended_early(self) -> str:
        """Remark on a call without its last evaluations; empty if all were made."""
        return "" if self.done else f"the pipeline ended after {self.index} of {len(self.scheduler.steps)} evaluations"

    def at(self, call: Call) -> Step:
        """The evaluation that a network call belongs to.

        Raises:
            SteerError: If the call's timestep is not the schedule's, or all evaluations were made.
        """
        if self.done:
            raise SteerError(f"The network was called after the last of {len(self.scheduler.steps)} evaluations.")
        step = self.scheduler.steps[self.index]
        if not same_time(call, self.scheduler.tells(self.index)):
            time, _ = call.time
            raise SteerError(
                f"Evaluation {self.index} of the network has timestep {time:g}; the pipeline's scheduler has "
                f"{step.timestep:g} there."
            )
        return step

    def passed(self, call: Call) -> None:
        """Count a pass in which nothing is read or changed."""
        self._packing = call.packing
        self.calls += 1
        self.started.batch.ledger.forward(tuple(range(call.rows)) * len(call.branches))

    def evaluated(self, call: Call, step: Step, scaled: tuple[Tensor, Tensor] | None) -> Any:
        """The network's output with methods applied, in the form that the pipeline asked for.

        Args:
            call: The network call.
            step: The evaluation.
            scaled: Argument and result of the last ``scale_model_input``.
        """
        started, batch, steering = self.started, self.started.batch, self.started.steering
        if started.texts is not None:
            call = call.with_texts(started.texts_of(call))
        batch.branches = replace(started.branches, call=call)
        if self._raw is None:
            self._guide(call, step, scaled)
        batch.branches = replace(started.branches, call=self._refreshed(call, step))
        assert self._moved is not None
        if "cond" in call.branches:
            answers = steering.evaluate(self._moved, step)
        else:
            context = pass_context(step, "denoise", range(call.rows), call.branches)
            inputs = batch.scheduler.scale_model_input(torch.cat([self._moved] * len(call.branches)), step)
            with steering.during(context):
                answer = batch.model.predict(inputs, step, batch.branches.for_pass(context))
            assert answer is not None
            answers = Answers(dict(zip(call.branches, answer.chunk(len(call.branches)), strict=True)))
        self.calls += 1
        self._answers |= answers.branches
        self._shift = self._shift if answers.shift is None else answers.shift
        return self._answer(call, step)

    def _guide(self, call: Call, step: Step, scaled: tuple[Tensor, Tensor] | None) -> None:
        """Set the pipeline's latents before an evaluation, and the latents as guidance moves them."""
        started = self.started
        self._packing = call.packing
        self._raw = latents = self._latents(call, step, scaled)
        if started.observer is not None:
            started.observer.on_denoise_step_start(step, started.batch.shown(latents))
        if step.index == 0 and self.scheduler.whole:
            latents = _noise(started, latents)
        self._moved = started.steering.before(latents, step)

    def _refreshed(self, call: Call, step: Step) -> Call:
        """The call with ControlNet residuals at the moved latents, where ControlNets are refreshed."""
        assert self._moved is not None and self._raw is not None
        if not self.controls.any or torch.equal(self._moved, self._raw):
            return call
        return self.controls.refreshed(call, self.scheduler.scale_model_input(self._moved, step))

    def _latents(self, call: Call, step: Step, scaled: tuple[Tensor, Tensor] | None) -> Tensor:
        """The rows' latents in the scheduler's scale, from which the pipeline made the network's input.

        Raises:
            SteerError: If no known latents give the network's input.
        """
        given, inputs = call.arguments[call.form.latents], call.inputs(call.branches[0])
        if scaled is not None and scaled[1] is given:  # nothing happened in between
            return _usable(call.packing.unpack(scaled[0][: call.rows]))
        candidates = [] if scaled is None else [call.packing.unpack(scaled[0][: call.rows])]
        candidates += [inputs] if self.last is None else [self.last, inputs]
        for latents in candidates:
            if latents.shape == inputs.shape:
                made = self.scheduler.scale_model_input(latents, step)
                if torch.equal(made.to(inputs), inputs):
                    return _usable(latents)
        raise SteerError(f"The network's input at evaluation {step.index} is not what the scheduler makes of the latents.")

    def _answer(self, call: Call, step: Step) -> Any:
        """The predictions of a call's branches, in the form that the pipeline asked for."""
        answers = dict(self._answers)
        if "uncond" in call.branches:
            uncond = self.started.steering.unconditional(answers, step)
            assert uncond is not None
            answers["uncond"] = uncond
        whole = torch.cat([answers[branch] for branch in call.branches])
        outcome, self.model.outcome = self.model.outcome, None
        given = outcome[0] if isinstance(outcome, tuple) else outcome.sample
        read, write = call.form.answer
        shape = read(given).shape[1:]
        packed = whole if shape == whole.shape[1:] else call.packing.pack(whole, whole.new_zeros(len(whole), *shape))
        answer = write(packed, given)
        return (answer, *outcome[1:]) if isinstance(outcome, tuple) else type(outcome)(sample=answer)

    def before_step(self, arguments: dict[str, Any]) -> None:
        """Change the arguments of ``scheduler.step``: the prediction by methods, the latents by guidance's move.

        Raises:
            SteerError: If the network has not been called.
        """
        if self.calls == 0 or self.done:
            raise SteerError("The pipeline's scheduler moves latents that its network has not seen.")
        if self._raw is None:
            return
        step, steering = self.scheduler.steps[self.index], self.started.steering
        given = arguments["model_output"]
        noise_pred = self._packing.unpack(given)
        changed = steering.shifted(steering.correct(noise_pred, self._answers, step), self._shift, step)
        if changed is not noise_pred:
            arguments["model_output"] = self._packing.pack(changed, given)
        if self._moved is not self._raw:
            assert self._moved is not None
            sample = self._packing.unpack(arguments["sample"])
            same = torch.equal(sample, self._raw)
            moved = self._moved if same else sample + (self._moved - self._raw).to(sample)
            arguments["sample"] = self._packing.pack(moved, arguments["sample"])

    def after_step(self, answer: Any, noise_pred: Tensor) -> Any:
        """The output of ``scheduler.step``, with latents changed by methods.

        Args:
            answer: Output of the scheduler.
            noise_pred: Prediction that the scheduler was given.

        Raises:
            SteerError: If no row is left.
        """
        started, batch, step = self.started, self.started.batch, self.scheduler.steps[self.index]
        given: Tensor = answer[0] if isinstance(answer, tuple) else answer.prev_sample
        latents = self._packing.unpack(given)
        after = started.steering.after(latents, step)
        if started.acts:
            after = batch.without_broken(after, step)
        if started.observer is not None:
            predicted = self._packing.unpack(noise_pred)
            started.observer.on_denoise_step_end(step, batch.shown(after), batch.shown(predicted))
        self.index, self.calls, self.last = self.index + 1, 0, after
        self._raw = self._moved = self._shift = None
        self._answers = {}
        if started.acts and not batch.alive:
            raise SteerError(f"No row is left: {next(iter(batch.stopped.values()))}.")
        if after is latents:
            return answer
        packed = self._packing.pack(after, given)
        if isinstance(answer, tuple):
            return (packed, *answer[1:])
        answer.prev_sample = packed
        return answer


def _usable(latents: Tensor) -> Tensor:
    return latents.clone() if latents.is_inference() else latents


def _noise(started: Started, latents: Tensor) -> Tensor:
    """Initial latents after the injections' changes of the unit noise."""
    batch, scale = started.batch, started.batch.scheduler.initial_sigma
    own = started.noise is not None and torch.equal((started.noise * scale).to(latents), latents)
    noise = started.noise if own and started.noise is not None else latents / scale
    changed = noise
    for injection in started.steering.injections:
        before, changed = changed, injection.initial_noise(changed, batch.targets)
        batch.effects.changed(injection, before, changed)
    return latents if changed is noise else changed * scale


def usable(value: Any) -> Any:
    """Nested arguments with inference-mode tensors copied, since autograd cannot use them."""
    if isinstance(value, Tensor):
        return _usable(value)
    if isinstance(value, Mapping):
        return {key: usable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        found = [usable(item) for item in value]
        return found if isinstance(value, list) else tuple(found)
    return value
