"""Hand-drawn maps in attention: by themselves, and inside a run against a slow transcription."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnguide.attention.capture import Probe, Quantity
from attnguide.attention.edits import Edit
from attnguide.attention.sites import Site
from attnguide.engine.cfg import pass_context
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.injection.hand_maps import MapInjection
from attnguide.methods import build_method
from attnguide.prompt.targets import Targets
from attnguide.types import PassContext, Region, Sample, Step
from tests import tiny
from tests.engine.watch import latents, run
from tests.reference import hand_maps

STEP = Step.at_sigma(0, 4, 951.0, 10.0)
SITE = Site("up.attn2", "cross", 4, 3, 2, "up", 0)
OWN = Site("up.attn1", "self", 4, 3, 2, "up", 0)
CAT = Region("red cat", box=(0.0, 0.0, 0.5, 1.0))
BALL = Region("ball", blob=(0.7, 0.5, 0.2, 0.3))


def _targets(*rows: Sequence[Region]) -> Targets:
    samples = [Sample(str(index), tiny.PROMPT, regions=tuple(regions)) for index, regions in enumerate(rows)]
    return Targets.build(samples, [tiny.model().tokenize(tiny.PROMPT)] * len(rows), "cpu")


def _edit(targets: Targets, **options: Any) -> Edit:
    (edit,) = MapInjection(**{"start": 0.0, **options}).edits(targets)
    return edit


def _context(*rows: int, step: Step = STEP, kind: Any = "denoise") -> PassContext:
    return pass_context(step, kind, rows, ("uncond", "cond"))


def _probs(batch: int, site: Site = SITE) -> Tensor:
    keys = site.height * site.width if site.kind == "self" else tiny.LENGTH
    random = torch.Generator().manual_seed(2)
    return torch.randn(batch, site.heads, site.height * site.width, keys, generator=random).softmax(-1)


def _flat(region: Region, site: Site = SITE) -> Tensor:
    return _targets([region]).masks(site.height, site.width)[0, 0].flatten()


# -------------------------------------------------------------------------------- the eight functions, inside a run


class _BeforeAndAfter(Observer):
    """Scores and probs before edits, probs and output after them, at one step."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.seen: dict[Quantity, dict[Site, Tensor]] = {}
        self.context: PassContext | None = None

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        quantities: list[Quantity] = ["scores", "original_probs", "probs", "value", "output"]
        return [self._reader(quantity) for quantity in quantities]

    def _reader(self, quantity: Quantity) -> Probe:
        def record(site: Site, tensor: Tensor, context: PassContext) -> None:
            if context.step.index == self.index:
                self.seen.setdefault(quantity, {})[site] = tensor.clone()
                self.context = context

        return Probe(quantity, record)


def _edited_by_hand(number: int, scores: Tensor, site: Site, scale: float) -> np.ndarray[Any, Any]:
    """One head of the row whose regions are the default ones: red (2), cat (3), blue (6), ball (7)."""
    cat, ball = (_flat(region, site).double().numpy() for region in (tiny.CAT, tiny.BALL))
    maps = {2: cat, 3: cat, 6: ball, 7: ball}
    return hand_maps.edited_probs(number, scores.double().numpy(), maps, scale)


@pytest.mark.parametrize("number", range(1, 9))
def test_the_eight_functions_in_a_run(number: int) -> None:
    """Two rows of different strength, edited in the first step; every site, both halves."""
    scales = (0.7, 2.0) if hand_maps.STAGES[number] == "probs" else (5.0, 20.0)
    built = build_method(f"inject{number}", {"start": 0.4, "scale": scales})
    assert isinstance(built, MapInjection)
    observer = _BeforeAndAfter(0)
    run([tiny.row(steps=2, scheduler="ddpm"), tiny.row("1", seed=4, steps=2, scheduler="ddpm")], (), [built], observer)
    context = observer.context
    assert context is not None and len(observer.seen["probs"]) == 14
    changed = set()
    for site, probs in observer.seen["probs"].items():
        before = observer.seen["original_probs"][site]
        if site.kind == "self" or site.level not in hand_maps.SIZES[number]:
            assert torch.equal(probs, before), site
            continue
        changed.add((site.place, site.level))
        for position in context.positions("uncond"):
            assert torch.equal(probs[position], before[position])
        for position in context.positions("cond"):
            head, row = position % site.heads, context.rows[position]
            expected = _edited_by_hand(number, observer.seen["scores"][site][position, head], site, scales[row])
            np.testing.assert_allclose(probs[position, head].numpy(), expected, rtol=2e-4, atol=2e-6)
        torch.testing.assert_close(observer.seen["output"][site], probs @ observer.seen["value"][site])
    assert changed == {("down", 0), ("up", 0), ("down", 1), ("mid", 1), ("up", 1)} & {
        (place, level) for place in ("down", "mid", "up") for level in hand_maps.SIZES[number]
    }


def test_outside_its_window_nothing_is_edited() -> None:
    built = build_method("inject5", {"start": 0.9})
    assert isinstance(built, MapInjection)
    observer = _BeforeAndAfter(1)
    run([tiny.row(scheduler="ddpm")], (), [built], observer)
    assert all(torch.equal(probs, observer.seen["original_probs"][site]) for site, probs in observer.seen["probs"].items())


def test_self_attention_in_a_run() -> None:
    observer = _BeforeAndAfter(0)
    injection = MapInjection(kind="self", levels=(1,), start=0.0, scale=0.1, mass="renormalize")
    result = run([tiny.row(steps=1)], (), [injection], observer)[0]
    assert torch.isfinite(latents(result)).all()
    for site, probs in observer.seen["probs"].items():
        edited = site.kind == "self" and site.level == 1
        assert torch.equal(probs, observer.seen["original_probs"][site]) != edited
        torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:-1]))


def test_two_injections_apply_in_the_order_given() -> None:
    """Replacing last leaves nothing of what was added first."""
    add, replace = (MapInjection(operation=o, start=0.0, levels=(0,)) for o in ("add", "replace"))  # type: ignore[arg-type]
    seen = []
    for injections in ([add, replace], [replace, add], [replace]):
        observer = _BeforeAndAfter(0)
        run([tiny.row(steps=1)], (), injections, observer)
        first = next(site for site in observer.seen["probs"] if site.kind == "cross")
        seen.append(observer.seen["probs"][first][1])
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[1], seen[2])


# --------------------------------------------------------------------------------------------------- one edit alone


@pytest.mark.parametrize(
    ("operation", "goal"),
    [
        ("add", lambda column, drawn: column + 0.5 * drawn),
        ("replace", lambda column, drawn: 0.5 * drawn.expand_as(column)),
        ("interpolate", lambda column, drawn: column + 0.5 * (drawn - column)),
    ],
)
@pytest.mark.parametrize("stage", ["probs", "scores"])
def test_operations(operation: str, goal: Any, stage: str) -> None:
    edit, probs = _edit(_targets([CAT, BALL]), operation=operation, scale=0.5, stage=stage), _probs(2)
    before = probs.clone()
    found = getattr(edit, stage)(probs, SITE, _context(0))
    assert edit.stages == {stage} and torch.equal(probs, before)
    assert torch.equal(found[0], probs[0])
    for token, region in ((2, CAT), (3, CAT), (7, BALL)):
        torch.testing.assert_close(found[1, :, :, token], goal(probs[1, :, :, token], _flat(region)))
    others = [token for token in range(tiny.LENGTH) if token not in (2, 3, 7)]
    assert torch.equal(found[1][..., others], probs[1][..., others])


def test_both_halves() -> None:
    edit, probs = _edit(_targets([CAT]), branch="both"), _probs(2)
    found = edit.probs(probs, SITE, _context(0))
    torch.testing.assert_close(found - probs, (found - probs)[1:].expand_as(probs))
    assert not torch.equal(found[0], probs[0])


def test_every_row_has_its_own_strength_and_words() -> None:
    targets = _targets([CAT, BALL], [BALL], [CAT])
    edit, probs = _edit(targets, scale=[1.0, 2.0, 0.0]), _probs(6)
    found = edit.probs(probs, SITE, _context(0, 1, 2))
    assert torch.equal(found[:3], probs[:3]) and torch.equal(found[5], probs[5])
    torch.testing.assert_close(found[4, :, :, 7], probs[4, :, :, 7] + 2 * _flat(BALL))
    assert torch.equal(found[4, :, :, 3], probs[4, :, :, 3])
    torch.testing.assert_close(found[3, :, :, 3], probs[3, :, :, 3] + _flat(CAT))
    # Rows are known by number, not by their place in the pass.
    torch.testing.assert_close(edit.probs(probs[[1, 4]], SITE, _context(1))[1], found[4])


def test_every_word_has_its_own_weight() -> None:
    heavy = Region("ball", blob=BALL.blob, weight=3.0)
    probs = _probs(2)
    found = _edit(_targets([CAT, heavy]), scale=0.5).probs(probs, SITE, _context(0))
    torch.testing.assert_close(found[1, :, :, 7], probs[1, :, :, 7] + 1.5 * _flat(BALL))
    torch.testing.assert_close(found[1, :, :, 3], probs[1, :, :, 3] + 0.5 * _flat(CAT))


@pytest.mark.parametrize("kind", ["cross", "self"])
@pytest.mark.parametrize("operation", ["add", "replace", "interpolate"])
def test_a_region_of_weight_zero_writes_nothing(operation: str, kind: Any) -> None:
    site = SITE if kind == "cross" else OWN
    probs, silent = _probs(2, site), Region("red cat", box=CAT.box, weight=0.0)
    both, one = (
        _edit(_targets(regions), operation=operation, kind=kind).probs(probs, site, _context(0))
        for regions in ([silent, BALL], [BALL])
    )
    assert torch.equal(both, one)
    assert torch.equal(_edit(_targets([silent]), operation=operation, kind=kind).probs(probs, site, _context(0)), probs)


def test_places_of_one_word_are_joined_and_the_strongest_counts() -> None:
    left, all_over = Region("cat", box=(0.0, 0.0, 0.5, 1.0), weight=3.0), Region("cat", box=(0.0, 0.0, 1.0, 1.0), weight=0.5)
    probs = _probs(2)
    added = (_edit(_targets([left, all_over])).probs(probs, SITE, _context(0)) - probs)[1, 0, :, 3]
    torch.testing.assert_close(added, torch.maximum(3 * _flat(left), 0.5 * _flat(all_over)))


def test_the_same_noun_twice_has_two_columns() -> None:
    prompt = "a cat and a cat"
    regions = (Region("cat", box=(0, 0, 0.5, 1)), Region("cat", box=(0.5, 0, 1, 1), occurrence=1))
    targets = Targets.build([Sample("0", prompt, regions=regions)], [tiny.model().tokenize(prompt)], "cpu")
    probs = _probs(2)
    added = (_edit(targets).probs(probs, SITE, _context(0)) - probs)[1, 0]
    for token, mask in zip((2, 5), targets.masks(SITE.height, SITE.width)[0], strict=True):
        torch.testing.assert_close(added[:, token], mask.flatten())


def test_words_without_a_place_are_left_alone() -> None:
    probs = _probs(2)
    found = _edit(_targets([Region("ball"), CAT]), operation="replace").probs(probs, SITE, _context(0))
    assert torch.equal(found[..., 7], probs[..., 7]) and not torch.equal(found[..., 3], probs[..., 3])


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("mean", lambda column: column.mean(-1)),
        ("max", lambda column: column.amax(-1)),
        ("std", lambda column: column.std(-1)),
        ("norm", lambda column: column.square().mean(-1).sqrt()),
    ],
)
def test_strength_in_units_of_what_is_there(kind: str, unit: Any) -> None:
    probs = _probs(2)
    found = _edit(_targets([BALL]), reference=kind, scale=2.0).probs(probs, SITE, _context(0))
    column = probs[1, :, :, 7]
    torch.testing.assert_close(found[1, :, :, 7], column + 2 * unit(column)[:, None] * _flat(BALL))


# ------------------------------------------------------------------------------------------------ self-attention


def test_self_attention_is_written_between_cells_of_one_region() -> None:
    left, right = Region("cat", box=(0.0, 0.0, 1 / 3, 1.0)), Region("ball", box=(2 / 3, 0.0, 1.0, 1.0), weight=2.0)
    probs = _probs(2, OWN)
    added = (_edit(_targets([left, right]), kind="self").probs(probs, OWN, _context(0)) - probs)[1, 0]
    in_left, in_right = _flat(left, OWN) > 0, _flat(right, OWN) > 0
    expected = 1.0 * (in_left[:, None] & in_left) + 2.0 * (in_right[:, None] & in_right)
    torch.testing.assert_close(added, expected)
    replaced = _edit(_targets([left, right]), kind="self", operation="replace").probs(probs, OWN, _context(0))[1, 0]
    # From one region to another nothing is said, so nothing is replaced.
    torch.testing.assert_close(replaced, torch.where(expected > 0, expected, probs[1, 0]))


# ---------------------------------------------------------------------------------------------------- mass policies


@pytest.mark.parametrize("operation", ["add", "replace", "interpolate"])
def test_renormalized_rows_sum_to_one(operation: str) -> None:
    found = _edit(_targets([CAT, BALL]), operation=operation, mass="renormalize", scale=2.0).probs(_probs(2), SITE, _context(0))
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))


@pytest.mark.parametrize("operation", ["add", "interpolate"])
def test_preserved_tokens_keep_their_total(operation: str) -> None:
    probs = _probs(2)
    found = _edit(_targets([CAT, BALL]), operation=operation, mass="preserve").probs(probs, SITE, _context(0))
    torch.testing.assert_close(found.sum(-2), probs.sum(-2))
    inside = _flat(CAT) > 0.5
    assert (found[1, :, inside, 3].sum(-1) > probs[1, :, inside, 3].sum(-1)).all()


def test_without_a_policy_mass_is_added() -> None:
    found = _edit(_targets([BALL]), scale=3.0).probs(_probs(2), SITE, _context(0))
    torch.testing.assert_close(found[1].sum(-1), 1 + 3 * _flat(BALL).expand(2, -1))


# ------------------------------------------------------------------------------------------------ where and when


@pytest.mark.parametrize(
    ("options", "step", "expected"),
    [
        ({"start": 0.8, "stop": 1.0}, Step.at_sigma(0, 4, 801.0, 5.0), True),
        ({"start": 0.8, "stop": 1.0}, Step.at_sigma(0, 4, 799.0, 5.0), False),
        ({"start": 0.0, "stop": 0.5, "unit": "progress"}, Step.at_sigma(1, 4, 1.0, 5.0), True),
        ({"start": 0.0, "stop": 0.5, "unit": "progress"}, Step.at_sigma(2, 4, 999.0, 5.0), False),
        ({"start": 1.0, "stop": 20.0, "unit": "sigma"}, Step.at_sigma(3, 4, 1.0, 5.0), True),
        ({"start": 1.0, "stop": 4.0, "unit": "sigma"}, Step.at_sigma(0, 4, 999.0, 5.0), False),
    ],
)
def test_windows(options: dict[str, Any], step: Step, expected: bool) -> None:
    assert _edit(_targets([CAT]), **options).active(_context(0, step=step)) is expected


def test_only_denoising_passes_are_edited() -> None:
    edit = _edit(_targets([CAT]))
    assert edit.active(_context(0)) and not edit.active(_context(0, kind="guide"))


def test_a_pass_without_a_row_that_wants_it_is_not_edited() -> None:
    edit = _edit(_targets([CAT], [CAT]), scale=[0.0, 1.0])
    assert not edit.active(_context(0)) and edit.active(_context(0, 1))


def test_sites() -> None:
    edit = _edit(_targets([CAT]), levels=(1,), places=("up", "mid"))
    where = {(site.kind, site.place, site.level) for site in edit.sites.chosen(tiny.model().attention_sites(32, 32))}
    assert where == {("cross", "up", 1), ("cross", "mid", 1)}
    everywhere = _edit(_targets([CAT]), levels=None).sites
    assert len(everywhere.chosen(tiny.model().attention_sites(32, 32))) == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_kept(dtype: torch.dtype) -> None:
    assert _edit(_targets([CAT]), scale=0.3).probs(_probs(2).to(dtype), SITE, _context(0)).dtype == dtype


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "values"}, "stage must be one of probs, scores; got 'values'"),
        ({"operation": "multiply"}, "operation must be one of add, replace, interpolate; got 'multiply'"),
        ({"kind": "joint"}, "kind must be one of cross, self; got 'joint'"),
        ({"reference": "median"}, "reference must be one of absolute, mean, max, std, norm; got 'median'"),
        ({"mass": "keep"}, "mass must be one of none, renormalize, preserve; got 'keep'"),
        ({"branch": "uncond"}, "branch must be one of cond, both; got 'uncond'"),
        ({"scale": math.nan}, "scale must be finite; got nan"),
        ({"scale": [1.0, math.inf]}, r"scale must be finite; got \[1.0, inf\]"),
        ({"stage": "scores", "mass": "preserve"}, r"mass applies to stage 'probs' only .*; got 'preserve'"),
        ({"start": -0.1}, "window start must be a number of at least 0; got -0.1"),
        ({"unit": "step"}, "window unit must be one of progress, timestep, sigma; got 'step'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MapInjection(**options)


def test_one_strength_a_row() -> None:
    with pytest.raises(ValueError, match="scale must be one value, or a list with one per row; got 2 for 1 rows"):
        MapInjection(scale=[1.0, 2.0]).edits(_targets([CAT]))
