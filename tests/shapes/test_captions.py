from __future__ import annotations

from collections import Counter

import pytest

from attnguide.shapes.captions import NUMBERS, article, caption, join, noun_phrase, plural
from attnguide.shapes.expectation import Expectation, expectation_from_layout, expectation_from_prompt
from attnguide.shapes.layouts import Layout
from attnguide.shapes.scene import SHAPES, Scene, SceneObject, random_scene


@pytest.mark.parametrize("kind", ["single", "pair", "relation", "count", "groups", "several"])
def test_reading_a_caption_gives_back_the_scene(kind: str) -> None:
    for seed in range(60):
        scene = random_scene(seed, kind, held_out=seed % 2 == 0)
        text = caption(scene, seed=seed)
        said = expectation_from_prompt(text)
        assert said is not None, text
        counts = dict(zip(said.names, said.counts, strict=True))
        assert counts == Counter(obj.name for obj in scene.objects), text
        assert said.relation == scene.relation, text
        assert said.background == (scene.background if "background" in text else None), text
        if scene.relation is not None:
            assert said.names == tuple(obj.name for obj in scene.objects), text


def test_wording_varies_and_a_seed_fixes_it() -> None:
    scene = random_scene(1, "relation")
    texts = [caption(scene, seed) for seed in range(40)]
    assert texts == [caption(scene, seed) for seed in range(40)]
    assert len(set(texts)) >= 4


def test_english() -> None:
    assert [article(word) for word in ("orange", "red")] == ["an", "a"]
    assert [plural(shape) for shape in ("cross", "star")] == ["crosses", "stars"]
    assert noun_phrase("red circle") == "a red circle"
    assert noun_phrase("orange cross", 3) == "three orange crosses"
    assert join(["a", "b"], "with") == "a with b"
    assert join(["a", "b", "c"], "with") == "a, b and c"
    assert len({plural(shape) for shape in SHAPES}) == len(SHAPES) and len(NUMBERS) == 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red circle.", Expectation((("red", "circle"),))),
        ("three  green stars", Expectation((("green", "star"),), (3,))),
        (
            "a picture of a pink cross to the left of a brown diamond on a gray background",
            Expectation((("pink", "cross"), ("brown", "diamond")), (1, 1), "left of", "gray"),
        ),
        ("two red circles and an orange heart", Expectation((("red", "circle"), ("orange", "heart")), (2, 1))),
        ("a red circle and a red circle", Expectation((("red", "circle"),), (2,))),
    ],
)
def test_reading_by_hand(text: str, expected: Expectation) -> None:
    assert expectation_from_prompt(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of a cat",
        "a red circle on a lilac background",
        "a mauve circle",
        "seven red circles",
        "a red circle above a red circle",
        "a red circle above a blue star and a pink cross",
        "red circle and a blue star",
    ],
)
def test_other_text_is_not_understood(text: str) -> None:
    assert expectation_from_prompt(text) is None


def test_a_layout_row_groups_its_instances() -> None:
    first, second, third = (0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 0.7, 0.7), (0.7, 0.1, 0.9, 0.3)
    row = Layout(
        "0",
        "boxes",
        "two red stars and a blue cross on a black background",
        ("red stars", "red stars", "blue cross"),
        (first, second, third),
    )
    expected = Expectation((("red", "star"), ("blue", "cross")), (2, 1), None, "black", ((first, second), (third,)))
    assert expectation_from_layout(row) == expected


def test_a_layout_row_of_another_world_is_refused() -> None:
    for phrase in ("rose", "red rose"):
        with pytest.raises(ValueError, match="colour"):
            expectation_from_layout(Layout("0", "single", f"a {phrase}", (phrase,), ((0.1, 0.1, 0.5, 0.5),)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objects": ()}, "at least one"),
        ({"objects": (("red", "circle"), ("red", "circle"))}, "distinct"),
        ({"objects": (("red", "oval"),)}, "oval"),
        ({"objects": (("red", "circle"),), "counts": (0,)}, "positive"),
        ({"objects": (("red", "circle"),), "boxes": ((), ())}, "boxes"),
        ({"objects": (("red", "circle"),), "relation": "above"}, "2 objects"),
        ({"objects": (("red", "circle"),), "background": "lilac"}, "lilac"),
    ],
)
def test_expectations_check_themselves(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Expectation(**arguments)  # type: ignore[arg-type]


def test_captions_of_one_object_are_its_name() -> None:
    scene = Scene((SceneObject("circle", "orange", 0.5, 0.5, 0.2),))
    assert all("an orange circle" in caption(scene, seed) for seed in range(20))
