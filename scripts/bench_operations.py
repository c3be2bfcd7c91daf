"""What steering SDXL, Stable Diffusion 3.5 medium and FLUX.1-dev costs at 1024 pixels: operations, counted without weights.

    python scripts/bench_operations.py                    # all three; about a minute on a CPU
    python scripts/bench_operations.py --models sd35_medium --columns 4

A run has half of its steps guided. ``guided`` makes a guide pass before each of these (forward as far as the last site that is
read, and back to the latents); ``fused`` takes the gradient from the conditional denoising pass itself. Modules and calls are
those of diffusers, read and run by attnguide's interception on tensors without data.

What the exact method *needs* is got another way: every linear layer, convolution and attention call of one plain forward is
noted, with which of its inputs depend on the latents. A layer costs its product once forward and, where its input depends on
the latents, once backward (weights are frozen); attention costs two products forward, and one backward for each gradient (of
probabilities, queries, keys, values) that exists. Layers behind the last site, and the last site's own values, are not needed.
To read some columns of joint attention, their scores are needed, and each row's sum over all keys, which no kernel gives out
with a gradient: one product forward, one more as the square is not kept, and two backward.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}

import torch
import torch.nn.functional as F
from bench_cost import NoModules, table
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from attnguide.attention.attach import attach, stop_after
from attnguide.attention.capture import Probe, Recorder
from attnguide.attention.sites import Site
from attnguide.sampling.cfg import pass_context
from attnguide.types import Step

STEP = Step(0, 2, 999.0, 0.0, 1.0)
WORDS = 4
"""Columns of words that are read, by default."""


# --------------------------------------------------------------------------------------------------------- architectures


@dataclass(frozen=True)
class Architecture:
    """A network of a family, with the sizes of its published configuration at 1024 pixels.

    Attributes:
        title: For people.
        build: The network, on tensors without data.
        latents: Shape of one row's latents, as the network reads them.
        inputs: From rows to the network's further arguments.
        sites: Names of the modules that are read, as a pattern.
        cells: Rows and columns of the maps that are read.
        heads: Attention heads.
        blocks: Query and key spans of the text block; ``None`` each where a module looks at the text alone.
        halves: Rows of a denoising pass for one picture.
        alike: Arguments of ``build`` that say how many equal blocks there are of a kind, and how many.
    """

    title: str
    build: Callable[..., nn.Module]
    latents: tuple[int, ...]
    inputs: Callable[[int], dict[str, Any]]
    sites: str
    cells: tuple[int, int]
    heads: int
    blocks: tuple[Any, Any] = (None, None)
    halves: int = 2
    alike: Mapping[str, int] = field(default_factory=dict)

    def with_blocks(self, **counts: int) -> Architecture:
        """The same with other numbers of blocks."""
        return replace(self, build=partial(self.build, **counts), alike=counts)

    @property
    def joint(self) -> bool:
        """Whether text and picture share one softmax, so that words are read as columns."""
        return self.blocks != (None, None)


def _sdxl() -> nn.Module:
    unet: nn.Module = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return unet


def _sdxl_inputs(rows: int) -> dict[str, Any]:
    added = {"text_embeds": torch.randn(rows, 1280), "time_ids": torch.randn(rows, 6)}
    return {"timestep": torch.zeros(()), "encoder_hidden_states": torch.randn(rows, 77, 2048), "added_cond_kwargs": added}


def _sd35_medium() -> nn.Module:
    transformer: nn.Module = SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    return transformer


def _sd35_inputs(rows: int) -> dict[str, Any]:
    states = {"encoder_hidden_states": torch.randn(rows, 77 + 256, 4096), "pooled_projections": torch.randn(rows, 2048)}
    return {**states, "timestep": torch.randn(rows)}


def _flux_dev(num_layers: int = 19, num_single_layers: int = 38) -> nn.Module:
    transformer: nn.Module = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    return transformer


def _flux_inputs(rows: int) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(rows, 512, 4096),
        "pooled_projections": torch.randn(rows, 768),
        "timestep": torch.randn(rows),
        "guidance": torch.randn(rows),
        "img_ids": torch.zeros(4096, 3),
        "txt_ids": torch.zeros(512, 3),
    }


ARCHITECTURES: dict[str, Architecture] = {
    "sdxl": Architecture(
        "SDXL UNet",
        _sdxl,
        (4, 128, 128),
        _sdxl_inputs,
        r"(down_blocks\.2|mid_block|up_blocks\.0)\..*attn2",
        (32, 32),
        20,
    ),
    "sd35_medium": Architecture(
        "Stable Diffusion 3.5 medium",
        _sd35_medium,
        (16, 128, 128),
        _sd35_inputs,
        r"transformer_blocks\.\d+\.attn",
        (64, 64),
        24,
        ((0, 4096), (4096, None)),
    ),
    "flux_dev": Architecture(
        "FLUX.1-dev",
        _flux_dev,
        (4096, 64),
        _flux_inputs,
        r"(single_)?transformer_blocks\.\d+\.attn",
        (64, 64),
        24,
        ((-4096, None), (0, -4096)),
        halves=1,
        alike={"num_layers": 19, "num_single_layers": 38},
    ),
}
"""By name, as published. Guidance reads cross-attention where it does by default: at the coarsest maps of SDXL, in every block
of a transformer."""


# ---------------------------------------------------------------------------------------------------------------- passes


@contextmanager
def _precision(dtype: torch.dtype) -> Iterator[None]:
    """What new weights are made in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Bench:
    """Passes of one architecture on tensors without data.

    Args:
        case: Which.
        columns: Columns of words that are read in joint attention.
        device: ``meta`` for tensors without data.
        dtype: Of weights, latents and text states.
    """

    def __init__(
        self, case: Architecture, columns: int = WORDS, device: str = "meta", dtype: torch.dtype = torch.float32
    ) -> None:
        self.case, self.columns, self.device, self.dtype = case, columns, device, dtype
        with torch.device(device), _precision(dtype):
            self.network = case.build().eval().requires_grad_(False)
        names = self._in_order([name for name, _ in self.network.named_modules() if re.fullmatch(case.sites, name)])
        sites = [
            Site(name, "cross", *case.cells, case.heads, "block", 0, float(number), *case.blocks)
            for number, name in enumerate(names)
        ]
        self.modules = {site: self.network.get_submodule(site.name) for site in sites}

    def _in_order(self, names: Sequence[str]) -> list[str]:
        """Modules in the order in which they run; a UNet lists its middle behind its decoder."""
        parts = {"mid_block": 1, "up_blocks": 2, "single_transformer_blocks": 1}
        return sorted(names, key=lambda name: (parts.get(name.split(".")[0], 0), names.index(name)))

    def run(self, rows: int, latents: Tensor | None = None) -> Tensor:
        """One forward; the network's answer for so many rows."""
        given = self.latents(rows) if latents is None else latents
        with torch.device(self.device):
            inputs = tree_map_only(Tensor, self._as_weights, self.case.inputs(rows))
        name = "sample" if isinstance(self.network, UNet2DConditionModel) else "hidden_states"
        answer: Tensor = self.network(**{name: given}, **inputs, return_dict=False)[0]
        return answer

    def _as_weights(self, given: Tensor) -> Tensor:
        """States in the weights' precision; times and positions as they are."""
        return given.to(self.dtype) if given.ndim > 1 and given.shape[-1] > 6 else given

    def latents(self, rows: int = 1) -> Tensor:
        """Latents of so many rows."""
        return torch.randn(rows, *self.case.latents, device=self.device, dtype=self.dtype)

    def plain(self) -> None:
        """A denoising pass."""
        with torch.no_grad():
            self.run(self.case.halves)

    def guide(self, *, whole: bool = False) -> None:
        """A pass of one row whose maps are read, with the gradient of a loss on them to the latents.

        Args:
            whole: Compute the prediction as well, as a fused step does; else stop after the last site.
        """
        latents = self.latents().requires_grad_(True)
        torch.autograd.grad(self.loss(latents, whole=whole)[0], latents)

    def loss(self, latents: Tensor, *, whole: bool = False) -> tuple[Tensor, Recorder]:
        """The forward part of :meth:`guide`, and what was read."""
        recorder, context = Recorder(), pass_context(STEP, "guide", (0,), ("cond",))
        columns = range(1, 1 + self.columns) if self.case.joint else None
        probe = Probe("probs", recorder, kinds=frozenset({"guide"}))
        with ExitStack() as stack:
            attention = stack.enter_context(attach(self.modules, [probe], network=self.network, columns=columns))
            stack.enter_context(attention.during(context, list(self.modules)))
            if not whole:
                stack.enter_context(stop_after(list(self.modules.values())))
            self.run(1, latents)
        return torch.stack([maps.mean() for maps in recorder.tensors.values()]).sum(), recorder

    def fused(self) -> None:
        """The conditional pass with its gradient, and the unconditional one where there is one."""
        self.guide(whole=True)
        if self.case.halves > 1:
            with torch.no_grad():
                self.run(1)


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
        forward: Operations.
        backward: Operations of the gradients to those of its inputs that depend on the latents.
        attention: Queries, keys, head size times heads, for an attention call.
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
        """Follow which module runs."""
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
        forward: A plain forward of one row.
        ahead: The part of it that a guide pass needs.
        backward: From the maps to the latents.
        sums: Rows' sums in joint attention, and the columns' scores, both ways.
    """

    forward: int
    ahead: int
    backward: int
    sums: int

    @classmethod
    def of(cls, bench: Bench) -> Need:
        """Noted in one plain forward with a graph."""
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
        rows = sum(2 * cells * keys * size for _, keys, size in attended if keys)  # type: ignore[misc]
        columns = sum(2 * cells * bench.columns * size for _, _, size in attended)  # type: ignore[misc]
        return cls(sum(call.forward for call in notes.calls), ahead, backward, 4 * rows + 3 * columns)


# ------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Costs:
    """Operations of one step of each kind, counted and needed.

    Attributes:
        plain: A step without guidance.
        guided: With a guide pass.
        fused: With the gradient from the denoising pass.
        needs: The last two by :class:`Need`.
    """

    plain: int
    guided: int
    fused: int
    needs: tuple[int, int]

    def run(self, guided: int) -> float:
        """Operations of a run with half of its steps guided, over those of a plain one."""
        return (self.plain + guided) / (2 * self.plain)


def costs(bench: Bench) -> Costs:
    """Count and derive."""
    need, plain = Need.of(bench), counted(bench.plain)
    beyond = need.backward + need.sums
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
    sums = sum(2 * cells * keys * size for _, keys, size in calls)
    words = sum(2 * cells * bench.columns * size for _, _, size in calls)
    square = sum(case.heads * queries * keys * 4 for queries, keys, _ in calls)
    kept = sum(case.heads * cells * bench.columns * 4 for _ in calls)
    return [
        {"reading": "columns", "TFLOP": (6 * attention + 4 * sums + 3 * words) / 1e12, "kept, GB": kept / 1e9},
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
