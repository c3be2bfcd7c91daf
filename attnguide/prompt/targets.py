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
    """What the words of a batch of rows should do, padded over regions.

    The batch is that of the rows, without classifier-free guidance's doubling. The regions axis is as long as the row with most
    regions needs (0 if no row has one); a row with fewer has zeros, and False in ``valid``, at its end.

    Attributes:
        regions: Per row.
        token_indices: Per row and region, positions in the tokenized prompt, like every ``tokens`` axis below.
        tokenized: Per row; all of one length. Where padding is cut they hold :attr:`columns` of the network's text axis.
        device: Of every tensor given out.
        groups: Per row, nouns and their modifiers: explicit, else found by rule (:mod:`attnguide.prompt.pairs`).
        rows: Each row's number in the batch that is sampled; :meth:`select` keeps it.
        source_prompts: Per row, the other prompt whose attention is read; empty where no method reads one.
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
        """Look up the words of every region of every row.

        Args:
            samples: The rows of one batch, at least one.
            tokenized: Their prompts, as the model reads them; of one length unless padding is cut.
            device: Where the tensors are wanted.
            source_prompts: Per row, the other prompt whose attention is read, if one is.
            cuts_padding: Keep only the columns that hold words, end tokens and sinks of any of these prompts
                (:func:`~attnguide.prompt.tokens.worded_columns`), and pad rows of differing lengths.

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
        """Some rows, in the order given; made once for each choice of rows, with the masks drawn so far."""
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
        """Averaging weights of each text encoder's last position of a region's words, which ends its noun; else 0."""
        weights = torch.zeros(self.tokens.shape)
        for row, (prompt, regions) in enumerate(zip(self.tokenized, self.token_indices, strict=True)):
            for index, positions in enumerate(regions):
                inside = [[position for position in positions if position in room] for room in prompt.readers()]
                last = [max(some) for some in inside if some]
                weights[row, index, last] = 1 / len(last)
        return weights.to(self.device)

    def source_tokens(self, among: Tensor) -> Float[Tensor, "batch regions tokens"]:
        """Like :attr:`tokens`, at the same words' positions in the source prompts; 0 elsewhere.

        Args:
            among: Which regions, bool, ``batch regions``; the words of others need not occur there.

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
        """True where the row has such a region."""
        return self._per_region(lambda region: True, False, torch.bool)

    @cached_property
    def placed(self) -> Bool[Tensor, "batch regions"]:
        """True where the row has such a region and it says a place."""
        return self._per_region(lambda region: region.has_place, False, torch.bool)

    @cached_property
    def weights(self) -> Float[Tensor, "batch regions"]:
        """Each region's own factor; 0 for padded regions."""
        return self._per_region(lambda region: region.weight, 0.0, torch.float32)

    @cached_property
    def counted(self) -> Bool[Tensor, "batch regions"]:
        """True where the row has such a region and its factor is not 0: the regions that decide anything."""
        return self.valid & (self.weights != 0)

    @property
    def columns(self) -> tuple[int, ...] | None:
        """Positions in the network's text axis that the ``tokens`` axis stands for; ``None`` for all of them in order."""
        return self.tokenized[0].columns if self.tokenized else None

    @cached_property
    def ends(self) -> Bool[Tensor, "batch tokens"]:
        """True at the first end token of each segment."""
        return self._at(lambda prompt: prompt.ends)

    @cached_property
    def sinks(self) -> Bool[Tensor, "batch tokens"]:
        """True at each segment's sink: the token where attention goes that no word wants."""
        return self._at(lambda prompt: prompt.sinks)

    @cached_property
    def later(self) -> Bool[Tensor, "batch tokens"]:
        """True at each segment's end token and, unless it was cut, the padding after it."""
        return self._at(lambda prompt: [p for s in prompt.segments for p in range(s.end, _last(prompt, s))])

    @cached_property
    def own(self) -> Bool[Tensor, "batch tokens"]:
        """True at the row's own positions: all of them, or, where padding is cut, its words, end tokens and sinks."""
        if self.columns is None:
            return self._at(lambda prompt: range(len(prompt.tokens)))
        return self.competing(True) | self.sinks

    def own_keys(self, rows: Sequence[int]) -> Bool[Tensor, "batch tokens"] | None:
        """:attr:`own` of some rows; ``None`` where no padding is cut, and rows of probs sum to 1 over all tokens."""
        return None if self.columns is None else self.own[list(rows)]

    @property
    def owned(self) -> Callable[[PassContext], Bool[Tensor, "elements tokens"]] | None:
        """From a pass to the positions that are each element's own, by the prompt that its branch reads words of.

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
        """True at the positions that compete in a softmax over words: those after the start token, without sinks.

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
        """Soft masks in [0, 1] at a map's size, as :func:`~attnguide.prompt.drawing.soft_mask` draws them; 0 where not placed.

        Drawn once per size. The tensor is shared: do not write into it.
        """
        return self._stack(height, width, None)

    def joined_masks(self, height: int, width: int) -> Float[Tensor, "batch regions height width"]:
        """Like :meth:`masks`, but each region's mask is joined with those of all regions of the same words in its row.

        One word has one map: asked to fill three boxes, its attention should lie in their union.
        """
        return self._joined(self.masks(height, width))

    def joined_binary_masks(self, height: int, width: int, rule: Rule = "half") -> Bool[Tensor, "batch regions height width"]:
        """Like :meth:`binary_masks`, joined as :meth:`joined_masks` are."""
        return self._joined(self.binary_masks(height, width, rule).float()) > 0

    def shares(self, among: Tensor) -> Float[Tensor, "batch regions"]:
        """``1 / n`` for each of the n regions of ``among`` that have the same words, so that a word counts once; else 0.

        Args:
            among: :attr:`valid` or :attr:`placed`.
        """
        same = self._same_words & among[:, :, None] & among[:, None, :]
        return among / same.sum(-1).clamp_min(1)

    @cached_property
    def pair_weights(self) -> Float[Tensor, "batch regions regions"]:
        """Factor of two regions' common term, the geometric mean of their own; 0 where one is not above 0."""
        return (self.weights.clamp_min(0)[:, :, None] * self.weights.clamp_min(0)[:, None, :]).sqrt()

    @cached_property
    def _same_words(self) -> Bool[Tensor, "batch regions regions"]:
        return (self.tokens[:, :, None] == self.tokens[:, None, :]).all(-1)

    def _joined(self, masks: Tensor) -> Tensor:
        same = self._same_words & self.placed[:, :, None] & self.placed[:, None, :]
        return masks if self.count == 0 else (masks[:, None] * same[..., None, None]).amax(2)

    def binary_masks(self, height: int, width: int, rule: Rule = "half") -> Bool[Tensor, "batch regions height width"]:
        """Cells that each region takes by a rule of :func:`~attnguide.prompt.drawing.binary_mask`; False where not placed.

        The tensor is shared: do not write into it.
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
    """The position after the last of a segment's end token and the padding that was not cut."""
    return segment.stop if prompt.columns is None else min(segment.end + 1, segment.stop)


def region_maps(
    probs: Float[Tensor, "batch query tokens"], tokens: Float[Tensor, "batch regions tokens"]
) -> Float[Tensor, "batch regions query"]:
    """Map of each region's words: the mean of their tokens' probs; 0 for padded regions.

    Args:
        probs: Cross-attention probs averaged over heads and sites.
        tokens: Averaging weights, :attr:`Targets.tokens`.
    """
    return torch.einsum("bqk,brk->brq", probs, tokens.to(probs))
