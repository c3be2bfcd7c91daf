from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from attnguide.shapes.expectation import expectation_from_prompt
from attnguide.shapes.scene import Scene, SceneObject, is_held_out, random_scene
from attnguide.shapes.training.architecture import build_tokenizer
from attnguide.shapes.training.drawing import (
    FIRST_TRAINING_SEED,
    NAMES,
    WORDINGS,
    Reader,
    captions_of,
    draw_scenes,
    token_contents,
    training_scenes,
)
from attnguide.shapes.training.mmdit import TEXT_TOKENS, build_t5_tokenizer


def test_captions_are_true_never_held_out_and_vary() -> None:
    captions = captions_of(training_scenes(0, 60), 0)
    assert len(captions) == 60 * WORDINGS
    for index, text in enumerate(captions):
        said = expectation_from_prompt(text)
        assert said is not None
        names = [name for name, count in zip(said.names, said.counts, strict=True) for _ in range(count)]
        scene = random_scene(FIRST_TRAINING_SEED + index // WORDINGS)
        assert sorted(names) == sorted(obj.name for obj in scene.objects)
        assert not is_held_out(names)
    assert all(len(set(captions[n * 8 : n * 8 + 8])) > 1 for n in range(60))


def test_contents_of_tokens_by_hand() -> None:
    """A large red square over the middle four tokens and more; a token it covers less than a quarter of is background."""
    contents = token_contents(Scene((SceneObject("square", "red", 0.5, 0.5, 0.19),), "gray")).reshape(8, 8, 2)
    square, gray, red = NAMES[0].index("square"), NAMES[1].index("gray"), NAMES[1].index("red")
    assert contents.dtype == np.int8
    assert (contents[3:5, 3:5] == [square, red]).all() and (contents[0] == [0, gray]).all()
    both = Scene((SceneObject("circle", "blue", 0.2, 0.2, 0.15), SceneObject("heart", "pink", 0.8, 0.8, 0.15)), "white")
    shapes = token_contents(both).reshape(8, 8, 2)[..., 0]
    assert shapes[1, 1] == NAMES[0].index("circle") and shapes[6, 6] == NAMES[0].index("heart")


@pytest.mark.parametrize("build", [lambda: build_tokenizer(300), build_t5_tokenizer], ids=["clip", "t5"])
def test_ids_are_those_of_the_tokenizer_padded_and_cut(build: Callable[[], Any]) -> None:
    tokenizer, said = build(), ["a red circle", "red " * 50, "", *captions_of(training_scenes(0, 4), 0)]
    ids = Reader(tokenizer)(said)
    options = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    assert ids.dtype == np.int16 and ids.tolist() == tokenizer(said, **options).input_ids


def test_scenes_are_the_same_in_another_process_that_loads_no_torch() -> None:
    """What draws is sent as it is, and the process is quick to start."""
    told = pickle.dumps(partial(draw_scenes, (2, 4), {"ids": Reader(build_t5_tokenizer())}))
    code = "import pickle, sys; drawn = pickle.load(sys.stdin.buffer)(); print('torch' in sys.modules); " + (
        "sys.stdout.flush(); pickle.dump(drawn, sys.stdout.buffer)"
    )
    answer = subprocess.run([sys.executable, "-c", code], input=told, capture_output=True, check=True).stdout
    assert answer.startswith(b"False\n")
    theirs, ours = pickle.loads(answer.split(b"\n", 1)[1]), pickle.loads(told)()
    assert (theirs.pixels == ours.pixels).all() and (theirs.contents == ours.contents).all()
    assert ours.ids["ids"].shape == (2, WORDINGS, TEXT_TOKENS) and (theirs.ids["ids"] == ours.ids["ids"]).all()
    assert (draw_scenes((3, 4), {}).pixels[0] == ours.pixels[1]).all()
