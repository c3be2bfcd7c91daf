"""The contract of an injection, and the edit most of them are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from attnguide.attention.edits import Edit, Stage
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.per_row import EachRow, PerRow
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.prompt.named import named_positions
from attnguide.prompt.targets import Targets
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.schedules import Window
from attnguide.types import Branch, PassContext, Step
from attnguide.weighted import Prompt


@dataclass(frozen=True)
class Source:
    """A second prompt for every row, whose pass runs beside the row's own so that edits can read it.

    Attributes:
        prompts: One for all rows, or one per row; ``None`` is the row's own prompt.
        trajectory: ``own`` starts from the row's noise and is denoised on its own, both halves in every step (branches
            ``source`` and ``source_uncond``); ``shared`` reads the row's own latents, conditional half only, in those steps
            for which :meth:`Injection.branches` names the branch ``source``.
        pictures: Files that stand for the source on an ``own`` trajectory: one for all rows, or one per row; where there is
            one, the row starts from its inverted noise, and the source is at every step what inversion passed through
            (:mod:`attnguide.engine.inversion`).
        iterations: Evaluations per step of the inversion beyond the first.
    """

    prompts: str | Sequence[str | None] | None = None
    trajectory: Literal["own", "shared"] = "own"
    pictures: str | Sequence[str | None] | None = None
    iterations: int = 0


class Injection(ABC):
    """A method that edits attention in the denoising passes.

    A new method is a subclass with :meth:`edits`; the rest is for methods that need more than the row's own two halves.
    An injection keeps no state of a batch: what must be remembered over the steps lives in the edits made for it.

    Attributes:
        needs_regions: ``"phrase"`` if regions must name words, ``"place"`` if they must also say where, ``None`` if none
            are needed.
        source: A second prompt whose pass the edits read.
        extends_text: Whether :meth:`condition` puts further texts behind the rows' own; then no method of the batch can have
            a source, whose text is shorter.
    """

    name: str = "injection"
    needs_regions: str | None = "place"
    source: Source | None = None
    extends_text: bool = False

    @property
    def mixes(self) -> bool:
        """Whether its rows can share a batch with rows of other methods.

        They can where :meth:`edits` is all that it overrides, since an edit can be given some rows of a pass. A source and
        every other hook are for the batch as a whole.
        """
        alone = ("edits", "check", "further_prompts")  # one row's affair
        hooks = [name for name, found in vars(Injection).items() if callable(found) and name[0] != "_" and name not in alone]
        return self.source is None and all(getattr(type(self), name) is getattr(Injection, name) for name in hooks)

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:  # noqa: B027 - most injections can use any place
        """Refuse rows that it cannot take; called before anything is sampled, with one row.

        Args:
            targets: The row's words and places.
            sites: Every attention site of the network at the row's picture size.

        Raises:
            ValueError: With the reason, which becomes the row's status.
        """

    @abstractmethod
    def edits(self, targets: Targets) -> Sequence[Edit]:
        """The edits for one batch of rows, made once before its first step."""

    def further_prompts(self, targets: Targets) -> Sequence[str]:
        """Texts that :meth:`condition` has encoded, which must fit the text encoder."""
        return ()

    def initial_noise(self, noise: Tensor, targets: Targets) -> Tensor:
        """Change the rows' unit noise, ``batch channels height width``."""
        return noise

    def condition(self, states: Conditioning, targets: Targets, model: ModelAdapter) -> Conditioning:
        """Change the text states of the batch, both halves."""
        return states

    def branches(self, step: Step) -> tuple[Branch, ...]:
        """Further branches of this step's pass: ``perturbed``, ``negative``, or ``source`` on a shared trajectory."""
        return ()

    def hides_words(self, step: Step) -> bool:
        """Whether no cell of a placed region sees the row's prompt in a step, so that the prompt's words have no maps there."""
        return False

    def negative_prompts(self, targets: Targets) -> Sequence[Prompt]:
        """What the branch ``negative`` reads, one text per row, or nothing."""
        return ()

    def unconditional(self, uncond: Tensor, answers: Mapping[Branch, Tensor], step: Step) -> Tensor:
        """Change what classifier-free guidance leads away from, knowing each branch's answer; where it is in use at all."""
        return uncond

    def correct(self, noise_pred: Tensor, answers: Mapping[Branch, Tensor], step: Step) -> Tensor:
        """Change the combined prediction, knowing each branch's own; all ``batch channels height width``."""
        return noise_pred


def as_tuple(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    """A list from YAML as selectors want it."""
    return None if values is None else tuple(values)


def one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Refuse a value that is not among those named.

    Raises:
        ValueError: Naming the argument, what was expected and what came.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}.")


def finite(name: str, value: PerRow) -> None:
    """Refuse numbers that are not finite.

    Raises:
        ValueError: Naming the argument and what came.
    """
    EachRow(value, name).require_finite()


Factors = Mapping[str, float] | None
"""Phrase of the prompt -> factor; ``phrase[1]`` means the second occurrence alone."""


def token_factors(given: Factors, prompt: TokenizedPrompt) -> Tensor:
    """The factor of every token, 1 where none is given: ``tokens``.

    Raises:
        ValueError: If a phrase does not occur in the prompt, or a factor is not finite.
    """
    factors = torch.ones(len(prompt.ids))
    for phrase, factor in (given or {}).items():
        finite(f"factor of {phrase!r}", factor)
        factors[list(named_positions(prompt, phrase))] = float(factor)
    return factors


def phrase_positions(phrases: str | None, prompt: TokenizedPrompt) -> tuple[int, ...]:
    """Positions of the tokens of phrases that are separated by commas, of every occurrence (``phrase[1]``: of the second).

    Raises:
        ValueError: If a phrase does not occur in the prompt.
    """
    named = [phrase for phrase in (phrases or "").split(",") if phrase.strip()]
    return tuple(position for phrase in named for position in named_positions(prompt, phrase))


class LatentsEdit(Edit):
    """An edit that also changes latents, from what it saw of attention."""

    remembers = True

    @abstractmethod
    def after_step(self, latents: Tensor, source: Tensor | None, step: Step) -> Tensor:
        """Change the rows' latents after the scheduler's move, where a new denoising step begins or the last one ended.

        Args:
            latents: Of the rows, ``batch channels height width``.
            source: Latents of the rows' sources, where these have trajectories of their own, ``batch channels height width``.
            step: The one that was made.
        """


class WindowEdit(Edit):
    """An edit within a window of the schedule, with one strength per row; 0 is exactly no edit.

    Args:
        sites: Where it acts.
        stages: What it edits.
        window: When it acts.
        scale: One number, or one per row.
        rows: Rows of the batch.

    Raises:
        ValueError: If there is neither one strength nor one per row.
    """

    def __init__(self, sites: SiteSelector, stages: tuple[Stage, ...], window: Window, scale: PerRow, rows: int) -> None:
        self.sites, self.stages, self.window = sites, frozenset(stages), window
        self.scales = [float(number) for number in EachRow(scale, "scale").over(rows)]
        self._gates: dict[Hashable, Tensor] = {}

    def active(self, context: PassContext) -> bool:
        return (
            context.kind == "denoise"
            and self.window.active(context.step)
            and any(self.scales[row] != 0 for row in context.rows)
        )

    def gate(self, values: Tensor, context: PassContext, branches: tuple[Branch, ...] = ("cond", "perturbed")) -> Tensor:
        """Strength of every batch element, 0 in branches that are left alone: ``batch 1 1 1``.

        A perturbed branch is the conditional one but for its perturbation, hence edited like it.
        """
        key = (context.rows, context.branches, branches, values.dtype, values.device)
        if key not in self._gates:
            elements = zip(context.rows, context.branches, strict=True)
            strengths = [self.scales[row] if branch in branches else 0.0 for row, branch in elements]
            self._gates[key] = torch.tensor(strengths, device=values.device, dtype=values.dtype).view(-1, 1, 1, 1)
        return self._gates[key]

    def gated(self, context: PassContext, branches: tuple[Branch, ...] = ("cond", "perturbed")) -> list[int]:
        """Positions in the batch where :meth:`gate` is not 0; what :meth:`touches` says of an edit without a source."""
        elements = enumerate(zip(context.rows, context.branches, strict=True))
        return [position for position, (row, branch) in elements if branch in branches and self.scales[row] != 0]


def in_columns(values: Tensor, columns: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A copy of ``batch heads query key`` values with some tokens' columns changed.

    Args:
        values: Scores or probabilities.
        columns: Positions of the tokens.
        change: From the columns ``batch heads query columns`` to new ones.
    """
    changed = values.clone()
    return changed.index_copy_(-1, columns, change(values.index_select(-1, columns)))
