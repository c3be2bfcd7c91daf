"""The branches of a denoising pass, with the text states and latents that each reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnguide.engine.effects import Effects
from attnguide.guidance.base import Guidance
from attnguide.guidance.per_row import EachRow
from attnguide.injection.base import Injection, Source
from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.models.texts import ReadsWeights, encode_prompts, read_prompt
from attnguide.prompt.targets import Targets
from attnguide.prompt.tokens import TokenizedPrompt, require_whole
from attnguide.types import Branch, PassContext, Sample, Step
from attnguide.weighted import Prompt, in_chunks, written


@dataclass(frozen=True, eq=False)
class Branches:
    """All branches that the passes of one batch may have.

    The batch axis of latents is ``[rows]``, or ``[rows; sources]`` where the source has a trajectory of its own.

    Attributes:
        rows: Number of rows in the batch.
        states: Text states of every branch, for all rows.
        own_source: Whether the source has latents of its own.
    """

    rows: int
    states: Mapping[Branch, Conditioning]
    own_source: bool = False

    @classmethod
    def build(
        cls,
        rows: int,
        conditioning: Conditioning,
        source: Source | None,
        source_states: Conditioning | None,
        negative: Conditioning | None = None,
    ) -> Branches:
        """Assign encoded text states to branches.

        Args:
            rows: Number of rows in the batch.
            conditioning: Text states of the rows' prompts and negative prompts.
            source: The source that the methods read, if any.
            source_states: Text states of the source prompts.
            negative: Text states of a method's own negative prompts; dropped where no row uses classifier-free guidance.
        """
        given = [one for one in (conditioning, source_states, negative) if one is not None]
        longest = max(one.length for one in given)  # one pass may hold any of them, at one length
        conditioning = conditioning.padded(longest)
        source_states = None if source_states is None else source_states.padded(longest)
        negative = None if negative is None else negative.padded(longest)
        states: dict[Branch, Conditioning] = {}
        cond = conditioning.half(uncond=False)
        if conditioning.uncond is not None:
            states["uncond"] = conditioning.half(uncond=True)
            if negative is not None:
                states["negative"] = negative.half(uncond=False)
        states |= {"cond": cond, "perturbed": cond}
        if source is None or source_states is None:
            return cls(rows, states)
        if source.trajectory == "own" and source_states.uncond is not None:
            states["source_uncond"] = source_states.half(uncond=True)
        states["source"] = source_states.half(uncond=False)
        return cls(rows, states, source.trajectory == "own")

    def at(self, step: Step, injections: Sequence[Injection]) -> tuple[Branch, ...]:
        """The branches of one step's pass, in batch order."""
        wanted: set[Branch] = {"uncond", "cond"}
        if self.own_source:
            wanted |= {"source_uncond", "source"}
        for injection in injections:
            wanted |= set(injection.branches(step))
        return tuple(branch for branch in ORDER if branch in wanted and branch in self.states)

    def latents(self, branch: Branch, latents: Tensor) -> Tensor:
        """The rows' or the sources' part of the latents, whichever a branch reads, ``batch channels height width``."""
        return latents[self.rows :] if self.own_source and branch in ("source", "source_uncond") else latents[: self.rows]

    def for_pass(self, context: PassContext) -> Conditioning:
        """Text states of one pass, one for each batch element of ``context``, all held in ``cond``."""
        elements = [(self.states[branch], row) for branch, row in zip(context.branches, context.rows, strict=True)]
        names = elements[0][0].extra
        extra = {name: (torch.stack([states.extra[name][0][row] for states, row in elements]), None) for name in names}
        return Conditioning(torch.stack([states.cond[row] for states, row in elements]), None, extra)

    @property
    def halves(self) -> tuple[Branch, ...]:
        """The branches of a plain denoising pass: both halves of classifier-free guidance, or the conditional one alone."""
        return ("uncond", "cond") if "uncond" in self.states else ("cond",)


def encode_branches(
    model: ModelAdapter,
    samples: Sequence[Sample],
    targets: Targets,
    injections: Sequence[Injection],
    source: Source | None,
    effects: Effects,
) -> Branches:
    """Encode every text that the passes of a batch read.

    Args:
        model: The adapter.
        samples: The rows.
        targets: Words and places of the rows; their source prompts are encoded as well.
        injections: Injections, which may change text states and have negative prompts of their own.
        source: The source that the methods read, if any.
        effects: Records changes of text states.
    """
    scales = [sample.cfg_scale for sample in samples]
    uses_cfg = any("uncond" in model.halves(sample) for sample in samples)
    negative = [negative_of(sample) for sample in samples] if uses_cfg else None
    own = [prompt.asked or sample.prompt for prompt, sample in zip(targets.tokenized, samples, strict=True)]
    conditioning = encode_prompts(model, own, negative, scales)
    for injection in injections:
        before, conditioning = conditioning, injection.condition(conditioning, targets, model)
        effects.conditioned(injection, before, conditioning)
    others = [prompt.prompt for prompt in targets.source_prompts]
    source_states = encode_prompts(model, others, negative, scales) if others else None
    chunks = targets.tokenized[0].chunks
    negatives = [[in_chunks(one, chunks) for one in found] for i in injections if (found := i.negative_prompts(targets))]
    negative_states = encode_prompts(model, negatives[0], None, scales) if negatives else None
    return Branches.build(len(samples), conditioning, source, source_states, negative_states)


ORDER: tuple[Branch, ...] = ("uncond", "cond", "perturbed", "negative", "source_uncond", "source")


def common_source(methods: Sequence[Guidance | Injection]) -> Source | None:
    """The one source that the methods of a batch read; ``None`` without one.

    Raises:
        ValueError: If two methods have a source, or one has a source and another extends the text.
    """
    wanting = [method for method in methods if method.source is not None]
    if len(wanting) > 1:
        names = " and ".join(method.name for method in wanting)
        raise ValueError(f"Only one method of a row can read another prompt's pass; got {names}.")
    extending = [method.name for method in methods if isinstance(method, Injection) and method.extends_text]
    if extending and (wanting or len(extending) > 1):
        others = [*extending[1:], *[method.name for method in wanting]]
        raise ValueError(f"{extending[0]} gives a row several texts, beside which there is no place for those of {others[0]}.")
    return wanting[0].source if wanting else None


def source_prompts(source: Source | None, samples: Sequence[Sample]) -> list[Prompt]:
    """The source prompt of every row, parsed in the row's syntax; empty without a source.

    Raises:
        ValueError: If there is neither one prompt nor one per row, or a prompt has marks that its syntax does not know.
    """
    if source is None:
        return []
    given = EachRow[str | None](source.prompts, "source_prompt").over(len(samples))
    pairs = zip(given, samples, strict=True)
    return [written(sample.prompt if prompt is None else prompt, sample.prompt_syntax) for prompt, sample in pairs]


def negative_of(sample: Sample) -> Prompt | None:
    """A row's negative prompt, parsed in the row's syntax; ``None`` where the row has none."""
    return None if sample.negative_prompt is None else written(sample.negative_prompt, sample.prompt_syntax)


def read_rows(
    model: ModelAdapter, samples: Sequence[Sample], others: Sequence[Prompt] = ()
) -> tuple[list[TokenizedPrompt], list[TokenizedPrompt]]:
    """Tokenize the rows' prompts and the source prompts, all with as many chunks as the longest.

    Raises:
        ValueError: If a prompt is too long, naming it and the words that would be cut off.
    """
    own = [read_whole(model, sample) for sample in samples]
    read = [read_source(model, prompt) for prompt in others]
    chunks = max((prompt.chunks for prompt in [*own, *read]), default=1)
    return [lengthened(model, prompt, chunks) for prompt in own], [lengthened(model, prompt, chunks) for prompt in read]


def read_whole(model: ModelAdapter, sample: Sample) -> TokenizedPrompt:
    """Tokenize the row's prompt; its negative prompt, where one is used, must fit the text encoder as well.

    A prompt in chunks gets at least as many chunks as the negative prompt.

    Raises:
        ValueError: If either is too long, naming it and the words that would be cut off.
    """
    tokenized = read_source(model, written(sample.prompt, sample.prompt_syntax), "prompt")
    if "uncond" not in model.halves(sample):
        return tokenized
    negative = read_source(model, negative_of(sample) or "", "negative_prompt")
    return lengthened(model, tokenized, negative.chunks)


def read_source(model: ModelAdapter, prompt: Prompt, name: str = "source_prompt") -> TokenizedPrompt:
    """Tokenize a prompt, called ``name`` in errors.

    Raises:
        ValueError: If it is longer than the text encoder reads.
    """
    tokenized = read_prompt(model, prompt)
    require_whole(tokenized, name, in_chunks=isinstance(model, ReadsWeights))
    return tokenized


def lengthened(model: ModelAdapter, prompt: TokenizedPrompt, chunks: int) -> TokenizedPrompt:
    """The prompt with at least ``chunks`` chunks, filled up with empty ones."""
    return prompt if prompt.chunks >= chunks else read_prompt(model, in_chunks(prompt.prompt, chunks))
