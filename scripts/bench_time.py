"""Cost of attend-and-excite in seconds and peak memory: the same run plain, with attnguide, and with diffusers' pipeline.

    python scripts/bench_time.py                                    # small UNets on the CPU
    python scripts/bench_time.py --device cuda --full               # both architectures, fp16 and bf16, batches of 1 and 4
    python scripts/bench_time.py --arch sd --repeats 5 --steps 10

Architectures are those of Stable Diffusion 1.5 (``sd``) and XL (``xl``), with random weights; ``--full`` takes the published
sizes. The arms ``plain`` (diffusers' own pipeline), ``attnguide``, ``diffusers`` (its attend-and-excite, of ``sd`` alone) and
``fused`` are those of ``bench_cost.py``, which counts operations instead. ``loop`` is our loop without any method, ``injected``
our loop with an edit of the words' attention (forward layout guidance) in as many steps as others are guided.

All of them run in one process in turn, again and again, so that a machine that others use slows all alike; a ratio of times is
the median over repeats, each against its own neighbour. CPU seconds stand beside the clock's, as they are not disturbed by
others at all. Where ``--budget`` seconds are over, no further run begins, and what is known by then is printed.

Peak memory is what two guided steps need above the idle model: allocated tensors on a GPU; on a CPU the growth of the resident
memory of a process that runs this arm alone.

First of all, the rows' sums of the fused kernels that columns of attention rest on are compared with explicit ones.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from bench_cost import ARMS, SD15, SMALL, Bench, Case, Parser, save, table
from bench_kernels import kernel_errors
from bench_xl import SDXL, SMALL_XL, BenchXL, CaseXL

from attnguide.engine.ledger import high_water_mb
from attnguide.models.load import DTYPES

Seconds = dict[str, list[float]]
"""Arm -> seconds of each repeat, in order."""

BUDGET = 480.0
"""Default time limit in seconds for all published sizes on a GPU."""


class SDBench(Bench):
    """The bench with two more arms: attnguide's loop without a method, and with an edit of attention."""

    arms = (*ARMS, "loop", "injected")


def bench_of(case: Case) -> Bench:
    """The bench of a case."""
    return BenchXL(case) if isinstance(case, CaseXL) else SDBench(case)


class Budget:
    """A time limit in seconds; none when ``seconds`` is ``None``."""

    def __init__(self, seconds: float | None = None) -> None:
        self.end = None if seconds is None else time.perf_counter() + seconds

    @property
    def over(self) -> bool:
        """Whether the time is over, so that no further run should begin."""
        return self.end is not None and time.perf_counter() >= self.end


def measure_time(bench: Bench, repeats: int, budget: Budget | None = None) -> tuple[Seconds, Seconds]:
    """Wall-clock and CPU seconds; the order of arms is reversed from one repeat to the next.

    A repeat that the time limit interrupts counts for none of its arms, unless it is the first.
    """
    budget = budget or Budget()
    clock: Seconds = {arm: [] for arm in bench.arms}
    cpu: Seconds = {arm: [] for arm in bench.arms}
    for arm in bench.arms:
        if not budget.over:
            bench.run(arm, 1, 1)
    for repeat in range(repeats):
        for arm in bench.arms if repeat % 2 == 0 else reversed(bench.arms):
            if budget.over:
                least = max(1, min(map(len, clock.values())))
                return tuple({arm: seconds[arm][:least] for arm in bench.arms} for seconds in (clock, cpu))  # type: ignore[return-value]
            start = time.perf_counter(), time.process_time()
            bench.run(arm)
            clock[arm].append(time.perf_counter() - start[0])
            cpu[arm].append(time.process_time() - start[1])
    return clock, cpu


def ratio(seconds: Seconds, arm: str, base: str) -> float | None:
    """Median over repeats of the ratio of an arm to ``base`` in the same repeat; ``None`` if one of them has not run."""
    pairs = list(zip(seconds.get(arm, []), seconds.get(base, []), strict=False))
    return median(mine / its for mine, its in pairs) if pairs else None


def cuda_peak_mb(bench: Bench, arm: str) -> float:
    """Peak memory in MB that tensors of two guided steps add to the idle model."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    idle = torch.cuda.memory_allocated()
    bench.run(arm, 2, 2)
    return (torch.cuda.max_memory_allocated() - idle) / 2**20


def resident_peak_mb(case: Case, arm: str) -> float:
    """Peak memory in MB that two guided steps add on a CPU, by this process's high-water mark; nothing may have run before."""
    bench = bench_of(case)
    idle = high_water_mb()
    bench.run(arm, 2, 2)
    return high_water_mb() - idle


def measure_memory(bench: Bench, budget: Budget | None = None) -> dict[str, float]:
    """Peak memory in MB of every arm that the time limit allows."""
    budget = budget or Budget()
    if bench.case.device == "cuda":
        return {arm: cuda_peak_mb(bench, arm) for arm in bench.arms if not budget.over}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as fresh:
        return {arm: fresh.submit(resident_peak_mb, bench.case, arm).result() for arm in bench.arms if not budget.over}


def measure(case: Case, repeats: int, budget: Budget | None = None) -> list[dict[str, Any]]:
    """One record per arm; numbers that the budget had no time for are ``None``."""
    bench = bench_of(case)
    peak = measure_memory(bench, budget)
    clock, cpu = measure_time(bench, repeats, budget)
    return [
        {
            "arm": arm,
            "repeats": len(clock[arm]),
            "seconds": median(clock[arm]) if clock[arm] else None,
            "x plain": ratio(clock, arm, "plain"),
            "x diffusers": ratio(clock, arm, "diffusers"),
            "CPU seconds": median(cpu[arm]) if cpu[arm] else None,
            "CPU x plain": ratio(cpu, arm, "plain"),
            "CPU x diffusers": ratio(cpu, arm, "diffusers"),
            "peak MB": peak.get(arm),
            "MB x diffusers": _over(peak.get(arm), peak.get("diffusers")),
        }
        for arm in bench.arms
    ]


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def told(records: Sequence[dict[str, Any]]) -> str:
    """The table of a case; a dash where there is no number, and no column of dashes alone."""
    kept = [name for name in records[0] if any(record[name] is not None for record in records)]
    return table([{name: _word(one[name]) for name in kept} for one in records])


def _word(value: Any) -> Any:
    """A number that :func:`table` writes with decimals as it is; others as text."""
    return "-" if value is None else str(value) if isinstance(value, int) else value


def parse_args(arguments: Sequence[str] | None) -> tuple[Parser, argparse.Namespace]:
    """Read the command line."""
    parser = Parser(__doc__, size=None)
    parser.add_argument("--arch", nargs="+", default=["sd", "xl"], choices=("sd", "xl"), help="architectures")
    parser.add_argument("--steps", type=int, help="denoising steps; 4, and 20 of published sizes on a GPU")
    parser.add_argument("--full", action="store_true", help="published sizes: 512 pixels, 1024 of xl")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="precision; fp32, on a GPU fp16 and bf16")
    parser.add_argument("--batch", type=int, nargs="+", help="rows sampled together; 1, on a GPU 1 and 4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, metavar="SECONDS", help=f"{BUDGET:g} of published sizes on a GPU, else no end")
    options = parser.parse_args(arguments)
    gpu = options.device == "cuda"
    large = gpu and options.full
    options.steps = options.steps or (20 if large else 4)
    options.dtype = options.dtype or (["fp16", "bf16"] if gpu else ["fp32"])
    options.batch = [1, 4] if options.batch is None and gpu else options.batch or [1]
    options.budget = BUDGET if options.budget is None and large else options.budget
    if min(*options.batch, options.repeats) < 1:
        parser.error("--batch and --repeats must be at least 1")
    if gpu and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU here")
    return parser, options


def cases(parser: Parser, options: argparse.Namespace) -> list[Case]:
    """The comparisons in their order: all architectures and precisions of a batch size before a larger one."""
    bases = {"sd": SD15 if options.full else SMALL, "xl": SDXL if options.full else SMALL_XL}
    chosen = [replace(parser.case(options, bases[name]), device=options.device) for name in options.arch]
    orders = [(batch, dtype, base) for batch in options.batch for dtype in options.dtype for base in chosen]
    return [replace(base, dtype=dtype, batch=batch) for batch, dtype, base in orders]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, every precision with every batch size."""
    parser, options = parse_args(arguments)
    budget = Budget(options.budget)
    wanted = cases(parser, options)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"rows' sums of fused kernels beside explicit ones, on {where}")
    print(table(kernel_errors(options.device, [*dict.fromkeys([*options.dtype, "fp32"])])), flush=True)
    print(
        f"\n{options.steps} steps, the first {wanted[0].guided} guided, no refinement; up to {options.repeats} repeats in turn"
    )
    results: list[tuple[Case, list[dict[str, Any]]]] = []
    for case in wanted:
        title = f"{'xl' if isinstance(case, CaseXL) else 'sd'}, {case.dtype}, batch {case.batch}"
        title += f": channels {case.channels}, {case.latent}x{case.latent} latents"
        if budget.over:
            print(f"\n{title}: not begun, {options.budget:g} seconds are over", flush=True)
            continue
        try:
            results.append((case, measure(case, options.repeats, budget)))
        except (RuntimeError, ValueError) as error:  # a lack of memory, or pictures that are no numbers: the others go on
            print(f"\n{title}: failed, {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", flush=True)
            continue
        print(f"\n{title}\n{told(results[-1][1])}", flush=True)
        save(options.json, results)
        if options.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
