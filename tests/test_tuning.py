from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnguide import tuning
from attnguide.attention.sites import Site
from attnguide.models.load import adapt
from attnguide.tuning import InsideShare, PlainCells, Trial, choose, strengths, trials
from attnguide.types import MethodConfig, PassContext, Region, Sample, Step
from tests import tiny

ROWS = [
    Sample(f"r{seed}", "a red cat", seed=seed, steps=2, regions=(Region("cat", box=(0.0, 0.0, 0.5, 1.0)),)) for seed in range(3)
]
METHOD = MethodConfig("inject1", {"start": 0.0})


def _trial(value: float, inside: float, strain: float = 1.0) -> Trial:
    return Trial(value, inside, strain)


@pytest.mark.parametrize(
    ("tried", "chosen"),
    [
        ([_trial(1, 0.2), _trial(2, 0.47), _trial(4, 0.5)], 2.0),  # nine tenths of 0.4 are 0.36
        ([_trial(1, 0.2), _trial(2, 0.45), _trial(4, 0.5)], 4.0),
        ([_trial(1, 0.2), _trial(2, 0.3), _trial(4, 0.5, strain=1.3)], 2.0),  # the strongest strains latents
        ([_trial(1, 0.2), _trial(2, 0.3), _trial(4, 0.5, strain=0.7)], 2.0),  # the strongest leaves things out
        ([_trial(1, 0.05), _trial(2, 0.1)], None),  # nothing is gained
        ([_trial(1, 0.5, strain=2.0)], None),
        ([], None),
    ],
    ids=["saturated", "not yet", "strained", "emptied", "no gain", "none holds", "none"],
)
def test_the_least_strength_of_nearly_the_largest_gain(tried: list[Trial], chosen: float | None) -> None:
    found = choose(Trial(None, 0.1, 1.0), tried)
    assert (found.value if found else None) == chosen


def test_distances_by_hand() -> None:
    """Three pictures of one channel with two cells each; every row is compared with the other two, in deviations."""
    plain = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 5.0]]).view(3, 1, 1, 2)
    deviation = plain.std()
    cells = PlainCells(plain)
    wanted = torch.tensor([(0 + 1) / 2, (0 + 1) / 2, (0 + 3) / 2]) / deviation
    torch.testing.assert_close(cells.distances(plain, range(3)), wanted)
    other = torch.tensor([4.0, 8.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(cells.distances(other, [2]), (torch.tensor([2.0 + 6.0]) / 2) / deviation)  # 5 is its own row's
    torch.testing.assert_close(cells.distances(other, [0]), (torch.tensor([1.0 + 3.0]) / 2) / deviation)


def test_pieces_in_other_places_are_alike_and_louder_ones_are_not() -> None:
    palette = torch.randn(6, 4)
    plain = palette[torch.randint(0, 6, (5, 8, 8))].permute(0, 3, 1, 2) + 0.05 * torch.randn(5, 4, 8, 8)
    cells, rows = PlainCells(plain), range(5)
    usual = cells.distances(plain, rows).mean()
    moved = plain.flatten(2)[:, :, torch.randperm(64)].view_as(plain)
    assert cells.distances(moved, rows).mean() / usual < 1.1
    assert cells.distances(1.3 * plain, rows).mean() / usual > 1.5


def test_many_cells_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.randn(4, 2, 16, 16)
    full = PlainCells(plain).distances(plain, range(4)).mean()
    monkeypatch.setattr(tuning, "MOST_CELLS", 256)
    few = PlainCells(plain)
    assert few._cells.shape == (4, 64, 2)
    assert full < few.distances(plain, range(4)).mean() < 4 * full  # fewer neighbours are farther away


def test_two_pictures_are_too_few() -> None:
    with pytest.raises(ValueError, match="at least 3 pictures; got 2"):
        PlainCells(torch.randn(2, 4, 8, 8))


@pytest.mark.parametrize(
    ("method", "values"),
    [
        (MethodConfig("mask_guidance", {"scale": 3.0}), [1.5, 3.0, 6.0]),
        (MethodConfig("forward_layout", {}), [0.4, 0.8]),  # whose scale ends at 1
    ],
    ids=["guidance", "bounded"],
)
def test_strengths_are_factors_that_the_method_takes(method: MethodConfig, values: list[float]) -> None:
    assert strengths(method, factors=(2.0, 0.5, 1.0)) == values


@pytest.mark.parametrize("option", ["sclae", "losses", "start"])
def test_a_strength_is_a_number_above_0(option: str) -> None:
    with pytest.raises(ValueError, match=f"needs an option '{option}' that is a number above 0"):
        strengths(MethodConfig("mask_guidance", {}), option)


def test_shares_by_hand() -> None:
    """Two cells of four are inside; late passes count, of the conditional half; regions of the same words count together."""
    row = replace(ROWS[0], regions=(Region("cat", box=(0.0, 0.0, 0.5, 0.5)), Region("cat", box=(0.0, 0.5, 0.5, 1.0))))
    model = adapt(tiny.pipeline())
    from attnguide.prompt.targets import Targets

    targets = Targets.build([row], [model.tokenize(row.prompt)], torch.device("cpu"))
    watch = InsideShare()
    watch.probes(SimpleNamespace(targets=targets, model=model))  # type: ignore[arg-type]
    site = Site("x", "cross", 2, 2, 1)

    def seen(kind: Any, index: int, cells: list[float]) -> None:
        word = targets.tokens[0, 0].nonzero()[0, 0]
        probs = torch.zeros(2, 1, 4, targets.tokens.shape[-1])
        probs[1, 0, :, word] = torch.tensor(cells)
        step = Step(index, 10, 500.0, 0.7, 0.7)
        watch._record(site, probs, PassContext(step, kind, (0, 0), ("uncond", "cond")))

    seen("denoise", 2, [0.0, 1.0, 0.0, 1.0])  # too early
    seen("guide", 8, [0.0, 1.0, 0.0, 1.0])
    seen("denoise", 8, [0.3, 0.1, 0.3, 0.1])  # 0.6 of 0.8
    seen("denoise", 9, [0.2, 0.1, 0.0, 0.1])  # 0.2 of 0.4
    watch.on_sample_end([SimpleNamespace(image=object(), sample=row)])  # type: ignore[list-item]
    assert watch.shares == {row.id: pytest.approx(0.625)}


def test_trials_rise_and_end_where_latents_no_longer_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.randn(3, 4, 16, 16)
    asked: list[float] = []

    def made(model: Any, rows: Any, batch_size: Any, tell: Any) -> Any:
        value = rows[0].methods[0].options["scale"] if rows[0].methods else 0.0
        asked.append(value)
        return ([0.1 + value / 100] * 3, plain * (1 if value < 4 else 9)) if value < 8 else ([], plain[:0])

    monkeypatch.setattr(tuning, "_made", made)
    found = list(trials(None, ROWS, METHOD, [4.0, 1.0, 2.0, 8.0, 16.0]))  # type: ignore[arg-type]
    assert asked == [0.0, 1.0, 2.0, 4.0, 8.0]  # 4 and 8 do not hold
    assert [trial.value for trial in found] == [None, 1.0, 2.0, 4.0, 8.0]
    assert [trial.holds for trial in found] == [True, True, True, False, False]
    assert found[2].inside == pytest.approx(0.12) and found[2].strain == 1.0
    assert found[4] == Trial(8.0, 0.0, math.inf)  # nothing came out


def test_the_tiny_model_is_tuned() -> None:
    plain, weak, strong = trials(adapt(tiny.pipeline()), [replace(r, height=32, width=32) for r in ROWS], METHOD, [0.5, 4.0])
    assert plain.value is None and plain.strain == 1.0
    assert 0 < plain.inside < 1 and plain.inside != strong.inside and weak.inside != strong.inside


@pytest.mark.parametrize(
    ("rows", "said"),
    [(ROWS[:2], "at least 3"), ([*ROWS, replace(ROWS[0], id="bare", regions=())], "Row 'bare' has no region with a place")],
    ids=["few", "no place"],
)
def test_rows_that_cannot_be_tuned_on(rows: list[Sample], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        next(iter(trials(None, rows, METHOD, [1.0])))  # type: ignore[arg-type]


def test_plain_pictures_that_fail_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_made", lambda model, rows, batch_size, tell: ([0.1] * 2, torch.randn(2, 4, 8, 8)))
    with pytest.raises(ValueError, match="Only 2 of 3 plain pictures"):
        next(iter(trials(None, ROWS, METHOD, [1.0])))  # type: ignore[arg-type]


def test_rows_without_a_picture_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results come in the order of batches, latents in that of the rows."""

    def sample_rows(model: Any, rows: Any, **options: Any) -> Any:
        for number in (2, 0, 1):
            image = None if number == 1 else object()
            yield SimpleNamespace(sample=rows[number], image=image, latents=torch.full((1, 2, 2), float(number)))

    monkeypatch.setattr(tuning, "sample_rows", sample_rows)
    told: list[str] = []
    found = tuning._made(None, ROWS, None, lambda results: told.extend(one.sample.id for one in results))  # type: ignore[arg-type]
    assert found[1][:, 0, 0, 0].tolist() == [0.0, 2.0] and told == [ROWS[number].id for number in (2, 0, 1)]
    monkeypatch.setattr(tuning, "sample_rows", lambda *args, **options: [])
    assert len(tuning._made(None, ROWS, None, told.extend)[1]) == 0  # type: ignore[arg-type]
