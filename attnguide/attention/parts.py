"""Passes that a network runs in several forwards, as its rows have texts of different lengths that cannot be padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnguide.attention.capture import EXPLICIT, Probe, Quantity
from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site
from attnguide.attention.visitors import Visitors
from attnguide.types import Branch, PassContext

_part: ContextVar[tuple[int, ...] | None] = ContextVar("part of a pass", default=None)


@contextmanager
def part_of_pass(elements: Sequence[int] | None) -> Iterator[None]:
    """Declare that the enclosed forward runs these batch elements of the pass; all of them when ``None``.

    Edits see the elements as a batch of their own; probes get the whole batch once the pass has ended.
    """
    token = _part.set(None if elements is None else tuple(elements))
    try:
        yield
    finally:
        _part.reset(token)


def current_part() -> tuple[int, ...] | None:
    """Batch elements of the pass that the running forward computes; all of them when ``None``."""
    return _part.get()


class Parts:
    """Contexts of the parts of one pass, and tensors that probes are owed."""

    def __init__(self) -> None:
        self._contexts: dict[tuple[int, ...], PassContext] = {}
        self._read: dict[tuple[int, Site], tuple[Probe, PassContext, list[tuple[tuple[int, ...], Tensor]]]] = {}

    def of(self, visitors: Visitors, elements: tuple[int, ...]) -> Visitors:
        """A site's edits for a part of the pass, and probes that collect until :meth:`show`.

        Raises:
            ValueError: If an edit must see the whole pass at once.
        """
        whole = visitors.context
        for edit in visitors.edits:
            if not _together(edit, whole, frozenset(elements)):
                raise ValueError(
                    f"{_name(edit)} compares elements of a pass, but this network reads texts of different lengths in "
                    "passes of their own; use prompts of as many tokens, or another method."
                )
        if elements not in self._contexts:
            rows = tuple(whole.rows[element] for element in elements)
            branches = tuple(whole.branches[element] for element in elements)
            self._contexts[elements] = replace(whole, rows=rows, branches=branches)
        probes = [self._collecting(probe, whole, elements) for probe in visitors.probes]
        return replace(visitors, context=self._contexts[elements], probes=probes)

    def _collecting(self, probe: Probe, whole: PassContext, elements: tuple[int, ...]) -> Probe:
        def collect(site: Site, tensor: Tensor, context: PassContext) -> None:
            self._read.setdefault((id(probe), site), (probe, whole, []))[2].append((elements, tensor))

        return replace(probe, record=collect)

    def show(self) -> None:
        """Give the probes the tensors of all parts, joined in the batch order of the pass."""
        for (_, site), (probe, whole, found) in self._read.items():
            order = torch.tensor([element for elements, _ in found for element in elements])
            tensors = _alike(probe.quantity, [tensor for _, tensor in found])
            probe.record(site, torch.cat(tensors)[order.argsort().to(tensors[0].device)], whole)
        self._read.clear()


def _name(edit: Edit) -> str:
    """Class name of the innermost edit, behind edits that wrap it."""
    while isinstance(inner := getattr(edit, "edit", None), Edit):
        edit = inner
    return type(edit).__name__


def _together(edit: Edit, whole: PassContext, part: frozenset[int]) -> bool:
    """Whether a part of a pass holds all batch elements that an edit compares, or none of them.

    Edits compare a row with its source in the same CFG half; edits that :attr:`~Edit.remembers` the conditional half of all
    rows, edits ``across_halves`` the whole pass.
    """
    pairs = [pair for reader, read in _READERS for pair in zip(*whole.paired(reader, read), strict=True)]
    groups = [set(pair) for pair in pairs]
    if edit.remembers:
        groups.append(set(whole.positions("cond")))
    if edit.across_halves:
        groups.append(set(range(len(whole.rows))))
    return all(group <= part or not group & part for group in groups)


_READERS: tuple[tuple[Branch, Branch], ...] = (("cond", "source"), ("uncond", "source_uncond"))
"""Branches whose edits read another branch, and that branch."""


def _alike(quantity: Quantity, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors padded to the longest key axis, scores with minus infinity and all other quantities with 0."""
    if quantity not in (*EXPLICIT, "key", "value"):
        return list(tensors)
    axis = 3 if quantity in EXPLICIT else 2
    longest = max(tensor.shape[axis] for tensor in tensors)
    behind = (0, 0) * (3 - axis)
    value = float("-inf") if quantity == "scores" else 0.0
    return [pad(tensor, (*behind, 0, longest - tensor.shape[axis]), value=value) for tensor in tensors]
