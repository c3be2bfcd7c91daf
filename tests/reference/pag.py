"""Perturbed-attention guidance (https://arxiv.org/abs/2403.17377), number by number."""

from __future__ import annotations


def prediction(uncond: float | None, cond: float, perturbed: float, cfg_scale: float, scale: float) -> float:
    """Combined noise prediction of one entry; ``uncond`` is ``None`` without classifier-free guidance."""
    guided = cond if uncond is None else uncond + cfg_scale * (cond - uncond)
    return guided + scale * (cond - perturbed)


def strength(scale: float, adaptive: float, timestep: float) -> float:
    """Strength at a timestep."""
    return max(scale - adaptive * (1000 - timestep), 0.0) if adaptive > 0 else scale
