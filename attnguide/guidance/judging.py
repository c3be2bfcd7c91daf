"""Checks of a loss: one number per row, with a gradient to the latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnguide.guidance.base import LossOutput


def check_output(name: str, output: Any, rows: int) -> None:
    """Refuse a loss's result that has not one value per row.

    Args:
        name: Name of the guidance.
        output: Result of its ``loss``.
        rows: Number of rows of the guide pass.

    Raises:
        TypeError: If it is no :class:`~attnguide.guidance.base.LossOutput` of tensors.
        ValueError: If a part of it has another shape.
    """
    if not isinstance(output, LossOutput):
        raise TypeError(f"Method {name!r}: loss() must return a LossOutput; got {type(output).__name__}.")
    for part in ("loss", "indicator", "refining", "refined"):
        check_values(name, part, getattr(output, part), rows, optional=part[0] == "r")


def check_values(name: str, part: str, values: Any, rows: int, *, optional: bool = False) -> None:
    """Refuse values that are not a tensor with one number per row.

    Args:
        name: Name of the guidance.
        part: Name of the values, for errors.
        values: One per row.
        rows: Number of rows.
        optional: Whether ``None`` will do.

    Raises:
        TypeError: If they are no tensor of real numbers.
        ValueError: If they have another shape than ``(rows,)``.
    """
    if values is None and optional:
        return
    if not isinstance(values, Tensor) or values.is_complex():
        got = "complex numbers" if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"Method {name!r}: its {part} must be a tensor of one number per row; got {got}.")
    if values.shape != (rows,):
        raise ValueError(
            f"Method {name!r}: its {part} must have one value per row, the shape ({rows},); got {tuple(values.shape)}."
        )


def row_gradient(name: str, loss: Tensor, inputs: Tensor) -> Tensor:
    """Gradient of every row's loss with respect to its latents, of the latents' shape.

    Args:
        name: Name of the guidance.
        loss: One value per row.
        inputs: Latents that require a gradient, ``batch channels height width``.

    Raises:
        ValueError: If the loss does not depend on the maps.
    """
    found = torch.autograd.grad(loss, inputs, torch.ones_like(loss), allow_unused=True)[0] if loss.requires_grad else None
    if found is None:
        raise ValueError(
            f"Method {name!r}: its loss has no gradient; compute it from the maps it is given, without detach() or item()."
        )
    return found
