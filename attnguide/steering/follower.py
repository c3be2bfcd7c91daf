"""Follows a pipeline's loop through the calls of its network and scheduler, by wrapped methods; independent of the family."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attnguide.models.base import ModelAdapter
from attnguide.steering.called_model import called_model, processors_of, unsplit
from attnguide.steering.calls import Call, check_halves
from attnguide.steering.controls import Controls
from attnguide.steering.errors import SteerError
from attnguide.steering.following import Following, usable
from attnguide.steering.forms import CallForm, Encoded, Packing, Texts
from attnguide.steering.hooks import Hooks, Wrap, steered
from attnguide.steering.live_scheduler import live_scheduler
from attnguide.steering.request import Request
from attnguide.steering.run import Pictures, SteerRun
from attnguide.steering.start import make_rows, read_prompts, start


class Follower:
    """Wraps a pipeline's parts and applies methods in every call that it makes.

    Args:
        pipeline: A diffusers pipeline.
        form: How it calls its network.
        adapter: Adapter class of its family.
        request: Prompts, regions, methods and options.
        run: The user's run, which is filled.
    """

    def __init__(self, pipeline: Any, form: CallForm, adapter: type[ModelAdapter], request: Request, run: SteerRun) -> None:
        self.pipeline, self.form, self.request, self.run = pipeline, form, request, run
        self.network: nn.Module = getattr(pipeline, form.network)
        self.scheduler = pipeline.scheduler
        self.hooks = Hooks()
        self.model = run.model = called_model(adapter, pipeline, self.network)
        self._names = [name for name in inspect.signature(type(self.network).forward).parameters if name != "self"]
        self._owner = threading.get_ident()
        self._inside = False
        self._stack = ExitStack()
        self._following: Following | None = None
        self._processors: Mapping[nn.Module, Any] = {}
        self._forget()

    def _forget(self) -> None:
        """Reset the state of a pipeline's call."""
        self._encoded: list[Encoded] = []
        self._texts: Texts | None = None
        self._packing: Packing | None = None
        self._ran = False
        self._scaled: tuple[Tensor, Tensor] | None = None
        self._checked: tuple[Tensor, tuple[Any, ...]] | None = None
        self._pictures = Pictures()
        self._controls = Controls(self.request.refresh_controlnet)

    # ----------------------------------------------------------------------------------------------------- what is replaced

    def install(self) -> None:
        """Wrap the methods of encoder, scheduler, network, ControlNet and picture processor.

        Raises:
            SteerError: If one is wrapped already; then nothing is replaced.
        """
        pipeline = self.pipeline
        wraps: list[tuple[Any, str, Wrap]] = [
            (self.form.encodes(pipeline), self.form.encoder, self._encoding),
            (self.scheduler, "scale_model_input", self._scaling),
            (self.scheduler, "step", self._stepping),
            (self.network, "forward", self._calling),
            (getattr(pipeline, "controlnet", None), "forward", self._controlling),
            (pipeline, "maybe_free_model_hooks", self._ending),
            (getattr(pipeline, "image_processor", None), "postprocess", self._showing),
        ]
        there = [(owner, name, wrap) for owner, name, wrap in wraps if callable(getattr(owner, name, None))]
        if any(steered(owner, name) for owner, name, _ in there):
            raise SteerError(
                "The pipeline, or a part that it shares with another, is steered already; name several methods in one steer()."
            )
        for owner, name, wrap in there:
            self.hooks.add(owner, name, wrap)

    @contextmanager
    def _own(self) -> Iterator[None]:
        """Mark the enclosed calls as ours, not the pipeline's; no gradients, no inference mode."""
        before, self._inside = self._inside, True
        try:
            with torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            self._inside = before

    @property
    def _away(self) -> bool:
        """Whether a call is not the pipeline's: it is ours, or of another thread."""
        return self._inside or threading.get_ident() != self._owner

    def _same_thread(self, did: str) -> None:
        """Refuse a call of another thread, in which attention is neither read nor edited.

        Raises:
            SteerError: If this is not the thread that entered the block.
        """
        if threading.get_ident() != self._owner:
            raise SteerError(
                f"Another thread than that of the block {did} the {type(self.pipeline).__name__}, where it cannot be steered: "
                "enter steer() in the thread that calls the pipeline."
            )

    def _encoding(self, before: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(before)

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            self._same_thread("calls")
            if self._away:
                return before(*args, **kwargs)
            self._begin()
            given = signature.bind(*args, **kwargs).arguments
            images = int(given.get("num_images_per_prompt") or 1)
            first, *others = (_kept(given.get(name)) for name in ("prompt", "prompt_2", "prompt_3"))
            second = next((other for other in others if other not in (None, first)), None)
            answer = before(*args, **kwargs)
            self._encoded.append(Encoded(first, second, images, answer, _kept(given.get("negative_prompt"))))
            return answer

        return encode_prompt

    def _scaling(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def scale_model_input(sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            scaled: Tensor = before(sample, *args, **kwargs)
            if not self._away:
                self._scaled = sample, scaled
            return scaled

        return scale_model_input

    def _controlling(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._away:
                self._controls.called(self.pipeline.controlnet, before, args, kwargs)
            return before(*args, **kwargs)

        return forward

    def _calling(self, before: Callable[..., Any]) -> Callable[..., Any]:
        self.model.forward = before

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._away:
                return before(*args, **kwargs)
            arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
            with self._own():
                following, call = self._read(arguments)
                step = following.at(call)
                if not self.request.idle:
                    return following.evaluated(call, step, self._scaled)
                following.passed(call)
            return before(*args, **kwargs)

        return forward

    def _stepping(self, before: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(before)

        def step(*args: Any, **kwargs: Any) -> Any:
            self._same_thread("moves the scheduler of")
            if self._away:
                return before(*args, **kwargs)
            following, bound = self._following, signature.bind(*args, **kwargs)
            if following is None:
                raise SteerError("The pipeline's scheduler moves latents that its network has not seen.")
            with self._own():
                following.before_step(bound.arguments)
            answer = before(*bound.args, **bound.kwargs)
            self._scaled = None
            with self._own():
                return following.after_step(answer, bound.arguments["model_output"])

        return step

    def _ending(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def maybe_free_model_hooks(*args: Any, **kwargs: Any) -> Any:
            if not self._away:
                idle = bool(self._encoded) and not self._ran
                self.finish()
                if idle:  # else an earlier call's results would be taken for this one's
                    raise SteerError(
                        f"The {type(self.pipeline).__name__} ended without a pass of its {self.form.network}, so nothing was "
                        "steered: its strength or its part of the schedule leaves no step of num_inference_steps."
                    )
            return before(*args, **kwargs)

        return maybe_free_model_hooks

    def _showing(self, before: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(before)

        def postprocess(*args: Any, **kwargs: Any) -> Any:
            made = before(*args, **kwargs)
            if not self._away:
                given = signature.bind(*args, **kwargs).arguments
                self._pictures.hold(before, given.get("image"), made, given.get("do_denormalize"))
                if not hasattr(self.pipeline, "maybe_free_model_hooks") and self._following is not None:
                    self.finish()  # postprocessing is a modular pipeline's last act
            return made

        return postprocess

    # --------------------------------------------------------------------------------------------------- a pipeline's call

    def _begin(self) -> None:
        """Called when the pipeline encodes a prompt: a new call begins if its network has run since the last time.

        Raises:
            SteerError: If the network or the scheduler was replaced.
        """
        if self._ran:
            self.finish()
        for name, part in ((self.form.network, self.network), ("scheduler", self.scheduler)):
            if getattr(self.pipeline, name) is not part:
                raise SteerError(f"The pipeline's {name} was replaced inside the block; replace it before.")
        self.hooks.renew()
        if hasattr(self.pipeline, "do_perturbed_attention_guidance"):
            self._processors = processors_of(self.network)

    def _read(self, arguments: dict[str, Any]) -> tuple[Following, Call]:
        """Interpret a network call as rows and branches; the first one starts the methods.

        Raises:
            SteerError: If the call is outside of a pipeline call, or its batch or text states are not as expected.
        """
        form, following = self.form, self._following
        if not self._encoded:
            raise SteerError(f"The network was called outside of a call of the {type(self.pipeline).__name__} that is steered.")
        arguments = form.opened(arguments if self.request.idle else usable(arguments))
        if self._texts is None:
            self._texts = form.encoded(self._encoded, arguments[form.states])
        texts, elements = self._texts, len(arguments[form.latents])
        rows = len(texts.cond)
        halves = form.halves(self.pipeline, elements // rows)
        branches = halves[min(following.calls if following else 0, len(halves) - 1)]
        if elements != rows * len(branches):
            raise SteerError(
                f"The network's batch cannot be read: it has {elements} elements, and {len(branches)} for each of {rows} "
                "pictures were expected."
            )
        if self._packing is None:
            self._packing = form.packing(self.network, arguments)
        call = Call(arguments, form, self._packing, rows, branches)
        unread = self._checked is None or self._checked[0] is not call.states or self._checked[1] != branches
        remark = check_halves(call, texts.cond, texts.uncond) if unread else None
        self._checked = call.states, branches
        if following is None:
            following = self._following = self._start(call, texts.encoded)
        elif remark is not None and following.started.texts is not None:
            raise SteerError("The pipeline's text states were changed inside its call, and a method changes them, too.")
        if remark is not None and remark not in self.run.notes:
            self.run.notes.append(remark)
        return following, call

    def _start(self, call: Call, given: Encoded) -> Following:
        """Build rows, methods and schedule at the first network call of a pipeline's call."""
        run, request, model, pipeline = self.run, self.request, self.model, self.pipeline
        self._ran = True
        goes_on = getattr(pipeline, "denoising_start", None) is not None
        scheduler = live_scheduler(self.scheduler, *call.time, getattr(pipeline, "_num_timesteps", None), goes_on)
        scheduler.packing = call.packing
        prompts = request.prompts_of(given.prompt)
        if given.second is not None and any(request.regions):
            raise SteerError("Another text encoder was given a prompt of its own, in which words have other places.")
        height, width = model.default_size
        factor = height // model.latent_shape(height, width)[1]
        rows, columns = call.inputs(call.branches[0]).shape[-2:]
        model.behind = getattr(call.packing, "behind", 0)
        size = rows * factor, columns * factor
        weight = getattr(pipeline, "guidance_scale", None)
        samples = make_rows(request, prompts, given.negative, call, weight, scheduler.asked, size)
        run.began(samples)
        tokenized = read_prompts(model, samples, call, prompts is not None)
        started = start(request, run, model, samples, tokenized, call, scheduler, size)
        self._stack.enter_context(started.steering.attached())
        started.batch.observer.on_sample_start(started.batch.info)
        return Following(started, model, scheduler, self._controls)

    def finish(self) -> None:
        """End a pipeline's call: hand maps, notes, pictures and costs to the run."""
        following, pictures, model = self._following, self._pictures, self.model
        self.close()
        if following is None:
            return
        started, run, latents = following.started, self.run, following.last
        batch, rows = started.batch, len(started.batch.samples)
        early = following.ended_early
        run.notes += filter(None, [early])
        if started.maps is not None:
            run.step_maps = started.maps.steps()
            run.maps = started.maps.by_phrase(run.step_maps)
        notes = [None if row in batch.stopped else early or batch.effects.note(row) for row in range(rows)]
        statuses = [batch.stopped.get(row) or (f"ok: {note}" if note else "ok") for row, note in enumerate(notes)]
        for remark in dict.fromkeys([*batch.stopped.values(), *(note for note in notes if note and note != early)]):
            run.notes.append(remark)
            warnings.warn(f"In the steered call: {remark}.", stacklevel=4)
        run.ended(lambda: pictures.pictures(model, latents, rows), latents, batch.ledger.close(), statuses)
        if started.observer is not None:
            started.observer.on_sample_end(run.results)

    def failed(self) -> None:
        """After an exception, restore attention processors that the pipeline would have restored itself."""
        unsplit(self._processors)

    def close(self) -> None:
        """Detach edits and probes of a call, and reset its state."""
        self._following = None
        self._forget()
        self._stack.close()


def _kept(prompt: Any) -> Any:
    """A copy of a prompt list, since some pipelines write their template into the list that they are given."""
    return tuple(prompt) if isinstance(prompt, list) else prompt
