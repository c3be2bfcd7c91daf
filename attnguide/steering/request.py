"""Arguments of ``steer``, before the pipeline is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnguide.engine.observer import Observer
from attnguide.steering.errors import SteerError
from attnguide.types import MethodConfig, Region
from attnguide.weighted import check_syntax, written


@dataclass(frozen=True, eq=False)
class Request:
    """Prompts, regions, methods and options for a pipeline's calls.

    Attributes:
        prompts: Prompts given to ``steer``; ``None`` to take them from the pipeline's call.
        regions: One tuple for all prompts, or one for each.
        groups: Words that belong together, for all prompts.
        methods: Guidances and injections.
        seed: Seed of the noise that methods draw for the first picture; further pictures have consecutive seeds.
        observer: Observer of the calls; ``None`` for none.
        maps: Whether each region's mean attention map is kept.
        refresh_controlnet: Whether ControlNets are called again on latents that guidance has moved.
        prompt_syntax: Syntax of ``prompts``.

    Raises:
        ValueError: If the syntax is unknown, or a prompt has marks that it does not know.
    """

    prompts: tuple[str, ...] | None = None
    regions: tuple[tuple[Region, ...], ...] = ((),)
    groups: tuple[tuple[str, ...], ...] = ()
    methods: tuple[MethodConfig, ...] = ()
    seed: int = 0
    observer: Observer | None = None
    maps: bool = True
    refresh_controlnet: bool = True
    prompt_syntax: str = "plain"

    def __post_init__(self) -> None:
        check_syntax(self.prompt_syntax)
        for prompt in self.prompts or ():
            written(prompt, self.prompt_syntax)

    @property
    def idle(self) -> bool:
        """Whether there are no methods, no maps to keep and no observer."""
        kept = self.maps and any(self.regions)
        return not self.methods and not kept and self.observer is None

    def prompts_of(self, given: str | Sequence[str] | None) -> tuple[str, ...] | None:
        """The prompts of a call; ``None`` where neither ``steer`` nor the pipeline was given any.

        Args:
            given: Prompts that the pipeline was called with; ``None`` where it was given text states.

        Raises:
            SteerError: If they differ from :attr:`prompts`, or :attr:`prompt_syntax` needs text states instead.
        """
        if given is not None and self.prompt_syntax == "weights":
            raise SteerError(
                "With prompt_syntax 'weights' the pipeline is given states, pipeline(**attnguide.prompt_embeds(pipeline, "
                "prompt)); it was called with text, whose signs it reads as letters."
            )
        called = None if given is None else (given,) if isinstance(given, str) else tuple(given)
        if self.prompts is None or called is None:
            return self.prompts if called is None else called
        if called != self.prompts:
            raise SteerError(f"steer was told of {_told(self.prompts)}, but the pipeline was called with {_told(called)}.")
        return called

    def regions_of(self, prompts: int) -> tuple[tuple[Region, ...], ...]:
        """Regions of each prompt.

        Raises:
            SteerError: If regions were given for another number of prompts.
        """
        if len(self.regions) == 1:
            return self.regions * prompts
        if len(self.regions) != prompts:
            raise SteerError(f"regions were given for {len(self.regions)} prompts, but the pipeline was called with {prompts}.")
        return self.regions


def _told(prompts: Sequence[str]) -> str:
    return f"the prompt {prompts[0]!r}" if len(prompts) == 1 else f"{len(prompts)} prompts, the first {prompts[0]!r}"
