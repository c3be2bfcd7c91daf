"""Set-up at a pipeline's first network call: rows, tokenized prompts, methods, batch and steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, select
from attnguide.batching import build_methods
from attnguide.engine.batch import Batch
from attnguide.engine.branches import common_source, lengthened, read_source, source_prompts
from attnguide.engine.effects import Effects, warn_of_idle
from attnguide.engine.fitting import check_fit, check_hidden
from attnguide.engine.ledger import Ledger
from attnguide.engine.observer import BatchInfo, Observer, Observers, UpdateEvent
from attnguide.engine.steering import Steering
from attnguide.guidance.base import Guidance
from attnguide.guidance.noise_search import NoiseSearch
from attnguide.injection.base import Injection
from attnguide.methods import check_methods
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.models.texts import encode_prompts, read_prompt
from attnguide.prompt.targets import Targets
from attnguide.prompt.tokens import Segment, TokenizedPrompt, worded_columns
from attnguide.steering.called_model import CallBranches, splits_batch
from attnguide.steering.calls import Call
from attnguide.steering.errors import SteerError
from attnguide.steering.live_scheduler import LiveDiscrete, LiveFlow
from attnguide.steering.request import Request
from attnguide.steering.run import MapRecord, SteerRun
from attnguide.types import Branch, Region, Sample
from attnguide.weighted import in_chunks, written


@dataclass(eq=False)
class Started:
    """Objects of a pipeline's call, made at its first network pass.

    Attributes:
        batch: The rows.
        steering: The rows' methods.
        branches: Branches of the first pass.
        texts: Text states of both halves as changed by methods; ``None`` where none changes them.
        maps: Recorder of the regions' maps; ``None`` where they are not kept.
        observer: The user's observer, if any.
        noise: Unit noise that :meth:`SteerRun.latents` returned, if it was called.
    """

    batch: Batch
    steering: Steering
    branches: CallBranches
    texts: Conditioning | None
    maps: MapRecord | None
    observer: Observer | None
    noise: Tensor | None
    _second: Conditioning | None = field(default=None, init=False)

    def texts_of(self, call: Call) -> Conditioning:
        """Changed text states for a call; where each half is a call, the second's are computed with both halves together."""
        assert self.texts is not None
        if "cond" in call.branches:
            return self.texts
        if self._second is None:
            cond, uncond = self.branches.call.texts("cond"), call.texts("uncond")  # type: ignore[union-attr]
            extra = {name: (states, uncond.extra[name][0]) for name, (states, _) in cond.extra.items() if name in uncond.extra}
            both = Conditioning(cond.cond, uncond.cond, extra)
            both = both.padded(both.length)
            for injection in self.steering.injections:
                both = injection.condition(both, self.batch.targets, self.batch.model)
            self._second = both
        return self._second

    @property
    def acts(self) -> bool:
        """Whether there are any methods."""
        return bool(self.steering.injections or self.steering.readers)


class Noted(Observer):
    """Records updates and stopped rows in the user's run."""

    def __init__(self, run: SteerRun) -> None:
        self._run = run

    def on_guidance_update(self, event: UpdateEvent) -> None:
        self._run.updates.append(event)

    def on_row_stopped(self, row: int, reason: str) -> None:
        self._run.stopped[row] = reason


def make_rows(
    request: Request,
    prompts: Sequence[str] | None,
    negative: str | Sequence[str] | None,
    call: Call,
    weight: Any,
    steps: int,
    size: tuple[int, int],
) -> list[Sample]:
    """The rows of a call, as in a table.

    Args:
        request: Prompts, regions, methods and options.
        prompts: Prompts of the call; ``None`` where they are not known.
        negative: Negative prompts of the call, one or one per prompt; ``None`` for none.
        call: The first network call.
        weight: The pipeline's ``guidance_scale``, where it has one.
        steps: Denoising steps.
        size: Height and width of the pictures in pixels.

    Raises:
        SteerError: If the pictures do not divide among the prompts, or phrases must be found but no prompt is known.
    """
    texts = ("",) if prompts is None else tuple(prompts)
    if call.rows % len(texts):
        raise SteerError(f"The pipeline makes {call.rows} pictures, which do not divide among {len(texts)} prompts.")
    regions = request.regions_of(len(texts))
    if prompts is None:
        _check_indices(regions)
    each = call.rows // len(texts)
    against = [negative] * len(texts) if negative is None or isinstance(negative, str) else negative
    scale = float(weight) if isinstance(weight, int | float) and "uncond" in call.branches else 1.0
    height, width = (side if side % 8 == 0 else None for side in size)
    return [
        Sample(
            f"row{row}",
            texts[row // each],
            request.seed + row,
            regions[row // each],
            groups=request.groups,
            negative_prompt=against[row // each] if len(against) == len(texts) and "uncond" in call.branches else None,
            methods=request.methods,
            height=height,
            width=width,
            steps=steps,
            cfg_scale=scale,
            prompt_syntax=request.prompt_syntax,
        )
        for row in range(call.rows)
    ]


def _check_indices(regions: Sequence[Sequence[Region]]) -> None:
    for region in (region for several in regions for region in several):
        if region.token_indices is None:
            raise SteerError(
                f"The pipeline was given text states, in which {region.phrase!r} cannot be found: name the prompt, "
                "steer(pipeline, prompt, ...), or give the region token_indices."
            )


def read_prompts(model: ModelAdapter, rows: Sequence[Sample], call: Call, named: bool) -> list[TokenizedPrompt]:
    """Tokenize the rows' prompts, and check them against the length of the call's text states.

    Args:
        model: The adapter.
        rows: Rows of the call.
        call: The first network call.
        named: Whether the prompts are known; else only token positions are.

    Raises:
        SteerError: If the text states have another number of tokens than the tokenizer makes.
    """
    length = call.states.shape[1]
    cuts = model.cuts_padding
    by_position = all(region.token_indices is not None for row in rows for region in row.regions)
    if not named:
        return [_unread("", length)] * len(rows)
    known = {row.prompt: _read(model, row, length) for row in rows}
    for prompt, tokenized in known.items():
        if cuts and max(worded_columns([tokenized])) < length:
            continue  # what differs is padding, or stands behind the words
        if len(tokenized.tokens) != length and by_position:
            known[prompt] = _unread(prompt, length)
        elif len(tokenized.tokens) != length:
            raise SteerError(
                f"The network reads {length} tokens, but the pipeline's tokenizer makes {len(tokenized.tokens)} of {prompt!r}: "
                "words cannot be found in such text states; give the regions token_indices, or read prompts of any length with "
                "prompt_syntax='weights'."
            )
    return [known[row.prompt] for row in rows]


def _read(model: ModelAdapter, row: Sample, length: int) -> TokenizedPrompt:
    """A row's tokenized prompt; a weighted one with as many chunks as the text states of ``length`` tokens, if more."""
    tokenized = read_prompt(model, written(row.prompt, row.prompt_syntax))
    return lengthened(model, tokenized, length * tokenized.chunks // len(tokenized.tokens)) if tokenized.asked else tokenized


def _unread(prompt: str, length: int) -> TokenizedPrompt:
    """A tokenized prompt without offsets, for text states whose tokens are not known."""
    return TokenizedPrompt(prompt, ("",) * length, (None,) * length, (0,) * length, segments=(Segment(0, length, length, 0),))


def start(
    request: Request,
    run: SteerRun,
    model: Any,
    rows: Sequence[Sample],
    tokenized: Sequence[TokenizedPrompt],
    call: Call,
    scheduler: LiveDiscrete | LiveFlow,
    size: tuple[int, int],
) -> Started:
    """Build batch and steering for a pipeline's call.

    Args:
        request: Prompts, regions, methods and options.
        run: The user's run.
        model: The adapter.
        rows: Rows of the call.
        tokenized: Tokenized prompts of the rows.
        call: The first network call.
        scheduler: The pipeline's scheduler.
        size: Height and width of the pictures in pixels.

    Raises:
        SteerError: If a method cannot run inside the call.
        ValueError: If a phrase is not in its prompt, or a method cannot act on the network.
    """
    for row in rows:
        check_methods(row)
    guidances, injections = build_methods(rows)
    methods: list[Guidance | Injection] = [*guidances, *injections]
    source = common_source(methods)
    if source is not None and source.trajectory == "own":
        name = next(method.name for method in methods if method.source is source)
        raise SteerError(
            f"Method {name!r} reads another picture that is made beside the row's own, which a pipeline's call does not do. "
            "Use attnguide.sample."
        )
    read = [read_source(model, prompt) for prompt in source_prompts(source, rows)]
    others = [lengthened(model, prompt, tokenized[0].chunks) for prompt in read]
    targets = Targets.build(rows, tokenized, model.device, others, cuts_padding=model.cuts_padding)
    check_hidden(guidances, injections, scheduler.steps)
    for number in {(row.prompt, row.regions): number for number, row in enumerate(rows)}.values():
        check_fit(model, targets.select([number]), guidances, injections, size, call.branches)
    _check_noise(methods, scheduler)
    effects = Effects(methods, rows, targets, scheduler.steps)
    warn_of_idle(methods, scheduler.steps)
    texts, branches = _texts(model, call, targets, injections, effects)
    modules: Mapping[Site, Any] = {}
    if not request.idle:  # finding the modules takes as long as a small network's pass
        modules = {**model.attention_modules(*size), **model.feature_modules(*size)}
    if guidances:
        model.walk()
    noise, sources = run.drawn(len(rows))
    watching = Observers([Noted(run), *([] if request.observer is None else [request.observer])])
    batch = Batch(
        model, rows, targets, branches, scheduler, sources, torch.empty(0), modules, Ledger(len(rows), model.device), watching,
        effects,
    )  # fmt: skip
    info = BatchInfo(tuple(rows), targets, tuple(site for site in modules if site.kind != "feature"), scheduler.steps, model)
    probes = [] if request.observer is None else list(request.observer.probes(info))
    maps = MapRecord(targets, model.guidance_level) if request.maps and targets.count else None
    if maps is not None:
        probes.append(maps.probe)
    model.splits = splits = any(splits_batch(module) for module in modules.values())
    steering = Steering(batch, guidances, injections, probes, fuses=not splits)
    if splits:
        _check_split(batch, steering, probes)
    return Started(batch, steering, branches, texts, maps, request.observer, noise)


def _texts(
    model: ModelAdapter, call: Call, targets: Targets, injections: Sequence[Injection], effects: Effects
) -> tuple[Conditioning | None, CallBranches]:
    """Text states as methods change them (``None`` if unchanged), and branches with their text states."""
    given = texts = call.texts()
    for injection in injections:
        before, texts = texts, injection.condition(texts, targets, model)
        effects.conditioned(injection, before, texts)
    further: dict[Branch, Conditioning] = {}
    negatives = [list(found) for injection in injections if (found := injection.negative_prompts(targets))]
    if negatives and "uncond" in call.branches:
        chunks = targets.tokenized[0].chunks
        further["negative"] = encode_prompts(model, [in_chunks(one, chunks) for one in negatives[0]], None)
    if targets.source_prompts:
        further["source"] = encode_prompts(model, [prompt.prompt for prompt in targets.source_prompts], None)
    states: dict[Branch, Conditioning] = {"cond": texts.half(uncond=False)}
    if texts.uncond is not None:
        states["uncond"] = texts.half(uncond=True)
    branches = CallBranches(call.rows, states, False, call, further)
    return (None if texts is given else texts), branches


def _check_noise(methods: Sequence[Guidance | Injection], scheduler: LiveDiscrete | LiveFlow) -> None:
    """Refuse methods that change the initial noise where the pipeline begins at a picture (img2img)."""
    for method in methods:
        if isinstance(method, Guidance):
            changes = method.optimise_at == 0 and isinstance(getattr(method, "search", None), NoiseSearch)
        else:
            changes = method.changes_noise
        if changes and not scheduler.whole:
            raise SteerError(
                f"Method {method.name!r} changes the initial noise, but the pipeline begins at evaluation "
                f"{scheduler.begin} of its schedule, at a picture."
            )


def _check_split(batch: Batch, steering: Steering, probes: Sequence[Probe]) -> None:
    """Refuse probes and edits at sites whose processor splits the batch (PAG), and methods with further branches beside it."""
    split = {site for site, module in batch.modules.items() if splits_batch(module)}
    for selector in [*(edit.sites for edit in steering.edits), *(probe.sites for probe in probes)]:
        there = next((site for site in select(batch.modules, selector) if site in split), None)
        if there is not None:
            raise SteerError(
                f"Attention at {there.name!r} cannot be read or edited: the pipeline's own perturbed attention splits the "
                "batch there. Choose other sites, or the pipeline without PAG."
            )
    if any(injection.branches(step) for injection in steering.injections for step in batch.scheduler.steps):
        raise SteerError("A method with branches of its own cannot run beside the pipeline's perturbed attention (PAG).")
