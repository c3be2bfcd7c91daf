"""A family's adapter whose passes repeat the pipeline's own network call, with batch elements of its arguments."""

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
    """Inputs of a pass besides latents: some batch elements of the pipeline's network call.

    Attributes:
        arguments: Arguments of these elements.
        call: The pipeline's whole call.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    call: Call | None = None


@dataclass(frozen=True, eq=False)
class CallBranches(Branches):
    """Branches of passes that repeat a pipeline's network call.

    Branches are those of the call's batch, and further ones that repeat the conditional half, some with other text states.

    Attributes:
        call: The newest network call.
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
    """An adapter of a pipeline that calls the network as the pipeline does.

    Args:
        adapter: The family's adapter class.
        pipeline: The user's pipeline.
        network: The pipeline's network.

    Returns:
        An instance of a class derived from :class:`Called` and ``adapter``.
    """
    kind = type(f"Called{adapter.__name__}", (Called, adapter), {})
    model = kind(pipeline, type(pipeline).__name__)
    model._network, model.forward = network, network.forward
    return model


class Called:
    """Mixin of adapters whose passes repeat a pipeline's network call.

    Attributes:
        forward: The network's own ``forward``.
        outcome: The network's newest output in the form that the pipeline asked for.
        splits: Whether attention processors split the batch into blocks (perturbed attention, PAG).
        behind: Number of tokens of further pictures (reference pictures) behind the image tokens.
    """

    _network: nn.Module
    forward: Callable[..., Any]
    outcome: Any = None
    splits: bool = False
    behind: int = 0

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Conditioning:
        """Encode prompts as the family's adapter does.

        Raises:
            SteerError: If the pipeline has no ``encode_prompt``.
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
        """Cache the list of all modules, whose weights guided passes freeze."""
        self._walked = self._modules()  # type: ignore[attr-defined]

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Latent shape of the family, without further input channels that the network reads beside latents."""
        channels, rows, columns = super().latent_shape(height, width)  # type: ignore[misc]
        config: Any = self._network.config
        given = config.get("out_channels")
        return channels if given is None else min(channels, int(given)), rows, columns

    def attention_modules(self, height: int, width: int) -> Mapping[Site, nn.Module]:
        """Attention modules of the family, with sites that leave out the :attr:`behind` tokens of further pictures."""
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
    """Batch elements grouped by text length, where image tokens follow right behind each row's own text; else one group."""
    form = call.form
    if form.apart is None:
        return [list(range(len(arguments[form.latents])))]
    lengths = arguments[form.apart].sum(1).tolist()
    return [[place for place, other in enumerate(lengths) if other == length] for length in dict.fromkeys(lengths)]


def _before(span: Span | None, behind: int) -> Span | None:
    """A span whose positions counted from the end are moved by ``behind`` further positions at the end."""
    if span is None:
        return None
    start, end = span
    counted = start is not None and start < 0
    if end is None:
        return (start - behind, -behind) if counted and start is not None else span
    return (start - behind if counted and start is not None else start), (end - behind if end < 0 else end)


@contextmanager
def plain_processors(network: nn.Module) -> Iterator[None]:
    """Replace attention processors that split the batch into blocks (PAG) by default ones, and restore them afterwards."""
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
    """Restore attention processors in place of PAG's, which a pipeline leaves behind when its call fails."""
    for module, processor in processors.items():
        if splits_batch(module):
            module.processor = processor


def splits_batch(module: nn.Module) -> bool:
    """Whether a module's attention processor splits the batch into blocks (perturbed attention, PAG)."""
    return type(getattr(module, "processor", None)).__name__.startswith("PAG")


def _plain_processor(name: str) -> Any:
    """Diffusers' default attention processor to replace one of this class name."""
    from attnguide.models.transformer import joint_processor
    from attnguide.models.unet import plain_processor

    return joint_processor() if "Joint" in name else plain_processor()
