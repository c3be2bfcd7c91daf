"""The contract of a guidance: the maps it reads, its loss on them, and the update of latents."""

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
    """Result of a guidance's loss, one value per row.

    Attributes:
        loss: Loss to differentiate, lower is better, ``batch``.
        indicator: Value that decides repetition and stopping, often the loss itself, ``batch``.
        refining: Loss to differentiate in updates of a refinement; ``loss`` when ``None``, ``batch``.
        refined: Loss to differentiate in plain updates of rows that a refinement moved in the same step; ``loss`` when
            ``None``, ``batch``.
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
    """Rows restarted from other noise and denoised up to the current step.

    Attributes:
        rows: The restarted rows.
        latents: Their latents in the network's input scale, ``rows channels height width``.
        scheduler: The scheduler that denoised them, with its state of their past steps.
    """

    rows: tuple[int, ...]
    latents: Tensor
    scheduler: NoiseScheduler


class Trials(Protocol):
    """Network passes that a guidance may make on rows before one step. They are counted, and move no latents.

    Latents are in the network's input scale; rows are numbered within these trials, from 0.

    Attributes:
        step: The step that follows.
        targets: Words and places of all rows.
        level: The model's guidance level.
    """

    step: Step
    targets: Targets
    level: int

    def gradient(self, latents: Tensor, rows: Sequence[int], judge: Judgement) -> Tensor:
        """Gradient of every row's loss with respect to its latents, from one conditional guide pass.

        Args:
            latents: Latents of ``rows``, ``rows channels height width``.
            rows: Rows of the pass.
            judge: The loss.
        """

    def denoised(self, latents: Tensor, rows: Sequence[int]) -> Tensor:
        """Predicted clean latents from one conditional pass, ``rows channels height width``.

        Args:
            latents: Latents of ``rows``, ``rows channels height width``.
            rows: Rows of the pass.
        """

    def maps(self, latents: Tensor, rows: Sequence[int]) -> AttentionMaps:
        """Attention maps of the guidance's sites from one conditional guide pass, without gradient.

        Args:
            latents: Latents of ``rows``, ``rows channels height width``.
            rows: Rows of the pass.
        """

    def restart(self, like: Tensor, rows: Sequence[int]) -> Attempt | None:
        """Restart rows from further noise of their seeds, and denoise them up to this step with the edits of all methods.

        Guidance is not applied. ``None`` where restarts are impossible: beside a method that adds branches to the pass,
        corrects the prediction, or has an edit that remembers earlier passes.

        Args:
            like: Latents of ``rows``, for their shape and dtype.
            rows: Rows to restart.
        """

    def adopt(self, attempt: Attempt, rows: Sequence[int]) -> None:
        """Continue these rows from the attempt: the scheduler takes over their state; return their latents as well."""

    def preview(self, latents: Tensor, rows: Sequence[int], sites: SiteSelector, stop: float, see: Seen) -> None:
        """Sample rows without methods from the first step on, with their CFG scales and the noise their scheduler will add.

        Args:
            latents: Initial latents of ``rows``; the step that follows must be the first.
            rows: Rows to sample.
            sites: Sites whose conditional probs are read.
            stop: Progress of the last denoising step.
            see: Called with each denoising step and its maps.
        """

    def noise(self, row: int, like: Tensor) -> Tensor:
        """Further unit noise from the row's own seed, of the shape of ``like``."""


def cross_sites(levels: Sequence[int] | None) -> SiteSelector | None:
    """Cross-attention at these map levels; ``None``, which stands for the model's guidance level, if none are named."""
    return None if levels is None else SiteSelector(kind="cross", levels=tuple(levels))


def require_cells(targets: Targets, sites: Sequence[Site], rule: Rule = "half") -> None:
    """Refuse places that are too small for a map; for :meth:`Guidance.check` of guidances with binary masks.

    Args:
        targets: All rows.
        sites: Sites whose maps are read.
        rule: Rule by which masks are drawn.

    Raises:
        ValueError: Naming region and map size.
    """
    for height, width in dict.fromkeys((site.height, site.width) for site in sites):
        targets.require_cells(height, width, rule)


class Guidance(ABC):
    """A loss on attention maps, and an update rule.

    A new method is a subclass with :meth:`loss`; everything else is a choice of arguments.

    Args:
        sites: Sites to read; :meth:`usual_sites` when ``None``, by default cross-attention of the model's guidance level.
        window: The part of the schedule in which the guidance acts.
        update: Step size, repetition, stopping.

    Attributes:
        needs_regions: ``"phrase"`` if regions must name words, ``"place"`` if they must also have places, ``None`` if no
            regions are needed.
        optimise_at: Progress of the step before which :meth:`optimise` is called; never when ``None``.
        source: A second prompt on a trajectory of its own, whose maps at the same step are in ``maps.source``.
        features: Feature sites to read as well, into ``maps.features``; none when ``None``.
        remembers: Whether the guidance's edits depend on earlier passes, so that they must see each step once, with all
            branches.
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
        """Sites to read on a model whose guidance level is ``level``: :attr:`sites` if given, else :meth:`usual_sites`."""
        return self.sites or self.usual_sites(level)

    def usual_sites(self, level: int) -> SiteSelector:
        """Sites to read by default, on a model whose guidance level is ``level``."""
        return SiteSelector(kind="cross", levels=(level,))

    def acts(self, step: Step) -> bool:
        """Whether the guidance acts at an evaluation of the network.

        Latents are moved only where a denoising step begins; the noise prediction is changed at every evaluation.
        """
        return self.window.active(step) and (step.begins or self.update.space == "noise")

    def edits(self, targets: Targets, level: int) -> Sequence[Edit]:
        """Edits of the method, made once before the first step of a batch; none in most guidances.

        They act in denoising passes and in guide passes of this guidance, which ``context.kind`` tells apart.

        Args:
            targets: All rows of the batch.
            level: The model's guidance level.
        """
        return ()

    def start(self, targets: Targets) -> None:  # noqa: B027 - most guidances remember nothing
        """Reset the guidance's state; called once before the first step of a batch."""

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:  # noqa: B027 - most guidances can use any place
        """Refuse a row on which the guidance cannot act; called with one row before anything is sampled.

        Args:
            targets: The row's words and places.
            sites: Sites that the guidance reads.

        Raises:
            ValueError: With the reason, which becomes the row's status.
        """

    @abstractmethod
    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        """Evaluate the loss on the maps of one guide pass.

        Args:
            maps: Probs of the conditional half at the chosen sites, ``batch heads query key``, float32, with gradient.
            targets: Words and places of the same rows.
            step: Evaluation of the schedule.
        """

    def optimise(self, latents: Tensor, trials: Trials) -> Tensor:
        """Replace latents (for example the initial noise) before the step at :attr:`optimise_at`.

        Args:
            latents: Latents of the rows that still run, ``batch channels height width``, in the network's input scale.
            trials: Network passes on the same rows.

        Returns:
            New latents. A row's must not depend on other rows.
        """
        return latents

    def trials_cost(self, steps: int, halves: int) -> ExpectedCost:
        """Expected network passes of :meth:`optimise` for a row.

        Args:
            steps: Denoising steps.
            halves: Number of CFG halves, 1 or 2.
        """
        return ExpectedCost()
