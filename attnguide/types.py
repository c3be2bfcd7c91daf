"""The nouns every room shares: a region, a row of the table, a step of the schedule, and what a row became."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Box = tuple[float, float, float, float]
"""``(x0, y0, x1, y1)`` as fractions of width and height, from the top left."""

Blob = tuple[float, float, float, float]
"""``(x, y, blur_x, blur_y)``: centre and standard deviations of a Gaussian, as fractions of width and height."""


SourceKind = Literal["seed", "prompt", "invert", "noise"]

SOURCE_KINDS: tuple[SourceKind, ...] = ("seed", "prompt", "invert", "noise")
"""Pictures that a map can be taken from.

The same prompt under another seed; another prompt; a picture of the user's by DDIM inversion, or by noising it step by step.
"""


@dataclass(frozen=True)
class MapSource:
    """Where a region's place comes from if it is not drawn: from a word's attention in another picture.

    The word's cross-attention, averaged over heads, over the sites whose maps guidance reads and over a part of the schedule,
    is stretched to [0, 1] and is the region's mask.

    Attributes:
        kind: One of :data:`SOURCE_KINDS`.
        seed: Of the other picture's noise; the row's own when ``None``, but ``kind="seed"`` needs one.
        prompt: Of the other picture; the row's own when ``None``, but ``kind="prompt"`` needs one.
        phrase: Words of that prompt whose map is taken; the region's own when ``None``.
        image: The picture that is inverted or noised; stretched to the row's size.
        start: First part of the schedule that counts, as progress.
        stop: Where it ends.
        threshold: Cells of at least this share of the map's range become 1, all others 0; a soft map when ``None``.
        cfg_scale: Of an inversion and its reconstruction; at 1 or below the unconditional half is not computed.
        iterations: Of an inversion's fixed point, for each step.

    Raises:
        ValueError: If something the kind needs is missing, something it has no use for is given, or a number is out of range.
    """

    kind: SourceKind
    seed: int | None = None
    prompt: str | None = None
    phrase: str | None = None
    image: Path | None = None
    start: float = 0.0
    stop: float = 1.0
    threshold: float | None = None
    cfg_scale: float = 1.0
    iterations: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SOURCE_KINDS:
            raise ValueError(f"source must be one of {', '.join(SOURCE_KINDS)}; got {self.kind!r}.")
        needed = self.kind if self.kind in ("seed", "prompt") else "image"
        if getattr(self, needed) is None:
            raise ValueError(f"source {self.kind!r} needs {'an' if needed == 'image' else 'a'} {needed}; got none.")
        if self.image is not None and needed != "image":
            raise ValueError(f"source {self.kind!r} has no use for an image; got '{self.image}'.")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"source seed must be at least 0; got {self.seed}.")
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"source start and stop must be a range within [0, 1]; got {self.start:g} to {self.stop:g}.")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"source threshold must lie in (0, 1]; got {self.threshold:g}.")
        if not _finite(self.cfg_scale):
            raise ValueError(f"source cfg_scale must be a finite number; got {self.cfg_scale}.")
        if self.iterations < 0:
            raise ValueError(f"source iterations must be at least 0; got {self.iterations}.")


class PlaceError(ValueError):
    """A region's place has no area, so that this region cannot be drawn; the row it belongs to is otherwise well formed."""


@dataclass(frozen=True, eq=False)
class Region:
    """A phrase of the prompt and the place it should take; exactly one way of saying the place, or none.

    A region without a place only names a phrase, for guidance that needs no mask (attend-and-excite).

    Attributes:
        phrase: Words of the prompt, as they stand there.
        box: A rectangle, as fractions.
        polygon: Corners ``(x, y)`` as fractions, at least three.
        blob: A Gaussian, as fractions; its peak is 1.
        mask: ``height width`` in [0, 1], any size; or the path of a picture whose alpha (else luminance) is the mask, or of a
            map kept as ``.npy``.
        source: Another picture whose attention is the place; with a mask beside it once that attention has been recorded.
        occurrence: Which occurrence of the phrase in the prompt is meant, from 0; when ``None``, the first that no other
            region's phrase covers (``dog`` beside ``hot dog``).
        token_indices: Positions in the tokenized prompt (start token = 0), instead of looking the phrase up.
        weight: Factor on injected maps and on this region's loss; at 0 no guidance asks for updates on its account either.

    Raises:
        PlaceError: If the box has no area.
        ValueError: If more than one place is given, or a number is out of range.
    """

    phrase: str
    box: Box | None = None
    polygon: tuple[tuple[float, float], ...] | None = None
    blob: Blob | None = None
    mask: Tensor | Path | None = None
    source: MapSource | None = None
    occurrence: int | None = None
    token_indices: tuple[int, ...] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        places = [name for name in ("box", "polygon", "blob", "mask", "source") if getattr(self, name) is not None]
        if len(places) > 1 and places != ["mask", "source"]:
            raise ValueError(f"Region {self.phrase!r} takes one place; got {' and '.join(places)}.")
        if not self.phrase.strip() and self.token_indices is None:
            raise ValueError("Region needs a phrase or token_indices; got neither.")
        if self.occurrence is not None and self.occurrence < 0:
            raise ValueError(f"Region {self.phrase!r}: occurrence counts from 0; got {self.occurrence}.")
        if not _finite(self.weight):
            raise ValueError(f"Region {self.phrase!r}: weight must be finite; got {self.weight}.")
        if self.box is not None:
            _check_box(self.phrase, self.box)
        if self.polygon is not None and len(self.polygon) < 3:
            raise ValueError(f"Region {self.phrase!r}: polygon needs at least 3 corners; got {len(self.polygon)}.")
        if self.blob is not None and not (min(self.blob[2:]) > 0 and all(0 <= v <= 1 for v in self.blob[:2])):
            raise ValueError(
                f"Region {self.phrase!r}: blob must be x,y,blur_x,blur_y with a centre in [0, 1]; got {self.blob}."
            )

    @property
    def has_place(self) -> bool:
        """Whether a box, polygon, blob, mask or source is given."""
        return any(place is not None for place in (self.box, self.polygon, self.blob, self.mask, self.source))


def _check_box(phrase: str, box: Box) -> None:
    x0, y0, x1, y1 = box
    if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1:
        return
    inside = all(0 <= value <= 1 for value in box)
    raise (PlaceError if inside else ValueError)(
        f"Region {phrase!r}: box must be x0,y0,x1,y1 with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1; "
        f"got {x0:g},{y0:g},{x1:g},{y1:g}{', which has no area' if inside else ''}."
    )


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


@dataclass(frozen=True)
class MethodConfig:
    """A method by name, with the options that differ from its defaults."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One row of the table: everything that decides one picture.

    Attributes:
        id: Unique in the run; names the files. Letters, digits, ``.``, ``_`` and ``-``.
        prompt: What to draw.
        seed: Of the initial noise, and of a stochastic scheduler's.
        regions: Phrases and places.
        groups: Words of the prompt that belong together, each group's noun last: ``(("red", "circle"), ("blue", "square"))``;
            found by rule where none are given (:mod:`attnguide.prompt.pairs`).
        negative_prompt: What the unconditional half reads.
        methods: Injections and guidances, applied together; none means plain sampling.
        height: Of the picture in pixels; the model's own when ``None``.
        width: Likewise.
        steps: Denoising steps.
        cfg_scale: Classifier-free guidance weight; at 1 or below the unconditional half is not computed.
        scheduler: Name of a noise scheduler; the model's own when ``None``.
        tags: Free values carried into the records (an ablation's axes, a layout's category).
        problem: Why the row cannot be made, if the table it was read from says something impossible of it (a box without
            area, a phrase that the prompt lacks); such a row ends with this as its status and the others go on.
    """

    id: str
    prompt: str
    seed: int = 0
    regions: tuple[Region, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    negative_prompt: str = ""
    methods: tuple[MethodConfig, ...] = ()
    height: int | None = None
    width: int | None = None
    steps: int = 30
    cfg_scale: float = 5.0
    scheduler: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}.")
        if not _finite(self.cfg_scale):
            raise ValueError(f"cfg_scale must be a finite number; got {self.cfg_scale}.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0; got {self.seed}.")
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and (side <= 0 or side % 8):
                raise ValueError(f"{name} must be a positive multiple of 8; got {side}.")

    @property
    def method(self) -> str:
        """Names of the methods joined by ``+``, or ``"plain"``."""
        return "+".join(config.name for config in self.methods) or "plain"

    def plain(self) -> Sample:
        """The same row without methods, under the id ``<id>-plain``."""
        return replace(self, id=f"{self.id}-plain", methods=())


@dataclass(frozen=True)
class Step:
    """One model evaluation of the schedule.

    Attributes:
        index: 0 .. count - 1, counting evaluations (a second-order scheduler has more of them than the user asked steps).
        count: Evaluations in all.
        timestep: The scheduler's own value; 0 to 1000 from clean to noise.
        sigma: Noise level, noise over signal.
        begins: Whether a denoising step begins here, so that latents may be changed; False in a corrector's evaluation.
        number: Which denoising step it belongs to, from 0; the index where it is not given.
    """

    index: int
    count: int
    timestep: float
    sigma: float
    begins: bool = True
    number: int = -1

    def __post_init__(self) -> None:
        if self.number < 0:
            object.__setattr__(self, "number", self.index)

    @property
    def progress(self) -> float:
        """``index / count``, in [0, 1)."""
        return self.index / self.count

    @property
    def alpha_bar(self) -> float:
        """Share of signal variance, ``1 / (1 + sigma^2)``."""
        return 1 / (1 + self.sigma**2)


PassKind = Literal["denoise", "guide", "source", "invert", "perturb"]
Branch = Literal["cond", "uncond", "source", "source_uncond", "perturbed", "negative"]
"""What a batch element is for its row.

The two halves of classifier-free guidance; the two halves of the pass under another prompt that edits read; a conditional
pass under a perturbation; and one under a method's own negative prompt.
"""


@dataclass(frozen=True)
class PassContext:
    """What one forward pass is for, so that nothing ever counts calls.

    Attributes:
        step: Where in the schedule.
        kind: What the pass serves.
        rows: For each batch element, the row of the table's batch it belongs to.
        branches: For each batch element, which branch it is.
    """

    step: Step
    kind: PassKind
    rows: tuple[int, ...]
    branches: tuple[Branch, ...]

    def positions(self, branch: Branch) -> list[int]:
        """Batch positions of one branch, in order."""
        return [position for position, name in enumerate(self.branches) if name == branch]

    def paired(self, branch: Branch, reads: Branch) -> tuple[list[int], list[int]]:
        """Batch positions of ``branch``, and for each the position of the same row in the branch it ``reads``.

        Rows that have no such branch in this pass are left out.
        """
        at = {self.rows[position]: position for position in self.positions(reads)}
        found = [position for position in self.positions(branch) if self.rows[position] in at]
        return found, [at[self.rows[position]] for position in found]


@dataclass(frozen=True)
class Cost:
    """What a row cost. Forwards count each branch of the row once, also where a guide pass stops early.

    Attributes:
        unet_forwards: Network evaluations.
        unet_backwards: Gradients through the network.
        seconds: Wall time of the row's batch, divided by its rows.
        peak_memory_mb: Highest memory: allocated while the batch ran on a GPU; on a CPU, resident since the process began.
    """

    unet_forwards: int
    unet_backwards: int
    seconds: float
    peak_memory_mb: float


@dataclass(frozen=True)
class ExpectedCost:
    """Network passes of a row before it is made, counted as :class:`Cost` will count them.

    Attributes:
        forwards: Evaluations for one branch each, if no threshold asks for a repetition.
        backwards: Gradients, likewise.
        most: Evaluations if every threshold asks until its last iteration.
        most_backwards: Gradients, likewise.
    """

    forwards: int = 0
    backwards: int = 0
    most: int = 0
    most_backwards: int = 0

    def __add__(self, other: ExpectedCost) -> ExpectedCost:
        return ExpectedCost(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: int) -> ExpectedCost:
        return ExpectedCost(*(times * passes for passes in astuple(self)))


@dataclass(frozen=True, eq=False)
class SampleResult:
    """What a row became.

    Attributes:
        sample: The row.
        image: The picture, or ``None`` if the row stopped.
        latents: Final latents, ``channels height width`` on the CPU.
        cost: What it took.
        status: ``"ok"``; ``"ok: ..."`` with a remark about a picture that was made; ``"refused: ..."`` with the reason if the
            row was not sampled at all; else why it stopped, with step and method. :func:`verdict` tells these apart.
    """

    sample: Sample
    image: Image.Image | None
    latents: Tensor | None
    cost: Cost
    status: str = "ok"


Verdict = Literal["ok", "refused", "failed"]


def verdict(status: str) -> Verdict:
    """A row's status in one word.

    ``ok`` if there is a picture, with a remark or without; ``refused`` if the row was not sampled at all; else ``failed``.
    """
    word = status.partition(":")[0]
    return word if word in ("ok", "refused") else "failed"  # type: ignore[return-value]
