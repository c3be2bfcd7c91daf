"""Input pictures of a row: what may be said of them, and what a row then is."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnguide.batching import batch_key
from attnguide.inputs import Control, inputs_key, kind_of, read_control, strength_of
from attnguide.rows.samples import sample_from_dict, sample_to_dict
from attnguide.types import MethodConfig, Sample

EDGES = Control("canny", "edges.png", 0.5)


@pytest.mark.parametrize(
    ("given", "kind", "strength"),
    [
        ({}, None, None),
        ({"init_image": "a.png"}, "img2img", 0.8),
        ({"init_image": "a.png", "strength": 0.6}, "img2img", 0.6),
        ({"init_image": "a.png", "inpaint_mask": "m.png"}, "inpaint", 1.0),
        ({"control": (EDGES,)}, "controlnet", None),
        ({"control": (EDGES,), "init_image": Path("a.png")}, "controlnet_img2img", 0.8),
        ({"control": (EDGES,), "init_image": "a.png", "inpaint_mask": "m.png"}, "controlnet_inpaint", 1.0),
    ],
)
def test_what_is_given_says_how_a_row_is_made(given: dict[str, Any], kind: str | None, strength: float | None) -> None:
    row = Sample("x", "a cat", **given)
    assert (row.kind, strength_of(row)) == (kind, strength)
    assert row.kind == kind_of(row) == row.plain().kind
    assert sample_from_dict(sample_to_dict(row)) == row


@given(strength=st.floats(0, 1, exclude_min=True), steps=st.integers(1, 60))
def test_steps_are_counted_as_diffusers_counts_them(strength: float, steps: int) -> None:
    row = Sample("x", "a cat", init_image="a.png", strength=strength, steps=steps)
    assert row.denoising_steps == min(int(steps * strength), steps) <= steps
    assert sample_from_dict(sample_to_dict(row)).strength == strength


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strength": 0.5}, "strength needs an init_image"),
        ({"inpaint_mask": "m.png"}, "inpaint_mask needs an init_image"),
        ({"init_image": "a.png", "strength": 0}, "strength must be above 0 and at most 1; got 0"),
        ({"init_image": "a.png", "strength": 1.5}, "strength must be above 0 and at most 1; got 1.5"),
        ({"init_image": "a.png", "strength": "x"}, "strength must be a finite number"),
        ({"init_image": 3}, "init_image must be text"),
        ({"init_image": " "}, "init_image must be the path of a picture"),
        ({"control": "canny=a.png"}, "control must be a tuple of Controls"),
        ({"control": (EDGES, EDGES)}, "control must name every type once"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_contradicts_itself_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sample("x", "a cat", **given)


@pytest.mark.parametrize(
    "value",
    ["canny=edges.png:0.5", {"type": "canny", "image": "edges.png", "scale": 0.5}, EDGES],
    ids=["text", "mapping", "own"],
)
def test_a_control_is_read_from_what_names_it(value: object) -> None:
    assert read_control(value) == EDGES
    assert read_control("depth=C:\\a.png") == Control("depth", "C:\\a.png")
    assert read_control(read_control("depth=a=b.png").to_dict()) == Control("depth", "a=b.png")


@pytest.mark.parametrize("value", ["edges.png", "canny=", "=a.png", {"type": "canny"}, 3, "a b=c.png"], ids=str)
def test_what_names_no_control_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="control"):
        read_control(value)


@pytest.mark.parametrize("scale", ["x", "0,5", ""], ids=["letter", "comma", "nothing"])
def test_a_scale_that_is_no_number_is_no_part_of_the_file_name(scale: str) -> None:
    with pytest.raises(ValueError, match="number as scale"):
        read_control(f"canny=edges.png:{scale}")


def test_rows_share_a_batch_if_one_call_can_make_them() -> None:
    def row(**given: Any) -> Sample:
        return Sample("x", "a cat", **{"init_image": "a.png", "strength": 0.5, **given})

    assert batch_key(row()) == batch_key(row(init_image="b.png", seed=3, negative_prompt=None))
    others = [
        row(strength=0.6),
        row(cfg_scale=2),
        row(inpaint_mask="m.png"),
        row(control=(EDGES,)),
        row(groups=(("a", "cat"),)),
    ]
    others += [row(methods=(MethodConfig("inject5", {"scale": scale}),)) for scale in (1, 2)]
    assert len({batch_key(one) for one in [row(), *others]}) == len(others) + 1
    assert inputs_key(row(strength=None)) == inputs_key(row(strength=0.8)) != inputs_key(row())
