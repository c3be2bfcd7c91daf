"""Initial noise as a Gaussian distribution that is optimised close to N(0, 1)."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_KL_STEPS = 10_000
"""Bound on the steps back towards N(0, 1), far above what is needed, against endless loops."""


class NoiseDistribution:
    """N(m, exp v) for a fixed draw ``eps``: Adam moves ``m`` and ``v`` on a loss, and back while they are far from N(0, 1).

    The noise is ``eps exp(v / 2) + m``, as in InitNO (https://arxiv.org/abs/2404.04650).

    Args:
        noise: The draw ``eps``, ``channels height width``.
        learning_rate: Learning rate of Adam.
        kl_limit: Mean divergence from N(0, 1) above which further steps go back towards it.

    Attributes:
        score: Score by which the search ranks noises, set by the search; lower is better.
        succeeded: Whether the noise is good enough, set by the search.
    """

    def __init__(self, noise: Tensor, learning_rate: float, kl_limit: float) -> None:
        self.noise, self.kl_limit = noise, kl_limit
        wide = torch.promote_types(noise.dtype, torch.float32)
        self.log_variance, self.mean = (torch.zeros_like(noise, dtype=wide).requires_grad_(True) for _ in range(2))
        self._adam = torch.optim.Adam([self.log_variance, self.mean], lr=learning_rate, eps=1e-3)
        self.score, self.succeeded = float("inf"), False

    @torch.no_grad()
    def sample(self) -> Tensor:
        """The current noise ``eps exp(v / 2) + m``."""
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
