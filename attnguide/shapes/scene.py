"""Scenes of the shapes world: its shapes, colours and sizes, and random scenes."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
"""Shape words of the world, singular."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (250, 215, 40),
    "orange": (250, 130, 20),
    "purple": (130, 50, 170),
    "pink": (250, 140, 190),
    "brown": (120, 70, 30),
}
"""Object colours as sRGB bytes."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "gray": (150, 150, 150),
    "beige": (235, 220, 190),
}
"""Background colours as sRGB bytes."""

SIZES: dict[str, float] = {"small": 0.12, "medium": 0.15, "large": 0.19}
"""Object radius (half its extent) as a fraction of the picture's side, before a jitter of 8 %."""

MAX_ROTATION = 20.0
"""Largest rotation in degrees, either way."""

HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {("purple", "triangle"), ("orange", "ring"), ("green", "heart"), ("brown", "star")}
)
"""(colour, shape) pairs that training never shows, in any scene."""

MAX_OBJECTS = 6

Relation = Literal["left of", "right of", "above", "below"]
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape.

    Attributes:
        shape: One of :data:`SHAPES`.
        color: A key of :data:`COLORS`.
        x: Centre from the left edge, as a fraction of the width.
        y: Centre from the top edge, as a fraction of the height.
        radius: Half the extent, as a fraction of the side.
        rotation: Clockwise, in degrees.
    """

    shape: str
    color: str
    x: float
    y: float
    radius: float
    rotation: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}; got {self.shape!r}.")
        if self.color not in COLORS:
            raise ValueError(f"color must be one of {', '.join(COLORS)}; got {self.color!r}.")
        if not 0 < self.radius <= 0.5:
            raise ValueError(f"radius must lie in (0, 0.5] of the side; got {self.radius}.")

    @property
    def name(self) -> str:
        """Colour and shape: ``"red circle"``."""
        return f"{self.color} {self.shape}"

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Bounding square ``(x0, y0, x1, y1)`` of the circumscribed circle, as fractions, clipped to the picture."""
        x0, y0, x1, y1 = self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius
        return max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0)


@dataclass(frozen=True)
class Scene:
    """Objects on a plain background, back to front, with the relation a caption may state of the first two.

    Attributes:
        objects: Objects in drawing order; later ones cover earlier ones.
        background: A key of :data:`BACKGROUNDS`.
        relation: Relation of ``objects[0]`` to ``objects[1]``, if the scene was made to show one.
    """

    objects: tuple[SceneObject, ...]
    background: str = "white"
    relation: Relation | None = field(default=None)

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background must be one of {', '.join(BACKGROUNDS)}; got {self.background!r}.")
        if self.relation is not None and len(self.objects) != 2:
            raise ValueError(f"A relation needs exactly 2 objects; got {len(self.objects)}.")


def relation_holds(a: tuple[float, float], b: tuple[float, float], relation: str, margin: float = 0.0) -> bool:
    """Whether centre ``a`` stands in ``relation`` to centre ``b``; centres are ``(x, y)`` fractions, y downwards."""
    gap = {"left of": b[0] - a[0], "right of": a[0] - b[0], "above": b[1] - a[1], "below": a[1] - b[1]}
    if relation not in gap:
        raise ValueError(f"relation must be one of {', '.join(RELATIONS)}; got {relation!r}.")
    return gap[relation] > margin


def combination(names: Sequence[str]) -> str:
    """Name of a set of objects, independent of their order: ``"blue square+red circle"``."""
    return "+".join(sorted(names))


def is_held_out(names: Sequence[str]) -> bool:
    """Whether a scene of these ``"colour shape"`` names is kept out of training.

    True for every scene with a pair in :data:`HELD_OUT_PAIRS`, and for a fixed tenth of all combinations of two or more
    objects, chosen by a hash of their names. The benchmark and the development layouts draw only from held-out combinations.
    """
    if any(tuple(name.split(" ", 1)) in HELD_OUT_PAIRS for name in names):
        return True
    if len(names) < 2:
        return False
    return hashlib.sha256(combination(names).encode()).digest()[0] < 26


def _radius(rng: random.Random, count: int) -> float:
    choices = {1: ("medium", "large"), 2: ("small", "medium", "large"), 3: ("small", "medium")}
    name = rng.choice(choices.get(count, ("small",) if count > 4 else ("small", "medium")))
    return SIZES[name] * rng.uniform(0.92, 1.08)


def place(
    names: Sequence[tuple[str, str]],
    rng: random.Random,
    *,
    accept: Callable[[list[SceneObject]], bool] = lambda objects: True,
    gap: float = 0.03,
    tries: int = 200,
) -> tuple[SceneObject, ...] | None:
    """Place ``(colour, shape)`` pairs at random without overlap; ``None`` if no try succeeds.

    Args:
        names: ``(colour, shape)`` per object.
        rng: Source of randomness.
        accept: Further condition on the whole placement.
        gap: Least distance between circumscribed circles, and to the edge, as a fraction of the side.
        tries: Whole placements to attempt.
    """
    for _ in range(tries):
        objects: list[SceneObject] = []
        radius = _radius(rng, len(names))
        for color, shape in names:
            size = min(radius * rng.uniform(0.9, 1.1), 0.22)
            for _ in range(20):
                x, y = (rng.uniform(size + gap, 1 - size - gap) for _ in range(2))
                if all(math.hypot(x - o.x, y - o.y) > size + o.radius + gap for o in objects):
                    rotation = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
                    objects.append(SceneObject(shape, color, x, y, size, rotation))
                    break
            else:
                break
        if len(objects) == len(names) and accept(objects):
            return tuple(objects)
    return None


def _draw_names(rng: random.Random, kind: str) -> list[tuple[str, str]]:
    def one() -> tuple[str, str]:
        return rng.choice(list(COLORS)), rng.choice(SHAPES)

    if kind == "single":
        return [one()]
    if kind == "count":
        return [one()] * rng.choices(range(2, MAX_OBJECTS + 1), weights=(4, 4, 4, 2, 2))[0]
    if kind == "groups":
        first, second = rng.choice([(1, 2), (2, 1), (2, 2), (1, 3), (3, 1)])
        return [one()] * first + [one()] * second
    size = {"pair": 2, "relation": 2}.get(kind) or rng.choices((3, 4), weights=(3, 2))[0]
    names = [one() for _ in range(size)]
    return names if len(set(names)) == size else _draw_names(rng, kind)


KINDS: dict[str, int] = {"single": 25, "pair": 25, "relation": 10, "count": 25, "groups": 5, "several": 10}
"""Scene kinds and how often training draws each, in percent."""


def random_scene(seed: int, kind: str | None = None, *, held_out: bool = False) -> Scene:
    """Scene number ``seed``: the same on every machine.

    Args:
        seed: Any integer.
        kind: One of :data:`KINDS`; drawn by its share when ``None``.
        held_out: Draw only combinations that training never shows, instead of only those it may show.

    Raises:
        ValueError: If ``kind`` is unknown.
    """
    rng = random.Random(f"attnguide-shapes-{seed}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    kind = kind or rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
    while True:
        names = _draw_names(rng, kind)
        if is_held_out([f"{c} {s}" for c, s in names]) is not held_out:
            continue
        relation: Relation | None = rng.choice(RELATIONS) if kind == "relation" else None

        def accept(objects: list[SceneObject], relation: Relation | None = relation) -> bool:
            if relation is None:
                return True
            return relation_holds((objects[0].x, objects[0].y), (objects[1].x, objects[1].y), relation, margin=0.2)

        objects = place(names, rng, accept=accept)
        if objects is not None:
            return Scene(objects, rng.choice(list(BACKGROUNDS)), relation)
