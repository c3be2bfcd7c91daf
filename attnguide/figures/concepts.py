"""ConceptAttention: maps of where a picture shows chosen concepts, read from a transformer during sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnguide.attention.capture import Probe, Record
from attnguide.attention.concepts import dual_blocks, riding_along
from attnguide.attention.sites import Site, SiteSelector
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.figures.finished import FinishedRows
from attnguide.models.base import ModelAdapter
from attnguide.sheets.overlays import heat_map
from attnguide.text.html import figure
from attnguide.types import PassContext, SampleResult

_SIDE = 192


@dataclass(frozen=True, eq=False)
class ConceptMaps:
    """Concept maps of a row.

    Attributes:
        result: The row's result.
        maps: Concept -> map ``height width`` in [0, 1]; over all concepts they sum to 1 at each image token. Empty if the row
            stopped before any block was read.
        scores: Concept -> mean inner products, ``height width``, of which the maps are the softmax over concepts.
    """

    result: SampleResult
    maps: Mapping[str, NDArray[np.float32]]
    scores: Mapping[str, NDArray[np.float32]]

    def _repr_html_(self) -> str:
        """HTML of the picture, and of each concept's map over it."""
        image = self.result.image
        if image is None:
            return self.result._repr_html_()
        scale = max(1.0, _SIDE / max(image.size))
        large = image.resize((round(image.width * scale), round(image.height * scale)))
        drawn = "".join(figure(heat_map(large, values), concept) for concept, values in self.maps.items())
        return self.result._repr_html_() + drawn


class ConceptAttention(FinishedRows[ConceptMaps], Observer):
    """Maps of concepts after ConceptAttention (https://arxiv.org/abs/2502.04320), for FLUX.1 and Stable Diffusion 3 and 3.5.

    Concepts need not be words of the prompt. Each is a token that goes through the blocks with two streams beside the text,
    with the weights of the text's stream. It attends to all concepts and to the picture; the picture does not attend to it, so
    that latents are the same to the bit with and without. With ``o`` for what a block's attention gives out behind its output
    projection, the map of concept ``c`` at image token ``x`` is

        ``softmax over c of mean over blocks and steps of <o_c, o_x>``,

    inner products over all heads at once, not scaled. The conditional half of denoising passes alone is read, and ``o_x`` is
    what the pass used, as injections left it. Each block up to the last that is read runs a second time for that, with a few
    concepts in the place of the text.

    It has the published blocks (10 to 17 of FLUX.1's 19), the mean before the softmax, a concept's first token as its state,
    and all concepts in one call. It does not promise the published numbers: concepts are modulated by the network's own
    embedding of time, guidance and the *prompt's* pooled states; steps are those in which the picture is made, not those of a
    finished picture that is noised again; on Stable Diffusion 3 the state is that of the last text encoder (T5, or CLIP where
    there is none), and the blocks are those at the same share of the depth.

    Example::

        concepts = attnguide.ConceptAttention(["cat", "grass", "sky"])
        attnguide.sample("a cat on grass", model=pipeline, observer=concepts)
        concepts.rows[0].maps["cat"]

    Args:
        concepts: Single words, at least two: a softmax over one is 1 everywhere.
        depths: Range of depth of the blocks that are read, as shares of all dual-stream blocks; block i of n lies at
            ``(i + 0.5) / n``.
        steps: Range of progress that is read, start included, end excluded.

    Raises:
        ValueError: If concepts are fewer than two, several words, or the same; if a range is none within [0, 1]; and when a run
            begins, if the model has no such blocks, none at these depths, or other libraries' hooks on them.

    Attributes:
        rows: Finished rows, in the order in which they ended.
    """

    def __init__(
        self,
        concepts: Sequence[str],
        depths: tuple[float, float] = (10 / 19, 18 / 19),
        steps: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.concepts = checked_concepts(concepts)
        for name, (first, last) in (("depths", depths), ("steps", steps)):
            if not 0 <= first < last <= 1:
                raise ValueError(f"{name} must be a range within [0, 1]; got {(first, last)}.")
        self.depths, self.steps = depths, steps
        self.rows: list[ConceptMaps] = []
        self._found: dict[int, tuple[Tensor, int]] = {}

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        network, model = info.model.network, info.model
        blocks = dual_blocks(network)
        paths = self._chosen(list(blocks))
        sites = {site.name.removesuffix(".attn"): site for site in info.sites if site.kind == "cross"}
        chosen = {path: sites[path] for path in paths}
        states = _encoded(model, self.concepts)

        def around(context: PassContext, record: Record) -> AbstractContextManager[None]:
            first, last = self.steps
            elements = context.positions("cond")
            if not elements or not first <= context.step.progress < last:
                return nullcontext()
            rows = tuple(context.rows[at] for at in elements)
            read = replace(context, rows=rows, branches=tuple(context.branches[at] for at in elements))

            def show(path: str, scores: Tensor) -> None:
                record(chosen[path], scores, read)

            return riding_along(network, blocks, states, elements, chosen, show)

        selector = SiteSelector("cross", where=frozenset(chosen.values()).__contains__)
        return (Probe("beside", self._record, selector, around=around),)

    def _chosen(self, paths: Sequence[str]) -> list[str]:
        first, last = self.depths
        chosen = [path for index, path in enumerate(paths) if first <= (index + 0.5) / len(paths) < last]
        if not chosen:
            raise ValueError(f"depths: none of the {len(paths)} blocks with two streams lies within {self.depths}.")
        return chosen

    def _record(self, site: Site, scores: Tensor, context: PassContext) -> None:
        for row, found in zip(context.rows, scores.unflatten(2, (site.height, site.width)).cpu(), strict=True):
            before, count = self._found.get(row, (torch.zeros_like(found), 0))
            self._found[row] = before + found, count + 1

    def on_sample_start(self, info: BatchInfo) -> None:
        self._found.clear()

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        for row, result in enumerate(results):
            total, count = self._found.pop(row, (None, 0))
            if total is None:
                self.rows.append(ConceptMaps(result, {}, {}))
                continue
            scores = total / count
            self.rows.append(ConceptMaps(result, self._named(scores.softmax(0)), self._named(scores)))

    def _named(self, values: Tensor) -> dict[str, NDArray[np.float32]]:
        return dict(zip(self.concepts, values.float().numpy(), strict=True))


def checked_concepts(concepts: Sequence[str]) -> tuple[str, ...]:
    """The concepts as a tuple, checked to be at least two different single words.

    Raises:
        ValueError: If they are not.
    """
    found = (concepts,) if isinstance(concepts, str) else tuple(concepts)
    if len(found) < 2:
        raise ValueError(f"concepts must be at least two words, as their maps are shares of one another; got {found}.")
    for concept in found:
        if not isinstance(concept, str) or len(concept.split()) != 1:
            raise ValueError(f"concepts must be single words; got {concept!r}.")
    if len(set(found)) < len(found):
        raise ValueError(f"concepts must differ; got {found}.")
    return found


def _encoded(model: ModelAdapter, concepts: Sequence[str]) -> Tensor:
    """Text state of each concept's first token, ``concepts channels``."""
    states = model.encode_prompt(concepts, None).cond
    read = [model.tokenize(concept) for concept in concepts]
    return torch.stack([row[one.first_word(one.segments[-1])] for row, one in zip(states, read, strict=True)])
