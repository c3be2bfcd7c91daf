"""Initial noise as a distribution that may be optimised without leaving unit noise."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_KL_STEPS = 10_000
"""Far above what is ever needed, so that no number can make it run for good."""


class NoiseDistribution:
    """N(m, exp v) around a fixed draw ``eps``: Adam moves both on a loss, and back while they are far from N(0, 1).

    The noise is ``eps exp(v / 2) + m``, as in InitNO (https://arxiv.org/abs/2404.04650).

    Args:
        noise: ``eps``.
        learning_rate: Of Adam.
        kl_limit: Mean divergence above which further steps go towards N(0, 1).

    Attributes:
        score: For its owner to compare noises by; lower is better.
        succeeded: For its owner to say that it is good enough.
    """

    def __init__(self, noise: Tensor, learning_rate: float, kl_limit: float) -> None:
        self.noise, self.kl_limit = noise, kl_limit
        wide = torch.promote_types(noise.dtype, torch.float32)
        self.log_variance, self.mean = (torch.zeros_like(noise, dtype=wide).requires_grad_(True) for _ in range(2))
        self._adam = torch.optim.Adam([self.log_variance, self.mean], lr=learning_rate, eps=1e-3)
        self.score, self.succeeded = float("inf"), False

    @torch.no_grad()
    def sample(self) -> Tensor:
        """The noise as it now is."""
        return (self.noise * (0.5 * self.log_variance).exp() + self.mean).to(self.noise.dtype)

    @torch.no_grad()
    def move(self, gradient: Tensor) -> None:
        """One step against the gradient of a loss with respect to :meth:`sample`, and back towards unit noise."""
        wide = gradient.to(self.mean)
        self.mean.grad = wide
        self.log_variance.grad = wide * self.noise * 0.5 * (0.5 * self.log_variance).exp()
        self._adam.step()
        for _ in range(_MOST_KL_STEPS):
            variance, mean = self.log_variance.exp(), self.mean
            divergence = 0.5 * (variance + mean.square() - 1 - self.log_variance).mean()
            if not bool(divergence > self.kl_limit):
                return
            self.log_variance.grad, self.mean.grad = (variance - 1) / (2 * mean.numel()), mean / mean.numel()
            self._adam.step()
