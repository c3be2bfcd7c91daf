"""Concept embeddings that pass through joint-attention blocks: they attend to the image, the image does not attend to them."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attnguide.attention.attach import unseen
from attnguide.attention.hooks import foreign_hooks, hooked

KINDS = ("FluxTransformerBlock", "JointTransformerBlock")
"""Double-stream blocks of diffusers (text beside image) whose text tokens have no position encoding."""

Show = Callable[[str, Tensor], None]
"""Receives a block's path and the inner products ``elements concepts cells``."""


def dual_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """Double-stream blocks of a network by path, in order, without a last block that returns no text states.

    Raises:
        ValueError: If the network has no block of :data:`KINDS`, or another library's hooks act in one of them.
    """
    blocks = getattr(network, "transformer_blocks", ())
    known = {f"transformer_blocks.{index}": block for index, block in enumerate(blocks) if type(block).__name__ in KINDS}
    found = {path: block for path, block in known.items() if not getattr(block, "context_pre_only", False)}
    if not found:
        raise ValueError(
            "concept_attention reads the blocks with two streams of FLUX.1 and Stable Diffusion 3; "
            f"{type(network).__name__} has none of these."
        )
    for path, block in found.items():
        foreign = foreign_hooks(dict(block.named_modules()))
        if foreign:
            raise ValueError(
                f"concept_attention runs each block a second time, which the hooks of others on {path} "
                f"({', '.join(foreign)}) would count: remove them (caches), or use offload none or model."
            )
    return found


@contextmanager
def riding_along(
    network: nn.Module,
    blocks: Mapping[str, nn.Module],
    states: Tensor,
    elements: Sequence[int],
    read: Collection[str],
    show: Show,
) -> Iterator[None]:
    """Carry concept embeddings through the blocks of the enclosed forward pass.

    After each block's own forward the block runs once more, without gradient, probes or edits, on the same image states and
    time embedding, with the concepts in place of the text states. Its concept output feeds the next block's second run; its
    image output is dropped. The pass itself is unchanged.

    Args:
        network: Network whose ``context_embedder`` projects text states to the blocks' width.
        blocks: From :func:`dual_blocks`.
        states: Text states of the concepts as the text encoder gives them, ``concepts channels``.
        elements: Positions in the pass's batch that are read.
        read: Paths of the blocks whose inner products are shown.
        show: Receives, for each block of ``read``, the inner products between attention outputs (after the output projections)
            of the concepts in the second run and of the image in the first: ``elements concepts cells``, float32 or wider.
    """
    last = max(index for index, path in enumerate(blocks) if path in read)
    riders = _Riders(network, states, list(elements), frozenset(read), show)
    with ExitStack() as stack:
        for index, (path, block) in enumerate(list(blocks.items())[: last + 1]):
            before, attended, after = riders.hooks(index, path)
            stack.enter_context(hooked(block, after, before))
            stack.enter_context(hooked(block.get_submodule("attn"), attended))
        yield


class _Riders:
    """The concepts' stream in one pass."""

    def __init__(self, network: nn.Module, states: Tensor, elements: list[int], read: frozenset[str], show: Show) -> None:
        self.network, self.states, self.elements, self.read, self.show = network, states, elements, read, show
        self.thread, self.next = threading.get_ident(), 0
        self.stream: Tensor | None = None
        self.given: dict[str, Any] = {}
        self.attended: list[tuple[Tensor, Tensor]] = []
        """Attention outputs ``(image, text)`` of the running block: of its own run, then of the second run."""

    def hooks(self, index: int, path: str) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
        """Hooks before a block, after its attention and after the block; each acts once a pass, in block order."""

        def due() -> bool:
            return self.next == index and threading.get_ident() == self.thread

        def before(block: nn.Module, args: Any, kwargs: Any) -> None:
            if due() and not self.attended:
                bound = inspect.signature(type(block).forward).bind(block, *args, **kwargs)
                self.given = dict(list(bound.arguments.items())[1:])

        def attended(module: nn.Module, args: Any, result: Any) -> None:
            if due():
                self.attended.append(result[:2])

        def after(block: nn.Module, args: Any, result: Any) -> None:
            if due() and len(self.attended) == 1:
                self._again(block, path)
                self.given, self.next = {}, self.next + 1
                self.attended.clear()

        return before, attended, after

    @torch.no_grad()
    def _again(self, block: nn.Module, path: str) -> None:
        picture = self.given["hidden_states"]
        with unseen():
            if self.stream is None:
                embedded = self.network.get_submodule("context_embedder")(self.states.to(picture.device, picture.dtype))
                self.stream = embedded.expand(len(self.elements), -1, -1)
            given = {
                **self.given,
                "hidden_states": picture[self.elements],
                "encoder_hidden_states": self.stream,
                "temb": self.given["temb"][self.elements],
            }
            tables = self.given.get("image_rotary_emb")
            if tables is not None:
                given["image_rotary_emb"] = tuple(self._turned(table, picture.shape[1]) for table in tables)
            self.stream = block(**given)[0]
        if path in self.read:
            (own, _), (_, concepts) = self.attended
            wide = torch.promote_types(own.dtype, torch.float32)
            self.show(path, concepts.to(wide) @ own.detach()[self.elements].to(wide).transpose(1, 2))

    def _turned(self, table: Tensor, cells: int) -> Tensor:
        """Rotary table ``text + cells, channels`` with one row per concept for the text, whose rows are all the same."""
        return torch.cat([table[:1].expand(len(self.states), -1), table[-cells:]])
