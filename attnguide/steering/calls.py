"""One call of the network by a pipeline: its arguments, the rows and branches of its batch, and parts of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnguide.models.base import Conditioning
from attnguide.steering.errors import SteerError
from attnguide.steering.forms import CallForm, Packing
from attnguide.types import Branch, PassContext


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the network by a pipeline.

    Attributes:
        arguments: Arguments by name.
        form: How the family calls its network.
        packing: Conversion between the call's latents and ``batch channels height width``.
        rows: Number of pictures.
        branches: Branches in batch order, each a block of ``rows`` elements.
    """

    arguments: Mapping[str, Any]
    form: CallForm
    packing: Packing
    rows: int
    branches: tuple[Branch, ...]

    @property
    def batch(self) -> int:
        """Number of batch elements."""
        return self.rows * len(self.branches)

    @property
    def states(self) -> Tensor:
        """Text states, ``batch tokens channels``."""
        found: Tensor = self.arguments[self.form.states]
        return found

    @property
    def time(self) -> tuple[float, float]:
        """The scheduler's timestep recovered from the call's argument, and its tolerance (rounding of the dtype)."""
        given = torch.as_tensor(self.arguments[self.form.timestep]).flatten()[0]
        scale = abs(self.form.time_scale)
        coarse = torch.finfo(given.dtype).eps if given.dtype.is_floating_point else 0.0
        offset = self.form.time_offset
        exact = max(coarse, 1e-6) * max(abs(float(given)), abs(offset), scale) / scale
        return (float(given) - offset) / self.form.time_scale, exact

    def block(self, branch: Branch) -> slice:
        """Batch positions of a branch."""
        at = self.branches.index(branch) * self.rows
        return slice(at, at + self.rows)

    def inputs(self, branch: Branch = "cond") -> Tensor:
        """Network input of a branch, ``rows channels height width``."""
        return self.packing.unpack(self.arguments[self.form.latents][self.block(branch)])

    def position(self, row: int, branch: Branch) -> int:
        """Batch element of the call that a pass repeats for this row and branch; further branches repeat ``cond``."""
        block = self.branches.index(branch if branch in self.branches else "cond")
        return block * self.rows + row

    def texts(self, first: Branch = "cond") -> Conditioning:
        """Text states of both CFG halves that this call has, for all rows; of one half alone if ``first`` is not ``cond``."""

        def halves(value: Tensor) -> tuple[Tensor, Tensor | None]:
            second = first == "cond" and "uncond" in self.branches
            return value[self.block(first)], value[self.block("uncond")] if second else None

        extra = {name: found for name, path in self.form.extra.items() if (found := _at(self.arguments, path)) is not None}
        return Conditioning(*halves(self.states), {name: halves(value) for name, value in extra.items()})

    def with_texts(self, texts: Conditioning) -> Call:
        """A copy of the call with other text states in the halves that it has."""
        halves = {"cond": texts.half(uncond=False)}
        if texts.uncond is not None:
            halves["uncond"] = texts.half(uncond=True)
        parts = [halves["uncond" if "uncond" in branch else "cond"] for branch in self.branches]
        changed = {self.form.states: torch.cat([part.cond for part in parts]).to(self.states.dtype)}
        arguments = {**self.arguments, **changed}
        for name in texts.extra:
            value = torch.cat([part.extra[name][0] for part in parts])
            arguments = _replaced(arguments, self.form.extra[name], value)
        return replace(self, arguments=arguments)

    def with_inputs(self, latents: Tensor) -> Call:
        """A copy of the call with another network input, ``batch channels height width``."""
        name = self.form.latents
        return replace(self, arguments={**self.arguments, name: self.packing.pack(latents, self.arguments[name])})

    def part(self, positions: Sequence[int]) -> dict[str, Any]:
        """Arguments of the call for some batch elements, which may repeat and be in any order."""
        if list(positions) == list(range(self.batch)):
            return dict(self.arguments)
        taken: dict[str, Any] = taken_rows(self.arguments, list(positions), self.batch, self.form.whole)
        return taken


def taken_rows(value: Any, positions: list[int], batch: int, whole: frozenset[str], path: str = "") -> Any:
    """Index the batch axis of every tensor in a nested argument.

    Args:
        value: A tensor, or tensors in mappings and lists; everything else is left as it is.
        positions: Batch elements to take.
        batch: Number of batch elements; tensors with another first axis are left as they are.
        whole: Paths of values without a batch axis.
        path: Path of ``value``, names joined by dots.
    """
    if path in whole:
        return value
    if isinstance(value, Tensor):
        return value[positions] if value.ndim and len(value) == batch else value
    if isinstance(value, Mapping):
        before = f"{path}." if path else ""
        return {key: taken_rows(item, positions, batch, whole, f"{before}{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        found = [taken_rows(item, positions, batch, whole, path) for item in value]
        return found if isinstance(value, list) else tuple(found)
    return value


def put_texts(arguments: dict[str, Any], form: CallForm, places: Sequence[int], texts: Conditioning) -> dict[str, Any]:
    """Arguments with text states replaced at some batch elements.

    Args:
        arguments: Arguments of a call.
        form: How the family calls its network.
        places: Batch elements.
        texts: Text states for each of ``places``, held in ``cond``.

    Raises:
        SteerError: If the lengths differ and there is no mask for padding.
    """
    length = max(arguments[form.states].shape[1], texts.cond.shape[1])
    masked = any(value.dtype == torch.bool for value, _ in texts.extra.values())
    if arguments[form.states].shape[1] != texts.cond.shape[1] and not masked:
        raise SteerError(
            f"A text of {texts.cond.shape[1]} tokens cannot share a pass with those of the pipeline, which have "
            f"{arguments[form.states].shape[1]}: there is no mask for padding."
        )

    def put(value: Tensor, new: Tensor) -> Tensor:
        value, new = _filled(value, length), _filled(new.to(value), length)
        value[list(places)] = new
        return value

    arguments = {**arguments, form.states: put(arguments[form.states], texts.cond)}
    for name, (states, _) in texts.extra.items():
        path = form.extra.get(name)
        value = None if path is None else _at(arguments, path)
        if path is not None and value is not None:
            arguments = _replaced(
                arguments, path, put(value, states) if value.dtype == torch.bool else _set(value, places, states)
            )
    return arguments


def _set(value: Tensor, places: Sequence[int], new: Tensor) -> Tensor:
    value = value.clone()
    value[list(places)] = new.to(value)
    return value


def _filled(value: Tensor, length: int) -> Tensor:
    """A copy of ``batch tokens ...``, padded with zeros to ``length`` tokens."""
    return torch.cat([value, value.new_zeros(len(value), length - value.shape[1], *value.shape[2:])], 1)


def _at(arguments: Mapping[str, Any], path: Sequence[str]) -> Tensor | None:
    found: Any = arguments
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Tensor) else None


def _replaced(arguments: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {**arguments, first: _replaced(arguments[first], rest, value) if rest else value}


def part_positions(call: Call, context: PassContext) -> list[int]:
    """Batch element of the pipeline's call that each element of a pass repeats."""
    return [call.position(row, branch) for row, branch in zip(context.rows, context.branches, strict=True)]


def check_halves(call: Call, cond: Tensor, uncond: Tensor | None) -> str | None:
    """Compare the conditional block of a call's batch with the text states that the pipeline encoded.

    Args:
        call: Network call, with the branches expected of its pipeline.
        cond: Encoded text states of all rows.
        uncond: Encoded text states of the negative prompts.

    Returns:
        A remark if the conditional text states are not those that were encoded; else ``None``.

    Raises:
        SteerError: If the unconditional text states stand in the conditional block.
    """
    if "cond" not in call.branches:
        return None
    found = call.states[call.block("cond")]

    def same(texts: Tensor | None) -> bool:
        return texts is not None and texts.shape == found.shape and torch.equal(texts.to(found), found)

    if same(cond):
        return None
    if same(uncond):
        raise SteerError("The network's batch cannot be read: its unconditional half stands where the conditional one should.")
    return "the text states are not those that the pipeline encoded; the halves of a batch are told by their order"
