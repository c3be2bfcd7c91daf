"""The contract of a judge: from pictures and what they were asked to show, to what each picture shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from attnguide.types import Box

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
"""Spatial relations between two objects' centres."""


@dataclass(frozen=True)
class AskedObject:
    """One kind of object that a picture is asked to show.

    Attributes:
        label: Label of its detections: ``"red circle"``, ``"dog"``.
        count: Number of instances, at least 1.
        boxes: Boxes of the instances, ``(x0, y0, x1, y1)`` as fractions; empty if no place is asked for.
        noun: The object without its attribute; empty if noun and attribute are not known apart.
        attribute: Its colour, material or the like; empty if there is none.

    Raises:
        ValueError: If the label is empty or the count below 1.
    """

    label: str
    count: int = 1
    boxes: tuple[Box, ...] = ()
    noun: str = ""
    attribute: str = ""

    def __post_init__(self) -> None:
        if not self.label.strip():
            raise ValueError("label must name an object; got none.")
        if self.count < 1:
            raise ValueError(f"count must be at least 1; got {self.count} for {self.label!r}.")


@dataclass(frozen=True)
class Asked:
    """What one picture is asked to show.

    Attributes:
        prompt: The row's prompt.
        objects: Objects with distinct labels, in the order of the prompt.
        relations: ``(first, relation, second)``: the first object stands ``left of`` (:data:`RELATIONS`) the second, both as
            indices into ``objects``.
        background: Name of the plain background, if the prompt names one.

    Raises:
        ValueError: If two objects share a label, or a relation is unknown or of an object that is not there.
    """

    prompt: str
    objects: tuple[AskedObject, ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None

    def __post_init__(self) -> None:
        labels = self.labels
        if len(set(labels)) != len(labels):
            raise ValueError(f"objects must have distinct labels; got {', '.join(labels)}.")
        for first, relation, second in self.relations:
            if relation not in RELATIONS:
                raise ValueError(f"relation must be one of {', '.join(RELATIONS)}; got {relation!r}.")
            if first == second or not all(0 <= index < len(labels) for index in (first, second)):
                raise ValueError(f"relation must be of two of the {len(labels)} objects; got {first} and {second}.")

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the objects."""
        return tuple(one.label for one in self.objects)


@dataclass(frozen=True)
class Detection:
    """One object that a judge found.

    Attributes:
        label: Its name, spelt as in :attr:`Asked.labels` if it is one of those.
        box: Its bounds ``(x0, y0, x1, y1)``, as fractions of width and height.
        score: Confidence of the judge, in [0, 1].
        mask: Its pixels, bool ``height width``; ``None`` if the judge gives boxes only.
        centroid: Its centre of mass ``(x, y)`` as fractions; the middle of the box counts when ``None``.
        noun: The object without its attribute; empty if the judge does not tell them apart.
        attribute: Its colour, material or the like.
    """

    label: str
    box: Box
    score: float = 1.0
    mask: np.ndarray | None = None
    centroid: tuple[float, float] | None = None
    noun: str = ""
    attribute: str = ""

    @property
    def center(self) -> tuple[float, float]:
        """Centre ``(x, y)`` as fractions: the centroid, or the middle of the box."""
        x0, y0, x1, y1 = self.box
        return self.centroid or ((x0 + x1) / 2, (y0 + y1) / 2)


@dataclass(frozen=True)
class Seen:
    """What a judge finds in one picture.

    Attributes:
        detections: Objects found; ``None`` from a judge that gives scores only.
        scores: Scores in [0, 1] by name, 1 is best.
        background: Name of the plain background; ``None`` if there is none, or the judge does not recognise backgrounds.
        knows_background: Whether the judge recognises backgrounds.
        explained: Share of the foreground that lies in detections, in [0, 1]; ``None`` if the judge does not measure it.
    """

    detections: tuple[Detection, ...] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    background: str | None = None
    knows_background: bool = False
    explained: float | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the detections."""
        return tuple(detection.label for detection in self.detections or ())


class Judge(ABC):
    """Looks at pictures and says what they show.

    Example::

        class Brightness(Judge):
            name = "brightness"

            def look(self, pictures, asked):
                return [Seen(scores={"brightness": np.asarray(one.convert("L")).mean() / 255}) for one in pictures]

    Attributes:
        name: Name of the judge; prefix of its metrics' names if several judges find objects.
        finds_objects: Whether it gives detections.
    """

    name: ClassVar[str]
    finds_objects: ClassVar[bool] = False

    @abstractmethod
    def look(self, pictures: Sequence[Image.Image], asked: Sequence[Asked]) -> list[Seen | None]:
        """What each picture shows; ``None`` for a picture that this judge cannot judge.

        Args:
            pictures: Pictures of any sizes.
            asked: What each picture was asked to show.
        """

    def to(self, device: torch.device | str) -> None:  # noqa: B027 judges without networks have nothing to move
        """Move networks, if there are any, to a device."""


def check_equally_many(pictures: Sequence[object], asked: Sequence[object]) -> None:
    """Check that there is one ``asked`` per picture.

    Raises:
        ValueError: If the numbers differ.
    """
    if len(pictures) != len(asked):
        raise ValueError(f"pictures and asked must be equally many; got {len(pictures)} and {len(asked)}.")
