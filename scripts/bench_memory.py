"""GPU memory of a guided step of FLUX.1-dev at 1024 pixels, by part, calculated on tensors without data.

    python scripts/bench_memory.py                          # bf16, with and without offloading and checkpointing
    python scripts/bench_memory.py --model sd35_medium --limit 16

The guide pass runs as attnguide runs it (words read as columns in every block, gradient to the latents), and every tensor is
counted from when it is made until it is freed: what is alive after the forward is kept for the backward pass, and the largest
sum at any moment is what the step takes beside the weights. Attention is the fused kernel, which keeps its output and a row's
sums. Of blocks that are alike two and three are run, and each further one adds what the third added: exact for what is kept,
and to a few percent for the largest sum, which may be reached at another moment. Not counted: text encoders and autoencoder,
which run at other times, and what an allocator rounds up to. Tests run the same on a small network with data, and find the same
numbers.
"""

from __future__ import annotations

import argparse
import gc
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bench_cost import table
from bench_networks import ARCHITECTURES, WORDS, Architecture, Bench
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LIMIT = 24.0
"""Memory in GB of the graphics card that a step should fit."""


class Alive(TorchDispatchMode):
    """Counts the bytes of living tensors that were made while it is active.

    Args:
        beside: Tensors that are not counted, and neither are views of them.

    Attributes:
        now: Bytes at present.
        peak: Most bytes at any time.
    """

    def __init__(self, beside: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._beside = [tensor.untyped_storage() for tensor in beside]
        self._known = {storage._cdata for storage in self._beside}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class Parts:
    """Bytes of a guide pass beside the weights.

    Attributes:
        kept: Activations that the forward keeps for the backward pass.
        columns: Maps of the words that were read.
        peak: Most bytes at any time, both included.
    """

    kept: int
    columns: int
    peak: int


def guided(bench: Bench, *, checkpointing: bool) -> Parts:
    """Run a guide pass and count."""
    if checkpointing:
        bench.network.enable_gradient_checkpointing()  # type: ignore[operator]
    else:
        bench.network.disable_gradient_checkpointing()  # type: ignore[operator]
    latents = bench.latents().requires_grad_(True)
    gc.collect()
    alive = Alive([latents, *bench.network.parameters(), *bench.network.buffers()])
    with alive:
        loss, recorder = bench.loss(latents)
        columns = sum(maps.untyped_storage().nbytes() for maps in recorder.tensors.values())
        recorder.clear()
        kept = alive.now - columns
        torch.autograd.grad(loss, latents)
    return Parts(kept, columns, alive.peak)


def guided_pass(case: Architecture, columns: int, dtype: torch.dtype, *, checkpointing: bool) -> Parts:
    """A guide pass of an architecture, calculated without data.

    Of blocks that are alike two and three of each kind are run: each further one adds what the third added.
    """

    def run(one: Architecture) -> Parts:
        with FakeTensorMode():
            return guided(Bench(one, columns, "cpu", dtype), checkpointing=checkpointing)

    if not case.alike:
        return run(case)
    two = dict.fromkeys(case.alike, 2)
    base = run(case.with_blocks(**two))
    more = {name: run(case.with_blocks(**{**two, name: 3})) for name in two}

    def of(part: str) -> int:
        first: int = getattr(base, part)
        return first + sum((count - 2) * (getattr(more[name], part) - first) for name, count in case.alike.items())

    return Parts(of("kept"), of("columns"), of("peak"))


@dataclass(frozen=True)
class Weights:
    """Bytes of a network's weights.

    Attributes:
        whole: All weights.
        resident: Weights that group offloading keeps on the GPU: those outside of blocks, and two blocks, one that computes and
            one whose gradient is being computed.
    """

    whole: int
    resident: int

    @classmethod
    def of(cls, network: nn.Module) -> Weights:
        """Weights of a network whose blocks are module lists, as diffusers offloads them."""
        blocks = [_bytes(block) for part in network.children() if isinstance(part, nn.ModuleList) for block in part]
        whole = _bytes(network)
        return cls(whole, whole - sum(blocks) + sum(sorted(blocks)[-2:]))


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def squares(bench: Bench) -> tuple[int, int]:
    """Bytes of the explicit probabilities of one read site, in float32, and of all of them."""
    cells = bench.case.cells[0] * bench.case.cells[1]
    text = next(iter(bench.case.inputs(1)["encoder_hidden_states"].shape[1:]))
    one = 4 * bench.case.heads * (cells + text) ** 2
    return one, one * len(bench.modules)


def records(bench: Bench, limit: float) -> list[dict[str, Any]]:
    """One record for each way to run a guided step; memory in GB.

    Args:
        bench: Bench on tensors without data; only its weights are used.
        limit: Memory of the graphics card in GB.
    """
    weights, lines = Weights.of(bench.network), []
    for checkpointing in (False, True):
        parts = guided_pass(bench.case, bench.columns, bench.dtype, checkpointing=checkpointing)
        for offload, held in (("none", weights.whole), ("group", weights.resident)):
            total = (held + parts.peak) / 1e9
            lines.append(
                {
                    "checkpointing": "yes" if checkpointing else "no",
                    "offload": offload,
                    "weights": held / 1e9,
                    "kept": parts.kept / 1e9,
                    "columns": parts.columns / 1e9,
                    "peak beside weights": parts.peak / 1e9,
                    "total": total,
                    f"fits {limit:g}": "yes" if total <= limit else "no",
                }
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    joint = [name for name, case in ARCHITECTURES.items() if case.joint]
    parser.add_argument("--model", choices=joint, default="flux_dev")
    parser.add_argument("--columns", type=int, default=WORDS, help="columns of words that are read")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="GB", help="memory of the graphics card")
    options = parser.parse_args(arguments)
    if options.columns < 1:
        parser.error(f"--columns must be at least 1; got {options.columns}")
    bench = Bench(ARCHITECTURES[options.model], options.columns, dtype=torch.bfloat16)
    lines, (one, every) = records(bench, options.limit), squares(bench)
    print(f"{bench.case.title}, 1024 pixels, bf16, one row; words read at {len(bench.modules)} sites; GB of 10^9 bytes\n")
    print(table(lines))
    print(f"\nAs squares instead of columns: {one / 1e9:.2f} GB a site, {every / 1e9:.1f} GB kept.")


if __name__ == "__main__":
    main(sys.argv[1:])
