"""``attnguide.sample``, and public names that load when they are used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import attnguide
from attnguide.api import methods_of
from attnguide.sampling.table import sample_rows
from attnguide.types import MethodConfig, Region, Sample, SampleResult
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"red cat": (0, 0, 0.5, 1), "blue ball": (0.5, 0.25, 1, 1)}


def sample(prompt: str = tiny.PROMPT, **settings: Any) -> list[SampleResult]:
    return attnguide.sample(prompt, **{"model": tiny.model(), "steps": 2, **settings})


def pixels(result: SampleResult) -> np.ndarray:
    assert result.image is not None
    return np.asarray(result.image)


# ---------------------------------------------------------------------------------------------------------------- pictures


def test_a_prompt_alone_is_one_plain_picture() -> None:
    (result,) = sample()
    assert (result.sample.id, result.sample.method, result.status) == ("seed0", "plain", "ok")
    assert pixels(result).shape == (32, 32, 3)


def test_equals_the_engine_on_the_same_row() -> None:
    (result,) = sample(regions=PLACES, method="mask_guidance", step_size=20.0, seed=5, cfg_scale=3.0, negative_prompt="dog")
    methods = (MethodConfig("mask_guidance", {"step_size": 20.0}),)
    regions = tuple(Region(phrase, box=box) for phrase, box in PLACES.items())
    row = Sample("r", tiny.PROMPT, 5, regions, methods=methods, steps=2, cfg_scale=3.0, negative_prompt="dog")
    (expected,) = sample_rows(tiny.model(), [row])
    assert np.array_equal(pixels(result), pixels(expected))


def test_regions_mean_the_default_method_with_a_plain_twin_before_each() -> None:
    results = sample(regions=PLACES, seed=[3, 1], plain=True, batch_size=1)
    assert [(r.sample.seed, r.sample.method) for r in results] == [
        (3, "plain"),
        (3, "forward_layout"),
        (1, "plain"),
        (1, "forward_layout"),
    ]
    assert not np.array_equal(pixels(results[0]), pixels(results[1]))
    assert np.array_equal(pixels(results[0]), pixels(sample(seed=3)[0]))


def test_plain_is_plain_in_spite_of_regions() -> None:
    (result,) = sample(regions=PLACES, method="plain")
    assert result.sample.method == "plain" and np.array_equal(pixels(result), pixels(sample()[0]))


def test_methods_are_said_as_in_a_table() -> None:
    scaled = {"name": "inject5", "options": {"scale": 2.0}}
    both = (MethodConfig("inject5"), MethodConfig("mask_guidance"))
    assert methods_of("inject5+mask_guidance", {}, ()) == both
    assert methods_of(scaled, {}, ()) == methods_of([scaled, "plain"], {}, ()) == (MethodConfig("inject5", {"scale": 2.0}),)
    with pytest.raises(ValueError, match="a method is a name, or a mapping with name and options"):
        methods_of({"name": "inject5", "scale": 2.0}, {}, ())


def test_several_methods_work_together() -> None:
    both = [MethodConfig("mask_guidance", {"step_size": 20.0}), "inject7"]
    (result,) = sample(regions=PLACES, method=both)
    assert result.sample.method == "mask_guidance+inject7"


@pytest.mark.parametrize(
    "place",
    [[0, 0, 0.5, 1], [(0, 0, 0.5, 0.5), (0, 0.5, 0.5, 1)], Region("red cat", box=(0, 0, 0.5, 1)), "left.png", "mask", "array"],
    ids=str,
)
def test_a_place_may_be_written_in_many_ways(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    left = torch.zeros(32, 32)
    left[:, :16] = 1
    Image.fromarray((left.numpy() * 255).astype(np.uint8)).save("left.png")
    place = {"mask": left, "array": left.numpy()}.get(place, place) if isinstance(place, str) else place
    regions = sample(regions={"red cat": place}, method="mask_guidance")[0].sample.regions
    assert [region.phrase for region in regions] == ["red cat"] * len(regions)
    (boxed,) = sample(regions={"red cat": (0, 0, 0.5, 1)}, method="mask_guidance")
    assert np.allclose(pixels(sample(regions=regions, method="mask_guidance")[0]).astype(int), pixels(boxed), atol=1)


def test_regions_without_a_place_name_words_only() -> None:
    (result,) = sample(regions={"red cat": None}, method="attend_and_excite")
    assert result.cost.unet_backwards > 0


def test_groups_of_words() -> None:
    (result,) = sample(groups=["red cat", ("blue", "ball")])
    assert result.sample.groups == (("red", "cat"), ("blue", "ball"))


def test_a_pipeline_or_a_folder_is_a_model_too(tmp_path: Path) -> None:
    (expected,) = sample()
    (held,) = sample(model=tiny.shared_pipeline())
    tiny.shared_pipeline().save_pretrained(tmp_path)
    (loaded,) = sample(model=tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    assert np.array_equal(pixels(held), pixels(expected)) and np.array_equal(pixels(loaded), pixels(expected))


# --------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"regions": {"red dog": (0, 0, 1, 1)}}, "'red dog' does not occur"),
        ({"regions": {"red cat": (0, 0, 1)}}, "'red cat': a place must be"),
        ({"regions": {"red cat": (0, 0, 2, 1)}}, "'red cat': box must be"),
        ({"method": "mask_guidence"}, "did you mean 'mask_guidance'"),
        ({"regions": PLACES, "stepsize": 3.0}, "no option 'stepsize'"),
        ({"step_size": 3.0}, "step_size.*need one method"),
        ({"regions": PLACES, "method": ["inject1", "inject2"], "scale": 3.0}, "scale.*need one method"),
        ({"method": "mask_guidance"}, "needs at least one region"),
        ({"seed": []}, "seed must be"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"scheduler": "eulr"}, "did you mean 'euler'"),
        ({"dtype": "fp16"}, "model given by name"),
        ({"dtype": torch.float16}, "model given by name"),
        ({"device": torch.device("cpu")}, "model given by name"),
        ({"dtype": torch.int8}, "Unknown dtype"),
        ({"device": 3}, "Unknown device"),
        ({"observer": object()}, "observer must be"),
        ({"seed": torch.zeros(2, device="meta")}, "seed must be"),
        ({"seed": torch.zeros((), device="meta")}, "seed must be"),
        ({"cfg_scale": np.ma.masked}, "cfg_scale must be a finite number"),
        ({"regions": {"red cat": torch.zeros(4, 4, device="meta")}}, "'red cat': mask must be an array of numbers"),
        ({"regions": {"red cat": torch.eye(4).to_sparse()}}, "'red cat': mask must be an array of numbers"),
        ({"regions": {"red cat": torch.zeros(4, device="meta")}}, "'red cat': a place must be"),
        ({"regions": PLACES, "method": "mask_guidance", "step_size": 10**400}, "'mask_guidance' with step_size: int too large"),
    ],
)
def test_mistakes_are_told(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sample(**settings)


def test_a_row_that_fails_has_no_picture_and_says_why() -> None:
    (result,) = sample(regions=PLACES, method="mask_guidance", step_size=1e38)
    assert result.image is None and "mask_guidance" in result.status


# ----------------------------------------------------------------------------------------------------------- public names


def test_every_public_name_is_there() -> None:
    assert 15 <= len(attnguide.__all__) <= 60
    assert dir(attnguide) == attnguide.__all__
    for name in attnguide.__all__:
        assert getattr(attnguide, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="'smaple'"):
        attnguide.smaple  # noqa: B018


def test_importing_loads_nothing_heavy() -> None:
    heavy = "('torch', 'diffusers', 'transformers', 'lightning', 'wandb', 'numpy', 'PIL', 'yaml')"
    code = f"import sys, attnguide; found = [n for n in {heavy} if n in sys.modules]; assert not found, found"
    code += "; attnguide.Region, attnguide.Sample, attnguide.METHODS; assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


def test_options_are_judged_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("attnguide.models.load.load_model", load)
    with pytest.raises(ValueError, match="iterations must be at least 0; got -1"):
        attnguide.sample(tiny.PROMPT, regions=PLACES, method="mask_guidance", iterations=-1)
    with pytest.raises(ValueError, match="levels must be a list of whole numbers, like \\[0, 1\\]; got 'coarse'"):
        attnguide.sample(tiny.PROMPT, regions=PLACES, method="inject1", levels="coarse")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance_scale": 3}, "no argument 'guidance_scale' (did you mean 'cfg_scale'?)"),
        ({"num_inference_steps": 3}, "no argument 'num_inference_steps' (did you mean 'steps'?)"),
        ({"seeds": [1]}, "no argument 'seeds' (did you mean 'seed'?)"),
        ({"seed": True}, "seed must be a whole number, or a list of them; got True"),
        ({"seed": "1"}, "seed must be a whole number, or a list of them; got '1'"),
        ({"seed": [1, 2.5]}, "seed must be whole numbers; got 2.5"),
        ({"seed": 2**63}, "seed must be at most"),
        ({"regions": 3}, "regions must be a mapping from phrases to places"),
        ({"regions": {"red cat": (0, 0, 1)}}, "a place must be x0,y0,x1,y1"),
        ({"regions": {"red cat": "a,b"}}, "'a,b' does not exist"),
        ({"groups": 3}, "groups must be a list of words"),
        ({"method": 3}, "method must be a name"),
        ({"plain": 1}, "plain must be True or False; got 1"),
        ({"steps": 2.5}, "steps must be a whole number; got 2.5"),
        ({"steps": 10**9}, "steps must be at most 10000"),
        ({"cfg_scale": "5"}, "cfg_scale must be a finite number; got '5'"),
        ({"height": 100_000}, "height must be at most 8192"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"device": 0}, "Unknown device '0'; choose from cpu"),
        ({"negative_prompt": 5}, "negative_prompt must be text; got 5"),
        ({"scheduler": 3}, "scheduler must be text; got 3"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_types_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        sample("a red cat", **{"model": "nowhere", **given})
    assert "\n" not in str(refused.value)


def test_prompts_of_no_words_are_for_plain_pictures() -> None:
    with pytest.raises(ValueError, match="prompt must be text; got 3"):
        sample(3, model="nowhere")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 10,000 characters; got 1,000,000"):
        sample("a" * 10**6, model="nowhere")
    with pytest.raises(ValueError, match="prompt must contain a word for methods to steer"):
        sample("", method="pag", model="nowhere")
    with pytest.raises(ValueError, match="valid Unicode"):
        sample("a \ud800", model="nowhere")
