"""What a comparison is, and how far two tensors are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from attnguide.types import Box


@dataclass(frozen=True)
class Comparison:
    """Published code beside attnguide's in one case.

    Attributes:
        case: Which.
        value: Largest difference of the loss or of the edited attention, over the largest published value.
        gradient: Likewise of the gradient; ``None`` where nothing is differentiated.
    """

    case: str
    value: float
    gradient: float | None = None


Masks = Callable[[Path, Sequence[Box]], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Reference:
    """A method of attnguide and the code that was published with its paper.

    Attributes:
        method: Name of the method.
        repository: Of the code on GitHub, ``owner/name``.
        compare: From the folder of its clone to comparisons; may raise :class:`~references.foreign.NotFoundError`.
        masks: From the folder of its clone and boxes to pairs of masks, published and attnguide's; ``None`` where the method
            draws none.
        packages: Module -> name to install it by, of what the published code cannot do without.
    """

    method: str
    repository: str
    compare: Callable[[Path], Iterable[Comparison]]
    masks: Masks | None = None
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """What ``git clone`` calls it."""
        return self.repository.split("/")[1]


def compared(case: str, theirs: Tensor, ours: Tensor, leaves: Iterable[Tensor] = ()) -> Comparison:
    """Compare values, and gradients of their sum with fixed random weights.

    Args:
        case: Name of the comparison.
        theirs: Published loss or edited attention.
        ours: Of as many elements.
        leaves: What both were computed from; nothing is differentiated where there are none.
    """
    leaves, ours = list(leaves), ours.reshape(theirs.shape).to(theirs)
    value = _apart([theirs.detach()], [ours.detach()])
    if not leaves:
        return Comparison(case, value)
    weights = torch.rand(theirs.shape, generator=torch.Generator().manual_seed(0), dtype=theirs.dtype) + 0.5
    pairs = [
        torch.autograd.grad((found * weights).sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        for found in (theirs, ours)
    ]
    return Comparison(case, value, _apart(*pairs))


def _apart(theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> float:
    """Largest difference over the largest of ``theirs``; NaN if there is one anywhere."""
    differences = torch.stack([(one - other).abs().max() for one, other in zip(theirs, ours, strict=True)])
    size = torch.stack([one.abs().max() for one in theirs]).max().clamp_min(1e-12)
    return float(differences.max() / size)
