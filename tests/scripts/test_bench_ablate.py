"""The arms of the comparison make the same pictures, and its ratios are within repeats."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_ablate

from attnguide.models.unet import StableDiffusion
from tests import tiny

MODEL = StableDiffusion(tiny.pipeline(length=77))  # the file's prompt is long, spelt character by character


@pytest.fixture(scope="module")
def bench() -> bench_ablate.Bench:
    return bench_ablate.Bench(MODEL, cells=3, size=32)


def test_cells_are_those_of_the_file() -> None:
    assert bench_ablate.Bench(MODEL, cells=7).cells == [
        (method, scale) for method in ("inject1", "inject2") for scale in (0, 1, 2, 3, 4)
    ]
    assert len(bench_ablate.Bench(MODEL, cells=40).cells) == 40


def test_every_arm_makes_every_picture(bench: bench_ablate.Bench) -> None:
    found = bench_ablate.measure(bench, steps=1, repeats=1)
    assert [(line["arm"], line["pictures"]) for line in found] == [("ablate", 5), ("sample", 5), ("calls", 5)]
    assert all(line["seconds"] > 0 for line in found)


def test_a_command_that_fails_is_told(bench: bench_ablate.Bench) -> None:
    with pytest.raises(RuntimeError, match=r"attnguide sample x --steps 0 ended with 2:"):
        bench._command(["sample", "x", "--steps", "0"])


def test_ratios_are_medians_within_repeats() -> None:
    seconds = {"ablate": (1.0, 10.0, 2.0), "sample": (2.0, 30.0, 8.0), "calls": (1.5, 15.0, 3.0)}
    found = [
        {"repeat": repeat, "arm": arm, "pictures": 5, "seconds": times[repeat], "cpu": 1.0}
        for repeat in range(3)
        for arm, times in seconds.items()
    ]
    lines = {line["arm"]: line for line in bench_ablate.summary(found)}
    assert [lines[arm]["seconds, x ablate"] for arm in bench_ablate.ARMS] == [1, 3, 1.5]
    assert lines["sample"]["seconds"] == 8 and lines["calls"]["cpu, x ablate"] == 1
