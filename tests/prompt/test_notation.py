"""Regions as text, mappings and YAML: what is written is read, and what is wrong is named."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attnguide.prompt.notation import parse_region, region_from_dict, region_to_dict
from attnguide.prompt.regions import absolute_region, check_region, prompt_words, rasterise
from attnguide.types import MapSource, Region
from tests.prompt.places import FRACTIONS, boxes, corners


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat=0,0,0.5,1", {"phrase": "a cat", "box": [0, 0, 0.5, 1]}),
        (" cat = .1, .2, 5e-1, 1 ", {"phrase": "cat", "box": [0.1, 0.2, 0.5, 1]}),
        ("cat=masks/left.png", {"phrase": "cat", "mask": "masks/left.png"}),
        ("cat=1,2.png", {"phrase": "cat", "mask": "1,2.png"}),
        ("cat=2024.tiff", {"phrase": "cat", "mask": "2024.tiff"}),
        ("cat", {"phrase": "cat"}),
        ("cat[1]=0,0,1,1", {"phrase": "cat", "box": [0, 0, 1, 1], "occurrence": 1}),
        ("red cat [2]", {"phrase": "red cat", "occurrence": 2}),
        ("e=mc2=0,0,1,1", {"phrase": "e=mc2", "box": [0, 0, 1, 1]}),
        ("cat=maps/cat.npy", {"phrase": "cat", "mask": "maps/cat.npy"}),
        ("cat=seed:7", {"phrase": "cat", "source": {"kind": "seed", "seed": 7}}),
        (
            "cat[1] = prompt: e=mc2, a cat",
            {"phrase": "cat", "occurrence": 1, "source": {"kind": "prompt", "prompt": "e=mc2, a cat"}},
        ),
        ("cat=invert:my cat.png", {"phrase": "cat", "source": {"kind": "invert", "image": "my cat.png"}}),
        ("cat=noise:cat.png", {"phrase": "cat", "source": {"kind": "noise", "image": "cat.png"}}),
    ],
)
def test_parse_region(text: str, expected: dict) -> None:
    assert region_to_dict(parse_region(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("=0,0,1,1", "A region is written PHRASE, PHRASE=x0,y0,x1,y1 or PHRASE=mask.png; got '=0,0,1,1'."),
        ("cat=", "A region is written PHRASE, PHRASE=x0,y0,x1,y1 or PHRASE=mask.png; got 'cat='."),
        ("[1]=0,0,1,1", "A region is written PHRASE, PHRASE=x0,y0,x1,y1 or PHRASE=mask.png; got '[1]=0,0,1,1'."),
        ("", "A region is written PHRASE, PHRASE=x0,y0,x1,y1 or PHRASE=mask.png; got ''."),
        ("cat=0,0,1", "Region 'cat': box must be four numbers x0,y0,x1,y1; got '0,0,1'."),
        ("cat=0,0,x,1", "Region 'cat': box must be four numbers x0,y0,x1,y1; got '0,0,x,1'."),
        ("cat=0,0,1,1,1", "Region 'cat': box must be four numbers x0,y0,x1,y1; got '0,0,1,1,1'."),
        ("cat=10,10,200,200", "Region 'cat': box must be x0,y0,x1,y1 with 0 <= x0 < x1 <= 1"),
        ("cat=0.5,0,0.5,1", "Region 'cat': box must be x0,y0,x1,y1 with 0 <= x0 < x1 <= 1"),
        ("cat=nan,0,1,1", "Region 'cat': box must be x0,y0,x1,y1 with 0 <= x0 < x1 <= 1"),
        ("cat=seed:x", "Region 'cat': seed: must be followed by a whole number of at least 0; got 'x'."),
        ("cat=prompt:", "A region is written PHRASE, PHRASE=x0,y0,x1,y1 or PHRASE=mask.png; got 'cat=prompt:'."),
    ],
)
def test_parse_region_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_region(text)


_PLACES = st.one_of(
    st.just({}),
    boxes().map(lambda box: {"box": box}),
    boxes().map(lambda box: {"polygon": corners(box)}),
    st.tuples(FRACTIONS, FRACTIONS, st.floats(1e-3, 2), st.floats(1e-3, 2)).map(lambda blob: {"blob": blob}),
    st.just({"mask": Path("masks/left half.png")}),
    st.just({"source": MapSource("seed", seed=3, phrase="katt", start=0.25, threshold=0.5)}),
    st.just({"source": MapSource("invert", image=Path("en katt.png"), cfg_scale=2.5, iterations=3, stop=0.5)}),
)


_PROMPTS = st.sampled_from([{}, {"prompt": "a red cat: 'asleep'"}, {"prompt": "ett djur", "negative_prompt": ""}])


@given(_PLACES, st.integers(0, 3), st.one_of(st.none(), st.just((2, 3))), st.floats(0, 9), _PROMPTS)
def test_regions_survive_yaml_and_json(
    place: dict, occurrence: int, indices: tuple[int, ...] | None, weight: float, prompts: dict
) -> None:
    region = Region("röd katt", occurrence=occurrence, token_indices=indices, weight=weight, **place, **prompts)
    plain = region_to_dict(region)
    for back in (yaml.safe_load(yaml.safe_dump(plain)), json.loads(json.dumps(plain))):
        assert vars(region_from_dict(back)) == vars(region)


def test_what_a_source_gave_is_not_written_down() -> None:
    region = Region("cat", source=MapSource("seed", seed=3))
    recorded = replace(region, mask=torch.ones(2, 2))
    assert region_to_dict(recorded) == region_to_dict(region)
    assert rasterise(recorded, 4, 4).sum() == 16 and recorded.has_place and region.has_place
    with pytest.raises(ValueError, match="Region 'cat': the map of its source 'seed' has not been recorded"):
        rasterise(region, 4, 4)


def test_sources_are_checked_early(tmp_path: Path) -> None:
    check_region(Region("dog", source=MapSource("prompt", prompt="a cat", phrase="cat")), "a dog")
    check_region(Region("dog", token_indices=(2,), source=MapSource("seed", seed=1)), "a dog")
    with pytest.raises(ValueError, match="Region 'dog': source: Phrase 'dog' does not occur in the prompt 'a cat'"):
        check_region(Region("dog", source=MapSource("prompt", prompt="a cat")), "a dog")
    with pytest.raises(ValueError, match=r"source: Picture file '.*gone.png' does not exist"):
        check_region(Region("dog", source=MapSource("invert", image=tmp_path / "gone.png")), "a dog")


def test_files_are_found_from_anywhere(tmp_path: Path) -> None:
    masked, inverted = Region("cat", mask=Path("cat.png")), Region("cat", source=MapSource("noise", image=Path("cat.png")))
    assert absolute_region(masked, tmp_path).mask == tmp_path / "cat.png"
    moved = absolute_region(inverted, tmp_path).source
    assert moved is not None and moved.image == tmp_path / "cat.png"
    assert absolute_region(inverted).source.image == Path("cat.png").absolute()  # type: ignore[union-attr]
    assert prompt_words("a cat, a dog")[2].occurrence == 1


def test_a_mask_tensor_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="Region 'cat': a mask tensor cannot be written to a file"):
        region_to_dict(Region("cat", mask=torch.ones(2, 2)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"phrase": "cat", "boxx": [0, 0, 1, 1]}, "A region has no key 'boxx'; it has phrase, box, polygon, blob, mask, "),
        ({"phrase": 3}, "A region's phrase must be text; got 3."),
        ({"phrase": "cat", "box": "0,0,1,1"}, "Region 'cat': box must be a list of 4 numbers; got '0,0,1,1'."),
        ({"phrase": "cat", "box": [0, 0, 1]}, "Region 'cat': box must be a list of 4 numbers; got [0, 0, 1]."),
        ({"phrase": "cat", "box": [0, 0, 1, True]}, "Region 'cat': box must be a list of 4 numbers; got [0, 0, 1, True]."),
        ({"phrase": "cat", "polygon": [0, 0, 1]}, "Region 'cat': polygon corner must be a list of 2 numbers; got 0."),
        ({"phrase": "cat", "polygon": 1}, "Region 'cat': polygon must be a list of corners [x, y]; got 1."),
        ({"phrase": "cat", "mask": 3}, "Region 'cat': mask must be the path of a picture; got 3."),
        ({"phrase": "cat", "occurrence": "1"}, "Region 'cat': occurrence must be a whole number; got '1'."),
        ({"phrase": "cat", "token_indices": 2}, "Region 'cat': token_indices must be a list of whole numbers; got 2."),
        ({"phrase": "cat", "token_indices": [1.5]}, "Region 'cat': token_indices must be a whole number; got 1.5."),
        ({"phrase": "cat", "weight": "big"}, "Region 'cat': weight must be a number; got 'big'."),
        ({"phrase": "cat", "prompt": 3}, "Region 'cat': prompt must be text; got 3."),
        ({"phrase": "cat", "box": [0, 0, 1, 1], "blob": [0, 0, 1, 1]}, "Region 'cat' takes one place; got box and blob."),
        ({}, "Region needs a phrase or token_indices; got neither."),
        (
            {"phrase": "cat", "source": "seed"},
            "Region 'cat': source must be a mapping with a kind of seed, prompt, invert, noise;",
        ),
        (
            {"phrase": "cat", "source": {"kind": "dream"}},
            "Region 'cat': source must be one of seed, prompt, invert, noise; got",
        ),
        ({"phrase": "cat", "source": {"kind": "seed"}}, "Region 'cat': source 'seed' needs a seed; got none."),
        ({"phrase": "cat", "source": {"kind": "noise"}}, "Region 'cat': source 'noise' needs an image; got none."),
        (
            {"phrase": "cat", "source": {"kind": "seed", "sed": 1}},
            "Region 'cat': a source has no key 'sed'; it has kind, seed,",
        ),
        (
            {"phrase": "cat", "source": {"kind": "seed", "seed": 1.5}},
            "Region 'cat': source seed must be a whole number; got 1.5.",
        ),
        (
            {"phrase": "cat", "box": [0, 0, 1, 1], "source": {"kind": "seed", "seed": 1}},
            "Region 'cat' takes one place; got box and",
        ),
    ],
)
def test_region_from_dict_errors(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        region_from_dict(values)
