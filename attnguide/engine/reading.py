"""Guide passes: the network run on some rows up to the last site that a guidance reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attnguide.attention.capture import Probe, Quantity, Recorder
from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector, select
from attnguide.engine.batch import Batch
from attnguide.engine.cfg import pass_context
from attnguide.guidance.base import Guidance
from attnguide.types import PassContext, Step


class Reader:
    """Makes the guide passes of one guidance on a batch's network.

    Args:
        batch: The rows.
        guidance: The guidance that reads maps.
        edits: Edits that act in guide passes, the guidance's own included.
        probes: Observers' probes of guide passes.

    Raises:
        ValueError: If the guidance's selector matches no site of the network.
    """

    def __init__(self, batch: Batch, guidance: Guidance, edits: Sequence[Edit] = (), probes: Sequence[Probe] = ()) -> None:
        self.batch, self.guidance, self.level = batch, guidance, batch.model.guidance_level
        self._edits, self._probes = edits, probes
        self._sites = select(batch.modules, guidance.sites_at(self.level))
        self._features = () if guidance.features is None else select(batch.modules, guidance.features)

    def inputs(self, latents: Tensor, step: Step, rows: Sequence[int]) -> Tensor:
        """Scaled network input of some rows as a leaf that requires a gradient, ``rows channels height width``."""
        scaled = self.batch.scheduler.scale_model_input(latents, step)
        return scaled[list(rows)].detach().requires_grad_(True)

    def maps(self, inputs: Tensor, step: Step, rows: Sequence[int], source: AttentionMaps | None = None) -> AttentionMaps:
        """Attention maps of the conditional half; if ``inputs`` require a gradient, with a graph, and observers' probes act.

        Args:
            inputs: Scaled network input of ``rows``.
            step: Evaluation of the schedule.
            rows: Rows of the batch.
            source: Maps of all rows' sources at this step.
        """
        context = pass_context(step, "guide", rows, ("cond",))
        with torch.set_grad_enabled(inputs.requires_grad):
            maps = self._read(inputs, context, self._probes if inputs.requires_grad else (), self._edits)
        return maps if source is None else replace(maps, source=source.select(rows))

    def source_maps(self, latents: Tensor, step: Step) -> AttentionMaps | None:
        """Attention maps of all rows' sources, without graph; ``None`` if the guidance reads no source."""
        if self.guidance.source is None:
            return None
        branches, scheduler = self.batch.branches, self.batch.scheduler
        inputs = branches.latents("source", scheduler.scale_model_input(latents, step))
        return self._read(inputs, pass_context(step, "source", range(branches.rows), ("source",)))

    def probes(self, recorder: Recorder, context: PassContext, quantity: Quantity = "probs") -> list[Probe]:
        """Probes for passes of the context's kind that record ``quantity`` at the guidance's sites, and its features."""
        wanted, kinds = frozenset((*self._sites, *self._features)), frozenset({context.kind})
        own = [Probe(quantity, recorder, SiteSelector(where=wanted.__contains__), kinds, branch=None)]
        if self._features:
            own.append(Probe("output", recorder, SiteSelector("feature", where=wanted.__contains__), kinds, branch=None))
        return own

    def recorded(self, recorder: Recorder, rows: Sequence[int]) -> AttentionMaps:
        """Maps from the tensors that :meth:`probes` recorded for these rows; features in float32 or wider."""
        found = recorder.tensors
        return AttentionMaps(
            {site: found[site] for site in self._sites},
            {site: found[site].to(torch.promote_types(found[site].dtype, torch.float32)) for site in self._features},
            own=self.batch.targets.own_keys(rows),
        )

    @property
    def until(self) -> list[Site]:
        """Sites after which a guide pass may stop."""
        return [*self._sites, *self._features]

    def _read(
        self, inputs: Tensor, context: PassContext, probes: Sequence[Probe] = (), edits: Sequence[Edit] = ()
    ) -> AttentionMaps:
        batch, recorder = self.batch, Recorder()
        states = batch.branches.for_pass(context)
        with batch.attach([*self.probes(recorder, context), *probes], edits) as attention:
            with attention.during(context, self.until):
                batch.model.predict(inputs, context.step, states, until=self.until)
        batch.ledger.forward(context.rows)
        return self.recorded(recorder, context.rows)
