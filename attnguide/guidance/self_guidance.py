"""Self-guidance: properties of a word's attention are guided to wanted values through the noise prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, cross_sites, require_cells
from attnguide.guidance.quirks import repeats_slips
from attnguide.guidance.update import PerRow, Update
from attnguide.injection.source import source_unless_idle
from attnguide.losses.properties import ROUNDING, Properties, apart, appearances
from attnguide.prompt.targets import Targets, region_maps
from attnguide.schedules import Window, constant
from attnguide.types import Step


@dataclass(frozen=True)
class _ThenEverySecond(Window):
    """A progress window in which, from ``alternate`` on, only every second step is active."""

    alternate: float = 1.0

    def active(self, step: Step) -> bool:
        return super().active(step) and (step.progress < self.alternate or step.number % 2 == 0)


PINNED: Mapping[str, float] = {"centre": 0.0, "size": 0.9, "shape": 0.9, "appearance": 0.3}
"""Default weights of the properties of pinned words, which should stay as in the source."""


class SelfGuidance(Guidance):
    """Centre, size and shape of each phrase's map become those of its region (https://arxiv.org/abs/2306.00986).

    ``g = centre_weight |c - c*|_1 + size_weight |s - s*| + shape_weight mean |m - m*|`` of every site's map, the mean over
    heads, with ``m`` its soft shape, ``s`` the mean of ``m``, ``c`` the map's centre of mass in fractions of the picture, and
    the stars the same of the region's mask; the mean over sites, the sum over phrases. The noise prediction, after
    classifier-free guidance, gets ``step_size * sqrt(1 - alpha_bar)`` times the gradient; latents stay where they are.
    Several regions of one phrase are their union; a region's ``weight`` scales its terms.

    Two things ask for a source picture, which is denoised beside the row from the same noise and read at the same step. With
    ``appearance_weight``, placed phrases keep their appearance ``a = sum(m F) / sum(m)``, the mean of decoder features ``F``
    under the shape (without gradient through ``m``): ``g`` gets ``appearance_weight mean |a - a_source|``, the mean over
    channels and feature sites. With ``pin``, regions that name words but no place are those that should stay: all four
    properties are pulled to the source's, by ``pinned_weights``.

    The paper published no code. The formulas are those of two ports up to factors: all terms are means here, so that weights
    mean the same at every map size; forever22777/comfyui-self-guidance sums shapes over cells and appearances over channels,
    and Sainzerjj/Free-Guidance-Diffusion takes signed or squared differences. Equal weights are not equal strengths, therefore.
    The former reads the middle block and the decoder below its last level, here it is one level unless ``levels`` says more.
    The schedule is from memory of the paper's text, and so are the features' place in the network and that shapes are stretched
    to their size.

    Args:
        step_size: Factor on the gradient, ``v``; 0.5 in one port, 10 in the other, which calls its weights very sensitive.
        stop: Progress at which guidance ends; 31/32 in a port.
        alternate: Progress from which it acts in every second step only; 3/16 in that port under DDIM.
        centre_weight: Weight of the distance of centres.
        size_weight: Weight of the difference of sizes.
        shape_weight: Weight of the difference of shapes.
        appearance_weight: Weight of the appearance of placed phrases; above 0, guide passes run up to the last feature site.
        sharpness: Sharpness of the soft shape; ports use 10 to 30.
        pin: Keep the properties of words without a place as in the source picture.
        pinned_weights: Property (``centre``, ``size``, ``shape``, ``appearance``) -> weight for words without a place; 0 for
            properties that are not named. The default has the numbers of the first port.
        source_prompt: Prompt of the source, one for all rows, or one per row; the row's own when ``None``.
        source_image: A picture's file that is the source instead, one for all rows, or one per row: it is inverted under the
            source prompt, and the row starts from its noise. Needs a scheduler with the noise levels of ``ddim``.
        source_iterations: Evaluations per step of that inversion beyond the first (:mod:`attnguide.engine.inversion`).
        feature_levels: Map levels of the decoder's features that appearance is taken from.
        levels: Map levels to read; the model's guidance level when ``None``.
        scale: Factor on the step size, one number or one per row.
        quirks: There is no published code whose slips could be repeated; both values mean the same.

    Raises:
        ValueError: If an option is out of range; while running, if a place covers no cell of the maps, or a phrase whose
            appearance or place should stay is not in the source prompt.
    """

    name = "self_guidance"
    needs_regions = "place"

    def __init__(
        self,
        *,
        step_size: float = 0.5,
        stop: float = 0.75,
        alternate: float = 0.1875,
        centre_weight: float = 1.0,
        size_weight: float = 3.0,
        shape_weight: float = 4.0,
        appearance_weight: float = 0.0,
        sharpness: float = 10.0,
        pin: bool = False,
        pinned_weights: Mapping[str, float] = PINNED,
        source_prompt: str | Sequence[str | None] | None = None,
        source_image: str | Sequence[str | None] | None = None,
        source_iterations: int = 0,
        feature_levels: Sequence[int] = (0,),
        levels: tuple[int, ...] | None = None,
        scale: PerRow = 1.0,
        quirks: Literal["none", "reference"] = "none",
    ) -> None:
        repeats_slips(quirks)
        placed = {"centre": centre_weight, "size": size_weight, "shape": shape_weight, "appearance": appearance_weight}
        if not placed.keys() >= pinned_weights.keys():
            raise ValueError(f"pinned_weights must name properties among {', '.join(placed)}; got {sorted(pinned_weights)}.")
        for name, weight in [*((f"{key}_weight", value) for key, value in placed.items()), *pinned_weights.items()]:
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be at least 0; got {weight}.")
        if not sharpness > 0:
            raise ValueError(f"sharpness must be above 0; got {sharpness}.")
        super().__init__(
            sites=cross_sites(levels),
            window=_ThenEverySecond(0.0, stop, alternate=alternate),
            update=Update(constant(step_size), scale, space="noise"),
        )
        self.weights, self.sharpness, self.pin = placed, sharpness, pin
        self.pinned_weights = {name: pinned_weights.get(name, 0.0) if pin else 0.0 for name in placed}
        if appearance_weight > 0 or any(self.pinned_weights.values()):
            self.source = source_unless_idle(source_prompt, scale, source_image, source_iterations)
        if self.source is not None and (appearance_weight > 0 or self.pinned_weights["appearance"] > 0):
            self.features = SiteSelector("feature", tuple(feature_levels), places=("up",))

    def check(self, targets: Targets, sites: Sequence[Site]) -> None:
        require_cells(targets, sites)
        if self.source is not None:
            self._source_tokens(targets)

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        values = [self._misplaced(site, maps.rows(site), targets) for site in maps.probs]
        loss = (torch.stack(values).mean(0) * targets.weights * targets.shares(targets.placed)).sum(1)
        if self.source is not None and maps.source is not None:
            loss = loss + self._changed(maps, maps.source, targets)
        return LossOutput(loss, loss.detach())

    def _misplaced(self, site: Site, probs: Tensor, targets: Targets) -> Tensor:
        """Weighted distance of each phrase's properties from its region's at one site, ``batch regions``."""
        own = self._properties(site, probs, targets.tokens)
        masks = targets.joined_masks(site.height, site.width).to(own.shape.dtype)
        return own.distance(Properties.of_masks(masks), self.weights)

    def _changed(self, maps: AttentionMaps, source: AttentionMaps, targets: Targets) -> Tensor:
        """Weighted distance of phrases from what they are in the source, ``batch``."""
        tokens = self._source_tokens(targets)
        placed, pinned = targets.shares(targets.placed), targets.shares(targets.valid & ~targets.placed)
        pairs = [
            (self._properties(site, probs, targets.tokens), self._properties(site, source.probs[site], tokens))
            for site, probs in maps.probs.items()
        ]
        changed = torch.stack([own.distance(other, self.pinned_weights, ROUNDING) for own, other in pairs]).mean(0) * pinned
        if self.features is not None:
            seen, wanted = appearances(maps, [own for own, _ in pairs]), appearances(source, [other for _, other in pairs])
            looks = [apart(a, b).mean(-1) for a, b in zip(seen, wanted, strict=True)]
            weights = self.weights["appearance"] * placed + self.pinned_weights["appearance"] * pinned
            changed = changed + torch.stack(looks).mean(0) * weights
        return (changed * targets.weights).sum(1)

    def _properties(self, site: Site, probs: Tensor, tokens: Tensor) -> Properties:
        words = region_maps(probs.mean(1), tokens).unflatten(-1, (site.height, site.width))
        return Properties.of_words(words, self.sharpness)

    def _source_tokens(self, targets: Targets) -> Tensor:
        """Averaging weights, in the source prompt, of the words that are compared with the source."""
        looks, stays = self.weights["appearance"] > 0, any(self.pinned_weights.values())
        return targets.source_tokens((targets.placed & looks) | (targets.valid & ~targets.placed & stays))
