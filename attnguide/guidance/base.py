"""The contract of a guidance: which maps it reads, what it wants of them, and how latents follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.update import Update
from attnguide.injection.base import Source
from attnguide.models.schedulers import NoiseScheduler
from attnguide.prompt.drawing import Rule
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window
from attnguide.types import ExpectedCost, Step

_ALWAYS = Window()
_PLAIN_UPDATE = Update()


@dataclass(frozen=True, eq=False)
class LossOutput:
    """What a loss found, one value per row.

    Attributes:
        loss: Differentiated; lower is better. ``batch``.
        indicator: Decides repetition and stopping; often the loss itself. ``batch``.
        refining: Differentiated instead of ``loss`` in the updates of a refinement, where the two differ. ``batch``.
        refined: Differentiated instead of ``loss`` in the plain updates of a row that a refinement moved in the same step,
            where the two differ. ``batch``.
    """

    loss: Tensor
    indicator: Tensor
    refining: Tensor | None = None
    refined: Tensor | None = None

    def differentiated(self, refines: bool, moved: Tensor) -> Tensor:
        """The loss that an update follows, ``batch``.

        Args:
            refines: Whether the update belongs to a refinement.
            moved: Rows that a refinement has moved in this step, bool, ``batch``.
        """
        if refines:
            return self.loss if self.refining is None else self.refining
        return self.loss if self.refined is None else torch.where(moved, self.refined, self.loss)


Judgement = Callable[[AttentionMaps, Targets], Tensor]
"""From conditional maps and the targets of the same rows to one loss per row, ``batch``."""


Seen = Callable[[Step, AttentionMaps], None]


@dataclass(frozen=True, eq=False)
class Attempt:
    """Rows that were denoised anew, up to where the others are.

    Attributes:
        rows: Which.
        latents: Theirs, in the scale that the network reads.
        scheduler: That denoised them, and remembers their past steps.
    """

    rows: tuple[int, ...]
    latents: Tensor
    scheduler: NoiseScheduler


class Trials(Protocol):
    """Network passes that a guidance may make on rows before one step. They are counted, and move no latents.

    Latents are in the scale that the network reads; rows are numbered within these trials, from 0.

    Attributes:
        step: The step that follows.
        targets: Of all rows.
        level: The model's guidance level.
    """

    step: Step
    targets: Targets
    level: int

    def gradient(self, latents: Tensor, rows: Sequence[int], judge: Judgement) -> Tensor:
        """One conditional guide pass; the gradient of every row's loss with respect to its latents.

        Args:
            latents: Of the chosen ``rows``, ``batch channels height width``.
            rows: Which.
            judge: The loss.
        """

    def denoised(self, latents: Tensor, rows: Sequence[int]) -> Tensor:
        """Predicted clean latents from one conditional pass, ``rows channels height width``.

        Args:
            latents: Of the chosen ``rows``, ``rows channels height width``.
            rows: Which.
        """

    def maps(self, latents: Tensor, rows: Sequence[int]) -> AttentionMaps:
        """Attention maps of the guidance's sites from one conditional guide pass, without gradient.

        Args:
            latents: Of the chosen ``rows``, ``rows channels height width``.
            rows: Which.
        """

    def restart(self, like: Tensor, rows: Sequence[int]) -> Attempt | None:
        """Denoise rows anew from further noise of their own seeds up to this step, under the edits of all methods.

        Gradients of guidance take no part. ``None`` where it cannot be done: beside a method that adds branches to the pass,
        corrects its outcome, or has an edit that remembers earlier passes.

        Args:
            like: Latents of the chosen ``rows``, for their shape and type.
            rows: Which.
        """

    def adopt(self, attempt: Attempt, rows: Sequence[int]) -> None:
        """Say that these rows of the attempt go on in the place of what they were; their latents must be returned, too."""

    def preview(self, latents: Tensor, rows: Sequence[int], sites: SiteSelector, stop: float, see: Seen) -> None:
        """Sample rows plainly from the first step on, with their own guidance scales and the noise their scheduler will add.

        Args:
            latents: Of the chosen ``rows`` before the first step, which must be the one that follows.
            rows: Which.
            sites: Whose conditional probs are shown.
            stop: Progress of the last denoising step.
            see: Called with each denoising step and its maps.
        """

    def noise(self, row: int, like: Tensor) -> Tensor:
        """Further unit noise from the row's own seed, of the shape of ``like``."""


def cross_sites(levels: Sequence[int] | None) -> SiteSelector | None:
    """Cross-attention at these map levels; ``None``, which stands for the model's guidance level, if none are named."""
    return None if levels is None else SiteSelector(kind="cross", levels=tuple(levels))


def require_cells(targets: Targets, sites: Sequence[Site], rule: Rule = "half") -> None:
    """Refuse places that are too small for a map; what a guidance with yes-or-no masks does in :meth:`Guidance.check`.

    Args:
        targets: All rows.
        sites: Whose maps are read.
        rule: How their masks are drawn.

    Raises:
        ValueError: Naming region and map size.
    """
    for height, width in dict.fromkeys((site.height, site.width) for site in sites):
        targets.require_cells(height, width, rule)


class Guidance(ABC):
    """A loss on attention maps, and a rule of motion.

    A new method is a subclass with :meth:`loss`; everything else is a choice of arguments.

    Args:
        sites: Which maps to read; :meth:`usual_sites` when ``None``, the cross-attention maps of the model's guidance level.
        window: The part of the schedule in which it acts.
        update: Step size, repetition, stopping.

    Attributes:
        needs_regions: ``"phrase"`` if regions must name words, ``"place"`` if they must also say where, ``None`` if none
            are needed.
        optimise_at: Progress of the step before which :meth:`optimise` is called; never when ``None``.
        source: A second prompt on a trajectory of its own; the loss finds its maps of the same step in ``maps.source``.
        features: Feature sites to read as well, into ``maps.features``; none when ``None``.
        remembers: Whether its edits depend on earlier passes, so that they must see each step once, with all branches.
    """

    name: str = "guidance"
    needs_regions: str | None = "phrase"
    optimise_at: float | None = None
    source: Source | None = None
    features: SiteSelector | None = None
    remembers: bool = False

    def __init__(self, *, sites: SiteSelector | None = None, window: Window = _ALWAYS, update: Update = _PLAIN_UPDATE) -> None:
        self.sites = sites
        self.window = window
        self.update = update

    def sites_at(self, level: int) -> SiteSelector:
        """The sites to read on a model whose guidance level is ``level``: those that were asked for, or :meth:`usual_sites`."""
        return self.sites or self.usual_sites(level)

    def usual_sites(self, level: int) -> SiteSelector:
        """The sites to read where nobody asked for others."""
        return SiteSelector(kind="cross", levels=(level,))

    def acts(self, step: Step) -> bool:
        """Whether it acts at an evaluation of the network.

        Latents are moved only where a denoising step begins; the noise prediction at each of its evaluations, as any of them
        may be the one that counts.
        """
        return self.window.active(step) and (step.begins or self.update.space == "noise")

    def edits(self, targets: Targets, level: int) -> Sequence[Edit]:
        """Edits that belong to the method, made once before the first step of a batch; most guidances have none.

        They are in place in the denoising passes and in the guide passes of this guidance; ``context.kind`` tells them apart.

        Args:
            targets: All rows of the batch.
            level: The model's guidance level.
        """
        return ()

    def start(self, targets: Targets) -> None:  # noqa: B027 - most guidances remember nothing
        """Called once before the first step of a batch; a guidance that remembers past maps forgets them here."""

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:  # noqa: B027 - most guidances can use any place
        """Refuse rows that it cannot take; called before anything is sampled, with one row.

        Args:
            targets: The row's words and places.
            sites: Those that the guidance reads.

        Raises:
            ValueError: With the reason, which becomes the row's status.
        """

    @abstractmethod
    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        """Judge the maps of one guide pass.

        Args:
            maps: Conditional probabilities of the chosen sites, ``batch heads query key``, float32, with gradient.
            targets: Regions of the same rows.
            step: Where in the schedule.
        """

    def optimise(self, latents: Tensor, trials: Trials) -> Tensor:
        """Replace latents as a whole, the initial noise for one, before the step at :attr:`optimise_at`.

        Args:
            latents: Of the rows that still run, ``batch channels height width``, in the scale that the network reads.
            trials: Passes over the same rows.

        Returns:
            New latents. A row's must not depend on other rows.
        """
        return latents

    def trials_cost(self, steps: int, halves: int) -> ExpectedCost:
        """What :meth:`optimise` costs a row.

        Args:
            steps: Denoising steps.
            halves: Of classifier-free guidance, 1 or 2.
        """
        return ExpectedCost()
