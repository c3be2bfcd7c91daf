"""The Muon optimizer: orthogonalised momentum for hidden matrices and convolutions, AdamW for all other parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic ``a x + b x^3 + c x^5`` that moves every singular value towards 1."""


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Matrices (``count rows columns``) with the same singular vectors and all singular values near 1.

    Newton-Schulz steps ``X <- (a + b X X^T + c (X X^T)^2) X``, in bfloat16 on a graphics card as their published
    form: an update need not be exact, and products of bfloat16 are cheaper there. Many processors have none of their own.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalise(matrices.mT, iterations).mT
    a, b, c = COEFFICIENTS
    kind = torch.bfloat16 if matrices.is_cuda else torch.float32
    values = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(kind).contiguous()
    for _ in range(iterations):
        gram = values @ values.mT
        values = a * values + (b * gram + c * (gram @ gram)) @ values
    return values.to(matrices.dtype)


def _orthogonal_updates(gradients: Sequence[Tensor]) -> list[Tensor]:
    """:func:`orthogonalise` of every gradient as a matrix; each process of a group makes its share of them."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, gradient in enumerate(gradients):
        by_shape[tuple(gradient.flatten(1).shape)].append(index)
    made = gradients[0].new_zeros(sum(gradient.numel() for gradient in gradients))
    updates = [part.view_as(g) for part, g in zip(made.split([g.numel() for g in gradients]), gradients, strict=True)]
    for members in by_shape.values():
        mine = members[rank::processes]
        if mine:
            done = orthogonalise(torch.stack([gradients[index].flatten(1) for index in mine]))
            torch._foreach_copy_([updates[index].flatten(1) for index in mine], list(done))
    if processes > 1:
        dist.all_reduce(made)
    return updates


OUTER = ("embed", "conv_in.", "conv_out.", "norm", "shared.", "bias", "transformer.proj_out.", "content.")
"""Name parts of weights that are not maps from one hidden space to another, and are left to AdamW."""


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Hidden matrices and convolutions of ``module``, and everything else.

    Embeddings, the first and the last layer, norms (with a transformer's modulations) and biases are AdamW's.
    """
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        outer = parameter.ndim < 2 or any(part in name for part in OUTER)
        (rest if outer else hidden).append(parameter)
    return hidden, rest


class Muon(Optimizer):
    """`Muon <https://kellerjordan.github.io/posts/muon/>`_ on hidden weights (a convolution is its matrix ``out, in * h * w``).

    ``torch.optim.Muon`` takes two-dimensional parameters only, and Lightning's automatic optimisation one optimizer: hence
    this class.
    Updates are scaled to AdamW's usual size, ``0.2 sqrt(max(rows, columns))``
    (`Liu et al., 2025 <https://arxiv.org/abs/2502.16982>`_), so that both groups share a learning rate.
    Weights of equal shape are made orthogonal together. Processes that train together share this work between them.

    Args:
        hidden: Parameters of two or more dimensions.
        rest: Parameters for AdamW.
        lr: Learning rate of both groups.
        rest_lr: Learning rate of ``rest``; ``lr`` when ``None``.
        momentum: Decay of the running mean of the gradients.
        betas: Betas of AdamW.
        weight_decay: Decoupled weight decay of both groups.
    """

    def __init__(
        self,
        hidden: Iterable[nn.Parameter],
        rest: Iterable[nn.Parameter],
        lr: float = 1e-3,
        rest_lr: float | None = None,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.01,
    ) -> None:
        groups = [
            {"params": list(hidden), "orthogonal": True},
            {"params": list(rest), "orthogonal": False, "lr": rest_lr or lr},
        ]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._orthogonal_step if group["orthogonal"] else self._adamw_step)(parameters, group)
        return loss

    def _orthogonal_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        means = [self._mean(p) for p in parameters]
        torch._foreach_lerp_(means, grads, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(grads, means, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for parameter, update in zip(parameters, _orthogonal_updates(nesterov), strict=True):
            size = group["lr"] * 0.2 * math.sqrt(max(parameter.flatten(1).shape))
            parameter.add_(update, alpha=-size)

    def _mean(self, parameter: Tensor) -> Tensor:
        """The running mean of a parameter's gradients, which begins at 0."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum"]
        return mean

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state |= {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter), "step": torch.tensor(0.0)}
        adamw(
            parameters,  # type: ignore[arg-type]
            [p.grad for p in parameters],  # type: ignore[misc]
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )
