"""The words and places of a batch of rows, as padded tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnguide.prompt.drawing import Rule, binary_mask, require_cell, soft_mask
from attnguide.prompt.nested import settle
from attnguide.prompt.pairs import TokenGroup, group_tokens, row_groups
from attnguide.prompt.tokens import Segment, TokenizedPrompt, resolve, worded, worded_columns
from attnguide.types import Branch, PassContext, Region, Sample

_T = TypeVar("_T")
_SOURCES: tuple[Branch, ...] = ("source", "source_uncond")
_Rasters = dict[tuple[Region, int, int, Rule | None], Tensor]


@dataclass(frozen=True, eq=False)
class Targets:
    """Token positions and masks of a batch's regions, as tensors padded over regions.

    The batch axis counts rows, without the doubling of classifier-free guidance. The regions axis is as long as the row with
    most regions needs (0 if no row has one); rows with fewer are padded with zeros, and False in ``valid``.

    Attributes:
        regions: Regions of each row.
        token_indices: Per row and region, positions in the tokenized prompt, like every ``tokens`` axis below.
        tokenized: Tokenized prompt of each row, all of one length; where padding is cut, only :attr:`columns` of the network's
            text axis.
        device: Device of all returned tensors.
        groups: Nouns and their modifiers per row: explicit, else found by rule (:mod:`attnguide.prompt.pairs`).
        rows: Each row's number in the sampled batch; :meth:`select` keeps it.
        source_prompts: Tokenized source prompt of each row; empty where no method reads a source.
    """

    regions: tuple[tuple[Region, ...], ...]
    token_indices: tuple[tuple[tuple[int, ...], ...], ...]
    tokenized: tuple[TokenizedPrompt, ...]
    device: torch.device
    groups: tuple[tuple[TokenGroup, ...], ...] = ()
    rows: tuple[int, ...] = ()
    source_prompts: tuple[TokenizedPrompt, ...] = ()
    _rasters: _Rasters = field(default_factory=dict, repr=False)
    _stacks: dict[tuple[int, int, Rule | None], Tensor] = field(default_factory=dict, repr=False, init=False)
    _parts: dict[tuple[int, ...], Targets] = field(default_factory=dict, repr=False, init=False)

    @classmethod
    def build(
        cls,
        samples: Sequence[Sample],
        tokenized: Sequence[TokenizedPrompt],
        device: torch.device | str,
        source_prompts: Sequence[TokenizedPrompt] = (),
        *,
        cuts_padding: bool = False,
    ) -> Targets:
        """Find the token positions of every region of every row.

        Args:
            samples: The rows of one batch, at least one.
            tokenized: Tokenized prompts of the rows; of one length unless padding is cut.
            device: Device of the tensors.
            source_prompts: Tokenized source prompt of each row, if a method reads a source.
            cuts_padding: Keep only the columns that hold words, end tokens and sinks of any of these prompts
                (:func:`~attnguide.prompt.tokens.worded_columns`), and pad rows of different lengths.

        Raises:
            ValueError: If the prompts do not match the rows in number or one another in length, or a phrase is not found.
        """
        if not samples or len(samples) != len(tokenized):
            raise ValueError(
                f"tokenized must have one prompt per sample, at least one; got {len(tokenized)} for {len(samples)}."
            )
        if cuts_padding:
            columns = worded_columns([*tokenized, *source_prompts])
            tokenized = [prompt.keep(columns) for prompt in tokenized]
            source_prompts = [prompt.keep(columns) for prompt in source_prompts]
        lengths = {len(prompt.tokens) for prompt in tokenized}
        if len(lengths) > 1:
            raise ValueError(f"tokenized prompts of a batch must have one length; got {sorted(lengths)}.")
        settled = [settle(row.text, row.regions, prompt) for row, prompt in zip(samples, tokenized, strict=True)]
        rows = list(zip(samples, tokenized, settled, strict=True))
        return cls(
            regions=tuple(sample.regions for sample in samples),
            token_indices=tuple(tuple(resolve(prompt, region) for region in regions) for _, prompt, regions in rows),
            tokenized=tuple(tokenized),
            device=torch.device(device),
            groups=tuple(group_tokens(prompt, row_groups(s.text, s.groups, regions)) for s, prompt, regions in rows),
            rows=tuple(range(len(rows))),
            source_prompts=tuple(source_prompts),
        )

    def select(self, rows: Sequence[int]) -> Targets:
        """Targets of some rows, in the order given; cached per choice of rows, sharing drawn masks."""
        chosen = tuple(rows)
        if chosen == tuple(range(len(self.regions))):
            return self
        if chosen not in self._parts:
            self._parts[chosen] = self._part(chosen)
        return self._parts[chosen]

    def _part(self, rows: tuple[int, ...]) -> Targets:
        return Targets(
            regions=tuple(self.regions[row] for row in rows),
            token_indices=tuple(self.token_indices[row] for row in rows),
            tokenized=tuple(self.tokenized[row] for row in rows),
            device=self.device,
            groups=tuple(self.groups[row] for row in rows),
            rows=tuple(self.rows[row] for row in rows),
            source_prompts=tuple(self.source_prompts[row] for row in rows) if self.source_prompts else (),
            _rasters=self._rasters,
        )

    @property
    def count(self) -> int:
        """Length of the regions axis."""
        return max((len(row) for row in self.regions), default=0)

    @cached_property
    def tokens(self) -> Float[Tensor, "batch regions tokens"]:
        """Averaging weights: 1 / n at the n positions of a region's words, 0 elsewhere and for padded regions."""
        length = len(self.tokenized[0].tokens) if self.tokenized else 0
        weights = torch.zeros(len(self.regions), self.count, length)
        for row, regions in enumerate(self.token_indices):
            for index, positions in enumerate(regions):
                weights[row, index, list(positions)] = 1 / len(positions)
        return weights.to(self.device)

    @cached_property
    def last_tokens(self) -> Float[Tensor, "batch regions tokens"]:
        """Averaging weights at the last token of a region's words in each text encoder (the end of its noun); 0 elsewhere."""
        weights = torch.zeros(self.tokens.shape)
        for row, (prompt, regions) in enumerate(zip(self.tokenized, self.token_indices, strict=True)):
            for index, positions in enumerate(regions):
                inside = [[position for position in positions if position in room] for room in prompt.readers()]
                last = [max(some) for some in inside if some]
                weights[row, index, last] = 1 / len(last)
        return weights.to(self.device)

    def source_tokens(self, among: Tensor) -> Float[Tensor, "batch regions tokens"]:
        """Averaging weights as :attr:`tokens`, at the positions of the regions' words in the source prompts.

        Args:
            among: Mask of the regions to look up, bool, ``batch regions``; the words of others need not occur there.

        Raises:
            ValueError: If a phrase does not occur in the row's source prompt.
        """
        weights = torch.zeros(self.tokens.shape)
        for row, (prompt, regions) in enumerate(zip(self.source_prompts, self.regions, strict=True)):
            chosen = [index for index in range(len(regions)) if among[row, index]]
            for index, region in zip(chosen, settle(prompt.text, [regions[i] for i in chosen], prompt), strict=True):
                positions = resolve(prompt, region)
                weights[row, index, list(positions)] = 1 / len(positions)
        return weights.to(self.device)

    @cached_property
    def valid(self) -> Bool[Tensor, "batch regions"]:
        """Mask of regions that exist; False for padding."""
        return self._per_region(lambda region: True, False, torch.bool)

    @cached_property
    def placed(self) -> Bool[Tensor, "batch regions"]:
        """Mask of regions that exist and have a place."""
        return self._per_region(lambda region: region.has_place, False, torch.bool)

    @cached_property
    def weights(self) -> Float[Tensor, "batch regions"]:
        """Weight of each region (:attr:`Region.weight`); 0 for padding."""
        return self._per_region(lambda region: region.weight, 0.0, torch.float32)

    @cached_property
    def counted(self) -> Bool[Tensor, "batch regions"]:
        """Mask of regions that exist and whose weight is not 0."""
        return self.valid & (self.weights != 0)

    @property
    def columns(self) -> tuple[int, ...] | None:
        """Positions in the network's text axis of the ``tokens`` axis; ``None`` for all positions in order."""
        return self.tokenized[0].columns if self.tokenized else None

    @cached_property
    def ends(self) -> Bool[Tensor, "batch tokens"]:
        """True at the first end token of each segment."""
        return self._at(lambda prompt: prompt.ends)

    @cached_property
    def sinks(self) -> Bool[Tensor, "batch tokens"]:
        """True at each segment's sink, the token that collects attention which no word needs."""
        return self._at(lambda prompt: prompt.sinks)

    @cached_property
    def later(self) -> Bool[Tensor, "batch tokens"]:
        """True at each segment's end token and, unless it was cut, the padding after it."""
        return self._at(lambda prompt: [p for s in prompt.segments for p in range(s.end, _last(prompt, s))])

    @cached_property
    def own(self) -> Bool[Tensor, "batch tokens"]:
        """True at all positions, or, where padding is cut, at the words, end tokens and sinks of the row's own prompt."""
        if self.columns is None:
            return self._at(lambda prompt: range(len(prompt.tokens)))
        return self.competing(True) | self.sinks

    def own_keys(self, rows: Sequence[int]) -> Bool[Tensor, "batch tokens"] | None:
        """:attr:`own` of some rows; ``None`` where no padding is cut, and rows of probs sum to 1 over all tokens."""
        return None if self.columns is None else self.own[list(rows)]

    @property
    def owned(self) -> Callable[[PassContext], Bool[Tensor, "elements tokens"]] | None:
        """From a pass to :attr:`own` of each batch element, by its row's prompt or, in source branches, source prompt.

        ``None`` where no padding is cut.
        """
        return None if self.columns is None else self._owned

    def _owned(self, context: PassContext) -> Tensor:
        sources = self._source_own if self.source_prompts else self.own
        elements = zip(context.rows, context.branches, strict=True)
        return torch.stack([(sources if branch in _SOURCES else self.own)[row] for row, branch in elements])

    @cached_property
    def _source_own(self) -> Bool[Tensor, "batch tokens"]:
        return replace(self, tokenized=self.source_prompts).own

    def competing(self, with_end: bool) -> Bool[Tensor, "batch tokens"]:
        """True at the positions that compete in a softmax over words: all after the start token, without sinks.

        Args:
            with_end: Let end tokens compete as well, and the padding after them but for the last position, as the code of
                attend-and-excite does for SD 1.x; padding that is cut, and ends that are sinks, never compete.
        """
        if not with_end:
            return self._at(lambda prompt: [p for words in worded(prompt) for p in words]) & ~self.sinks
        uncut = int(self.columns is None)

        def places(prompt: TokenizedPrompt) -> list[int]:
            spans = [(prompt.first_word(segment), _last(prompt, segment) - uncut) for segment in prompt.segments]
            return [place for first, stop in spans for place in range(first, stop)]

        return self._at(places) & ~self.sinks

    def _at(self, places: Callable[[TokenizedPrompt], Iterable[int]]) -> Bool[Tensor, "batch tokens"]:
        length = len(self.tokenized[0].tokens) if self.tokenized else 0
        marked = torch.zeros(len(self.tokenized), length, dtype=torch.bool)
        for row, prompt in enumerate(self.tokenized):
            marked[row, list(places(prompt))] = True
        return marked.to(self.device)

    def masks(self, height: int, width: int) -> Float[Tensor, "batch regions height width"]:
        """Soft masks in [0, 1] at a map's size (:func:`~attnguide.prompt.drawing.soft_mask`); 0 for regions without a place.

        Cached per size: do not write into the tensor.
        """
        return self._stack(height, width, None)

    def joined_masks(self, height: int, width: int) -> Float[Tensor, "batch regions height width"]:
        """:meth:`masks`, each joined with the masks of all regions of the same words in its row.

        One word has one map: with three boxes, its attention should lie in their union.
        """
        return self._joined(self.masks(height, width))

    def joined_binary_masks(self, height: int, width: int, rule: Rule = "half") -> Bool[Tensor, "batch regions height width"]:
        """:meth:`binary_masks`, each joined with the masks of all regions of the same words in its row."""
        return self._joined(self.binary_masks(height, width, rule).float()) > 0

    def shares(self, among: Tensor) -> Float[Tensor, "batch regions"]:
        """``1 / n`` for each of the n regions of ``among`` with the same words, so that a word counts once; 0 elsewhere.

        Args:
            among: Mask of regions, bool, ``batch regions``: :attr:`valid` or :attr:`placed`.
        """
        same = self._same_words & among[:, :, None] & among[:, None, :]
        return among / same.sum(-1).clamp_min(1)

    @cached_property
    def pair_weights(self) -> Float[Tensor, "batch regions regions"]:
        """Weight of each pair of regions, the geometric mean of their weights; 0 where one is not above 0."""
        return (self.weights.clamp_min(0)[:, :, None] * self.weights.clamp_min(0)[:, None, :]).sqrt()

    @cached_property
    def _same_words(self) -> Bool[Tensor, "batch regions regions"]:
        return (self.tokens[:, :, None] == self.tokens[:, None, :]).all(-1)

    def _joined(self, masks: Tensor) -> Tensor:
        same = self._same_words & self.placed[:, :, None] & self.placed[:, None, :]
        return masks if self.count == 0 else (masks[:, None] * same[..., None, None]).amax(2)

    def binary_masks(self, height: int, width: int, rule: Rule = "half") -> Bool[Tensor, "batch regions height width"]:
        """Binary masks by a rule of :func:`~attnguide.prompt.drawing.binary_mask`; False for regions without a place.

        Cached per size and rule: do not write into the tensor.
        """
        return self._stack(height, width, rule)

    def require_cells(self, height: int, width: int, rule: Rule = "half") -> None:
        """Refuse placed regions that are too small for a map (:func:`~attnguide.prompt.drawing.require_cell`).

        Raises:
            ValueError: Naming region and map size.
        """
        for region in dict.fromkeys(region for row in self.regions for region in row if region.has_place):
            require_cell(region, height, width, rule)

    def _per_region(self, value: Callable[[Region], _T], padding: _T, dtype: torch.dtype) -> Tensor:
        rows = [[value(region) for region in row] + [padding] * (self.count - len(row)) for row in self.regions]
        return torch.tensor(rows, dtype=dtype, device=self.device).reshape(len(rows), self.count)

    def _stack(self, height: int, width: int, rule: Rule | None) -> Tensor:
        key = (height, width, rule)
        if key not in self._stacks:
            dtype = torch.float32 if rule is None else torch.bool
            masks = torch.zeros(len(self.regions), self.count, height, width, dtype=dtype)
            for row, regions in enumerate(self.regions):
                for index, region in enumerate(regions):
                    if region.has_place:
                        masks[row, index] = self._raster(region, height, width, rule)
            self._stacks[key] = masks.to(self.device)
        return self._stacks[key]

    def _raster(self, region: Region, height: int, width: int, rule: Rule | None) -> Tensor:
        key = (region, height, width, rule)
        if key not in self._rasters:
            drawn = soft_mask(region, height, width) if rule is None else binary_mask(region, height, width, rule)
            self._rasters[key] = drawn
        return self._rasters[key]


def _last(prompt: TokenizedPrompt, segment: Segment) -> int:
    """The position after a segment's padding, or after its end token where padding is cut."""
    return segment.stop if prompt.columns is None else min(segment.end + 1, segment.stop)


def region_maps(
    probs: Float[Tensor, "batch query tokens"], tokens: Float[Tensor, "batch regions tokens"]
) -> Float[Tensor, "batch regions query"]:
    """Attention map of each region's words, the mean of their tokens' probs; 0 for padding.

    Args:
        probs: Cross-attention probs averaged over heads and sites.
        tokens: Averaging weights, :attr:`Targets.tokens`.
    """
    return torch.einsum("bqk,brk->brq", probs, tokens.to(probs))
