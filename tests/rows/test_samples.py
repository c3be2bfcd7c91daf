"""Rows as plain values."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnguide.rows.samples import check_ids, check_samples, sample_from_dict, sample_to_dict
from attnguide.types import MethodConfig, Region, Sample

FULL = Sample(
    "a-1",
    "a red cat and a dog",
    seed=7,
    regions=(Region("cat", box=(0, 0.1, 0.5, 1), weight=2.0), Region("dog", polygon=((0, 0), (1, 0), (0.5, 1)), occurrence=0)),
    negative_prompt="blurry",
    methods=(MethodConfig("mask_guidance", {"scale": 2.0, "losses": {"mass": 1.0}}), MethodConfig("inject1")),
    height=64,
    width=128,
    steps=12,
    cfg_scale=3.5,
    true_cfg_scale=2.5,
    scheduler="euler",
    tags={"category": "two", "count": 2},
)


def same(left: Sample, right: Sample) -> bool:
    """Regions compare by identity, so rows are compared as plain values."""
    return sample_to_dict(left) == sample_to_dict(right)


def test_a_full_row_survives_the_round_trip() -> None:
    back = sample_from_dict(sample_to_dict(FULL))
    assert same(back, FULL)
    assert back.methods == FULL.methods and back.tags == FULL.tags and back.height == 64
    assert back.regions[0].box == FULL.regions[0].box and back.regions[1].polygon == FULL.regions[1].polygon


@pytest.mark.parametrize("negative", [None, "", "blurry"])
def test_a_negative_prompt_that_was_not_given_is_not_the_empty_one(negative: str | None) -> None:
    row = Sample("x", "a cat", negative_prompt=negative)
    assert sample_from_dict(sample_to_dict(row)).negative_prompt == negative
    assert ("negative_prompt" in sample_to_dict(row)) == (negative is not None)


@given(
    seed=st.integers(0, 2**40),
    steps=st.integers(1, 99),
    cfg_scale=st.floats(0, 1000),
    prompt=st.text(min_size=1).filter(str.strip),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4, unique=True),
)
def test_any_row_survives_the_round_trip(seed: int, steps: int, cfg_scale: float, prompt: str, corners: list[float]) -> None:
    x0, x1, y0, y1 = *sorted(corners[:2]), *sorted(corners[2:])
    row = Sample("x", prompt, seed=seed, steps=steps, cfg_scale=cfg_scale, regions=(Region("p", box=(x0, y0, x1, y1)),))
    back = sample_from_dict(sample_to_dict(row))
    assert same(back, row) and back.regions[0].box == row.regions[0].box and back.cfg_scale == cfg_scale


def test_short_forms_of_regions_and_methods() -> None:
    row = sample_from_dict({"prompt": "a cat", "regions": ["cat=0,0,0.5,1"], "methods": "inject1+mask_guidance"}, id="0000")
    assert row.id == "0000" and row.regions[0].box == (0, 0, 0.5, 1)
    assert row.method == "inject1+mask_guidance"
    assert sample_from_dict({"prompt": "a cat", "methods": "plain"}, id="x").methods == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "a", "sead": 1}, r"no key 'sead' \(did you mean 'seed'\?\)"),
        ({"seed": 1}, "needs the key 'prompt'"),
        ({"prompt": " "}, "prompt must contain a word"),
        ({"prompt": "a", "seed": "x"}, "seed must be a whole number; got 'x'"),
        ({"prompt": "a", "seed": True}, "seed must be a whole number"),
        ({"prompt": "a", "seed": -1}, "seed must be at least 0"),
        ({"prompt": "a", "steps": 0}, "steps must be at least 1"),
        ({"prompt": "a", "cfg_scale": float("nan")}, "cfg_scale must be a finite number"),
        ({"prompt": "a", "height": 12}, "height must be a positive multiple of 8"),
        ({"prompt": "a", "id": "../x"}, "id names files"),
        ({"prompt": "a", "regions": {"phrase": "a"}}, "regions must be a list"),
        ({"prompt": "a", "regions": [{"phrase": "a", "box": [0, 0, 1]}]}, "box must be a list of 4 numbers"),
        ({"prompt": "a", "methods": [{"nome": "inject1"}]}, "a method is a name, or a mapping"),
        ({"prompt": "a", "tags": [1]}, "tags must be a mapping"),
    ],
)
def test_bad_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_from_dict(values, id="0")


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="mask tensor cannot be written"):
        sample_to_dict(Sample("a", "cat", regions=(Region("cat", mask=torch.ones(2, 2)),)))
    with pytest.raises(ValueError, match="option of inject1 'scale' cannot be written"):
        sample_to_dict(Sample("a", "cat", methods=(MethodConfig("inject1", {"scale": torch.ones(1)}),)))


def test_ids_are_unique_also_on_disks_that_ignore_capitals() -> None:
    check_ids([Sample("a", "x"), Sample("b", "x")])
    with pytest.raises(ValueError, match="'A' stands for more than one row"):
        check_ids([Sample("a", "x"), Sample("A", "x")])
    with pytest.raises(ValueError, match="id names files"):
        check_ids([Sample(".hidden", "x")])


def test_check_samples_finds_phrases_methods_and_masks() -> None:
    check_samples([FULL])
    with pytest.raises(ValueError, match=r"Row 'b': Phrase 'cot' does not occur .* nearest words: 'cat'"):
        check_samples([FULL, Sample("b", "a cat", regions=(Region("cot"),))])
    with pytest.raises(ValueError, match="Unknown method 'inject9'"):
        check_samples([Sample("b", "a cat", methods=(MethodConfig("inject9"),))])
    with pytest.raises(ValueError, match="needs at least one region"):
        check_samples([Sample("b", "a cat", methods=(MethodConfig("inject1"),))])


def _scaled(id: str, scale: float, method: str = "inject1") -> Sample:
    return Sample(id, "a cat", regions=(Region("cat", box=(0, 0, 1, 1)),), methods=(MethodConfig(method, {"scale": scale}),))


def test_check_samples_lets_every_rows_methods_judge_their_options() -> None:
    check_samples([_scaled("a", 1), _scaled("b", 2)])
    with pytest.raises(ValueError, match=r"^Row 'b': scale must be finite; got inf"):  # a batch would hold both
        check_samples([_scaled("a", 1), _scaled("b", float("inf")), _scaled("c", 2)])
    with pytest.raises(ValueError, match=r"^Method 'inject1': stage must be one of probs, scores; got 'nonsense'"):
        check_samples([replace(_scaled("a", 1), methods=(MethodConfig("inject1", {"stage": "nonsense"}),))])
    with pytest.raises(ValueError, match=r"^k must be a whole number of at least 1; got 0"):
        check_samples([Sample("a", "a cat", methods=(MethodConfig("best_of_k", {"k": 0}),))])


def test_reading_rows_loads_no_torch() -> None:
    code = (
        "import sys, attnguide.rows.samples, attnguide.rows.tables, attnguide.run_folder.records, attnguide.loggers; "
        "print([n for n in ('torch', 'diffusers', 'lightning', 'wandb') if n in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"


def test_groups_of_words() -> None:
    row = sample_from_dict({"id": "0", "prompt": "a red cat and a blue ball", "groups": [["red", "cat"], "blue ball"]})
    assert row.groups == (("red", "cat"), ("blue", "ball"))
    assert sample_to_dict(row)["groups"] == [["red", "cat"], ["blue", "ball"]]
    check_samples([row])
    with pytest.raises(ValueError, match="groups must be a list of groups of words, the noun last; got 'red cat'"):
        sample_from_dict({"id": "0", "prompt": "a red cat", "groups": "red cat"})
    with pytest.raises(ValueError, match=r"each of groups is words of the prompt.*got \[3\]"):
        sample_from_dict({"id": "0", "prompt": "a red cat", "groups": [[3]]})
    with pytest.raises(ValueError, match="Phrase 'green' does not occur"):
        check_samples([sample_from_dict({"id": "0", "prompt": "a red cat", "groups": ["green cat"]})])
