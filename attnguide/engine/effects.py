"""Whether each method changed each row, to report methods without effect, before the run and after it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site
from attnguide.guidance.base import Guidance
from attnguide.guidance.per_row import EachRow
from attnguide.injection.base import Injection, LatentsEdit
from attnguide.models.base import Conditioning
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window, position
from attnguide.types import PassContext, Sample, Step

Method = Guidance | Injection

NOTHING = 1e-6
"""Relative length of a move of latents up to which it counts as none; rounding makes such moves out of a zero loss."""


@dataclass
class _Row:
    """Effects of one method on one row."""

    acted: bool = False
    asked: bool = False
    judged: bool = False
    largest_loss: float = 0.0


class Effects:
    """Records for every method and row of a batch whether anything changed.

    Args:
        methods: Guidances and injections. Rows get no note on injections that they do not name: those were handed to the
            sampler and may be meant for other rows.
        samples: All rows of the batch.
        targets: Words and places of the rows.
        steps: Steps of the scheduler.
    """

    def __init__(self, methods: Sequence[Method], samples: Sequence[Sample], targets: Targets, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._named = [{config.name for config in sample.methods} for sample in samples]
        self._rows = {method: {row: _Row() for row in _wanted(method, targets)} for method in methods}
        self._edits: set[Method] = {method for method in methods if isinstance(method, Injection)}

    def watched(self, method: Method, edits: Sequence[Edit]) -> list[Edit]:
        """A method's edits, wrapped to record whether they change anything; a row is compared until its first change."""
        rows = self._rows[method]
        self._edits |= {method} if edits else set()
        return [(_WatchedLatents if isinstance(edit, LatentsEdit) else _Watched)(edit, rows) for edit in edits]

    def changed(self, method: Method, before: Tensor | None, after: Tensor | None) -> None:
        """Compare a method's input and output ``batch ...`` for every row."""
        if before is None or after is None or before is after:
            return
        same_shape = before.shape == after.shape
        for row, known in self._rows[method].items():
            known.acted = known.acted or not same_shape or not torch.equal(before[row], after[row])

    def conditioned(self, method: Method, before: Conditioning, after: Conditioning) -> None:
        """Compare the text states of every row before and after a method changed them."""
        self.changed(method, before.cond, after.cond)
        self.changed(method, before.uncond, after.uncond)

    def judged(
        self, guidance: Guidance, rows: Sequence[int], losses: Sequence[float], moving: Sequence[bool], shares: Sequence[float]
    ) -> None:
        """Record one guide pass.

        Args:
            guidance: The guidance.
            rows: Rows whose loss was evaluated.
            losses: Loss of each row.
            moving: Whether the row asked for an update and got one.
            shares: Norm of each row's move over the norm of its latents.
        """
        for row, loss, moves, share in zip(rows, losses, moving, shares, strict=True):
            if (known := self._rows[guidance].get(row)) is not None:
                known.judged, known.asked = True, known.asked or moves
                known.largest_loss = max(known.largest_loss, abs(loss))
                known.acted = known.acted or share > NOTHING

    def note(self, row: int) -> str | None:
        """A row's methods without effect, each with the reason; ``None`` if there is none."""
        meant = [
            (method, rows[row])
            for method, rows in self._rows.items()
            if row in rows and (isinstance(method, Guidance) or method.name in self._named[row])
        ]
        found = [(method.name, self._reason(method, known)) for method, known in meant]
        return "; ".join(f"{name} did nothing ({reason})" for name, reason in found if reason) or None

    def _reason(self, method: Method, known: _Row) -> str | None:
        if known.acted or _acts_unseen(method):
            return None
        window = getattr(method, "window", None)
        chosen = isinstance(window, Window) and window.unit == "progress" and window.start == window.stop
        if isinstance(window, Window) and not chosen and not any(window.active(step) for step in self._steps):
            return "no step is in its window"
        if known.judged:
            if known.largest_loss < NOTHING:
                return "its loss is 0 at every step"
            return "its gradient is 0 at every step" if known.asked else None  # else no update was needed
        # A guidance that steers by edits alone (stable) has no window of its own.
        silent = method in self._edits and (isinstance(method, Guidance) or not chosen)
        return "it changed no attention" if silent else None


def _wanted(method: Method, targets: Targets) -> list[int]:
    """Rows that a method should act on: its own rows, with a scale other than 0 and regions not all of weight 0."""
    inner = getattr(method, "injection", method)
    rows = list(getattr(method, "rows", range(len(targets.regions))))
    scale: Any = inner.update.scale if isinstance(inner, Guidance) else getattr(inner, "scale", 1.0)
    scales = EachRow(1.0 if scale is None else scale, "scale").at(range(len(rows)), targets.weights).tolist()
    counts = [not regions or any(region.weight != 0 for region in regions) for regions in targets.regions]
    return [row for row, strength in zip(rows, scales, strict=True) if strength != 0 and counts[row]]


def _acts_unseen(method: Method) -> bool:
    """Whether a method acts through further branches or the prediction, which are not compared."""
    hooks = ("branches", "negative_prompts", "unconditional", "correct")
    return isinstance(method, Injection) and any(getattr(type(method), hook) is not getattr(Injection, hook) for hook in hooks)


class _Watched(Edit):
    """An edit, wrapped to record which rows it changed."""

    def __init__(self, edit: Edit, rows: dict[int, _Row]) -> None:
        self.edit = edit
        self.sites, self.stages, self.remembers = edit.sites, edit.stages, edit.remembers
        self.guides, self.whole_text, self.across_halves = edit.guides, edit.whole_text, edit.across_halves
        self._unseen = {row: known for row, known in rows.items() if not known.acted}

    def active(self, context: PassContext) -> bool:
        return self.edit.active(context)

    def touches(self, context: PassContext) -> Sequence[int] | None:
        return self.edit.touches(context)

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        found = self.edit.qkv(query, key, value, site, context)
        for before, after in zip((query, key, value), found, strict=True):
            self._look(before, after, context.rows)
        return found

    def mask(self, site: Site, queries: int, keys: int, context: PassContext, device: torch.device) -> Tensor | None:
        allowed = self.edit.mask(site, queries, keys, context, device)
        if allowed is not None:
            whole = allowed.expand(len(context.rows), *allowed.shape[1:])
            self._look(torch.ones_like(whole), whole, context.rows)
        return allowed

    def gain(self, site: Site, context: PassContext, device: torch.device) -> Tensor | None:
        factor = self.edit.gain(site, context, device)
        if factor is not None:
            self._look(torch.ones_like(factor), factor, context.rows)
        return factor

    def blend(
        self, site: Site, queries: int, keys: int, context: PassContext, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        return self.edit.blend(site, queries, keys, context, device)

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        return self._look(scores, self.edit.scores(scores, site, context), context.rows)

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        return self._look(probs, self.edit.probs(probs, site, context), context.rows)

    def output(self, output: Tensor, site: Site, context: PassContext) -> Tensor:
        return self._look(output, self.edit.output(output, site, context), context.rows)

    def _look(self, before: Tensor, after: Tensor, rows: Sequence[int]) -> Tensor:
        if self._unseen and after is not before:
            for position, row in enumerate(rows):
                if row in self._unseen and not torch.equal(before[position], after[position]):
                    self._unseen.pop(row).acted = True
        return after


class _WatchedLatents(_Watched, LatentsEdit):
    """Watches an edit that also changes latents."""

    edit: LatentsEdit

    def after_step(self, latents: Tensor, source: Tensor | None, step: Step) -> Tensor:
        return self._look(latents, self.edit.after_step(latents, source, step), range(len(latents)))


_UNITS = {"progress": "progress", "timestep": "timestep / 1000", "sigma": "sigma"}


def warn_of_idle(methods: Sequence[Method], steps: Sequence[Step]) -> None:
    """Warn of methods whose window contains no step; few steps may miss a window in timesteps or sigma.

    A progress window with ``start == stop`` is a choice and no reason to warn.

    Args:
        methods: Methods of one batch.
        steps: Steps of its scheduler.
    """
    for method in methods:
        window = getattr(method, "window", None)
        if not isinstance(window, Window) or any(window.active(step) for step in steps):
            continue
        if window.unit == "progress" and window.start == window.stop:
            continue
        reached = ", ".join(f"{position(step, window.unit):.3g}" for step in steps)
        warnings.warn(
            f"Method {method.name!r} does nothing: its window, start {window.start:g} and stop {window.stop:g} in "
            f"{_UNITS[window.unit]}, holds none of the {len(steps)} steps, which lie at {reached}. Widen the window "
            "or take more steps.",
            stacklevel=2,
        )
