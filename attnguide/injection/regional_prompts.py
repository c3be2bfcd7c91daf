"""Regional prompts: cells of each region attend to the region's own prompt."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from attnguide.attention.blocks import resolve
from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site, SiteSelector
from attnguide.guidance.per_row import EachRow
from attnguide.guidance.update import PerRow
from attnguide.injection.base import Injection, WindowEdit, finite, one_of
from attnguide.injection.regional_masks import PictureRule, Texts, joint_mask
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.models.texts import encode_prompts
from attnguide.prompt.targets import Targets
from attnguide.schedules import Unit, Window
from attnguide.types import PassContext, Region, Step
from attnguide.weighted import Prompt, in_chunks

BetweenRule = Literal["base", "all"]


class RegionalPrompts(Injection):
    """Attention masks by which cells of a region and the region's text attend to each other alone.

    Texts are appended to the row's prompt along the network's text axis: those of the placed regions (their ``prompt``, else
    their phrase), and ``background``. Texts do not attend to one another. Cells outside of all regions attend to
    ``background``, or to the row's prompt where it is ``None``. The share of the row's prompt everywhere is ``base``: the
    attention output at cells is ``(1 - base)`` times that under these masks plus ``base`` times that in which cells attend to
    the row's prompt and one another, without regions. Pooled text states stay those of the row's prompt. Regions' negative
    prompts, where a row has some, act alike in the unconditional half; a region without one has the row's.

    Outside of the window, and in blocks that are left out, cells attend to the row's prompt alone.

    In joint attention (FLUX, SD3) the defaults are those of Regional-Prompting-FLUX (https://arxiv.org/abs/2411.02395), to its
    float rounding, but that masks are drawn by area and not by nearest cells. InvokeAI's variants are ``base=0`` with
    ``picture="background"`` (FLUX.2, Krea 2), besides ``interval=2, between="all"`` (FLUX.1), or ``picture="free"`` with both
    (Z-Image). On a UNet the masks are those of cross-attention; self-attention is masked too unless ``picture="free"``.

    Args:
        base: Share of the picture without regions in attention's output, in [0, 1).
        background: Text of the cells outside of all regions; the row's prompt when ``None``.
        picture: Cells that a cell attends to: ``own`` cells of its regions, ``background`` besides these background to all and
            all to background, ``free`` all cells.
        interval: Blocks whose number is divisible by this are masked; the first number in a block's path counts
            (``transformer_blocks.4`` is 4).
        between: Attention in the other blocks: ``base`` to the row's prompt alone, ``all`` unmasked over all texts.
        start: First bound of the window, in ``unit``.
        stop: Second bound of the window, in ``unit`` (the first 10 of 24 steps).
        unit: ``progress``, ``timestep`` (t / 1000) or ``sigma``.
        scale: Share of the masked output, one number or one per row, in [0, 1]; 0 is the row's prompt alone.

    Raises:
        ValueError: If an option is out of range; while running, if a text is longer than the network reads.
    """

    name = "regional_prompts"
    needs_regions = "place"
    extends_text = True

    def __init__(
        self,
        *,
        base: float = 0.3,
        background: str | None = None,
        picture: PictureRule = "own",
        interval: int = 1,
        between: BetweenRule = "base",
        start: float = 0.0,
        stop: float = 10 / 24,
        unit: Unit = "progress",
        scale: PerRow = 1.0,
    ) -> None:
        finite("scale", scale)
        one_of("picture", picture, get_args(PictureRule))
        one_of("between", between, get_args(BetweenRule))
        if not all(0 <= number <= 1 for number in ([scale] if isinstance(scale, int | float) else scale)):
            raise ValueError(f"scale must lie in [0, 1]; got {scale}.")
        if not 0 <= base < 1:
            raise ValueError(f"base must lie in [0, 1); got {base}.")
        if interval < 1:
            raise ValueError(f"interval must be at least 1; got {interval}.")
        self.base, self.background, self.picture, self.interval, self.between = base, background, picture, interval, between
        self.scale, self.window = scale, Window(start, stop, unit)
        self._lengths: tuple[int, ...] = ()

    def regions(self, targets: Targets, row: int) -> list[Region]:
        """The regions of a row that have a text and a place."""
        return [region for region in targets.regions[row] if region.has_place and region.weight != 0]

    def further_prompts(self, targets: Targets) -> Sequence[str]:
        texts = [text for row in range(len(targets.regions)) for text in self._texts(targets, row)]
        negative = [region.negative_prompt for row in targets.regions for region in row if region.negative_prompt]
        return [*texts, *negative]

    def _texts(self, targets: Targets, row: int) -> list[str]:
        """Texts of a row besides its prompt."""
        own = [region.phrase if region.prompt is None else region.prompt for region in self.regions(targets, row)]
        return own if self.background is None else [*own, self.background]

    def condition(self, states: Conditioning, targets: Targets, model: ModelAdapter) -> Conditioning:
        rows, prompts = range(len(targets.regions)), [prompt.prompt for prompt in targets.tokenized]
        chunks = targets.tokenized[0].chunks
        texts = [self._texts(targets, row) for row in rows]
        count = max(map(len, texts))
        negative = [[region.negative_prompt for region in self.regions(targets, row)] for row in rows]
        filled: list[list[Prompt]] = [[*texts[row], *[prompts[row]] * (count - len(texts[row]))] for row in rows]
        filled_negative = [[*one, *[None] * (count - len(one))] for one in negative]
        found = encode_prompts(
            model,
            [in_chunks(text, chunks) for row in filled for text in row],
            None if states.uncond is None else [text for row in filled_negative for text in row],
        )
        length = max(found.cond.shape[1], states.cond.shape[1])
        self._lengths = (states.cond.shape[1], *[length] * count)
        given = torch.tensor([[text is not None for text in row] for row in filled_negative], device=states.cond.device)
        return _behind(states, found, given, length)

    def hides_words(self, step: Step) -> bool:
        return self.interval == 1 and any(EachRow(self.scale).values) and self.window.active(step)

    def edits(self, targets: Targets) -> Sequence[Edit]:
        return [_Masks(self, targets)]

    def texts_of(self, targets: Targets, rows: Sequence[int], height: int, width: int, device: torch.device) -> Texts:
        """Masks between cells of a map and the texts of some rows."""
        places = [[region.has_place and region.weight != 0 for region in targets.regions[row]] for row in rows]
        drawn = targets.select(rows).binary_masks(height, width).flatten(2).to(device)
        count, cells = len(self._lengths), height * width
        regions = torch.zeros(len(rows), count - 1, cells, dtype=torch.bool, device=device)
        for number, there in enumerate(places):
            chosen = [index for index, one in enumerate(there) if one]
            regions[number, : len(chosen)] = drawn[number, chosen]
        outside = ~regions.any(1)
        texts = torch.cat([outside[:, None], regions], 1)
        if self.background is not None:
            for number, there in enumerate(places):
                texts[number, 1 + sum(there)] = outside[number]
            texts[:, 0] = False
        seen = texts.clone()
        if self.base > 0:
            seen[:, 0] = True
        return Texts(self._lengths, texts, seen, regions)

    def plain_texts(self, rows: int, cells: int, device: torch.device) -> Texts:
        """The same where the row's prompt is all that there is."""
        first = torch.zeros(rows, len(self._lengths), cells, dtype=torch.bool, device=device)
        first[:, 0] = True
        return Texts(self._lengths, first, first, torch.zeros(rows, 0, cells, dtype=torch.bool, device=device))


def _behind(states: Conditioning, texts: Conditioning, negative: Tensor, length: int) -> Conditioning:
    """The rows' text states and text masks with further texts appended; other states are unchanged.

    Args:
        states: Text states of the rows' prompts.
        texts: Text states of all further texts, row by row.
        negative: Mask of texts with a negative prompt of their own, bool, ``rows texts``; others get that of their row.
        length: Number of positions of each text, to which it is padded.
    """

    def joined(own: Tensor, further: Tensor, given: Tensor | None) -> Tensor:
        rows, filled = len(own), _padded(further, length).unflatten(0, (len(own), -1))
        if given is not None:
            shape = (rows, -1, *(1,) * (filled.ndim - 2))
            filled = torch.where(given.view(shape), filled, _padded(own, length)[:, None])
        return torch.cat([own, filled.flatten(1, 2).to(own.dtype)], 1)

    cond = joined(states.cond, texts.cond, None)
    uncond = None if states.uncond is None or texts.uncond is None else joined(states.uncond, texts.uncond, negative)
    extra: dict[str, tuple[Tensor, Tensor | None]] = dict(states.extra)
    for name, (own, other) in states.extra.items():
        if "mask" in name:
            further, further_other = texts.extra[name]
            both = None if other is None or further_other is None else joined(other, further_other, negative)
            extra[name] = joined(own, further, None), both
    return replace(states, cond=cond, uncond=uncond, extra=extra)


def _padded(values: Tensor, length: int) -> Tensor:
    """``batch tokens ...`` padded with zeros to ``length`` tokens."""
    missing = length - values.shape[1]
    return F.pad(values, (*(0, 0) * (values.ndim - 2), 0, missing)) if missing else values


class _Masks(WindowEdit):
    """Masks of a :class:`RegionalPrompts` for one batch of rows; active in every pass, as are the further texts."""

    guides = True
    whole_text = True

    def __init__(self, method: RegionalPrompts, targets: Targets) -> None:
        every = SiteSelector(also=(SiteSelector("joint"),))
        super().__init__(every, ("mask", "blend"), method.window, method.scale, len(targets.regions))
        self.method, self.targets = method, targets
        self._negative = [any(one.negative_prompt is not None for one in regions) for regions in targets.regions]
        self._blocks: dict[str, Site] = {}
        self._made: dict[Hashable, Tensor] = {}

    def active(self, context: PassContext) -> bool:
        return context.kind in ("denoise", "guide")

    def _regional(self, context: PassContext) -> list[bool]:
        """Whether each batch element is masked by region: conditional ones, and unconditional ones with regional negatives."""
        elements = zip(context.rows, context.branches, strict=True)
        return [self.scales[row] > 0 and (branch != "uncond" or self._negative[row]) for row, branch in elements]

    def _acts(self, site: Site, context: PassContext) -> bool:
        """Whether a site is masked by region at this step."""
        number = re.search(r"\d+", site.name)
        among = number is None or int(number[0]) % self.method.interval == 0
        return among and self.window.active(context.step)

    def mask(self, site: Site, queries: int, keys: int, context: PassContext, device: torch.device) -> Tensor | None:
        if site.kind == "cross" and site.queries is not None:  # a part of joint attention, which says where text and cells are
            self._blocks[site.name] = site
            return None
        if site.queries is not None or (site.kind == "self" and self.method.picture == "free"):
            return None
        inside = self._acts(site, context)
        if not inside and self.method.between == "all" and self.window.active(context.step):
            return None
        chosen = self._regional(context) if inside else [False] * len(context.rows)
        return self._mask(site, queries, keys, context.rows, tuple(chosen), device)

    def blend(
        self, site: Site, queries: int, keys: int, context: PassContext, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        if site.queries is not None or not self._acts(site, context):
            return None
        if site.kind == "self" and self.method.picture == "free":
            return None
        regional = self._regional(context)
        pairs = zip(context.rows, regional, strict=True)
        shares = [1 - self.scales[row] * (1 - self.method.base) if one else 0.0 for row, one in pairs]
        if not any(shares):
            return None
        rows = torch.zeros(queries, device=device)
        image = self._spans(site, queries, keys)[0]
        rows[image.start : image.stop] = 1.0
        share = torch.tensor(shares, device=device).view(-1, 1, 1, 1) * rows.view(1, 1, -1, 1)
        return share, self._mask(site, queries, keys, context.rows, (False,) * len(context.rows), device)

    def _spans(self, site: Site, queries: int, keys: int) -> tuple[range, range]:
        """Query positions of the cells, and key positions of the text."""
        block = self._blocks[site.name] if site.kind == "joint" else site
        return resolve(block.queries, queries), resolve(block.keys, keys)

    def _mask(
        self, site: Site, queries: int, keys: int, rows: tuple[int, ...], regional: tuple[bool, ...], device: torch.device
    ) -> Tensor:
        """Mask of a pass, bool, ``batch 1 queries keys``, cached for all sites of one shape."""
        image, text = self._spans(site, queries, keys)
        key = (site.kind, site.height, site.width, queries, keys, image, text, rows, regional, device)
        if key not in self._made:
            texts = self._texts(site, rows, regional, device)
            rule: PictureRule = self.method.picture
            if site.kind == "cross":
                mask = texts.cells_see_text(keys)[:, None]
            elif site.kind == "self":
                mask = texts.cells_see_cells(rule)[:, None]
            else:
                mask = joint_mask(texts, queries, image, text, rule)
            self._made[key] = mask
        return self._made[key]

    def _texts(self, site: Site, rows: Sequence[int], regional: Sequence[bool], device: torch.device) -> Texts:
        plain = self.method.plain_texts(len(rows), site.cells, device)
        if not any(regional):
            return plain
        own = self.method.texts_of(self.targets, rows, site.height, site.width, device)
        chosen = torch.tensor(regional, device=device).view(-1, 1, 1)
        regions = own.regions & chosen
        return Texts(
            own.lengths, torch.where(chosen, own.cells, plain.cells), torch.where(chosen, own.seen, plain.seen), regions
        )
