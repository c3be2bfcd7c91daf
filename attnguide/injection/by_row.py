"""An injection restricted to some rows of a batch, so that rows with different methods can share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site
from attnguide.injection.base import Injection, LatentsEdit
from attnguide.prompt.targets import Targets
from attnguide.schedules import Window
from attnguide.types import PassContext, Step


class ForRows(Injection):
    """An injection restricted to some rows of a batch; other rows are unchanged.

    The injection gets targets, passes and latents of its rows alone, renumbered from 0.

    Args:
        injection: Injection made for these rows: per-row options have one value for each of them.
        rows: Numbers of the rows in the batch, in the injection's order.

    Raises:
        ValueError: If the injection is more than edits (:attr:`~attnguide.injection.base.Injection.mixes`), or a row is named
            twice.
    """

    def __init__(self, injection: Injection, rows: Sequence[int]) -> None:
        if not injection.mixes:
            raise ValueError(
                f"injection must do nothing but make edits to be given some rows of a batch; got {injection.name!r}."
            )
        if len(set(rows)) != len(rows):
            raise ValueError(f"rows must differ; got {list(rows)}.")
        self.injection, self.rows = injection, tuple(rows)
        self.name, self.needs_regions = injection.name, injection.needs_regions
        self.window: Window | None = getattr(injection, "window", None)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        alone = replace(targets.select(self.rows), rows=tuple(range(len(self.rows))))
        seen = Part(self.rows)
        return [
            (_LatentsEditForRows if isinstance(edit, LatentsEdit) else _EditForRows)(edit, seen)
            for edit in self.injection.edits(alone)
        ]


class Part:
    """Positions of a subset of rows in a pass's batch, and the pass context restricted to them."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = list(rows)
        self._numbers = {row: number for number, row in enumerate(rows)}
        self._latest: tuple[PassContext, list[int], PassContext] | None = None

    def of(self, context: PassContext) -> tuple[list[int], PassContext]:
        """Batch positions of the rows, and the context restricted to them.

        The context is the same object throughout a pass, since some edits tell passes apart by identity.
        """
        if self._latest is None or self._latest[0] is not context:
            positions = [position for position, row in enumerate(context.rows) if row in self._numbers]
            rows = tuple(self._numbers[context.rows[position]] for position in positions)
            branches = tuple(context.branches[position] for position in positions)
            self._latest = context, positions, replace(context, rows=rows, branches=branches)
        return self._latest[1:]


class _EditForRows(Edit):
    """An edit that sees and changes only the batch elements of some rows."""

    def __init__(self, edit: Edit, part: Part) -> None:
        self.edit, self.part = edit, part
        self.sites, self.stages, self.remembers = edit.sites, edit.stages, edit.remembers
        self.guides, self.whole_text, self.across_halves = edit.guides, edit.whole_text, edit.across_halves

    def active(self, context: PassContext) -> bool:
        positions, own = self.part.of(context)
        return bool(positions) and self.edit.active(own)

    def touches(self, context: PassContext) -> Sequence[int] | None:
        positions, own = self.part.of(context)
        touched = self.edit.touches(own)
        return positions if touched is None else [positions[number] for number in touched]

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        at, own = self.part.of(context)
        found = self.edit.qkv(query[at], key[at], value[at], site, own)
        return _put(query, at, found[0]), _put(key, at, found[1]), _put(value, at, found[2])

    def mask(self, site: Site, queries: int, keys: int, context: PassContext, device: torch.device) -> Tensor | None:
        at, own = self.part.of(context)
        allowed = self.edit.mask(site, queries, keys, own, device)
        if allowed is None or len(at) == len(context.rows):
            return allowed
        return _among(allowed, at, len(context.rows), 1)

    def gain(self, site: Site, context: PassContext, device: torch.device) -> Tensor | None:
        at, own = self.part.of(context)
        factor = self.edit.gain(site, own, device)
        return None if factor is None else _among(factor, at, len(context.rows), 1)

    def blend(
        self, site: Site, queries: int, keys: int, context: PassContext, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        at, own = self.part.of(context)
        found = self.edit.blend(site, queries, keys, own, device)
        return (
            None if found is None else (_among(found[0], at, len(context.rows), 0), _among(found[1], at, len(context.rows), 1))
        )

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        at, own = self.part.of(context)
        return _put(scores, at, self.edit.scores(scores[at], site, own))

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        at, own = self.part.of(context)
        return _put(probs, at, self.edit.probs(probs[at], site, own))

    def output(self, output: Tensor, site: Site, context: PassContext) -> Tensor:
        at, own = self.part.of(context)
        return _put(output, at, self.edit.output(output[at], site, own))


class _LatentsEditForRows(_EditForRows, LatentsEdit):
    """A latents edit that sees and changes only some rows."""

    edit: LatentsEdit

    def after_step(self, latents: Tensor, source: Tensor | None, step: Step) -> Tensor:
        rows = self.part.rows
        return _put(latents, rows, self.edit.after_step(latents[rows], None if source is None else source[rows], step))


def _put(values: Tensor, positions: list[int], part: Tensor) -> Tensor:
    """A copy of ``values`` with some batch elements replaced."""
    changed = values.clone()
    changed[positions] = part.to(values)
    return changed


def _among(part: Tensor, positions: list[int], count: int, filling: int) -> Tensor:
    """A tensor of ``count`` batch elements: ``part`` at ``positions``, and ``filling`` elsewhere."""
    every = torch.full((count, *part.shape[1:]), filling, dtype=part.dtype, device=part.device)
    return every.index_copy(0, torch.tensor(positions, device=part.device), part.expand(len(positions), *part.shape[1:]))
