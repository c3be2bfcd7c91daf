import re

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

from attnguide.losses.containment import mass_outside
from attnguide.models.base import ModelAdapter
from attnguide.models.load import adapt
from attnguide.prompt.targets import Targets
from attnguide.sampling.check import check_rows, mark_rows
from attnguide.types import MethodConfig, Region
from tests import tiny
from tests.models import families

GUIDED = (MethodConfig("mask_guidance"),)
SMALL = Region("red cat", box=(0.40, 0.40, 0.412, 0.412))


def test_good_rows_pass() -> None:
    methods = tuple(MethodConfig(name) for name in ("mask_guidance", "attend_and_excite", "inject1", "inject7"))
    check_rows(tiny.model(), [tiny.row(), tiny.row("1", methods=methods, scheduler="heun", height=40, width=24)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a cat " * 10 + "and a red dog", "regions": ()}, r"Row '0': prompt .*longer than.* lost words: 'red dog'"),
        ({"regions": (Region("cow"),)}, "Row '0': Phrase 'cow' does not occur"),
        ({"scheduler": "eular"}, "Row '0': Unknown scheduler 'eular'"),
        ({"methods": (MethodConfig("mask_gidance"),)}, "Row '0': Unknown method 'mask_gidance'"),
        ({"methods": (MethodConfig("inject1", {"places": ("left",)}),)}, "Row '0': Method 'inject1' finds nothing to act on"),
        (
            {"methods": (MethodConfig("mask_guidance", {"places": ("left",)}),)},
            r"Row '0': Method 'mask_guidance' finds .* No attention site matches kind cross and .*places \('left',\); 7 cross",
        ),
        (
            {"methods": (MethodConfig("mask_guidance", {"losses": {"inside": 1.0}}),), "regions": (SMALL,)},
            "Row '0': Region 'red cat' covers no cell of the 16x16 map",
        ),
    ],
)
def test_refusals(settings: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        check_rows(tiny.model(), [tiny.row(**settings)])


def test_seeds_of_one_prompt_are_checked_once_and_each_bad_row_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny.model(), []
    monkeypatch.setattr(model, "check_row", lambda sample: seen.append(sample.id))
    good = [tiny.row(f"g{seed}", seed=seed, tags={"seed": seed}, methods=GUIDED) for seed in range(3)]
    other = tiny.row("o", methods=(MethodConfig("mask_guidance", {"step_size": 2.0}),))
    bad = [tiny.row(f"b{seed}", seed=seed, regions=(Region("cow"),)) for seed in range(2)]
    masks = [tiny.row(f"m{value}", regions=(Region("red cat", mask=torch.full((64, 64), value)),)) for value in (0.5, 1.0)]
    marked = mark_rows(model, [*good, other, *bad, *masks])
    assert [row.id for row in marked] == ["g0", "g1", "g2", "o", "b0", "b1", "m0.5", "m1.0"]
    assert [row.id for row in marked if row.problem and "'cow'" in row.problem] == ["b0", "b1"]
    assert seen == ["g0", "o", "b0", "b1", "m0.5", "m1.0"]


def test_masks_as_arrays_that_differ_within_are_checked_each() -> None:
    rows = []
    for value in (1.0, 0.0):
        disc = np.zeros((64, 64))  # numpy shows no more than the corners
        disc[16:48, 16:48] = value
        rows.append(tiny.row(f"{value}", regions=(Region("red cat", mask=disc),), methods=GUIDED))  # type: ignore[arg-type]
    good, empty = mark_rows(tiny.model(), rows)
    assert good.problem is None and empty.problem is not None and "covers no cell" in empty.problem


def test_rows_with_arrays_among_their_options_are_checked_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("attnguide.sampling.check.build_methods", lambda rows: ([], []))
    monkeypatch.setattr("attnguide.sampling.check._check_row", lambda model, row: seen.append(row.id))
    first, second = torch.zeros(5000), torch.zeros(5000)
    second[2500] = 1  # which no repr shows
    rows = [
        tiny.row(id, methods=(MethodConfig("mask_guidance", {"losses": {"mass": [value]}}),))
        for id, value in (("a", first), ("b", second), ("c", 1.0), ("d", 1.0))
    ]
    mark_rows(tiny.model(), rows)
    assert seen == ["a", "b", "c"]


def test_a_soft_term_takes_a_small_region() -> None:
    check_rows(tiny.model(), [tiny.row(regions=(Region("red cat", box=(0.40, 0.40, 0.42, 0.42)),), methods=GUIDED)])


def test_the_row_is_named() -> None:
    with pytest.raises(ValueError, match="Row 'second'"):
        check_rows(tiny.model(), [tiny.row("first"), tiny.row("second", scheduler="x")])


@pytest.mark.parametrize(
    "name",
    ["layout_guidance", "mask_guidance", "dense_diffusion", "forward_layout", "stable", "box_diff", "inject5", "r_and_b"],
)
def test_one_rule_for_places_far_smaller_than_a_cell(name: str) -> None:
    narrow, tiny_one = (Region("red cat", box=(0.5, 0.25, 0.5 + width, 0.75)) for width in (0.01, 0.001))
    methods = (MethodConfig(name),)
    good, bad = mark_rows(
        tiny.model(), [tiny.row("0", regions=(narrow,), methods=methods), tiny.row("1", regions=(tiny_one,), methods=methods)]
    )
    assert good.problem is None
    assert bad.problem is not None and "covers no cell of the" in bad.problem and "(0.50, 0.25, 0.501, 0.75)" in bad.problem


def test_a_narrow_box_can_be_reached() -> None:
    """What layout guidance asks of the cell that a narrow box lies in can be met, so that updates end."""
    (sample,) = mark_rows(tiny.model(), [tiny.row(regions=(Region("red cat", box=(0.5, 0.25, 0.51, 0.75)),))])
    targets = Targets.build([sample], [tiny.model().tokenize(sample.prompt)], "cpu")
    masks = targets.joined_masks(16, 16)
    assert float(mass_outside(masks, masks).max()) < 0.2


def test_no_background_left() -> None:
    halves = (Region("red cat", box=(0, 0, 0.5, 1)), Region("blue ball", box=(0.5, 0, 1, 1)))
    for options, problem in (({}, "has no background left"), ({"quirks": "reference"}, None)):
        row = tiny.row(regions=halves, methods=(MethodConfig("bounded_attention", options),))
        (marked,) = mark_rows(tiny.model(), [row])
        assert (marked.problem is None) if problem is None else (problem in str(marked.problem))


def _with_processor(processor: object) -> ModelAdapter:
    built = tiny.pipeline()
    built.unet.set_attn_processor(processor)
    return adapt(built)


@pytest.mark.parametrize("method", ["mask_guidance", "forward_layout"])
@pytest.mark.parametrize(
    ("processor", "cure"),
    [
        (SlicedAttnProcessor(1), r"SlicedAttnProcessor: attention slicing is on: call pipeline\.disable_attention_slicing\(\)"),
        (AttnProcessor(), r"AttnProcessor: set the library's default processor"),
    ],
    ids=["sliced", "old"],
)
def test_processors_that_show_no_attention_are_refused_with_their_cure(processor: object, cure: str, method: str) -> None:
    model = _with_processor(processor)
    (marked,) = mark_rows(model, [tiny.row(methods=(MethodConfig(method),))])
    assert marked.problem is not None and re.search(cure, marked.problem)
    assert mark_rows(model, [tiny.row(methods=())])[0].problem is None


def test_another_backend_is_refused_before_a_row_is_sampled() -> None:
    model = adapt(families.shared("flux_dev"))
    row = tiny.row(methods=GUIDED, height=32, width=32)
    with attention_backend("flex"):
        (marked,) = mark_rows(model, [row])
    assert marked.problem is not None and "the attention backend 'flex' is active" in marked.problem
    with attention_backend("_native_math"):
        assert mark_rows(model, [row])[0].problem is None
