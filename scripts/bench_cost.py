"""Cost of attend-and-excite in floating-point operations: the same run plain, with attnguide, and with diffusers' pipeline.

In the fourth arm, ``fused``, attnguide's loss and maps are the same, but the gradient moves the noise prediction and comes from
the conditional denoising pass itself (:mod:`attnguide.engine.fused`); attend-and-excite's own rule moves latents instead.

    python scripts/bench_cost.py                        # Stable Diffusion 1.5, 50 steps, 25 guided; no weights, no GPU
    python scripts/bench_cost.py --small --size 256     # another architecture and picture size

Seconds and memory of the same arms: ``bench_time.py``. The arms share one UNet, one DDIM scheduler, the same text states
and the same initial latents. Text encoder and autoencoder are left out: they cost the same in every arm. There is no refinement
(``thresholds={}``), as its length depends on the weights and not on the code.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

# Read by the libraries when they are imported: no network, no advice about parts that are not used here.
os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}

import torch
from diffusers import DDIMScheduler, StableDiffusionAttendAndExcitePipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from attnguide.guidance.attend_and_excite import AttendAndExcite
from attnguide.injection.forward_layout import ForwardLayout
from attnguide.models.base import Conditioning, Picture
from attnguide.models.load import DTYPES
from attnguide.models.unet import StableDiffusion
from attnguide.prompt.tokens import TokenizedPrompt
from attnguide.sampling.sampler import Sampler
from attnguide.types import Region, Sample

ARMS = ("plain", "attnguide", "diffusers", "fused")
OURS = ("loop", "attnguide", "fused", "injected")
"""Arms that attnguide's loop runs: no method, guidance, guidance fused with the denoising pass, an edit of attention."""

PROMPT = "a cat and a dog"
WORDS = {"cat": 2, "dog": 5}
"""Guided words and their positions in the tokenized prompt."""

PLACES = {"cat": (0.0, 0.0, 0.5, 1.0), "dog": (0.5, 0.0, 1.0, 1.0)}
"""Boxes of the words, for methods that need places."""

TOKENS = 77
CFG_SCALE = 7.5


# -------------------------------------------------------------------------------------------------------- what is run


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison.

    Attributes:
        channels: Channels of the UNet's levels, finest first; the coarsest has no attention.
        heads: Attention heads at every site.
        layers: Layers per level.
        latent: Side of the latents in cells.
        batch: Rows sampled together.
        steps: Denoising steps.
        guided: Number of guided steps, from the first.
        device: ``cpu``, ``cuda``, or ``meta`` for tensors without data.
        dtype: ``fp32``, ``fp16`` or ``bf16``.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    heads: int = 8
    layers: int = 2
    latent: int = 64
    batch: int = 1
    steps: int = 50
    guided: int = 25
    device: str = "meta"
    dtype: str = "fp32"

    text = 768
    """Channels of a text state."""

    def unet(self) -> nn.Module:
        """A UNet of Stable Diffusion 1.5's architecture with these sizes and random weights."""
        deeper = len(self.channels) - 1
        unet: nn.Module = UNet2DConditionModel(
            sample_size=self.latent,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=("CrossAttnDownBlock2D",) * deeper + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * deeper,
            cross_attention_dim=self.text,
            attention_head_dim=self.heads,  # diffusers' name for the number of heads in this family
            norm_num_groups=min(32, self.channels[0] // 4),
        )
        return unet


SD15 = Case()
SMALL = replace(SD15, channels=(64, 128, 256, 256), heads=2)
"""A case with a fifth of the width and a quarter of the heads."""


class BareModel(StableDiffusion):
    """Adapter of a bare UNet: text states are given instead of encoded, and latents are not decoded."""

    def __init__(self, unet: nn.Module, scheduler: Any, states: Conditioning) -> None:
        factor_8 = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1,) * 4))
        super().__init__(SimpleNamespace(unet=unet, vae=factor_8, scheduler=scheduler))
        self.states = states

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        return {"unet": self._unet}

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        words = prompt.split()
        spans = [(len(" ".join([*words[:i], ""])), len(" ".join(words[: i + 1]))) for i in range(len(words))]
        padding = TOKENS - 1 - len(words)
        tokens = ("<|startoftext|>", *words, *["<|endoftext|>"] * padding)
        return TokenizedPrompt(prompt, tokens, (None, *spans, *[None] * padding), tuple(range(TOKENS)))

    def encode_prompt(
        self, prompts: Sequence[str], negative_prompts: Sequence[str | None] | None, cfg_scales: Sequence[float] | None = None
    ) -> Conditioning:
        return self.states

    def decode(self, latents: Tensor) -> list[Picture]:
        return [Picture(Image.new("RGB", (1, 1)))] * len(latents)


class Bench:
    """All arms over one UNet.

    Attributes:
        arms: Names of the arms: diffusers' pipeline (``plain``), attnguide's guidance, fused guidance, diffusers' guidance.
    """

    arms: tuple[str, ...] = ARMS

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(0)
        with torch.device(case.device):
            self.unet = case.unet().to(DTYPES[case.dtype]).eval()
            states = torch.randn(2, case.batch, TOKENS, case.text).to(DTYPES[case.dtype])
            self.states = Conditioning(states[0], states[1], self._further())
            self.latents = torch.randn(case.batch, 4, case.latent, case.latent).to(DTYPES[case.dtype])
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )

    def run(self, arm: str, steps: int | None = None, guided: int | None = None) -> Tensor:
        """Final latents of a whole run of an arm, with the case's numbers of steps or others."""
        steps = self.case.steps if steps is None else steps
        guided = self.case.guided if guided is None else guided
        ours = arm in OURS
        latents = self._attnguide(arm, steps, guided) if ours else self._pipeline(arm, steps, guided)
        if latents.is_cuda:
            torch.cuda.synchronize()
        return latents

    def _further(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Further inputs of the UNet beside text states, for both halves."""
        return {}

    def model(self) -> BareModel:
        """attnguide's adapter of the UNet."""
        return BareModel(self.unet, self.scheduler, self.states)

    def _attnguide(self, arm: str, steps: int, guided: int) -> Tensor:
        regions = tuple(Region(word, box=box) for word, box in PLACES.items())
        side = self.case.latent * 8
        rows = [
            Sample(str(row), PROMPT, row, regions, height=side, width=side, steps=steps, cfg_scale=CFG_SCALE)
            for row in range(self.case.batch)
        ]
        guidances = [_guidance(guided / steps, fused=arm == "fused")] if arm in ("attnguide", "fused") else []
        injections = [ForwardLayout(stop=guided / steps)] if arm == "injected" else []
        results = Sampler(self.model(), guidances, injections).run(rows, self.latents)
        made = [result.latents for result in results if result.latents is not None]
        if len(made) < len(rows):
            raise RuntimeError(f"{arm}: {next(result.status for result in results if result.latents is None)}")
        return torch.stack(made)

    def _pipeline(self, arm: str, steps: int, guided: int) -> Tensor:
        words = [list(WORDS.values())] * self.case.batch
        guide: dict[str, Any] = {"prompt": None, "token_indices": words, "max_iter_to_alter": guided, "thresholds": {}}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid")  # raised inside diffusers' loss
            latents: Tensor = self.pipelines[arm](
                **self._embeddings(),
                latents=self.latents.clone(),
                height=self.case.latent * 8,
                width=self.case.latent * 8,
                num_inference_steps=steps,
                guidance_scale=CFG_SCALE,
                output_type="latent",
                **(guide if arm == "diffusers" else {}),
            ).images
        return latents

    def _embeddings(self) -> dict[str, Any]:
        """Text states, as arguments of diffusers' pipelines."""
        return {"prompt_embeds": self.states.cond, "negative_prompt_embeds": self.states.uncond}

    @cached_property
    def pipelines(self) -> Mapping[str, Any]:
        """Diffusers' pipelines, by arm."""
        absent = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        classes = {"plain": StableDiffusionPipeline, "diffusers": StableDiffusionAttendAndExcitePipeline}
        built = {
            arm: kind(**absent, unet=self.unet, scheduler=self.scheduler, requires_safety_checker=False)
            for arm, kind in classes.items()
        }
        for pipeline in built.values():
            pipeline.set_progress_bar_config(disable=True)
        return built


def _guidance(stop: float, *, fused: bool) -> AttendAndExcite:
    """Attend-and-excite without refinement; with ``fused``, on the noise prediction."""
    method = AttendAndExcite(stop=stop, thresholds={})
    if fused:
        method.update = replace(method.update, space="noise", fused=True)
    return method


# --------------------------------------------------------------------------------------------------------- operations


class _Ones(TorchDispatchMode):
    """Lets code that reads numbers run on ``meta`` tensors, which have no data: every number read is 1.

    Every loss is thus 1 (never satisfied, never zero), all values are finite, and every row moves.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func is torch.ops.aten._local_scalar_dense.default:
                return torch.ones((), dtype=args[0].dtype).item()
            if func is torch.ops.aten._to_copy.default and str(kwargs.get("device")) == "cpu":
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


class _OnesInText(TorchFunctionMode):
    """As :class:`_Ones` for formatted numbers: diffusers' loop formats its loss for the log."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return "1" if func is Tensor.__format__ and args[0].is_meta else func(*args, **(kwargs or {}))


class NoModules(nullcontext[None]):
    """Replaces the counter's module tracker, which refuses gradients to a leaf and is not needed for totals."""

    parents = frozenset({"Global"})


def count(bench: Bench, arm: str, steps: int, guided: int) -> int:
    """Floating-point operations of one run, forward and backward."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()  # type: ignore[assignment]
    with ExitStack() as modes:
        for mode in (_OnesInText(), _Ones()) if bench.case.device == "meta" else ():
            modes.enter_context(mode)
        modes.enter_context(counter)
        bench.run(arm, steps, guided)
    return counter.get_total_flops()


@dataclass(frozen=True)
class StepCost:
    """Floating-point operations of a denoising step without and with guidance."""

    free: int
    guided: int

    def run(self, case: Case) -> int:
        """Floating-point operations of a whole run."""
        return case.guided * self.guided + (case.steps - case.guided) * self.free


def step_cost(bench: Bench, arm: str) -> StepCost:
    """Operations of a plain and of a guided step, from counts of short runs.

    Raises:
        RuntimeError: If a longer run's cost is not the sum of its steps'.
    """
    guided = count(bench, arm, 1, 1)
    cost = StepCost(count(bench, arm, 2, 1) - guided, guided)
    if (whole := count(bench, arm, 4, 2)) != 2 * (cost.free + cost.guided):
        raise RuntimeError(f"{arm}: 4 steps, 2 guided, take {whole} operations, but their parts are {cost}.")
    return cost


def flops(case: Case) -> list[dict[str, Any]]:
    """One record per arm; ``F`` is one pass of one row through the UNet."""
    bench = Bench(case)
    costs = {arm: step_cost(bench, arm) for arm in ARMS}
    total = {arm: cost.run(case) for arm, cost in costs.items()}
    one = costs["plain"].free / (2 * case.batch)
    return [
        {
            "arm": arm,
            "free step, F": costs[arm].free / one,
            "guided step, F": costs[arm].guided / one,
            "run, F": total[arm] / one,
            "run, TFLOP": total[arm] / 1e12,
            "x plain": total[arm] / total["plain"],
            "x diffusers": total[arm] / total["diffusers"],
        }
        for arm in ARMS
    ]


# -------------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """Parser of the options of both benchmarks; an error is one line and exit status 2."""

    def __init__(self, description: str | None, size: int | None = 512) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--size", type=int, default=size, help="side of the picture in pixels")
        self.add_argument("--guided", type=int, help="guided steps (default: half)")
        self.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")

    def error(self, message: str) -> NoReturn:
        """Exit with a one-line message."""
        self.exit(2, f"{self.prog}: {message}\n")

    def case(self, options: argparse.Namespace, base: Case) -> Case:
        """The comparison that the options ask for."""
        guided = options.steps // 2 if options.guided is None else options.guided
        size = base.latent * 8 if options.size is None else options.size
        if size < 256 or size % 64:
            self.error(f"--size must be a multiple of 64 from 256 on; got {size}")
        if not 1 <= guided <= options.steps:
            self.error(f"--guided must lie between 1 and --steps ({options.steps}); got {guided}")
        if options.json and not options.json.parent.is_dir():
            self.error(f"--json: no folder {str(options.json.parent)!r}")
        return replace(base, latent=size // 8, steps=options.steps, guided=guided)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Records with the same keys, right-aligned under their names."""
    cells = [list(records[0]), *[[v if isinstance(v, str) else f"{v:.3f}" for v in record.values()] for record in records]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def save(path: Path | None, results: Sequence[tuple[Case, Sequence[Mapping[str, Any]]]]) -> None:
    """Write cases and their records as JSON, if a path is given."""
    if path:
        path.write_text(json.dumps([{"case": asdict(case), "arms": records} for case, records in results], indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = Parser(__doc__)
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--small", action="store_true", help="the small UNet that bench_time.py measures on a CPU")
    options = parser.parse_args(arguments)
    case = parser.case(options, SMALL if options.small else SD15)
    records = flops(case)
    print(f"UNet with channels {case.channels}, {case.latent}x{case.latent} latents, {TOKENS} tokens, one row, cfg {CFG_SCALE}")
    print(f"{case.steps} steps, the first {case.guided} guided, no refinement\n")
    print(table(records))
    print(
        "\nF: one pass of one row through the UNet. Counted by torch.utils.flop_counter on tensors without data: products and\n"
        "convolutions, 2 a multiply-add, attention as its two explicit products in all arms. Whole loops of 1 and 2 steps\n"
        "are counted and taken apart into steps; a loop of 4 steps, 2 guided, is checked to be the sum of its parts."
    )
    save(options.json, [(case, records)])


if __name__ == "__main__":
    main()
