"""Rows whose places come from other pictures: those are made first, and attention maps of their words are recorded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from attnguide.attention.capture import Probe
from attnguide.engine.branches import read_source
from attnguide.engine.observer import BatchInfo, Observer, Observers
from attnguide.models.base import ModelAdapter, halves
from attnguide.prompt.nested import settle
from attnguide.prompt.regions import source_region
from attnguide.prompt.tokens import resolve
from attnguide.sampling.source_pictures import SourcePicture, mask_of, record_pictures
from attnguide.types import Cost, MapSource, Region, Sample, SampleResult
from attnguide.weighted import written

FULL = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class PlacedRow:
    """A row whose regions have masks from the attention maps of their source pictures.

    Attributes:
        sample: The row, with a mask in each region that has a source.
        forwards: Network evaluations that recording took for this row alone.
        seconds: Wall time of recording, divided by the rows of the batch.
        measured: Quality of inversion, means over the row's inverted pictures: ``reconstruction_mse``,
            ``reconstruction_psnr`` and ``reconstruction_latents_mse``.
    """

    sample: Sample
    forwards: int = 0
    seconds: float = 0.0
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Job:
    """A source picture to make: its row, its source, and the words whose maps are recorded."""

    row: Sample
    source: MapSource
    words: list[Region] = field(default_factory=list)

    def index_of(self, words: Region) -> int | None:
        told = [(word.phrase, word.occurrence, word.token_indices) for word in self.words]
        wanted = (words.phrase, words.occurrence, words.token_indices)
        return told.index(wanted) if wanted in told else None


_Key = tuple[object, ...]


def record_sources(model: ModelAdapter, samples: Sequence[Sample]) -> list[PlacedRow]:
    """Record the mask of every region with a source.

    Pictures that several rows or regions share are made once, and pictures of one kind in common batches.

    Args:
        model: The adapter.
        samples: Rows of one batch, with one size, scheduler and number of steps.

    Raises:
        ValueError: If a phrase is not in its prompt, a file is not a picture, or a picture could not be made.
    """
    jobs: dict[_Key, _Job] = {}
    for sample in samples:
        for region in _pending(sample):
            assert region.source is not None
            words = _words(sample, region)
            job = jobs.setdefault(_key(sample, region.source), _Job(_source_row(sample, region.source), region.source))
            if job.index_of(words) is None:
                job.words.append(words)
    if not jobs:
        return [PlacedRow(sample) for sample in samples]
    begun, made = time.perf_counter(), dict[_Key, SourcePicture]()
    for keys in _together(jobs, len(samples)):
        rows = [replace(jobs[key].row, id=str(i), regions=tuple(jobs[key].words)) for i, key in enumerate(keys)]
        images = [jobs[key].source.image for key in keys]
        made |= zip(keys, record_pictures(model, rows, jobs[keys[0]].source, images), strict=True)
    seconds = (time.perf_counter() - begun) / len(samples)
    return [replace(_recorded(sample, jobs, made), seconds=seconds) for sample in samples]


def expected_forwards(sample: Sample, *, distilled: bool = False) -> int:
    """Network evaluations that recording a row's sources will take, for a scheduler with one evaluation a step.

    Args:
        sample: The row.
        distilled: Whether the network reads the guidance weight as a condition.
    """
    total = 0
    for source in {_key(sample, region.source): region.source for region in _pending(sample) if region.source}.values():
        branches = halves(_source_row(sample, source), distilled=distilled)
        passes = 1 if source.kind == "noise" else len(branches)
        total += sample.steps * passes * (source.iterations + 2 if source.kind == "invert" else 1)
    return total


def check_sources(model: ModelAdapter, sample: Sample) -> Sample:
    """Check a row's source prompts and phrases with the model.

    Returns:
        The row, with the whole picture as place of every region whose source is yet to be recorded.

    Raises:
        ValueError: If a prompt is longer than the text encoder reads, or a phrase has no token.
    """
    for region in _pending(sample):
        assert region.source is not None
        row = _source_row(sample, region.source)
        resolve(read_source(model, written(row.prompt, row.prompt_syntax), "source prompt"), _words(sample, region))
    pending = {id(region) for region in _pending(sample)}
    regions = (replace(region, source=None, box=FULL) if id(region) in pending else region for region in sample.regions)
    return replace(sample, regions=tuple(regions)) if pending else sample


class SourceObserver(Observers):
    """Forwards to an observer, with the measurements and costs of recording sources.

    Args:
        observer: The observer.
        recorded: The recorded rows.
    """

    def __init__(self, observer: Observer, recorded: Sequence[PlacedRow]) -> None:
        super().__init__([observer])
        self._recorded = recorded

    def _extended(self, info: BatchInfo) -> BatchInfo:
        return replace(info, measured=tuple(row.measured for row in self._recorded))

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        return super().probes(self._extended(info))

    def on_sample_start(self, info: BatchInfo) -> None:
        super().on_sample_start(self._extended(info))

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        super().on_sample_end(with_cost(results, self._recorded))


def with_cost(results: Sequence[SampleResult], recorded: Sequence[PlacedRow]) -> list[SampleResult]:
    """Results whose costs include recording their sources, except for rows without methods, which use no sources."""
    return [
        replace(result, cost=_sum(result.cost, row)) if result.sample.methods else result
        for result, row in zip(results, recorded, strict=True)
    ]


def _sum(cost: Cost, row: PlacedRow) -> Cost:
    return replace(cost, unet_forwards=cost.unet_forwards + row.forwards, seconds=cost.seconds + row.seconds)


# --------------------------------------------------------------------------------------------------------- which pictures


def _pending(sample: Sample) -> list[Region]:
    return [region for region in sample.regions if region.source is not None and region.mask is None]


def _words(sample: Sample, region: Region) -> Region:
    """Words of the source prompt whose map is recorded; in the row's own prompt, the region's own occurrence."""
    if region.source is not None and region.source.prompt is None:
        region = settle(sample.text, sample.regions)[sample.regions.index(region)]
    return source_region(region)


def _source_row(sample: Sample, source: MapSource) -> Sample:
    """The plain row that makes a source's picture, without regions and methods."""
    prompt = sample.prompt if source.prompt is None else source.prompt
    seed = sample.seed if source.seed is None else source.seed
    cfg_scale = source.cfg_scale if source.kind == "invert" else sample.cfg_scale
    plain = replace(sample, init_image=None, strength=None, inpaint_mask=None, control=())
    return replace(
        plain, id="source", prompt=prompt, seed=seed, cfg_scale=cfg_scale, regions=(), groups=(), methods=(), tags={}
    )


def _key(sample: Sample, source: MapSource) -> _Key:
    """Key of a source's picture; pictures whose first three entries are equal can share a batch."""
    row = _source_row(sample, source)
    seed = None if source.kind == "invert" else row.seed
    return (
        source.kind,
        source.iterations,
        row.cfg_scale,
        row.true_cfg_scale,
        row.prompt,
        row.negative_prompt,
        seed,
        source.image,
    )


def _together(jobs: Mapping[_Key, _Job], size: int) -> list[list[_Key]]:
    groups: dict[_Key, list[_Key]] = {}
    for key, job in jobs.items():
        texts = (job.row.prompt, job.row.negative_prompt) if job.row.prompt_syntax == "weights" else ()  # may differ in length
        groups.setdefault((*key[:3], *texts), []).append(key)
    return [keys[first : first + size] for keys in groups.values() for first in range(0, len(keys), size)]


def _recorded(sample: Sample, jobs: Mapping[_Key, _Job], made: Mapping[_Key, SourcePicture]) -> PlacedRow:
    pictures: dict[_Key, SourcePicture] = {}
    regions = list(sample.regions)
    for place, region in enumerate(regions):
        if region.source is None or region.mask is not None:
            continue
        key = _key(sample, region.source)
        pictures[key] = made[key]
        index = jobs[key].index_of(_words(sample, region))
        assert index is not None
        try:
            regions[place] = replace(region, mask=mask_of(made[key], index, region.source))
        except ValueError as error:
            raise ValueError(f"Row {sample.id!r}: region {region.phrase!r}: source {region.source.kind!r}: {error}") from error
    found = [picture.measured for picture in pictures.values() if picture.measured]
    means = {name: sum(one[name] for one in found) / len(found) for name in (found[0] if found else ())}
    return PlacedRow(
        replace(sample, regions=tuple(regions)), sum(picture.forwards for picture in pictures.values()), measured=means
    )
