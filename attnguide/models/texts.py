"""Tokenizing and encoding of prompts: plain ones by the adapter's own methods, weighted ones where the family supports them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from attnguide.models.base import Conditioning, ModelAdapter
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.weighted import Prompt, WeightedPrompt, unweighted


class ReadsWeights(ABC):
    """Mixin of adapters whose text encoders read weighted prompts, in chunks."""

    @abstractmethod
    def tokenize_weighted(self, prompt: WeightedPrompt) -> TokenizedPrompt:
        """Tokens of a prompt, one segment per chunk, with at least :attr:`WeightedPrompt.chunks` chunks."""

    @abstractmethod
    def encode_weighted(
        self,
        prompts: Sequence[WeightedPrompt],
        negative_prompts: Sequence[WeightedPrompt | None] | None,
        cfg_scales: Sequence[float] | None = None,
    ) -> Conditioning:
        """Like :meth:`~attnguide.models.base.ModelAdapter.encode_prompt`; all texts take as many chunks as the longest."""

    @abstractmethod
    def call_arguments(self, conditioning: Conditioning) -> Mapping[str, Tensor]:
        """Text states as keyword arguments of the pipeline's own call."""


def read_prompt(model: ModelAdapter, prompt: Prompt) -> TokenizedPrompt:
    """Tokens of a prompt.

    Raises:
        ValueError: If the prompt has weights, and the model's family does not support them.
    """
    return model.tokenize(prompt) if isinstance(prompt, str) else weights_reader(model).tokenize_weighted(prompt)


def encode_prompts(
    model: ModelAdapter,
    prompts: Sequence[Prompt],
    negative_prompts: Sequence[Prompt | None] | None,
    cfg_scales: Sequence[float] | None = None,
) -> Conditioning:
    """Text states of prompts, and of negative prompts where any row has an unconditional half.

    Args:
        model: The adapter.
        prompts: One per row. If any text has weights, all are encoded in chunks.
        negative_prompts: One per row, ``None`` where the row says none; ``None`` when no row has an unconditional half.
        cfg_scales: One per row; 1 each when ``None``.

    Raises:
        ValueError: If a text has weights, and the model cannot read them.
    """
    plain = [prompt for prompt in prompts if isinstance(prompt, str)]
    negative = None if negative_prompts is None else [one for one in negative_prompts if not isinstance(one, WeightedPrompt)]
    if len(plain) == len(prompts) and (negative_prompts is None or len(negative or ()) == len(negative_prompts)):
        return model.encode_prompt(plain, negative, cfg_scales)
    weighted = [_weighted(prompt) for prompt in prompts]
    others = None if negative_prompts is None else [None if one is None else _weighted(one) for one in negative_prompts]
    return weights_reader(model).encode_weighted(weighted, others, cfg_scales)


def weights_reader(model: object) -> ReadsWeights:
    """The model as a :class:`ReadsWeights`.

    Raises:
        ValueError: If its family does not support weighted prompts.
    """
    if isinstance(model, ReadsWeights):
        return model
    raise ValueError(
        "prompt_syntax 'weights' is for Stable Diffusion 1, 2 and XL, which look at CLIP's states of the words alone; "
        f"{getattr(model, 'name', model)} ({type(model).__name__}) takes prompt_syntax 'plain'."
    )


def _weighted(prompt: Prompt) -> WeightedPrompt:
    return unweighted(prompt) if isinstance(prompt, str) else prompt
