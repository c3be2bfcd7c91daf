"""Operations of steering SDXL, Stable Diffusion 3.5 medium and FLUX.1-dev at 1024 pixels, counted without weights.

    python scripts/bench_operations.py                    # all three; about a minute on a CPU
    python scripts/bench_operations.py --models sd35_medium --columns 4

A run has half of its steps guided. ``guided`` makes a guide pass before each of these (forward as far as the last site that is
read, and back to the latents); ``fused`` takes the gradient from the conditional denoising pass itself. Modules and calls are
those of diffusers, read and run by attnguide's interception on tensors without data.

The operations that the exact method *needs* are derived separately: every linear layer, convolution and attention call of one
plain forward is noted, with which of its inputs depend on the latents. A layer costs its product once forward and, where its
input depends on the latents, once backward (weights are frozen); attention costs two products forward, and one backward for
each gradient (of probabilities, queries, keys, values) that exists. Layers behind the last site, and the last site's own
values, are not needed. To read some columns of joint attention, their scores are needed, and each row's sum over all keys,
which the kernel gives out beside attention; its gradient joins that of the scores in the kernel's own backward pass, and
costs nothing more. Of the last site only the sums are needed: one product forward, and two backward.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from bench_cost import NoModules, table
from bench_networks import ARCHITECTURES, WORDS, Bench
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


def counted(run: Callable[[], None]) -> int:
    """Floating-point operations of what ``run`` does."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()  # type: ignore[assignment]
    with counter:
        run()
    return counter.get_total_flops()


# ----------------------------------------------------------------------------------------------------- what is needed


@dataclass(frozen=True)
class Call:
    """One product of a plain forward, or one attention call.

    Attributes:
        module: Path of the innermost module around it.
        forward: Operations of the forward pass.
        backward: Operations of the gradients to the inputs that depend on the latents.
        attention: For an attention call: queries, keys, head size times heads.
    """

    module: str
    forward: int
    backward: int
    attention: tuple[int, int, int] | None = None


@dataclass
class Notes(TorchFunctionMode):
    """Notes every linear layer, convolution and attention call of a forward."""

    network: nn.Module
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._path: list[str] = []

    def hooks(self, stack: ExitStack) -> None:
        """Register hooks that track the running module."""
        for name, module in self.network.named_modules():
            stack.callback(module.register_forward_pre_hook(lambda *_, name=name: self._path.append(name)).remove)
            stack.callback(module.register_forward_hook(self._leave).remove)

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        self._path.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            self._attention(named["query"], named["key"], named["value"])
        answer = func(*args, **kwargs)
        if func in (F.linear, F.conv2d):
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            product = 2 * answer.numel() * weight[0].numel()
            self.calls.append(Call(self._path[-1], product, product if args[0].requires_grad else 0))
        return answer

    def _attention(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        rows, heads, queries, size = query.shape
        product = 2 * rows * heads * queries * key.shape[2] * size
        probs = query.requires_grad or key.requires_grad
        gradients = probs + query.requires_grad + key.requires_grad + value.requires_grad
        self.calls.append(Call(self._path[-1], 2 * product, gradients * product, (queries, key.shape[2], heads * size)))


_VALUES = re.compile(r"\.(to_v|add_v_proj)$")


@dataclass(frozen=True)
class Need:
    """Operations that the exact method needs.

    Attributes:
        forward: Operations of a plain forward of one row.
        ahead: The part of ``forward`` that a guide pass needs.
        backward: Operations from the maps back to the latents.
        columns: Operations of the scores of the words' columns in joint attention, forward and backward.
    """

    forward: int
    ahead: int
    backward: int
    columns: int

    @classmethod
    def of(cls, bench: Bench) -> Need:
        """Operations noted during one plain forward with a graph."""
        notes = Notes(bench.network)
        with ExitStack() as stack:
            notes.hooks(stack)
            stack.enter_context(notes)
            bench.run(1, bench.latents().requires_grad_(True))
        names = [site.name for site in bench.modules]
        reads = [number for number, call in enumerate(notes.calls) if call.attention and call.module in names]
        last, before = notes.calls[reads[-1]], notes.calls[: reads[-1]]
        used = [call for call in before if not (call.module.startswith(f"{last.module}.") and _VALUES.search(call.module))]
        ahead, backward = sum(call.forward for call in used), sum(call.backward for call in used)
        if not bench.case.joint:  # the last site's scores alone, and the gradient to its queries
            product = last.forward // 2
            return cls(sum(call.forward for call in notes.calls), ahead + product, backward + product, 0)
        cells = bench.case.cells[0] * bench.case.cells[1]
        attended = [notes.calls[number].attention for number in reads]
        product = last.forward // 2  # of the last site the rows' sums alone: its scores, and gradients to queries and keys
        columns = sum(2 * cells * bench.columns * size for _, _, size in attended)  # type: ignore[misc]
        return cls(sum(call.forward for call in notes.calls), ahead + product, backward + 2 * product, 3 * columns)


# ------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Costs:
    """Operations of one step of each kind, counted and needed.

    Attributes:
        plain: Operations of a step without guidance.
        guided: Operations of a step with a guide pass.
        fused: Operations of a step with the gradient from the denoising pass.
        needs: Operations of a guided and of a fused step by :class:`Need`.
    """

    plain: int
    guided: int
    fused: int
    needs: tuple[int, int]

    def run(self, guided: int) -> float:
        """Operations of a run with half of its steps guided, over those of a plain one."""
        return (self.plain + guided) / (2 * self.plain)


def costs(bench: Bench) -> Costs:
    """Count the operations of each kind of step, and derive those needed."""
    need, plain = Need.of(bench), counted(bench.plain)
    beyond = need.backward + need.columns
    halves = bench.case.halves
    needed = halves * need.forward + need.ahead + beyond, halves * need.forward + beyond
    return Costs(plain, plain + counted(bench.guide), counted(bench.fused), needed)


def records(bench: Bench) -> list[dict[str, Any]]:
    """One line for each kind of run."""
    found = costs(bench)
    lines = [{"run": "plain", "step, TFLOP": found.plain / 1e12, "needed": "", "counted / needed": "", "run / plain": 1.0}]
    for name, step, needed in (("guided", found.guided, found.needs[0]), ("fused", found.fused, found.needs[1])):
        run, exact = found.run(step), found.run(needed)
        lines.append(
            {
                "run": name,
                "step, TFLOP": step / 1e12,
                "needed": f"{needed / 1e12:.3f}",
                "counted / needed": f"{run / exact:.4f}",
                "run / plain": run,
            }
        )
    return lines


def columns_and_squares(bench: Bench) -> list[dict[str, Any]]:
    """Reading words as columns beside forming the square of every site: operations and bytes, forward and backward."""
    case = bench.case
    notes = Notes(bench.network)
    with ExitStack() as stack, torch.no_grad():
        notes.hooks(stack)
        stack.enter_context(notes)
        bench.run(1)
    names = {site.name for site in bench.modules}
    calls = [call.attention for call in notes.calls if call.attention and call.module in names]
    cells = case.cells[0] * case.cells[1]
    attention = sum(2 * queries * keys * size for queries, keys, size in calls)
    words = sum(2 * cells * bench.columns * size for _, _, size in calls)
    square = sum(case.heads * queries * keys * 4 for queries, keys, _ in calls)
    kept = sum(case.heads * cells * bench.columns * 4 for _ in calls)
    return [
        {"reading": "columns", "TFLOP": (6 * attention + 3 * words) / 1e12, "kept, GB": kept / 1e9},
        {"reading": "squares", "TFLOP": 6 * attention / 1e12, "kept, GB": square / 1e9},
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--columns", type=int, default=WORDS, help="columns of words that are read in joint attention")
    options = parser.parse_args(arguments)
    if options.columns < 1:
        parser.error(f"--columns must be at least 1; got {options.columns}")
    for name in options.models:
        bench = Bench(ARCHITECTURES[name], options.columns)
        sites = len(bench.modules)
        print(f"\n{bench.case.title}, 1024 pixels, {bench.case.halves} row(s) a denoising pass; {sites} sites are read\n")
        print(table(records(bench)))
        if bench.case.joint:
            print(f"\n{options.columns} columns of words at {sites} sites, attention alone, forward and backward\n")
            print(table(columns_and_squares(bench)))
    print(
        "\nCounted by torch.utils.flop_counter: products and convolutions, 2 a multiply-add, attention as explicit products.\n"
        "needed: by layers and calls of one plain forward, as the top of this file says. run: half of the steps guided."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
