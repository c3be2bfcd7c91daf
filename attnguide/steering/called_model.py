"""A family's adapter whose passes repeat the pipeline's own call of the network, with parts of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from attnguide.attention.attach import stop_after
from attnguide.attention.parts import part_of_pass
from attnguide.attention.sites import Site, Span
from attnguide.engine.branches import Branches
from attnguide.injection.base import Injection
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.steering.calls import Call, part_positions, put_texts, taken_rows
from attnguide.steering.errors import SteerError
from attnguide.types import Branch, PassContext, Step


@dataclass(frozen=True, eq=False)
class CallPart(Conditioning):
    """What a pass gives the network beside latents: a part of the pipeline's call.

    Attributes:
        arguments: Of the part.
        call: The whole.
        context: What the pass is for.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    call: Call | None = None


@dataclass(frozen=True, eq=False)
class CallBranches(Branches):
    """The branches that passes can have while a pipeline makes a call.

    Those of its batch, and further ones that repeat the conditional one, under texts of their own where there are any.

    Attributes:
        call: The newest one.
        further: Text states of further branches, for all rows.
    """

    call: Call | None = None
    further: Mapping[Branch, Conditioning] = field(default_factory=dict)

    def at(self, step: Step, injections: Sequence[Injection]) -> tuple[Branch, ...]:
        assert self.call is not None
        asked = {branch for injection in injections for branch in injection.branches(step)} - set(self.call.branches)
        further: tuple[Branch, ...] = ("perturbed", "negative", "source")
        known = {"perturbed", *self.further}
        return (*self.call.branches, *(branch for branch in further if branch in asked and branch in known))

    def for_pass(self, context: PassContext) -> Conditioning:
        call = self.call
        assert call is not None
        arguments = call.part(part_positions(call, context))
        for branch, texts in self.further.items():
            places = context.positions(branch)
            if places and branch not in call.branches:
                rows = [context.rows[place] for place in places]
                extra = {name: (states[rows], None) for name, (states, _) in texts.extra.items()}
                arguments = put_texts(arguments, call.form, places, Conditioning(texts.cond[rows], None, extra))
        return CallPart(arguments[call.form.states], None, {}, arguments, call)

    @property
    def halves(self) -> tuple[Branch, ...]:
        return ("uncond", "cond") if "uncond" in self.states else ("cond",)


def called_model(adapter: type[ModelAdapter], pipeline: Any, network: nn.Module) -> Any:
    """An adapter of a pipeline in whose passes the network is called as the pipeline calls it.

    Args:
        adapter: The family's adapter class.
        pipeline: Whose network and texts are read.
        network: That is called.

    Returns:
        A :class:`Called` of the family.
    """
    kind = type(f"Called{adapter.__name__}", (Called, adapter), {})
    model = kind(pipeline, type(pipeline).__name__)
    model._network, model.forward = network, network.forward
    return model


class Called:
    """The part of such an adapter that is not the family's.

    Attributes:
        forward: The network's own.
        outcome: The network's newest answer in the form that the pipeline asked for.
        splits: Whether attention may split a batch by a number of blocks of its own.
        behind: Tokens of further pictures behind those of the picture.
    """

    _network: nn.Module
    forward: Callable[..., Any]
    outcome: Any = None
    splits: bool = False
    behind: int = 0

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Conditioning:
        """As the family has it.

        Raises:
            SteerError: If the pipeline cannot encode further texts.
        """
        pipeline = self.pipeline  # type: ignore[attr-defined]
        if not callable(getattr(pipeline, "encode_prompt", None)):
            raise SteerError(
                "Methods with texts of their own need the pipeline's encode_prompt(), which "
                f"{type(pipeline).__name__} does not have."
            )
        encoded: Conditioning = super().encode_prompt(*args, **kwargs)  # type: ignore[misc]
        return encoded

    def walk(self) -> None:
        """Find all modules once, for guided passes that freeze their weights."""
        self._walked = self._modules()  # type: ignore[attr-defined]

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """As the family has it, but for channels that the network reads beside latents."""
        channels, rows, columns = super().latent_shape(height, width)  # type: ignore[misc]
        config: Any = self._network.config
        given = config.get("out_channels")
        return channels if given is None else min(channels, int(given)), rows, columns

    def attention_modules(self, height: int, width: int) -> Mapping[Site, nn.Module]:
        """As the family has them, the further pictures' tokens behind the picture's left out."""
        found: Mapping[Site, nn.Module] = super().attention_modules(height, width)  # type: ignore[misc]
        behind = self.behind
        if not behind:
            return found
        return {
            replace(site, queries=_before(site.queries, behind), keys=_before(site.keys, behind)): module
            for site, module in found.items()
        }

    def predict(
        self, latents: Tensor, step: Step, conditioning: Conditioning, *, until: Collection[Site] | None = None
    ) -> Tensor | None:
        assert isinstance(conditioning, CallPart) and conditioning.call is not None
        call, arguments = conditioning.call, dict(conditioning.arguments)
        groups = _apart(call, arguments)
        if len(groups) == 1:
            return self._predicted(call, arguments, latents, until)
        order, answers = [element for group in groups for element in group], []
        for group in groups:
            part = taken_rows(arguments, group, len(latents), call.form.whole)
            with part_of_pass(group):
                answers.append(self._predicted(call, part, latents[group], until))
        found = [answer for answer in answers if answer is not None]
        return torch.cat(found)[torch.tensor(order).argsort().to(latents.device)] if found else None

    def _predicted(
        self, call: Call, arguments: dict[str, Any], latents: Tensor, until: Collection[Site] | None
    ) -> Tensor | None:
        packed = arguments[call.form.latents]
        arguments = {**arguments, call.form.latents: call.packing.pack(latents.to(packed.dtype), packed)}
        part = len(packed) != call.batch or until is not None
        names = [] if until is None else list(dict.fromkeys(site.name for site in until))
        stop = stop_after([self._network.get_submodule(name) for name in names]) if names else nullcontext()
        with plain_processors(self._network) if part and self.splits else nullcontext(), stop:
            self.outcome = self.forward(**call.form.closed(arguments))
            answer = self.outcome[0] if isinstance(self.outcome, tuple) else self.outcome.sample
            return call.packing.unpack(call.form.answer[0](answer))
        return None


def _apart(call: Call, arguments: Mapping[str, Any]) -> list[list[int]]:
    """Elements of a batch that are read in passes of their own, since each one's picture follows right behind its words."""
    form = call.form
    if form.apart is None:
        return [list(range(len(arguments[form.latents])))]
    lengths = arguments[form.apart].sum(1).tolist()
    return [[place for place, other in enumerate(lengths) if other == length] for length in dict.fromkeys(lengths)]


def _before(span: Span | None, behind: int) -> Span | None:
    """A range of positions that is counted from the end, with so many more positions behind it."""
    if span is None:
        return None
    start, end = span
    counted = start is not None and start < 0
    if end is None:
        return (start - behind, -behind) if counted and start is not None else span
    return (start - behind if counted and start is not None else start), (end - behind if end < 0 else end)


@contextmanager
def plain_processors(network: nn.Module) -> Iterator[None]:
    """Attention without the processors that split a batch by a number of blocks of their own (PAG), each put back."""
    split = {module: module.processor for module in network.modules() if splits_batch(module)}
    for module in split:
        module.processor = _plain_processor(type(module.processor).__name__)
    try:
        yield
    finally:
        for module, processor in split.items():
            module.processor = processor


def processors_of(network: nn.Module) -> dict[nn.Module, Any]:
    """Attention processors by module."""
    return {module: module.processor for module in network.modules() if getattr(module, "processor", None) is not None}


def unsplit(processors: Mapping[nn.Module, Any]) -> None:
    """Put back what stood in the place of processors that split a batch: a pipeline leaves them where its call fails."""
    for module, processor in processors.items():
        if splits_batch(module):
            module.processor = processor


def splits_batch(module: nn.Module) -> bool:
    """Whether a module's processor reads its batch as so many blocks (perturbed attention)."""
    return type(getattr(module, "processor", None)).__name__.startswith("PAG")


def _plain_processor(name: str) -> Any:
    """The library's own attention without additions, in the place of one of this class."""
    from attnguide.models.transformer import joint_processor
    from attnguide.models.unet import plain_processor

    return joint_processor() if "Joint" in name else plain_processor()
