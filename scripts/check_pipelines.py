"""Checks methods inside diffusers' pipelines under ``attnguide.steer``, with random weights, and writes a page with the table.

    python scripts/check_pipelines.py                                       # every kind that the installed diffusers knows
    python scripts/check_pipelines.py flux_fill sd_controlnet --schedulers euler,unipc
    python scripts/check_pipelines.py --workers 2 --write docs/known_pipelines.md    # all of it, eight minutes of one core

The pipelines are those of the tests (``tests/steering``). Every one is called under every scheduler that it takes, with every
method of :data:`METHODS` inside :func:`attnguide.steer`.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from check_families import LONGER, PROMPT, REGIONS, checked, largest, latents_of, mark, noted, number, row
from check_families import supported as supported_families
from torch import Tensor

import attnguide
from attnguide.engine.observer import Observer, UpdateEvent
from attnguide.models.load import adapt
from attnguide.models.schedulers import is_flow, named_flow_scheduler, named_scheduler, written_config
from attnguide.models.transformer import TransformerAdapter
from attnguide.steering.pipelines import PIPELINES
from attnguide.types import MethodConfig
from tests.models import families
from tests.steering import pipelines, unets
from tests.steering.watch import parts

SCHEDULERS = ("ddim", "euler", "euler_ancestral", "dpmpp_2m", "heun", "unipc")
FLOW_SCHEDULERS = ("euler", "heun", "dpmpp_2m", "unipc")

METHODS: dict[str, dict[str, Any]] = {
    "inject5": {"start": 0.0},
    "forward_layout": {"stop": 1.0},
    "stable": {"attempts": 1, "inject_until": 0.0},
    "mask_guidance": {"stop": 1.0},
    "attend_and_excite": {"thresholds": {}, "stop": 1.0},
    "layout_guidance": {"iterations": 2, "until": 0.0, "step_size": 1.0, "stop": 1.0},
}
"""Method -> options under which it acts from a picture's first step to its last."""

PLACES = {region.phrase: region.box for region in REGIONS}

HALVES_APART = ("chroma", "flux2_klein", "qwen_image", "qwen_image_21", "lumina2", "krea2", "z_image")
"""Families whose pipelines run the halves of classifier-free guidance one by one, or in another order than attnguide.

They are compared with attnguide's loop without classifier-free guidance, since other batches round differently.
"""

TWINS = ("pixart_alpha_1024", "sd3", "flux_schnell")
"""Families that share the pipeline class of another family."""


@dataclass
class Findings:
    """Results of the checks of a kind of pipeline under a scheduler.

    Attributes:
        scheduler: Its name.
        methods: Method -> largest difference from attnguide's own loop, if that can make the picture; else ``runs`` if it
            changes the latents, or the message of its refusal.
        zero: Largest difference that all methods together make at strength 0, or the message of their refusal.
        loss: Loss of layout guidance before and after its first update; ``None`` if it is refused.
        rows: Largest difference between two rows in one call and in calls of their own, as a share of the latents;
            ``None`` if it was not measured.
        restored: Whether the pipeline was restored, so that the next plain picture is the same.
    """

    scheduler: str
    methods: dict[str, str] = field(default_factory=dict)
    zero: str = ""
    loss: tuple[float, float] | None = None
    rows: float | None = None
    restored: bool = True


class Losses(Observer):
    """Keeps the losses of layout guidance, in order."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_guidance_update(self, event: UpdateEvent) -> None:
        if event.method == "layout_guidance":
            self.seen.append(event.losses[0])


# ------------------------------------------------------------------------------------------------------- kinds of pipelines


def supported() -> list[str]:
    """Names of all kinds of pipelines: families first, then pipelines made of their parts."""
    return [*(name for name in supported_families() if name not in TWINS), *pipelines.available(), *unets.KINDS]


def is_family(name: str) -> bool:
    """Whether attnguide's own loop can make the kind's pictures."""
    return name not in pipelines.KINDS and name not in unets.KINDS


def pipeline_of(name: str) -> Any:
    """The shared pipeline of a kind."""
    return families.shared(name) if is_family(name) else unets.pipeline_of(name)


def sample(name: str, prompt: str | list[str] = PROMPT, **settings: Any) -> Tensor:
    """Final latents of a kind's call in the pipeline's own layout, after two evaluations or three."""
    begins = name in pipelines.KINDS and "strength" in pipelines.KINDS[name].inputs
    steps = {"num_inference_steps": 4 if begins or name == "refiner" else 2}
    made = unets.sample if name in unets.KINDS else pipelines.sample
    return made(name, prompt, **{**steps, **settings})


@contextmanager
def scheduled(name: str, scheduler: str) -> Iterator[Any]:
    """The shared pipeline of a kind with a scheduler of this name; ``own`` for the one that it has."""
    pipeline = pipeline_of(name)
    own = pipeline.scheduler
    try:
        if scheduler != "own":
            pipeline.scheduler = _scheduler(name, scheduler, own)
        yield pipeline
    finally:
        pipeline.scheduler = own


def _scheduler(name: str, scheduler: str, own: Any) -> Any:
    if not is_flow(own):
        return named_scheduler(scheduler, written_config(own))
    family = pipelines.family(name)
    adapter = adapt(families.shared(family), family)
    assert isinstance(adapter, TransformerAdapter)
    mu = adapter.size_shift(4, adapter.latent_shape(*pipelines.size(family)))
    return named_flow_scheduler(scheduler, written_config(own), mu)


def schedulers_of(name: str) -> Sequence[str]:
    """Names of schedulers that suit a kind's network."""
    own = pipeline_of(name).scheduler
    if type(own).__name__ == "LCMScheduler":
        return ("own",)
    return FLOW_SCHEDULERS if is_flow(own) else SCHEDULERS


# ------------------------------------------------------------------------------------------------------------------- checks


def configs(scale: float | None = None) -> list[MethodConfig]:
    """All methods, at a strength if one is given."""
    more = {} if scale is None else {"scale": scale}
    return [MethodConfig(name, {**options, **more}) for name, options in METHODS.items()]


def steered(name: str, methods: Sequence[MethodConfig], observer: Observer | None = None, **settings: Any) -> Tensor:
    """Final latents of a kind's call inside :func:`attnguide.steer`, in the pipeline's own layout."""
    with attnguide.steer(pipeline_of(name), regions=PLACES, method=list(methods), maps=False, observer=observer):
        return sample(name, **settings)


def own_difference(name: str, methods: Sequence[MethodConfig], observer: Observer | None = None) -> float:
    """Largest difference of latents between a family's own pipeline under ``steer`` and attnguide's loop, same scheduler."""
    pipeline = pipeline_of(name)
    one = row(name, methods=tuple(methods), regions=REGIONS, cfg_scale=1.0 if name in HALVES_APART else 4.0)
    adapter = adapt(pipeline, name)
    with attnguide.steer(pipeline, regions=PLACES, method=list(methods), seed=one.seed, maps=False, observer=observer):
        found = families.peer(name, one, adapter)
    return largest(found, latents_of(adapter, [one])[0])


def alone(name: str, methods: Sequence[MethodConfig], plain: Tensor, losses: Losses) -> dict[str, str]:
    """For each method alone: the difference from attnguide's loop, ``runs`` if that cannot make it, or the refusal."""
    found: dict[str, str] = {}
    for method in methods:
        observer = losses if method.name == "layout_guidance" else None
        try:
            if is_family(name):
                found[method.name] = number(own_difference(name, [method], observer))
            else:
                same = torch.equal(steered(name, [method], observer), plain)
                found[method.name] = "changes nothing" if same else "runs"
        except ValueError as error:
            found[method.name] = f"refused: {error}"
    return found


def together(name: str, methods: Sequence[MethodConfig], plain: Tensor, losses: Losses) -> dict[str, str]:
    """As :func:`alone` with all methods at once; falls back to one by one if any is refused."""
    try:
        if is_family(name):
            return dict.fromkeys((method.name for method in methods), number(own_difference(name, methods, losses)))
        with attnguide.steer(pipeline_of(name), regions=PLACES, method=list(methods), maps=False, observer=losses) as run:
            sample(name)
    except ValueError:
        return alone(name, methods, plain, losses)
    idle = " ".join(run.notes)
    return {method.name: "changes nothing" if f"{method.name} did nothing" in idle else "runs" for method in methods}


def zero_difference(name: str, plain: Tensor) -> str:
    """Largest difference of all methods at strength 0 from the plain call; or the message of their refusal."""
    try:
        return number(largest(steered(name, configs(0.0)), plain))
    except ValueError as error:
        return f"refused: {error}"


def rows_difference(name: str, tried: Mapping[str, str]) -> float | None:
    """Relative difference of two rows with prompts of different lengths, guided and injected, in one call and one by one.

    ``None`` if the call's further inputs are for one row.

    Args:
        name: Name of the kind.
        tried: Method -> result; refused methods are left out.
    """
    both = ("forward_layout", "layout_guidance")
    methods = [one for one in configs() if one.name in both and not tried.get(one.name, "refused").startswith("refused")]
    prompts, seeds = [PROMPT, PROMPT if name == "qwen_image_21" else LONGER], (3, 4)  # which shifts places by the longest text
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    settings: dict[str, Any] = {"prompt": list(prompts), "generator": generators}  # some write into the list
    if name in pipelines.KINDS and "image" in pipelines.KINDS[name].inputs:
        settings["image"] = [pipelines.inputs(pipelines.family(name))["image"]] * 2  # so that each row draws from its generator
    if name in ("ip_adapter", "adapter", "adapter_xl"):
        return None
    together = steered(name, methods, **settings)
    alone = [
        steered(name, methods, prompt=[prompt], generator=[torch.Generator().manual_seed(seed)])
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return largest(together, torch.cat(alone)) / float(together.abs().max())


def check_under(
    name: str, scheduler: str = "own", methods: Sequence[str] = tuple(METHODS), *, first: bool = True
) -> Findings | None:
    """All checks of a kind under a scheduler; ``None`` if the pipeline itself does not take that scheduler.

    Args:
        name: Name of the kind.
        scheduler: Name of the scheduler; ``own`` for the pipeline's.
        methods: Names of the methods to try.
        first: Whether to try methods one by one and to compare rows.
    """
    with scheduled(name, scheduler) as pipeline:
        try:
            plain = sample(name)
        except (ValueError, TypeError, AttributeError, AssertionError):
            return None
        before, losses = parts(pipeline), Losses()
        found = Findings(scheduler, zero=zero_difference(name, plain))
        chosen = [config for config in configs() if config.name in methods]
        found.methods = (alone if first else together)(name, chosen, plain, losses)
        found.loss = (losses.seen[0], losses.seen[1]) if losses.seen else None
        if first and losses.seen:
            found.rows = rows_difference(name, found.methods)
        found.restored = parts(pipeline) == before and torch.equal(sample(name), plain)
        return found


def check(name: str, schedulers: Sequence[str]) -> tuple[list[Findings], float]:
    """All checks of a kind, and the seconds they took.

    Args:
        name: Name of the kind.
        schedulers: Names of schedulers to check, as far as they suit the kind.
    """
    began = time.monotonic()
    wanted = [scheduler for scheduler in schedulers_of(name) if scheduler in (*schedulers, "own")]
    found = [check_under(name, scheduler, first=place == 0) for place, scheduler in enumerate(wanted)]
    return [one for one in found if one is not None], time.monotonic() - began


# ----------------------------------------------------------------------------------------------------------- the page


def pipeline_class(name: str) -> str:
    """Name of a kind's class in diffusers."""
    return type(pipeline_of(name)).__name__


def table(found: Mapping[str, Sequence[Findings]]) -> str:
    """The table and the notes it refers to, as Markdown."""
    notes: dict[str, int] = {}
    lines = [
        f"| pipeline | scheduler | {' | '.join(METHODS)} | no strength | loss falls | rows | restored |",
        "|---" * (6 + len(METHODS)) + "|",
    ]
    for name, ones in found.items():
        for one in ones:
            cells = [_cell(one.methods.get(method, ""), notes) for method in METHODS]
            rows = "" if one.rows is None else number(one.rows)
            last = [_cell(one.zero, notes), _fall(one.loss), rows, "yes" if one.restored else "no"]
            lines.append(f"| {pipeline_class(name)} ({name}) | {one.scheduler} | {' | '.join([*cells, *last])} |")
    return "\n".join([*lines, "", *noted(notes)]).rstrip()


def _fall(loss: tuple[float, float] | None) -> str:
    """Relative decrease of a loss, as text."""
    return "" if loss is None else f"{1 - loss[1] / loss[0]:.1e}"


def _cell(text: str, notes: dict[str, int]) -> str:
    return text if text[:1].isdigit() else mark(text, notes)


PAGE = """# Which pipelines can be steered

Inside `with attnguide.steer(pipeline, ...)` ([recipes](pipelines.md)) a pipeline of diffusers makes its pictures itself, and
methods act in its passes. `scripts/check_pipelines.py` writes this page from tiny pipelines with random weights; the same
checks in a short form are among the tests. Random weights show that a method runs and acts, not what its pictures are like.

Known are, by class:

{known}

Whatever else is handed over is refused by name. Among what is refused: pipelines of videos and those that make a picture in
stages; `QwenImageEdit`, `QwenImageLayered` and `ZImageOmni`, whose text encoders read pictures too, among which words have
other places; `Flux2KleinKV`, whose network keeps keys and values of pictures; skip-layer guidance of Stable Diffusion 3,
which leaves out blocks that are read; `FluxPriorRedux`, which makes text states: call it before the block, and `FluxPipeline`
with what it gives inside, with the prompt named in `steer`.

* A *number* under a method is the largest difference between the latents made inside the pipeline and those of our own loop,
  where that can make the picture (one pass a step where the pipeline asks for the halves of guidance one by one; latents are
  of the order of 3, PixArt's of 600). `+` stands where it cannot: the method runs and changes the latents. Other numbers, in
  brackets, point to what is said instead. Under a pipeline's first scheduler each method is tried alone, under the others all
  at once.
* *no strength*: largest difference that all methods at once, at a scale of 0, make to the plain call.
* *loss falls*: share by which the loss of layout guidance falls at its first update.
* *rows*: two prompts in one call against one by one, under guidance and injection, as a share of the latents, in float32.
* *restored*: nothing of what was replaced is left, and the next plain picture is the same.

A scheduler that is missing is one that the pipeline itself does not take.

{table}
"""


def page(found: Mapping[str, Sequence[Findings]]) -> str:
    """The whole page."""
    known = textwrap.fill(", ".join(f"`{name}`" for name in PIPELINES), 127, break_long_words=False)
    return PAGE.format(table=table(found), known=f"{known}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Check kinds of pipelines, print the table, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(supported())}; all when none is named")
    parser.add_argument("--schedulers", default=",".join(SCHEDULERS), help="names separated by commas; all when not given")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a kind at a time")
    parser.add_argument("--write", type=Path, help="file for the whole page")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.kinds if name not in supported()]
    if unknown:
        parser.error(f"unknown kind {unknown[0]!r}; choose from {', '.join(supported())}")
    warnings.simplefilter("ignore")
    names, schedulers = given.kinds or supported(), given.schedulers.split(",")
    found: dict[str, Sequence[Findings]] = {}
    for name, (ones, seconds) in zip(names, checked(check, names, schedulers, given.workers), strict=True):
        found[name] = ones
        print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
        if given.write is not None:  # after each kind, so that a run that is stopped leaves what it found
            given.write.write_text(page(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
