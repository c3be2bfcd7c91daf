"""The nouns every room shares: a region, a row of the table, a step of the schedule, and what a row became."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from attnguide.inputs import Control as Control
from attnguide.inputs import Kind as Kind
from attnguide.inputs import kind_of, set_inputs, strength_of
from attnguide.places import SOURCE_KINDS as SOURCE_KINDS
from attnguide.places import Blob as Blob
from attnguide.places import Box as Box
from attnguide.places import MapSource as MapSource
from attnguide.places import PlaceError as PlaceError
from attnguide.places import Region as Region
from attnguide.places import SourceKind as SourceKind
from attnguide.text.fields import (
    MOST_CFG_SCALE,
    MOST_LETTERS,
    MOST_SEED,
    MOST_SIDE,
    MOST_STEPS,
    check_text,
    set_real,
    set_whole,
)
from attnguide.text.html import figure, png_bytes
from attnguide.text.parsing import as_whole, shown
from attnguide.weighted import check_syntax, words_of

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


PLAIN = "plain"
"""Method name of rows without methods."""

_LONGEST_PROBLEM = 1000
"""Most characters kept of a row's ``problem``."""


@dataclass(frozen=True)
class MethodConfig:
    """A method by name, with the options that differ from its defaults."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"A method's name must be text; got {shown(self.name)}.")
        if not isinstance(self.options, Mapping) or not all(isinstance(name, str) for name in self.options):
            raise ValueError(f"Method {shown(self.name)}: options must be a mapping from names; got {shown(self.options)}.")


@dataclass(frozen=True)
class Sample:
    """One row of the table: everything that decides one picture.

    Attributes:
        id: Unique in the run; names the files. Letters, digits, ``.``, ``_`` and ``-``.
        prompt: The prompt; may be empty only in rows without methods.
        seed: Seed of the initial noise and of a stochastic scheduler's noise.
        regions: Phrases of the prompt and their places.
        groups: Words of the prompt that belong together, each group's noun last: ``(("red", "circle"), ("blue", "square"))``;
            found by rule where none are given (:mod:`attnguide.prompt.pairs`).
        negative_prompt: Text of the unconditional half; ``None`` if none was given, which some models (SDXL) treat otherwise
            than the empty text.
        methods: Injections and guidances, applied together; none means plain sampling.
        height: Picture height in pixels, a multiple of 8; the model's default when ``None``.
        width: Picture width in pixels, a multiple of 8; the model's default when ``None``.
        steps: Denoising steps.
        cfg_scale: Classifier-free guidance weight; at 1 or below the unconditional half is not computed.
        true_cfg_scale: Classifier-free guidance weight of a guidance-distilled model, which reads ``cfg_scale`` as a condition;
            above 1, and with a negative prompt, both halves are computed and combined with this weight.
        prompt_syntax: ``plain`` (every character is text) or ``weights`` (weights and ``BREAK`` of web UIs,
            :mod:`attnguide.weighted`, in as many chunks as they need).
        scheduler: Name of a noise scheduler; the model's own when ``None``.
        tags: Free values carried into the records (an ablation's axes, a layout's category).
        problem: Error in the table that the row was read from (a box without area, a phrase that the prompt lacks); such a
            row ends with this as its status and the others go on.
        init_image: Path of a picture to begin from instead of noise alone; stretched to the row's size.
        strength: Share of the schedule that an ``init_image`` is noised to and denoised from, in (0, 1]; the default of
            :data:`~attnguide.inputs.STRENGTHS` when ``None``.
        inpaint_mask: Path of a mask picture of the ``init_image``'s size, white where it is drawn anew, black where it is kept.
        control: Control pictures for the run's ControlNets.
    """

    id: str
    prompt: str
    seed: int = 0
    regions: tuple[Region, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    negative_prompt: str | None = None
    methods: tuple[MethodConfig, ...] = ()
    height: int | None = None
    width: int | None = None
    steps: int = 30
    cfg_scale: float = 5.0
    scheduler: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    true_cfg_scale: float = 1.0
    init_image: str | None = None
    strength: float | None = None
    inpaint_mask: str | None = None
    control: tuple[Control, ...] = ()
    prompt_syntax: str = "plain"

    def __post_init__(self) -> None:
        self._check_texts()
        set_whole(self, "steps", 1, MOST_STEPS)
        for name in ("cfg_scale", "true_cfg_scale"):
            set_real(self, name, most=MOST_CFG_SCALE)
        set_whole(self, "seed", 0, MOST_SEED)
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and ((number := as_whole(side)) is None or number <= 0 or number % 8):
                raise ValueError(f"{name} must be a positive multiple of 8; got {shown(side)}.")
            set_whole(self, name, 8, MOST_SIDE, optional=True)
        for name, kind in (("regions", Region), ("groups", tuple), ("methods", MethodConfig)):
            given = getattr(self, name)
            if not isinstance(given, list | tuple) or not all(isinstance(item, kind) for item in given):
                raise ValueError(f"{name} must be a tuple of {kind.__name__}s; got {shown(given)}.")
        set_inputs(self)
        if self.problem is not None:
            object.__setattr__(self, "problem", _short_problem(self.problem))
        if not isinstance(self.tags, Mapping):
            raise ValueError(f"tags must be a mapping from names to values; got {shown(self.tags)}.")

    def _check_texts(self) -> None:
        for name in ("id", "prompt"):
            check_text(name, getattr(self, name))
        for name in ("negative_prompt", "scheduler"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        check_syntax(self.prompt_syntax)

    @property
    def method(self) -> str:
        """Names of the methods joined by ``+``, or ``"plain"``."""
        return "+".join(config.name for config in self.methods) or PLAIN

    @property
    def kind(self) -> Kind | None:
        """Pipeline kind of a row with input pictures (``img2img``, ``inpaint``, ...); ``None`` for text to image."""
        return kind_of(self)

    @property
    def noised(self) -> float:
        """Share of the schedule that the row runs through, in (0, 1]; 1 without an ``init_image``."""
        found = strength_of(self)
        return 1.0 if found is None else found

    @property
    def denoising_steps(self) -> int:
        """Number of :attr:`steps` that are run at the row's strength, as diffusers counts; 0 where it is too small."""
        return min(int(self.steps * self.noised), self.steps)

    @property
    def text(self) -> str:
        """The prompt without the marks of its ``prompt_syntax``; phrases are looked up in this text.

        Raises:
            ValueError: If the prompt has marks that its syntax does not know.
        """
        return words_of(self.prompt, self.prompt_syntax)

    def plain(self) -> Sample:
        """The same row without methods, under the id ``<id>-plain``."""
        return replace(self, id=f"{self.id}-plain", methods=())


def _short_problem(problem: Any) -> str:
    """A problem shortened in the middle, where a long one quotes a prompt."""
    check_text("problem", problem[:MOST_LETTERS] if isinstance(problem, str) else problem)
    half = _LONGEST_PROBLEM // 2
    return problem if len(problem) <= _LONGEST_PROBLEM + 5 else f"{problem[:half]} ... {problem[-half:]}"


@dataclass(frozen=True)
class Step:
    """One model evaluation of the schedule, at latents ``x = signal x0 + noise eps`` as the network reads them.

    A variance-preserving schedule has ``signal^2 + noise^2 = 1`` (one with exploding variance too, whose inputs the network
    reads scaled down); under flow matching ``signal = 1 - noise``.

    Attributes:
        index: Number of the evaluation, 0 .. count - 1 (a second-order scheduler makes more evaluations than steps).
        count: Number of evaluations of the schedule.
        timestep: The scheduler's timestep, 0 (clean) to 1000 (noise).
        signal: Factor on the clean latents, in [0, 1].
        noise: Factor on unit noise, in [0, 1].
        begins: Whether a denoising step begins here, so that latents may be changed; False in a corrector's evaluation.
        number: Denoising step that the evaluation belongs to, from 0; ``index`` by default.
        earlier: Evaluations of the same picture by a call before this one (before a refiner's ``denoising_start``).
        later: Evaluations of the same picture by a call after this one (after ``denoising_end``).
    """

    index: int
    count: int
    timestep: float
    signal: float
    noise: float
    begins: bool = True
    number: int = -1
    earlier: int = 0
    later: int = 0

    def __post_init__(self) -> None:
        if self.number < 0:
            object.__setattr__(self, "number", self.index)

    @classmethod
    def at_sigma(cls, index: int, count: int, timestep: float, sigma: float, begins: bool = True, number: int = -1) -> Step:
        """A step of a variance-preserving schedule from its ``sigma``, noise over signal."""
        scale = math.hypot(1.0, sigma)
        return cls(index, count, timestep, 1 / scale, sigma / scale, begins, number)

    @property
    def sigma(self) -> float:
        """Noise over signal; infinite where there is no signal."""
        return self.noise / self.signal if self.signal > 0 else math.inf

    @property
    def overall_index(self) -> int:
        """:attr:`index` with the evaluations of earlier calls."""
        return self.earlier + self.index

    @property
    def overall_count(self) -> int:
        """:attr:`count` with the evaluations of earlier and later calls."""
        return self.earlier + self.count + self.later

    @property
    def progress(self) -> float:
        """Share of the picture's evaluations that lie before this one, ``overall_index / overall_count``, in [0, 1).

        A call that begins at a picture (``strength``) begins at 0; calls that share one schedule share its progress.
        """
        return self.overall_index / self.overall_count

    @property
    def alpha_bar(self) -> float:
        """Share of signal variance, ``signal^2 / (signal^2 + noise^2)``, in [0, 1] under every kind of schedule."""
        return self.signal**2 / (self.signal**2 + self.noise**2)


PassKind = Literal["denoise", "guide", "source", "invert", "perturb"]
Branch = Literal["cond", "uncond", "source", "source_uncond", "perturbed", "negative"]
"""Kind of a batch element.

``cond`` and ``uncond`` are the halves of classifier-free guidance, ``source`` and ``source_uncond`` those of the source prompt
that edits read; ``perturbed`` is a conditional element with perturbed attention, ``negative`` one under a method's own
negative prompt.
"""


@dataclass(frozen=True)
class PassContext:
    """Step, kind and batch layout of one forward pass; nothing is inferred from counting calls.

    Attributes:
        step: Evaluation of the schedule.
        kind: Purpose of the pass.
        rows: Row of the batch that each element belongs to.
        branches: Branch of each element.
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
    """Network passes, time and memory of a row. Each branch counts as one forward, also where a guide pass stops early.

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

    def __add__(self, other: Cost) -> Cost:
        """Cost of both, one after the other: passes and seconds add up, memory is the higher peak."""
        return Cost(
            self.unet_forwards + other.unet_forwards,
            self.unet_backwards + other.unet_backwards,
            self.seconds + other.seconds,
            max(self.peak_memory_mb, other.peak_memory_mb),
        )


@dataclass(frozen=True)
class ExpectedCost:
    """Network passes of a row before it is made, counted as :class:`Cost` will count them.

    Attributes:
        forwards: Evaluations for one branch each, if no threshold asks for a repetition.
        backwards: Backward passes, if no threshold asks for a repetition.
        most: Evaluations for one branch each, if every threshold asks until its last iteration.
        most_backwards: Backward passes, if every threshold asks until its last iteration.
    """

    forwards: int = 0
    backwards: int = 0
    most: int = 0
    most_backwards: int = 0

    def __add__(self, other: ExpectedCost) -> ExpectedCost:
        forwards, backwards = self.forwards + other.forwards, self.backwards + other.backwards
        return ExpectedCost(forwards, backwards, self.most + other.most, self.most_backwards + other.most_backwards)

    def __mul__(self, times: int) -> ExpectedCost:
        return ExpectedCost(times * self.forwards, times * self.backwards, times * self.most, times * self.most_backwards)


@dataclass(frozen=True, eq=False)
class SampleResult:
    """Result of a row.

    Attributes:
        sample: The row.
        image: The picture, or ``None`` if the row stopped.
        latents: Final latents, ``channels height width`` on the CPU.
        cost: Network passes, time and memory.
        status: ``"ok"``; ``"ok: ..."`` with a remark about a picture that was made; ``"refused: ..."`` with the reason if the
            row was not sampled at all; else why it stopped, with step and method. :func:`verdict` tells these apart.
    """

    sample: Sample
    image: Image.Image | None
    latents: Tensor | None = field(repr=False)
    cost: Cost
    status: str = "ok"

    def _repr_png_(self) -> bytes | None:
        """The picture, for notebooks and terminals that show pictures."""
        return None if self.image is None else png_bytes(self.image)

    def _repr_html_(self) -> str:
        """The picture with its boxes, over method, seed, cost and status, for notebooks."""
        row, cost = self.sample, self.cost
        passes = f"{cost.unet_forwards} forwards, {cost.unet_backwards} backwards, {cost.seconds:.1f} s"
        boxes = [(region.phrase, region.box) for region in row.regions if region.box is not None]
        return figure(self.image, f"{row.method}, seed {row.seed}, {passes}: {self.status}", boxes)


Verdict = Literal["ok", "refused", "failed"]


def verdict(status: str) -> Verdict:
    """A row's status in one word.

    ``ok`` if there is a picture, with a remark or without; ``refused`` if the row was not sampled at all; else ``failed``.
    """
    word = status.partition(":")[0]
    return word if word in ("ok", "refused") else "failed"  # type: ignore[return-value]
