"""Captions of scenes, in several wordings chosen by seed."""

from __future__ import annotations

import random
from collections import Counter

from attnguide.shapes.scene import Scene

NUMBERS: dict[int, str] = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
PLURALS: dict[str, str] = {"cross": "crosses"}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above",),
    "below": ("below",),
}


def article(word: str) -> str:
    """``"a"`` or ``"an"``, whichever ``word`` takes."""
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    """Plural of a shape word."""
    return PLURALS.get(shape, shape + "s")


def noun_phrase(name: str, count: int = 1) -> str:
    """Noun phrase of an object: ``("red circle", 1)`` gives ``a red circle``, ``("red circle", 3)`` ``three red circles``."""
    color, shape = name.split(" ", 1)
    return f"{article(color)} {name}" if count == 1 else f"{NUMBERS[count]} {color} {plural(shape)}"


def join(phrases: list[str], style: str = "and") -> str:
    """List phrases in English: ``a and b``, ``a, b and c``; style ``"with"`` says ``a with b`` for two."""
    if len(phrases) == 1:
        return phrases[0]
    if style == "with" and len(phrases) == 2:
        return f"{phrases[0]} with {phrases[1]}"
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def caption(scene: Scene, seed: int = 0) -> str:
    """One true caption of ``scene``; ``seed`` picks the wording.

    Example:
        >>> from attnguide.shapes.scene import Scene, SceneObject
        >>> caption(Scene((SceneObject("circle", "orange", 0.5, 0.5, 0.2),)), seed=3)
        'an orange circle'
    """
    rng = random.Random(f"attnguide-caption-{seed}")
    names = [obj.name for obj in scene.objects]
    if scene.relation is not None:
        words = rng.choice(RELATION_WORDS[scene.relation])
        text = f"{noun_phrase(names[0])} {words} {noun_phrase(names[1])}"
    else:
        groups = list(Counter(names).items())
        rng.shuffle(groups)
        text = join([noun_phrase(name, count) for name, count in groups], rng.choice(("and", "and", "with")))
    if rng.random() < 0.5:
        text += f" on {article(scene.background)} {scene.background} background"
    if rng.random() < 0.15:
        text = f"{rng.choice(('a picture of', 'a drawing of'))} {text}"
    return text
