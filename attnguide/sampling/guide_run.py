"""What a guide pass needs, and the maps it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attnguide.attention.attach import Attention, attach
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector, select
from attnguide.guidance.base import Guidance
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.models.schedulers import NoiseScheduler
from attnguide.prompt.targets import Targets
from attnguide.sampling.branches import Branches
from attnguide.sampling.cfg import pass_context
from attnguide.sampling.effects import Effects
from attnguide.sampling.ledger import Ledger
from attnguide.sampling.observer import Observer
from attnguide.types import PassContext, Step


@dataclass(eq=False)
class GuideRun:
    """Everything a guide pass needs, and the rows that were given up.

    Attributes:
        stop_row: Called with a row and the reason when its loss or gradient is not finite.
        alive: Rows still running; shared with the sampler.
        probes: The observers' readers of guide passes.
        edits: What guidances edit, each its own.
        sources: One CPU generator per row.
        cfg_scales: One per row.
        branches: Of the denoising passes.
        every_edit: Of all methods, if edits without memory are all that they do in a denoising pass; else ``None``.
        effects: What the methods did to each row.
        beside: What the source showed in the step that is being guided, of all rows.
    """

    model: ModelAdapter
    scheduler: NoiseScheduler
    conditioning: Conditioning
    targets: Targets
    modules: Mapping[Site, nn.Module]
    ledger: Ledger
    observer: Observer
    alive: list[int]
    stop_row: Callable[[int, str], None]
    probes: Sequence[Probe] = ()
    edits: Mapping[Guidance, Sequence[Edit]] = field(default_factory=dict)
    sources: Sequence[torch.Generator] = ()
    cfg_scales: Sequence[float] = ()
    branches: Branches | None = None
    every_edit: Sequence[Edit] | None = None
    beside: AttentionMaps | None = None
    effects: Effects | None = None

    def sites_of(self, guidance: Guidance) -> tuple[Site, ...]:
        """The sites a guidance reads."""
        return select(self.modules, guidance.sites_at(self.model.guidance_level))

    def attach(self, probes: Sequence[Probe] = (), edits: Sequence[Edit] = ()) -> AbstractContextManager[Attention]:
        """Probes and edits on the batch's network."""
        return attach(self.modules, probes, edits, self.model.network)


def guide_maps(run: GuideRun, guidance: Guidance, inputs: Tensor, step: Step, rows: Sequence[int]) -> AttentionMaps:
    """One conditional pass with gradients that stops after the last site the guidance reads."""
    context = pass_context(step, "guide", rows, ("cond",))
    with torch.enable_grad():
        maps = read_maps(run, guidance, inputs, context, run.conditioning, run.probes, run.edits.get(guidance, ()))
    return maps if run.beside is None else replace(maps, source=run.beside.select(rows))


def read_maps(
    run: GuideRun,
    guidance: Guidance,
    inputs: Tensor,
    context: PassContext,
    states: Conditioning,
    probes: Sequence[Probe] = (),
    edits: Sequence[Edit] = (),
) -> AttentionMaps:
    """One pass of one branch, and what the guidance reads of it."""
    sites = run.sites_of(guidance)
    features = () if guidance.features is None else select(run.modules, guidance.features)
    recorder, wanted = Recorder(), frozenset((*sites, *features))
    own = [Probe("probs", recorder, SiteSelector(where=wanted.__contains__), frozenset({context.kind}))]
    if features:
        own.append(Probe("output", recorder, SiteSelector("feature", where=wanted.__contains__), frozenset({context.kind})))
    until = [*sites, *features]
    with run.attach([*own, *probes], edits) as attention, attention.during(context, until):
        run.model.predict(inputs, context.step, states.for_pass(context), until=until)
    run.ledger.forward(context.rows)
    found = recorder.tensors
    return AttentionMaps(
        {site: found[site] for site in sites},
        {site: found[site].to(torch.promote_types(found[site].dtype, torch.float32)) for site in features},
    )
