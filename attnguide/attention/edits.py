"""Edits of attention by stage (q/k/v, mask, scores, probs, output), and policies for the probability mass they move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from attnguide.attention.sites import Site, SiteSelector
from attnguide.types import PassContext

Stage = Literal["qkv", "mask", "gain", "blend", "scores", "probs", "output"]
MassPolicy = Literal["none", "renormalize", "preserve"]
MASS_POLICIES: tuple[MassPolicy, ...] = ("none", "renormalize", "preserve")


class Edit:
    """A change to attention at chosen sites; override the stages it acts on.

    A site is a block of attention: in joint attention scores and probs are those of its queries and keys alone, whose rows do
    not sum to 1, and in cross-attention they may be a few columns of the text.

    Each method gets one site's tensor of the whole batch and returns a tensor of the same shape; it must not write into its
    argument. ``context`` says which batch elements are conditional and which row each belongs to.

    Attributes:
        sites: Sites that the edit acts on.
        stages: Which of the methods below are called.
        remembers: Whether the edit depends on earlier passes, so that it must see each step once, with all rows.
        guides: Whether the edit acts in guide passes of every guidance too: for edits that belong to text states which a
            method has changed.
        across_halves: Whether the edit of one half of classifier-free guidance depends on the other half in the same pass, so
            that both halves must run in one forward.
        whole_text: Whether ``mask``, ``gain`` and ``blend`` cover the whole text where methods are shown only some columns.
    """

    sites: SiteSelector = SiteSelector()
    stages: frozenset[Stage] = frozenset()
    remembers: bool = False
    guides: bool = False
    across_halves: bool = False
    whole_text: bool = False

    def active(self, context: PassContext) -> bool:
        """Whether the edit acts in this pass; where none acts, the library's fused kernel runs."""
        return True

    def touches(self, context: PassContext) -> Sequence[int] | None:
        """Batch positions whose scores and probs the edit may change, each from its own values alone; all when ``None``.

        All other positions stay on the fused kernel, and the edit gets scores and probs without them.
        """
        return None

    def qkv(self, query: Tensor, key: Tensor, value: Tensor, site: Site, context: PassContext) -> tuple[Tensor, Tensor, Tensor]:
        """Change query, key and value, each ``batch heads tokens head_dim``."""
        return query, key, value

    def mask(self, site: Site, queries: int, keys: int, context: PassContext, device: torch.device) -> Tensor | None:
        """Which keys each query may attend to: bool, broadcast to ``batch 1 queries keys``; ``None`` forbids nothing.

        It is combined with the call's own mask, and attention stays on the fused kernel. On a ``joint`` site it covers the
        whole call, text and image. Every query must keep a key. The same tensor given again in a pass is not checked anew.
        """
        return None

    def gain(self, site: Site, context: PassContext, device: torch.device) -> Tensor | None:
        """Factor on the block's scores before the softmax, ``batch 1 1 1``; ``None`` for 1.

        Attention stays on the fused kernel: the keys are multiplied, for the block's queries alone. Probes and later stages
        see scores and probs with the factor.
        """
        return None

    def blend(
        self, site: Site, queries: int, keys: int, context: PassContext, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """Weight and mask of a second attention of the same queries, blended into the block's output; ``None`` for none.

        Returns:
            Weight of the second attention in [0, 1], broadcast to ``batch 1 queries 1``, and its mask, as :meth:`mask` has it.
            Other edits of scores and probs do not act on the second attention.
        """
        return None

    def scores(self, scores: Tensor, site: Site, context: PassContext) -> Tensor:
        """Change scaled scores before the softmax, ``batch heads query key``."""
        return scores

    def probs(self, probs: Tensor, site: Site, context: PassContext) -> Tensor:
        """Change probabilities after the softmax, ``batch heads query key``."""
        return probs

    def output(self, output: Tensor, site: Site, context: PassContext) -> Tensor:
        """Change the site's output.

        ``batch heads query head_dim`` of attention, ``batch channels height width`` of features.
        """
        return output


def apply_mass_policy(edited: Tensor, original: Tensor, policy: MassPolicy) -> Tensor:
    """Account for the probability mass that an edit on probabilities moved.

    Args:
        edited: ``batch heads query key`` after the edit.
        original: Probs before the edit, same shape.
        policy: ``none`` leaves rows as they came (they may sum to anything); ``renormalize`` scales every row back to the
            sum it had; ``preserve`` scales every token's column so that its sum over the map is what it was, which moves
            attention without adding any.

    Raises:
        ValueError: If the policy is unknown.
    """
    if policy == "none":
        return edited
    if policy not in MASS_POLICIES:
        raise ValueError(f"mass must be one of {', '.join(MASS_POLICIES)}; got {policy!r}.")
    axis = -1 if policy == "renormalize" else -2
    tiny = 1e-12
    return edited * (original.sum(axis, keepdim=True) / edited.sum(axis, keepdim=True).clamp_min(tiny))
