"""Time of an ablation as one run, against the same cells made one by one.

    python scripts/bench_ablate.py                                   # 40 cells: eight functions times five scales
    python scripts/bench_ablate.py --steps 4 --cells 8 --repeats 1   # to see it work

Three arms make the same pictures on one loaded model, in one process, in turn:

    ablate   one `attnguide ablate` of configs/ablations/function_scale.yaml, one seed
    sample   an `attnguide sample` for every cell
    calls    an `attnguide.sample(...)` for every cell: no run folder, no judge, nothing but the picture

Start-up is excluded: the model is loaded once before and handed to every arm, and every arm runs once for a step before it is
timed. A ratio is the median over repeats, each within its own repeat, so that a machine that others use slows all alike; CPU
seconds stand beside the clock's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

os.environ |= {"HF_HUB_OFFLINE": "1"}

import yaml

import attnguide
from attnguide.cli import main as command
from attnguide.models.base import ModelAdapter
from attnguide.models.load import load_model, quiet_libraries
from attnguide.prompt.notation import parse_region
from attnguide.run_folder.records import read_records
from attnguide.types import MethodConfig

FILE = Path(__file__).parents[1] / "configs" / "ablations" / "function_scale.yaml"

ARMS = ("ablate", "sample", "calls")

Cell = tuple[str, float]
"""A cell: method and scale."""


class Bench:
    """The three arms over one model.

    Args:
        model: The loaded model.
        cells: Number of the file's cells to make, from the first; rounded to whole methods, as the axes are a grid.
        size: Side of the pictures in pixels; the model's own when ``None``.
        outputs: Whether runs also draw heat maps and measure norms.
    """

    def __init__(self, model: ModelAdapter, cells: int, size: int | None = None, outputs: bool = False) -> None:
        content: Mapping[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
        values = {name: spec.get("values") for name, spec in content["parameters"].items()}
        self.model, self.base = model, content["base"]
        self.start = content["parameters"]["method.start"]["value"]
        self.scales: list[float] = values["method.scale"]
        self.methods: list[str] = values["method"][: -(-cells // len(self.scales))]
        self.common = ["--seed", "0", "--no-plain", "--logger", "none"]
        self.common += [] if size is None else ["--height", str(size), "--width", str(size)]
        self.common += [] if outputs else ["--no-maps", "--no-norms"]
        self.size = size

    @property
    def cells(self) -> list[Cell]:
        """All cells that every arm makes."""
        return [(method, scale) for method in self.methods for scale in self.scales]

    def run(self, arm: str, steps: int, cells: Sequence[Cell] | None = None) -> int:
        """Make every picture of an arm once, or only those of some cells if the arm makes them one by one.

        Returns:
            Number of pictures.

        Raises:
            RuntimeError: If a command fails.
        """
        arms: dict[str, Callable[[int, Sequence[Cell]], int]] = {
            "ablate": self._ablate,
            "sample": self._sample,
            "calls": self._calls,
        }
        return arms[arm](steps, self.cells if cells is None else cells)

    def _ablate(self, steps: int, cells: Sequence[Cell]) -> int:
        return self._command(["ablate", str(FILE), "--method", *self.methods, "--steps", str(steps), *self.common])

    def _sample(self, steps: int, cells: Sequence[Cell]) -> int:
        regions = [word for region in self.base["regions"] for word in ("--region", region)]
        settings = [*regions, "--cfg-scale", str(self.base["cfg_scale"]), "--steps", str(steps), *self.common]
        made = 0
        for method, scale in cells:
            options = ["--method", method, "--method.scale", str(scale), "--method.start", str(self.start)]
            made += self._command(["sample", self.base["prompt"], *options, *settings])
        return made

    def _calls(self, steps: int, cells: Sequence[Cell]) -> int:
        made = 0
        for method, scale in cells:
            results = attnguide.sample(
                self.base["prompt"],
                regions=[parse_region(region) for region in self.base["regions"]],
                method=MethodConfig(method, {"scale": scale, "start": self.start}),
                model=self.model,
                steps=steps,
                cfg_scale=self.base["cfg_scale"],
                height=self.size,
                width=self.size,
            )
            made += sum(result.image is not None for result in results)
        return made

    def _command(self, words: Sequence[str]) -> int:
        """Run a command on the loaded model, silently; gives the number of pictures."""
        said = io.StringIO()
        with tempfile.TemporaryDirectory() as folder:
            with patch("attnguide.models.load.load_model", lambda *args, **options: self.model):
                with redirect_stdout(said), redirect_stderr(said):
                    status = command([*words, "--out", f"{folder}/run"])
            if status:
                raise RuntimeError(f"attnguide {' '.join(words)} ended with {status}:\n{said.getvalue()}")
            return len(read_records(f"{folder}/run"))


def measure(bench: Bench, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Wall-clock and CPU seconds of every arm and repeat; the order of arms is reversed from one repeat to the next.

    Raises:
        RuntimeError: If an arm made another number of pictures.
    """
    for arm in ARMS:
        bench.run(arm, 1, bench.cells[:1])
    found = []
    for repeat in range(repeats):
        for arm in ARMS if repeat % 2 == 0 else reversed(ARMS):
            start = time.perf_counter(), time.process_time()
            made = bench.run(arm, steps)
            clock, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
            if made != len(bench.cells):
                raise RuntimeError(f"{arm} made {made} pictures of {len(bench.cells)} cells.")
            found.append({"repeat": repeat, "arm": arm, "pictures": made, "seconds": clock, "cpu": cpu})
    return found


def summary(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each arm: median seconds, and the median ratio to the ablation of the same repeat."""
    lines = []
    for arm in ARMS:
        mine = [line for line in found if line["arm"] == arm]
        ours = {line["repeat"]: line for line in found if line["arm"] == "ablate"}
        line: dict[str, Any] = {"arm": arm, "pictures": mine[0]["pictures"]}
        for unit in ("seconds", "cpu"):
            line[unit] = round(median(one[unit] for one in mine), 2)
            line[f"{unit}, x ablate"] = round(median(one[unit] / ours[one["repeat"]][unit] for one in mine), 2)
        lines.append(line)
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--device", default=None)
    parser.add_argument("--cells", type=int, default=40, help="rounded up to whole methods of five scales")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=None, help="side of the pictures in pixels; the model's own by default")
    parser.add_argument("--outputs", action="store_true", help="runs also draw heat maps and measure norms")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there, too")
    args = parser.parse_args(argv)
    quiet_libraries()
    bench = Bench(load_model(args.model, device=args.device), args.cells, args.size, args.outputs)
    lines = summary(measure(bench, args.steps, args.repeats))
    print(f"{len(bench.cells)} cells, {args.steps} steps, {args.repeats} repeats\n")
    print("".join(f"{name:>18}" for name in lines[0]))
    for line in lines:
        print("".join(f"{value:>18}" for value in line.values()))
    if args.json is not None:
        args.json.write_text(json.dumps({"cells": len(bench.cells), "steps": args.steps, "arms": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
