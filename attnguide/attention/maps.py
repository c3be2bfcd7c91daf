"""From probabilities at sites to maps of tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.sites import Site, SiteSelector, select


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Probabilities of one pass, by site.

    Attributes:
        probs: ``batch heads query key`` per site, float32 or wider; queries are row-major over the site's ``height width``.
        features: ``batch channels height width`` per feature site, float32 or wider; empty where none were asked for.
        source: Maps of the same rows' source at the same step, without gradient; ``None`` where no source is read.
        own: Mask of the keys that belong to a row's own text, bool, ``batch key``, where cross sites show only some of the
            network's keys; ``None`` where every row of probs sums to 1 over its keys. In joint attention most of a row's mass
            lies on image keys, and much of the rest on padding, so a word's probs have no fixed scale: averages are divided by
            their sum over these keys (:meth:`normalised`), and thresholds mean what they mean in a UNet.
    """

    probs: Mapping[Site, Tensor]
    features: Mapping[Site, Tensor] = field(default_factory=dict)
    source: AttentionMaps | None = None
    own: Tensor | None = None

    def __post_init__(self) -> None:
        for site, tensor in self.probs.items():
            if tensor.shape[2] != site.height * site.width:
                raise ValueError(
                    f"probs of site {site.name!r} have {tensor.shape[2]} queries; its map is {site.height}x{site.width} cells."
                )

    def choose(self, selector: SiteSelector) -> AttentionMaps:
        """Maps of the sites that match.

        Raises:
            ValueError: If no site matches.
        """
        chosen = {site: self.probs[site] for site in select(self.probs, selector)}
        return replace(self, probs=chosen, source=None if self.source is None else self.source.choose(selector))

    def select(self, positions: Sequence[int]) -> AttentionMaps:
        """Maps of these batch positions."""
        index = list(positions)
        return AttentionMaps(
            {site: tensor[index] for site, tensor in self.probs.items()},
            {site: tensor[index] for site, tensor in self.features.items()},
            None if self.source is None else self.source.select(index),
            None if self.own is None else self.own[index],
        )

    def among(self, sites: Collection[Site]) -> AttentionMaps:
        """Probs of these sites, without the source's maps."""
        return replace(self, probs={site: self.probs[site] for site in sites}, source=None)

    def normalised(self, values: Tensor) -> Tensor:
        """Cross-attention probs renormalised over :attr:`own` keys, 0 at other keys; unchanged where :attr:`own` is ``None``.

        Args:
            values: Probs ``batch ... key``, for example averaged over heads and sites.
        """
        if self.own is None:
            return values
        own = self.own.view(len(self.own), *[1] * (values.ndim - 2), -1).to(values)
        held = values * own
        return held / _sums(held)

    def _normalised(self, values: Tensor) -> Tensor:
        """Averages :meth:`normalised` for cross-attention, and divided by their sum over all keys for self-attention."""
        if self.own is None or any(site.kind == "cross" for site in self.probs):
            return self.normalised(values)
        return values / _sums(values)

    def rows(self, site: Site) -> Tensor:
        """Probs of one site, :meth:`normalised`; in self-attention every row sums to 1 over the map's cells."""
        if self.own is None:
            return self.probs[site]
        values = self.probs[site]
        return self.normalised(values) if site.kind == "cross" else values / _sums(values)

    @property
    def resolutions(self) -> tuple[tuple[int, int], ...]:
        """Distinct map sizes ``(height, width)``, largest first."""
        return tuple(sorted({(site.height, site.width) for site in self.probs}, reverse=True))

    def average(self, height: int, width: int) -> Tensor:
        """Mean over heads and sites of one size, :meth:`normalised`: ``batch height width key``.

        Raises:
            ValueError: If no site has that size.
        """
        chosen = [tensor for site, tensor in self.probs.items() if (site.height, site.width) == (height, width)]
        if not chosen:
            raise ValueError(f"No captured site has a {height}x{width} map; captured sizes are {self.resolutions}.")
        return self._normalised(torch.cat(chosen, dim=1).mean(1)).unflatten(1, (height, width))

    def resized_average(self, height: int, width: int, mode: str = "bilinear") -> Tensor:
        """Mean over heads and sites after resizing every site's map, :meth:`normalised`: ``batch height width key``."""
        parts = [
            resize(tensor.mean(1).unflatten(1, (s.height, s.width)), height, width, mode) for s, tensor in self.probs.items()
        ]
        return self._normalised(torch.stack(parts).mean(0))


def _sums(values: Tensor) -> Tensor:
    """Sums over the last axis, safe as divisors: 1 where a row sums to 0, so that its gradient is finite."""
    sums = values.sum(-1, keepdim=True)
    return torch.where(sums > torch.finfo(values.dtype).tiny, sums, 1.0)


def resize(maps: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """Resize ``batch height width key`` maps over their two middle axes."""
    if maps.shape[1:3] == (height, width):
        return maps
    options = {} if mode in ("nearest", "area") else {"align_corners": False}
    return F.interpolate(maps.movedim(-1, 1), (height, width), mode=mode, **options).movedim(1, -1)


def token_softmax(maps: Tensor, competing: Tensor, temperature: float = 100.0) -> Tensor:
    """Softmax over the tokens of a map, without the start token: how attend-and-excite compares words.

    ``softmax(temperature * maps[..., competing])`` put back at the tokens' own positions, everything else 0
    (https://arxiv.org/abs/2301.13826).

    Args:
        maps: ``batch height width key`` in [0, 1].
        competing: Tokens in the softmax, bool, ``batch key`` (:meth:`~attnguide.prompt.targets.Targets.competing`).
        temperature: Factor before the softmax.
    """
    logits = (maps * temperature).masked_fill(~competing[:, None, None], float("-inf"))
    return logits.softmax(-1)


def gaussian_smooth(maps: Tensor, blur_std: float = 0.5, size: int = 3) -> Tensor:
    """Blur ``... height width`` maps with a Gaussian kernel of odd ``size``, reflected at the edges.

    Args:
        maps: Any number of leading axes.
        blur_std: Standard deviation in cells.
        size: Kernel side.

    Raises:
        ValueError: If ``size`` is even or larger than the map allows.
    """
    pad = size // 2
    if size % 2 == 0 or pad >= min(maps.shape[-2:]):
        raise ValueError(
            f"size must be odd and at most twice the map's side minus 1; got {size} for a {tuple(maps.shape[-2:])} map."
        )
    offsets = torch.arange(size, device=maps.device, dtype=maps.dtype) - pad
    taps = torch.exp(-(offsets**2) / (2 * blur_std**2))
    taps = taps / taps.sum()
    flat = F.pad(maps.reshape(-1, 1, *maps.shape[-2:]), (pad,) * 4, mode="reflect")
    flat = F.conv2d(F.conv2d(flat, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))
    return flat.reshape(maps.shape)


FLAT = 1e-3
"""Largest ``(max - min) / max(|max|, |min|)`` of a map that counts as flat."""


def min_max(maps: Tensor) -> Tensor:
    """Scale each ``... height width`` map to [0, 1]; a flat map (:func:`is_flat`) becomes 0, without gradient."""
    flat = is_flat(maps)
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return torch.where(flat, torch.zeros_like(maps), (maps - low) / torch.where(flat, torch.ones_like(high), high - low))


def is_flat(maps: Tensor) -> Tensor:
    """Which ``... height width`` maps are constant up to rounding: bool, ``... 1 1``.

    Maximum and minimum differ by at most :data:`FLAT` of the larger magnitude, the rounding of half precision. Stretched to
    [0, 1], such a map would be rounding noise with an enormous gradient.
    """
    fixed = maps.detach()
    low, high = fixed.amin((-2, -1), keepdim=True), fixed.amax((-2, -1), keepdim=True)
    return high - low <= (FLAT * torch.maximum(high.abs(), low.abs())).clamp_min(1e-12)
