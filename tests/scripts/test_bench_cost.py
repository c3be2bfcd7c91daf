"""The comparisons of costs: what is counted is what really runs, and the promise about guidance holds."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_cost
import bench_kernels
import bench_time
import bench_xl

TINY = bench_cost.Case(channels=(16, 32, 32), heads=2, layers=1, latent=32, steps=4, guided=1)
TINY_XL = bench_xl.CaseXL(
    channels=(16, 32, 32), heads=16, layers=1, latent=32, steps=4, guided=1, depths=(1, 1, 1), pooled=8, told=8, device="cpu"
)


@pytest.fixture(scope="module")
def costs() -> dict[str, bench_cost.StepCost]:
    """Of the tiny UNet, on tensors without data."""
    bench = bench_cost.Bench(TINY)
    return {arm: bench_cost.step_cost(bench, arm) for arm in bench_cost.ARMS}


@pytest.mark.parametrize("arm", bench_cost.ARMS)
def test_counting_without_data_equals_counting_a_computed_run(costs: dict[str, bench_cost.StepCost], arm: str) -> None:
    bench = bench_cost.Bench(replace(TINY, device="cpu"))
    with sdpa_kernel(SDPBackend.MATH):  # without data attention is explicit; the fused backward repeats a product
        assert bench_cost.count(bench, arm, 2, 1) == costs[arm].free + costs[arm].guided


def test_steps_by_hand(costs: dict[str, bench_cost.StepCost]) -> None:
    plain, ours, peer, fused = (costs[arm] for arm in bench_cost.ARMS)
    one = plain.free // 2  # classifier-free guidance: two rows in one pass
    assert plain.guided == plain.free == 2 * one
    assert ours.free == plain.free
    assert peer.free == pytest.approx(3 * one, rel=1e-3)  # it judges the unguided steps too; the rest is its loss's blur
    assert peer.free < peer.guided < peer.free + 1.2 * one  # backward no further than from the last map that is read
    assert ours.free < ours.guided < peer.guided - 0.25 * one  # forward no further than to there
    assert fused.free == plain.free
    assert fused.free < fused.guided < ours.guided - 0.1 * one  # no forward beside the prediction's


def test_a_run_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"plain": (200, 200), "attnguide": (200, 305), "diffusers": (300, 355), "fused": (200, 255)}
    monkeypatch.setattr(bench_cost, "step_cost", lambda bench, arm: bench_cost.StepCost(*known[arm]))
    records = bench_cost.flops(replace(TINY, steps=50, guided=25))
    assert [record["run, F"] for record in records] == [100, 126.25, 163.75, 113.75]
    assert [record["x plain"] for record in records] == [1, 1.2625, 1.6375, 1.1375]
    assert records[1]["x diffusers"] == pytest.approx(126.25 / 163.75)


def test_a_cost_that_is_no_sum_of_steps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cost, "count", lambda bench, arm, steps, guided: steps**2)
    with pytest.raises(RuntimeError, match="4 steps, 2 guided, take 16 operations"):
        bench_cost.step_cost(bench_cost.Bench(TINY), "plain")


def test_promise_on_stable_diffusion() -> None:
    case = bench_cost.SD15
    bench = bench_cost.Bench(case)
    guided = bench_cost.count(bench, "attnguide", 1, 1)
    free = bench_cost.count(bench, "plain", 1, 1)
    assert free / 2 == pytest.approx(803e9, rel=0.01)
    assert bench_cost.StepCost(free, guided).run(case) <= 1.2625 * case.steps * free
    fused = bench_cost.count(bench, "fused", 1, 1)
    assert bench_cost.StepCost(free, fused).run(case) <= 1.15 * case.steps * free


def test_every_arm_computes_its_own_latents() -> None:
    bench = bench_cost.Bench(replace(TINY, device="cpu", batch=2))
    plain, ours, peer, fused = (bench.run(arm, 2, 1) for arm in bench_cost.ARMS)
    assert plain.shape == ours.shape == peer.shape == fused.shape == (2, 4, 32, 32)
    assert not any(plain.equal(guided) for guided in (ours, peer, fused)) and not ours.equal(fused)


def test_table_and_file_of_operations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_cost, "SMALL", TINY)
    monkeypatch.setattr(bench_cost, "step_cost", lambda bench, arm: bench_cost.StepCost(200, 300))
    bench_cost.main(["--small", "--size", "256", "--steps", "4", "--json", str(tmp_path / "cost.json")])
    (written,) = json.loads((tmp_path / "cost.json").read_text())
    assert (written["case"]["latent"], written["case"]["guided"]) == (32, 2)
    assert [record["arm"] for record in written["arms"]] == list(bench_cost.ARMS)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["plain", "2.000", "3.000", "10.000"] in [row[:4] for row in rows]


@pytest.mark.parametrize(
    ("script", "arguments", "complaint"),
    [
        (bench_cost, ["--size", "100"], "--size must be a multiple of 64"),
        (bench_cost, ["--steps", "4", "--guided", "5"], "--guided must lie between 1 and --steps (4); got 5"),
        (bench_cost, ["--steps", "four"], "invalid int value"),
        (bench_cost, ["--json", "nowhere/cost.json"], "no folder 'nowhere'"),
        (bench_time, ["--dtype", "fp8"], "invalid choice"),
        (bench_time, ["--batch", "0"], "at least 1"),
    ],
)
def test_wrong_arguments(script, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        script.main(arguments)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


# --------------------------------------------------------------------------------------------------- seconds, memory


def test_times_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_cost.Bench(replace(TINY, device="cpu"))
    order: list[str] = []
    monkeypatch.setattr(bench, "run", lambda arm, *length: order.append(arm))
    clock, cpu = bench_time.measure_time(bench, 2)
    assert order[len(bench_cost.ARMS) :] == [*bench_cost.ARMS, *reversed(bench_cost.ARMS)]
    assert all(len(seconds[arm]) == 2 for seconds in (clock, cpu) for arm in bench_cost.ARMS)


def test_ratio_is_of_neighbours_in_time() -> None:
    assert bench_time.ratio({"slow": [2.0, 20.0, 6.0], "fast": [1.0, 10.0, 2.0]}, "slow", "fast") == 2.0


def test_every_precision_with_every_batch_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_time, "SMALL", TINY)
    peaks = {"plain": 10.0, "attnguide": 20.0, "diffusers": 80.0, "fused": 30.0}
    monkeypatch.setattr(bench_time, "measure_memory", lambda bench, budget: peaks)
    words = ["--arch", "sd", "--size", "256", "--steps", "1", "--guided", "1", "--repeats", "1", "--dtype", "fp32", "bf16"]
    bench_time.main(words)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1:4] for line in lines if line and line[0] == "sd,"] == [["fp32,", "batch", "1:"], ["bf16,", "batch", "1:"]]
    assert [line[-1] for line in lines if line and line[0] == "attnguide"] == ["0.250", "0.250"]
    assert [line[-1] for line in lines if line and line[0] == "injected"] == ["-", "-"]
    assert [line[0] for line in lines if line].count("bf16") == 2 * len(bench_kernels.SHAPES), "sums of rows come first"


def test_every_arm_of_the_larger_architecture_computes_its_own_latents() -> None:
    """Our loop without methods is diffusers' own pipeline; the others move or edit."""
    bench = bench_xl.BenchXL(replace(TINY_XL, batch=2))
    made = {arm: bench.run(arm, 2, 1) for arm in bench.arms}
    assert made["plain"].equal(made["loop"]) and made["plain"].shape == (2, 4, 32, 32)
    assert not any(made["plain"].equal(made[arm]) for arm in ("attnguide", "fused", "injected"))


def test_published_sizes_of_both_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_time.torch.cuda, "is_available", lambda: True)
    parser, options = bench_time.parse_args(["--device", "cuda", "--full"])
    cases = bench_time.cases(parser, options)
    assert [(case.latent, case.dtype, case.batch) for case in cases] == [
        (latent, dtype, batch) for batch in (1, 4) for dtype in ("fp16", "bf16") for latent in (64, 128)
    ]
    assert {case.steps for case in cases} == {20} and options.budget < 540
    bench = bench_xl.BenchXL(replace(bench_xl.SDXL, device="meta"))
    assert bench_cost.count(bench, "plain", 1, 1) / 2 == pytest.approx(6.76e12, rel=0.01)


def test_a_budget_ends_the_measuring_and_keeps_what_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = iter([False] * 9 + [True] * 99)  # warm-ups of six arms, and three runs
    monkeypatch.setattr(bench_time.Budget, "over", property(lambda self: next(left)))
    bench = bench_time.SDBench(replace(TINY, device="cpu"))
    monkeypatch.setattr(bench, "run", lambda arm, *length: None)
    clock, cpu = bench_time.measure_time(bench, 2, bench_time.Budget(1.0))
    assert [len(clock[arm]) for arm in bench.arms] == [1, 1, 1, 0, 0, 0] == [len(cpu[arm]) for arm in bench.arms]
    assert bench_time.ratio(clock, "fused", "plain") is None
    monkeypatch.undo()
    bench_time.main(["--size", "256", "--budget", "0"])
    assert capsys.readouterr().out.count("not begun, 0 seconds are over") == 2


def test_a_case_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(case: bench_cost.Case, repeats: int, budget: bench_time.Budget) -> None:
        raise RuntimeError("plain: latents are not finite\nand more")

    monkeypatch.setattr(bench_time, "measure", broken)
    bench_time.main(["--size", "256"])
    assert capsys.readouterr().out.count("failed, RuntimeError: plain: latents are not finite\n") == 2


def test_sums_of_rows_beside_explicit_ones() -> None:
    records = bench_kernels.kernel_errors("cpu", ["fp32", "bf16"])
    assert [record["kernel"] for record in records] == ["on_cpu", "gradient"] * 2 * len(bench_kernels.SHAPES)
    limits = {("fp32", "on_cpu"): 1e-5, ("bf16", "on_cpu"): 2e-2, ("fp32", "gradient"): 1e-4, ("bf16", "gradient"): 5e-2}
    for record in records:
        limit = limits[record["precision"], record["kernel"]]
        assert float(record["output"]) < limit and float(record["rows"]) < max(
            limit if record["kernel"] == "gradient" else 1e-4, 1e-4
        )


def test_peak_memory_of_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_time.SDBench(replace(TINY, device="cpu"))
    bench.arms = ("diffusers",)
    peak = bench_time.measure_memory(bench)["diffusers"]
    largest = 2 * 2 * 1024**2 * 4 / 2**20  # probs of one site: rows x heads x (32 x 32 cells)^2, float32
    assert largest < peak < 100 * largest
