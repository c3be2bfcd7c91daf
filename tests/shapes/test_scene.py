from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from attnguide.shapes.scene import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_PAIRS,
    KINDS,
    MAX_OBJECTS,
    MAX_ROTATION,
    SHAPES,
    Scene,
    SceneObject,
    combination,
    is_held_out,
    place,
    random_scene,
    relation_holds,
)


def _names(scene: Scene) -> list[str]:
    return [obj.name for obj in scene.objects]


def test_the_world_is_large_enough() -> None:
    assert len(SHAPES) >= 8 and len(COLORS) >= 8 and len(BACKGROUNDS) >= 4


def test_a_seed_is_one_scene() -> None:
    assert [random_scene(seed) for seed in range(30)] == [random_scene(seed) for seed in range(30)]
    assert len({random_scene(seed) for seed in range(30)}) == 30


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_of_each_kind_stand_inside_the_picture_and_apart(kind: str) -> None:
    for seed in range(25):
        scene = random_scene(seed, kind)
        assert 1 <= len(scene.objects) <= MAX_OBJECTS
        for obj in scene.objects:
            assert obj.radius < obj.x < 1 - obj.radius and obj.radius < obj.y < 1 - obj.radius
            assert abs(obj.rotation) <= MAX_ROTATION
        for a, b in itertools.combinations(scene.objects, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_kinds_hold_what_they_say() -> None:
    for seed in range(25):
        assert len(random_scene(seed, "single").objects) == 1
        assert len(set(_names(random_scene(seed, "pair")))) == 2
        counted = Counter(_names(random_scene(seed, "count")))
        assert len(counted) == 1 and 2 <= counted.total() <= MAX_OBJECTS


def test_relations_hold_with_room_to_spare() -> None:
    seen = set()
    for seed in range(40):
        scene = random_scene(seed, "relation")
        assert scene.relation is not None
        seen.add(scene.relation)
        first, second = ((obj.x, obj.y) for obj in scene.objects)
        assert relation_holds(first, second, scene.relation, margin=0.2)
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("relation", "a", "b"),
    [
        ("left of", (0.2, 0.9), (0.5, 0.1)),
        ("right of", (0.5, 0.1), (0.2, 0.9)),
        ("above", (0.9, 0.2), (0.1, 0.5)),
        ("below", (0, 1), (0, 0)),
    ],
)
def test_relation_holds_one_way_only(relation: str, a: tuple[float, float], b: tuple[float, float]) -> None:
    assert relation_holds(a, b, relation)
    assert not relation_holds(b, a, relation)
    assert not relation_holds(a, a, relation)


def test_training_scenes_are_never_held_out_and_held_out_ones_always() -> None:
    for seed in range(60):
        assert not is_held_out(_names(random_scene(seed)))
        assert is_held_out(_names(random_scene(seed, held_out=True)))


def test_held_out_does_not_depend_on_order() -> None:
    pairs = itertools.combinations([f"{color} {shape}" for color in COLORS for shape in SHAPES], 2)
    share = []
    for a, b in pairs:
        assert is_held_out([a, b]) == is_held_out([b, a])
        if not any(tuple(name.split()) in HELD_OUT_PAIRS for name in (a, b)):
            share.append(is_held_out([a, b]))
    assert 0.05 < sum(share) / len(share) < 0.15
    assert combination(["red circle", "blue square"]) == "blue square+red circle"


def test_every_unseen_pair_is_held_out_alone_and_in_company() -> None:
    for color, shape in HELD_OUT_PAIRS:
        assert is_held_out([f"{color} {shape}"])
        assert is_held_out(["red circle", f"{color} {shape}"])
    assert not is_held_out(["red circle"])


def test_place_gives_up_where_nothing_fits() -> None:
    assert place([("red", "circle")], random.Random(0), accept=lambda objects: False, tries=3) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("oval", "red", 0.5, 0.5, 0.1), "'oval'"),
        (("circle", "mauve", 0.5, 0.5, 0.1), "'mauve'"),
        (("circle", "red", 0.5, 0.5, 0.0), "radius"),
    ],
)
def test_objects_check_their_words(arguments: tuple[str, str, float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneObject(*arguments)


def test_scenes_check_background_relation_and_kind() -> None:
    obj = SceneObject("circle", "red", 0.5, 0.5, 0.1)
    with pytest.raises(ValueError, match="'lilac'"):
        Scene((obj,), "lilac")
    with pytest.raises(ValueError, match="2 objects; got 1"):
        Scene((obj,), relation="above")
    with pytest.raises(ValueError, match="'crowd'"):
        random_scene(0, "crowd")
    with pytest.raises(ValueError, match="'beside'"):
        relation_holds((0, 0), (1, 1), "beside")


def test_boxes_are_clipped_to_the_picture() -> None:
    assert SceneObject("circle", "red", 0.1, 0.5, 0.25).box == (0.0, 0.25, 0.35, 0.75)
