"""Tunes a method's strength on a model without a judge, by attention inside the regions and strain of the latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.methods import build_method, method_options
from attnguide.models.base import ModelAdapter
from attnguide.prompt.targets import region_maps
from attnguide.sampling.table import sample_rows
from attnguide.types import MethodConfig, PassContext, Sample, SampleResult

KNOB = "scale"
"""Name of the option that is a method's strength; nearly every method has it."""

FACTORS = tuple(2.0**power for power in range(-4, 5))
"""Strengths to try by default, as factors of the method's own value."""

SATURATED = 0.9
"""Share of the largest gain in attention inside the regions that is enough; the least such strength is chosen."""

LATE = 0.5
"""Progress from which maps are read, since the layout of the picture is settled then."""

STRAIN = (0.9, 1.25)
"""Strains at which latents count as intact; strain is :meth:`PlainCells.distances` relative to plain pictures.

Chosen on the development layouts with the embedded models. Above, shapes bend: strengths that keep the pictures' quality reach
1.2, strengths at which the judge recognises fewer and fewer objects 1.3 to 2.3. Below, objects are gone and their background is
left, which is alike in all pictures: at 0.87 one object in six, at 0.76 two in five.
"""

MOST_CELLS = 16384
"""Most cells of plain latents to compare with."""


class InsideShare(Observer):
    """Observer of the share of each placed phrase's attention inside its regions, on unedited maps, late in the schedule.

    Maps are read before edits, so that an edit shows only through the picture that it makes the network draw.

    Attributes:
        shares: Row id -> mean share over the row's placed regions; regions of the same words count together. Rows without a
            placed region or without a picture are absent.
    """

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self._info: BatchInfo | None = None
        self._sum, self._read = torch.zeros(()), 0

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        self._info, self._sum, self._read = info, torch.zeros(()), 0
        return [Probe("original_probs", self._record, SiteSelector(kind="cross", levels=(info.model.guidance_level,)))]

    def _record(self, site: Site, probs: Tensor, context: PassContext) -> None:
        assert self._info is not None
        if context.kind != "denoise" or context.step.progress < LATE:
            return
        words = region_maps(probs.detach()[context.positions("cond")].mean(1), self._info.targets.tokens)
        masks = self._info.targets.joined_masks(site.height, site.width).flatten(2).to(words)
        self._sum = self._sum.to(words) + (words * masks).sum(-1) / words.sum(-1).clamp(min=1e-12)
        self._read += 1

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        assert self._info is not None
        placed = self._info.targets.placed
        for row, result in enumerate(results):
            if self._read and result.image is not None and placed[row].any():
                self.shares[result.sample.id] = float((self._sum[row] / self._read)[placed[row]].mean())


class PlainCells:
    """Cells of plain pictures' final latents, as a reference for whether other latents are made of similar cells.

    A cell is the vector of channels at one position of the latents. Whatever a picture shows, its cells are those of some
    background, surface or edge, and close to cells of other pictures of the same prompts; oversteered latents have cells unlike
    any plain picture's. Each picture is compared with all plain ones but that of its own row, so that plain pictures are
    measured in the same way.

    Args:
        latents: Final latents of plain pictures, ``rows channels height width``, three or more.

    Raises:
        ValueError: If there are fewer than three pictures.
    """

    def __init__(self, latents: Float[Tensor, "rows channels height width"]) -> None:
        if len(latents) < 3:
            raise ValueError(f"plain latents must be of at least 3 pictures; got {len(latents)}.")
        cells = latents.shape[-2] * latents.shape[-1]
        order = torch.randperm(cells, generator=torch.Generator().manual_seed(0))
        self._chosen = order[: max(1, MOST_CELLS // len(latents))]
        self._deviation = latents.float().std((0, 2, 3)).clamp(min=1e-6)
        self._cells = self._read(latents)

    def _read(self, latents: Tensor) -> Float[Tensor, "rows cells channels"]:
        return latents.float().flatten(2)[:, :, self._chosen].mT / self._deviation

    def distances(self, latents: Float[Tensor, "rows channels height width"], rows: Sequence[int]) -> Float[Tensor, " rows"]:
        """Mean distance of each picture's cells to the nearest cells of other rows' plain pictures, in standard deviations.

        Args:
            latents: Final latents of some rows.
            rows: Their row numbers; the plain picture of the same row is not compared with.
        """
        found = []
        for row, own in zip(rows, self._read(latents), strict=True):
            others = torch.cat([self._cells[:row], self._cells[row + 1 :]]).flatten(0, 1)
            found.append(torch.cat([torch.cdist(part, others).amin(1) for part in own.split(512)]).mean())
        return torch.stack(found)


@dataclass(frozen=True)
class Trial:
    """Measurements of one strength.

    Attributes:
        value: The strength; ``None`` for plain pictures.
        inside: Mean of :class:`InsideShare`'s shares over rows.
        strain: Mean of :meth:`PlainCells.distances` over rows, relative to that of plain pictures; infinite if a row has no
            picture.
    """

    value: float | None
    inside: float
    strain: float

    @property
    def holds(self) -> bool:
        """Whether the strain lies within :data:`STRAIN`."""
        return STRAIN[0] <= self.strain <= STRAIN[1]


def choose(plain: Trial, trials: Sequence[Trial]) -> Trial | None:
    """The least strength with :data:`SATURATED` of the largest gain over plain, among those whose strain holds.

    ``None`` if none holds, or none gains anything.
    """
    good = [trial for trial in trials if trial.holds]
    most = max((trial.inside for trial in good), default=0.0) - plain.inside
    if most <= 0:
        return None
    enough = [trial for trial in good if trial.inside - plain.inside >= SATURATED * most]
    return min(enough, key=lambda trial: trial.value or 0.0)


def strengths(method: MethodConfig, option: str = KNOB, factors: Iterable[float] = FACTORS) -> list[float]:
    """Values to try for an option, in rising order: multiples of its value in ``method`` or its default that are accepted.

    Raises:
        ValueError: If the method has no such option, or its value is not a number above 0.
    """
    known = method_options(method.name)
    base = method.options.get(option, known.get(option))
    if option not in known or isinstance(base, bool) or not isinstance(base, int | float) or base <= 0:
        told = f"it is {base!r}" if option in known else f"it has {', '.join(known)}"
        raise ValueError(f"Method {method.name!r} needs an option {option!r} that is a number above 0; {told}.")
    return [value for factor in sorted(set(factors)) if _takes(method, option, value := float(f"{base * factor:.6g}"))]


def _takes(method: MethodConfig, option: str, value: float) -> bool:
    try:
        build_method(method.name, {**method.options, option: value})
    except ValueError:
        return False
    return True


def trials(
    model: ModelAdapter,
    rows: Sequence[Sample],
    method: MethodConfig,
    values: Iterable[float],
    *,
    option: str = KNOB,
    batch_size: int | None = None,
    keep: Callable[[float | None, Sequence[SampleResult]], None] | None = None,
) -> Iterator[Trial]:
    """Sample rows plain, then with each strength in rising order, until two strengths in a row have a strain out of bounds.

    Args:
        model: The model adapter.
        rows: Three rows or more, each with a placed region; their own methods are ignored.
        method: Method to tune, with its other options.
        values: Strengths to try.
        option: Name of the option that is the strength.
        batch_size: Most rows of a batch.
        keep: Called with each strength (``None`` for plain) and the rows' results, before its trial is yielded.

    Yields:
        The plain trial, then one for each strength.

    Raises:
        ValueError: If there are fewer than three rows or rows of several sizes, a row has no placed region or no plain picture,
            or the method cannot take a row.
    """
    if len(rows) < 3:
        raise ValueError(f"rows must be at least 3, whose plain pictures show how latents vary; got {len(rows)}.")
    for row in rows:
        if not any(region.has_place for region in row.regions):
            raise ValueError(f"Row {row.id!r} has no region with a place, in which its word could be seen.")
    if len(sizes := {(row.height, row.width) for row in rows}) > 1:
        raise ValueError(f"rows must be of one size, so that their latents can be compared; got {len(sizes)} sizes.")
    tell = keep or (lambda value, results: None)
    shares, latents = _made(model, [row.plain() for row in rows], batch_size, partial(tell, None))
    if len(latents) != len(rows):
        raise ValueError(f"Only {len(latents)} of {len(rows)} plain pictures could be made.")
    cells = PlainCells(latents)
    usual = cells.distances(latents, range(len(rows))).mean()
    yield Trial(None, fmean(shares), 1.0)
    before = True
    for value in sorted(values):
        chosen = replace(method, options={**method.options, option: value})
        shares, latents = _made(model, [replace(row, methods=(chosen,)) for row in rows], batch_size, partial(tell, value))
        whole = len(latents) == len(rows)
        strain = float(cells.distances(latents, range(len(rows))).mean() / usual) if whole else float("inf")
        trial = Trial(value, fmean(shares) if shares else 0.0, strain)
        yield trial
        if not trial.holds and not before:
            return
        before = trial.holds


def _made(
    model: ModelAdapter, rows: Sequence[Sample], batch_size: int | None, tell: Callable[[Sequence[SampleResult]], None]
) -> tuple[list[float], Tensor]:
    """Sample the rows; shares of :class:`InsideShare` and final latents of those that have a picture."""
    watch = InsideShare()
    found = list(sample_rows(model, rows, batch_size=batch_size, observer=watch, strict=True))
    tell(found)
    order = {row.id: number for number, row in enumerate(rows)}
    made = sorted(((order[r.sample.id], r.latents) for r in found if r.image is not None), key=lambda pair: pair[0])
    whole = [latents for _, latents in made if latents is not None]
    return [*watch.shares.values()], torch.stack(whole) if whole else torch.zeros(0)
