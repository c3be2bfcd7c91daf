"""The contract of an injection, and the base class of most edits."""

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
    """A source prompt for every row, whose pass runs beside the row's own so that edits can read its attention.

    Attributes:
        prompts: Source prompt, one for all rows, or one per row; ``None`` is the row's own prompt.
        trajectory: ``own``: the source starts from the row's noise and is denoised separately, both halves in every step
            (branches ``source`` and ``source_uncond``); ``shared``: the source prompt's conditional half is evaluated on the
            row's own latents, in steps for which :meth:`Injection.branches` names the branch ``source``.
        pictures: Paths of source pictures for an ``own`` trajectory, one for all rows, or one per row; such a row starts from
            the picture's inverted noise, and its source's latents are the inverted trajectory
            (:mod:`attnguide.engine.inversion`).
        iterations: Evaluations per step of the inversion beyond the first.
    """

    prompts: str | Sequence[str | None] | None = None
    trajectory: Literal["own", "shared"] = "own"
    pictures: str | Sequence[str | None] | None = None
    iterations: int = 0


class Injection(ABC):
    """A method that edits attention in the denoising passes.

    A new method is a subclass with :meth:`edits`; the other hooks are for methods that need more than attention edits of the
    row's own CFG halves. An injection keeps no state of a batch: state over the steps lives in the edits.

    Attributes:
        needs_regions: ``"phrase"`` if regions must name words, ``"place"`` if they must also have places, ``None`` if no
            regions are needed.
        source: A source prompt whose pass the edits read.
        extends_text: Whether :meth:`condition` appends further texts to the rows' text states; then no method of the batch
            can have a source, whose text is shorter.
    """

    name: str = "injection"
    needs_regions: str | None = "place"
    source: Source | None = None
    extends_text: bool = False

    @property
    def mixes(self) -> bool:
        """Whether the injection's rows can share a batch with rows of other methods.

        They can if it overrides :meth:`edits` alone, since an edit can be restricted to rows. A source and all other hooks
        apply to the whole batch.
        """
        alone = ("edits", "check", "further_prompts")  # one row's affair
        hooks = [name for name, found in vars(Injection).items() if callable(found) and name[0] != "_" and name not in alone]
        return self.source is None and all(getattr(type(self), name) is getattr(Injection, name) for name in hooks)

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:  # noqa: B027 - most injections can use any place
        """Refuse a row on which the injection cannot act; called with one row before anything is sampled.

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
        """Further texts that :meth:`condition` encodes, which must fit the text encoder."""
        return ()

    @property
    def changes_noise(self) -> bool:
        """Whether :meth:`initial_noise` changes anything, which nothing can where a picture begins at another picture."""
        return type(self).initial_noise is not Injection.initial_noise

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
        """Whether cells of placed regions do not attend to the row's prompt in a step, so that its words have no maps there."""
        return False

    def negative_prompts(self, targets: Targets) -> Sequence[Prompt]:
        """Texts of the branch ``negative``, one per row; empty without that branch."""
        return ()

    def unconditional(self, uncond: Tensor, answers: Mapping[Branch, Tensor], step: Step) -> Tensor:
        """Change the unconditional prediction, given all branches' predictions; called with classifier-free guidance only."""
        return uncond

    def correct(self, noise_pred: Tensor, answers: Mapping[Branch, Tensor], step: Step) -> Tensor:
        """Change the combined prediction, given all branches' predictions, each ``batch channels height width``."""
        return noise_pred


def as_tuple(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
    """A list from YAML as a tuple, for selectors."""
    return None if values is None else tuple(values)


def one_of(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Refuse a value that is not in ``allowed``.

    Raises:
        ValueError: Naming the argument, the allowed values and the given one.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}; got {value!r}.")


def finite(name: str, value: PerRow) -> None:
    """Refuse numbers that are not finite.

    Raises:
        ValueError: Naming the argument and its value.
    """
    EachRow(value, name).require_finite()


Factors = Mapping[str, float] | None
"""Phrase of the prompt -> factor; ``phrase[1]`` means the second occurrence alone."""


def token_factors(given: Factors, prompt: TokenizedPrompt) -> Tensor:
    """Factor of every token, 1 where none is given, ``tokens``.

    Raises:
        ValueError: If a phrase does not occur in the prompt, or a factor is not finite.
    """
    factors = torch.ones(len(prompt.ids))
    for phrase, factor in (given or {}).items():
        finite(f"factor of {phrase!r}", factor)
        factors[list(named_positions(prompt, phrase))] = float(factor)
    return factors


def phrase_positions(phrases: str | None, prompt: TokenizedPrompt) -> tuple[int, ...]:
    """Token positions of comma-separated phrases, at every occurrence (``phrase[1]``: at the second alone).

    Raises:
        ValueError: If a phrase does not occur in the prompt.
    """
    named = [phrase for phrase in (phrases or "").split(",") if phrase.strip()]
    return tuple(position for phrase in named for position in named_positions(prompt, phrase))


class LatentsEdit(Edit):
    """An edit that also changes latents between steps, by attention that it has read."""

    remembers = True

    @abstractmethod
    def after_step(self, latents: Tensor, source: Tensor | None, step: Step) -> Tensor:
        """Change the rows' latents after the scheduler's step, where a new denoising step begins or the last one ended.

        Args:
            latents: Latents of the rows, ``batch channels height width``.
            source: Latents of the rows' sources, ``batch channels height width``; ``None`` without trajectories of their own.
            step: The step that was made.
        """


class WindowEdit(Edit):
    """An edit within a window of the schedule, with one strength per row; 0 is exactly no edit.

    Args:
        sites: Sites to edit.
        stages: Stages to edit.
        window: The part of the schedule in which the edit acts.
        scale: Strength, one number or one per row.
        rows: Number of rows in the batch.

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
        """Strength of every batch element, ``batch 1 1 1``; 0 outside of ``branches``.

        A perturbed branch is edited like the conditional one by default.
        """
        key = (context.rows, context.branches, branches, values.dtype, values.device)
        if key not in self._gates:
            elements = zip(context.rows, context.branches, strict=True)
            strengths = [self.scales[row] if branch in branches else 0.0 for row, branch in elements]
            self._gates[key] = torch.tensor(strengths, device=values.device, dtype=values.dtype).view(-1, 1, 1, 1)
        return self._gates[key]

    def gated(self, context: PassContext, branches: tuple[Branch, ...] = ("cond", "perturbed")) -> list[int]:
        """Batch positions where :meth:`gate` is not 0, for :meth:`touches` of edits without a source."""
        elements = enumerate(zip(context.rows, context.branches, strict=True))
        return [position for position, (row, branch) in elements if branch in branches and self.scales[row] != 0]


def in_columns(values: Tensor, columns: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A copy of ``batch heads query key`` scores or probs with some tokens' columns changed.

    Args:
        values: Scores or probs.
        columns: Positions of the tokens.
        change: From the columns ``batch heads query columns`` to new ones.
    """
    changed = values.clone()
    return changed.index_copy_(-1, columns, change(values.index_select(-1, columns)))
