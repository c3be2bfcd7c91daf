"""The fused step: one conditional pass gives the noise prediction and a guidance's gradient.

A guidance that acts on the prediction reads maps at the same latents as the denoising pass, so its guide pass is the beginning
of the conditional pass. Run once, with a graph up to the last site that is read, a guided step under classifier-free guidance
costs two forwards and one backward from that site, without the partial third forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.engine.guide import as_shift, descend, tell
from attnguide.engine.reading import Reader
from attnguide.guidance.base import Guidance
from attnguide.guidance.update import Round
from attnguide.injection.base import Injection
from attnguide.types import PassContext, Step


def fused_guidance(guidances: Sequence[Guidance], injections: Sequence[Injection]) -> Guidance | None:
    """The first guidance of a batch whose update may be fused with the conditional denoising pass; ``None`` for no fusing.

    Nothing is fused where a method reads further branches, corrects the prediction or remembers earlier passes, as it must see
    all branches in one pass.
    """
    apart = any(guidance.remembers or guidance.source is not None for guidance in guidances)
    if apart or not all(injection.mixes for injection in injections):
        return None
    return next((guidance for guidance in guidances if guidance.update.fused), None)


@dataclass(frozen=True, eq=False)
class FusedPass:
    """Results of a fused pass.

    Attributes:
        answer: Prediction of the conditional half for all rows, ``batch channels height width``.
        shift: The guidance's term added to the predicted noise, of the same shape.
    """

    answer: Tensor
    shift: Tensor


def fused_pass(reader: Reader, probes: Sequence[Probe], edits: Sequence[Edit], latents: Tensor, step: Step) -> FusedPass:
    """Evaluate the conditional half with a graph, and differentiate the guidance's loss.

    Where edits act in the pass, the loss reads each site's probs before that site's edits; edits at earlier sites are included,
    also in the gradient.

    Args:
        reader: The guidance on its batch.
        probes: Observers' probes of denoising passes.
        edits: Edits of all methods.
        latents: Latents of all rows, ``batch channels height width``, in the scheduler's scale.
        step: Evaluation of the schedule, at which the guidance acts.
    """
    batch, rows = reader.batch, list(reader.batch.alive)
    context = pass_context(step, "denoise", range(len(batch.samples)), ("cond",))
    recorder = _UntilLast(reader.until)
    unlike = any(not edit.guides for edit in edits)  # edits that would not act in a guide pass
    own = reader.probes(recorder, context, "original_probs" if unlike else "probs")
    leaf = reader.inputs(latents, step, rows)
    with batch.model.frozen(), torch.enable_grad():
        inputs = batch.scheduler.scale_model_input(latents, step).index_copy(0, torch.tensor(rows, device=leaf.device), leaf)
        with batch.attach([*own, *map(_detached, probes)], edits) as attention, attention.during(context):
            answer = batch.model.predict(inputs, step, batch.branches.for_pass(context))
        assert answer is not None
        batch.ledger.forward(context.rows)
        torch.set_grad_enabled(True)  # the recorder has switched gradients off behind the last site
        maps = reader.recorded(recorder, context.rows).select(rows)
        found = descend(reader, maps, leaf, step, rows, Round())
    tell(reader, found, step, iteration=0)
    return FusedPass(answer.detach(), as_shift(found, latents, step))


class _UntilLast(Recorder):
    """A recorder that switches gradients off behind the last site that is read, which saves memory for the rest of the pass."""

    def __init__(self, wanted: Sequence[Site]) -> None:
        super().__init__()
        self._wanted, self._ended = frozenset(wanted), False

    def __call__(self, site: Site, tensor: Tensor, context: PassContext) -> None:
        super().__call__(site, tensor, context)
        if not self._ended and self._wanted <= self.tensors.keys():
            self._ended = True  # once only: a block recomputed by gradient checkpointing needs its whole graph
            torch.set_grad_enabled(False)


def _detached(probe: Probe) -> Probe:
    """A probe that gets detached tensors, as in every other denoising pass."""

    def record(site: Site, tensor: Tensor, context: PassContext) -> None:
        probe.record(site, tensor.detach(), context)

    return replace(probe, record=record)
