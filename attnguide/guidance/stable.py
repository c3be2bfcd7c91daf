"""Stable steering: words' attention is moved without adding any, and optionally held by a bounded gradient. Our own method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attnguide.attention.edits import Edit
from attnguide.attention.maps import AttentionMaps
from attnguide.attention.sites import SiteSelector
from attnguide.guidance.base import Guidance, LossOutput, Trials, cross_sites
from attnguide.guidance.per_row import EachRow
from attnguide.guidance.restarts import lowest_peak, restarted
from attnguide.guidance.update import PerRow, Refinement, Space, Update
from attnguide.injection.base import one_of
from attnguide.injection.transport import Later, Surplus, Transport
from attnguide.losses.containment import missing_share
from attnguide.prompt.targets import Targets, region_maps
from attnguide.schedules import Schedule, Window, noise_variance
from attnguide.types import ExpectedCost, Step

_NEVER = Window(0.0, 0.0)
_ITERATIONS = 3
"""Default number of updates per step."""


def noise_fade(until: float, power: float) -> Schedule:
    """``((v - v_end) / (1 - v_end))^power``, at least 0, with ``v = 1 - alpha_bar = sigma^2 / (1 + sigma^2)``.

    1 at pure noise and 0 from the noise level ``until`` on, whatever the number of steps and their spacing.

    Args:
        until: Noise level sigma, at least 0, at which the value reaches 0.
        power: Exponent, at least 0; with 0 the value is 1 above ``until``.
    """
    end = until**2 / (1 + until**2)

    def at(step: Step) -> float:
        left = (1 - step.alpha_bar - end) / (1 - end)
        return left**power if left > 0 else 0.0

    return at


class Stable(Guidance):
    """Moves words' attention into their regions, and optionally holds it there by a gradient; one strength ``s`` in [0, 1].

    *Injection*, in the denoising passes, at every cross-attention site and in every head: a word's column ``P_k`` becomes
    ``(1 - s_t) P_k + s_t M_k g_k`` with ``M_k`` its own sum over the map and ``g_k`` even over its regions, as far as there is
    room (:func:`~attnguide.injection.transport.transport`).

    * A word never gains mass, so the strength needs no unit: each site and head moves what it has, however its maps are
      scaled. Adding a number that is large beside ``M_k`` is what makes the eight hand-drawn maps unstable.
    * Rows keep their sum, so a site's output stays a mean of its value vectors. Words take at most the share ``room`` of a
      cell's free mass: where no other token has any left the picture breaks.
    * Where words lose mass the first token takes it. Its state is the same for every prompt; end and padding tokens, which know
      all words, would draw the objects there again. (T5-like encoders have no start token: their end token takes it.)
    * Outside of all regions the first token also takes the mass of the end token and padding, for the same reason
      (:func:`~attnguide.injection.transport.hush_later`). Words after the last placed one know the objects, too, but describe
      the rest of the picture (a background): they keep their mass unless ``later`` is ``all``.
    * ``s_t = s ((v - v_end) / (1 - v_end))^fade`` follows the noise ``v = 1 - alpha_bar`` and ends at the noise level
      ``inject_until``, whatever the number of steps: places are decided early, and late steps draw undisturbed.

    *Guidance*, from the noise level ``guide_from`` down to ``guide_until``, on the network's own maps, which the injection does
    not touch: ``L = mean_r max(0, 1 - n_r inside_r / enough)^2``, with ``inside_r`` the share of a word's map in its region and
    ``n_r`` the number of regions of the same word, each of which must hold its share. It costs up to ``iterations`` gradients
    a step, and is off by default.

    * ``L`` lies in [0, 1] and is exactly 0 once the regions hold ``enough``: such a row makes no update and costs no gradient;
      the gradient fades out towards that point.
    * A move is ``s step_size v dL/dz``, never longer than ``max_norm`` times the latents' own norm.

    *Restarts*: some noise puts an object elsewhere whatever attention is edited. Before the step at ``restart_at`` one
    conditional pass without the injection measures ``h``: over the row's regions, the smallest peak of a word's map inside its
    region as a share of the map's peak. A row with ``h`` below ``held`` is restarted from other noise of its seed, and
    continues as the attempt with the largest ``h``. Most rows reach ``held`` at once, at the cost of one pass.

    Args:
        scale: Strength in [0, 1], one number or one per row; 0 is no method.
        inject: Whether attention is moved in the denoising passes.
        guide: Whether latents or prediction follow the gradient.
        room: Largest share of a cell's free attention (of no word, or moved by the method) that words may take, in (0, 1].
        surplus: Which tokens gain attention where words lose it: the ``first``, or all ``others`` in proportion.
        later: Which tokens give their attention outside of all regions to the first token: the ``end`` token and padding,
            these where every noun of the prompt has a place and else none (``auto``), ``all`` after the last placed word, or
            none (``keep``).
        attempts: Most starts of a row, at least 1; 1 where another method adds branches to the pass, as a source prompt
            does, or remembers earlier passes, as bounded attention does.
        restart_at: Progress of the step before which rows may be restarted, in [0, 1).
        held: Smallest share of a map's peak inside each region at which a row is not restarted, in [0, 1].
        inject_until: Noise level sigma at which the injection ends.
        fade: Exponent by which the injection's strength fades until then; 0 for constant strength.
        guide_from: Noise level sigma from which guidance acts; from the first step when ``None``.
        guide_until: Noise level sigma at which guidance ends.
        space: ``latents`` moves them; ``noise`` adds the gradient, times ``sqrt(v)``, to the noise prediction instead.
        fused: In space ``noise``, take the gradient from the conditional denoising pass itself; the loss reads each site's maps
            before they are edited there.
        step_size: Peak of the factor on the gradient.
        max_norm: Largest norm of a move as a share of the latents' norm.
        iterations: Most updates a step; when ``None``, three, and one in space ``noise``, which allows no more.
        enough: Share of a word's attention inside its regions from which a row makes no update, in (0, 1].
        levels: Map levels at which attention is moved, 0 the largest that has cross-attention; all when ``None``.
        guide_levels: Map levels that guidance reads; the model's guidance level when ``None``.

    Raises:
        ValueError: If an option is out of range, or both ``inject`` and ``guide`` are False.
    """

    name = "stable"
    needs_regions = "place"

    def __init__(
        self,
        *,
        scale: PerRow = 1.0,
        inject: bool = True,
        guide: bool = False,
        room: float = 0.9,
        surplus: Surplus = "first",
        later: Later = "end",
        attempts: int = 4,
        restart_at: float = 0.4,
        held: float = 0.9,
        inject_until: float = 2.0,
        fade: float = 0.0,
        guide_from: float | None = None,
        guide_until: float = 1.5,
        space: Space = "latents",
        fused: bool = False,
        step_size: float = 30.0,
        max_norm: float = 0.05,
        iterations: int | None = None,
        enough: float = 0.8,
        levels: tuple[int, ...] | None = None,
        guide_levels: tuple[int, ...] | None = None,
    ) -> None:
        if not (inject or guide):
            raise ValueError("inject and guide cannot both be false; leave the method out instead.")
        one_of("surplus", surplus, ("first", "others"))
        one_of("later", later, ("end", "auto", "all", "keep"))
        _check_numbers(scale, enough=enough, room=room, inject_until=inject_until, fade=fade, held=held)
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1; got {attempts}.")
        if not 0 <= restart_at < 1:
            raise ValueError(f"restart_at must lie in [0, 1); got {restart_at}.")
        first = float("inf") if guide_from is None else guide_from
        if first < guide_until:
            raise ValueError(f"guide_from must be at least guide_until, as noise falls; got {guide_from} and {guide_until}.")
        super().__init__(
            sites=cross_sites(guide_levels),
            window=Window(first, guide_until, "sigma") if guide else _NEVER,
            update=_update(step_size, scale, iterations, space, max_norm, fused),
        )
        self.optimise_at = restart_at if attempts > 1 else None
        self.attempts, self.held = attempts, held
        self.scale, self.inject, self.enough, self.room = scale, inject, enough, room
        self.surplus: Surplus = surplus
        self.later: Later = later
        self.fade = noise_fade(inject_until, fade)
        self.levels = None if levels is None else tuple(levels)

    def edits(self, targets: Targets, level: int) -> Sequence[Edit]:
        if not self.inject:
            return []
        sites = SiteSelector(kind="cross", levels=self.levels)
        return [Transport(sites, self.scale, Window(), self.fade, targets, self.room, self.surplus, self.later)]

    def optimise(self, latents: Tensor, trials: Trials) -> Tensor:
        scales = EachRow(self.scale, "scale").at(trials.targets.rows, latents).tolist()
        steered = [row for row, scale in enumerate(scales) if scale != 0]
        return restarted(latents, steered, trials, lowest_peak, self.held, self.attempts)

    def trials_cost(self, steps: int, halves: int) -> ExpectedCost:
        if self.optimise_at is None:
            return ExpectedCost()
        again = round(self.optimise_at * steps) * halves + 1
        return ExpectedCost(forwards=1, most=1 + (self.attempts - 1) * again)

    def loss(self, maps: AttentionMaps, targets: Targets, step: Step) -> LossOutput:
        shares = targets.shares(targets.placed)
        wanted = self.enough * torch.where(targets.placed, shares, torch.ones_like(shares))  # nothing is divided by 0
        parts = []
        for height, width in maps.resolutions:
            words = region_maps(maps.average(height, width).flatten(1, 2), targets.tokens).unflatten(-1, (height, width))
            parts.append(missing_share(words, targets.masks(height, width).to(words), wanted.to(words)))
        weights = targets.weights * targets.placed
        missing = torch.stack(parts).mean(0)
        loss = (missing * weights).sum(1) / targets.placed.sum(1).clamp_min(1)
        return LossOutput(loss, missing.detach().masked_fill(weights == 0, 0.0).amax(1))


def _check_numbers(scale: PerRow, **options: float) -> None:
    EachRow(scale, "scale").require_within(0, 1)
    for name in ("enough", "room"):
        if not 0 < options[name] <= 1:
            raise ValueError(f"{name} must lie in (0, 1]; got {options[name]}.")
    if not 0 <= options["held"] <= 1:
        raise ValueError(f"held must lie in [0, 1]; got {options['held']}.")
    for name in ("inject_until", "fade"):
        if not 0 <= options[name] < float("inf"):
            raise ValueError(f"{name} must be a number of at least 0; got {options[name]}.")


def _update(step_size: float, scale: PerRow, iterations: int | None, space: Space, max_norm: float, fused: bool) -> Update:
    """Update rule: rows stop at a loss of 0; in space ``noise`` there is one guide pass, and latents stay."""
    rule = noise_variance(step_size)
    if space == "noise":
        always = 1 if iterations is None else iterations
        return Update(rule, scale, iterations=always, space=space, max_norm=max_norm, fused=fused)
    repeated = Refinement(0.0, _ITERATIONS if iterations is None else iterations)
    return Update(rule, scale, iterations=0, refinements=(repeated,), space=space, max_norm=max_norm, fused=fused)
