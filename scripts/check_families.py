"""Checks every method on every family of models, with random weights, and writes the tables of ``docs/families.md``.

    python scripts/check_families.py                                    # every family that the installed diffusers knows
    python scripts/check_families.py flux_dev sd35 --methods stable,box_diff
    python scripts/check_families.py --workers 2 --write docs/families.md   # all of it, about ten minutes on one core

The pipelines are those of the tests (``tests/models/families.py``): real classes of diffusers and transformers, a few blocks
of a few channels. They show that a method runs and acts on a family, and what is refused; not that its pictures are better.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

# Read by the libraries when they are imported: no network, no advice about parts that are not used here.
os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tests' pipelines

import torch
from torch import Tensor

from attnguide.attention.attach import attach
from attnguide.attention.capture import Probe, Recorder
from attnguide.engine.cfg import pass_context
from attnguide.engine.observer import BatchInfo, Observer
from attnguide.methods import METHODS
from attnguide.models.base import ModelAdapter
from attnguide.models.load import adapt
from attnguide.models.names import FAMILIES
from attnguide.sampling.check import mark_rows
from attnguide.sampling.sampler import Sampler
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Region, Sample, SampleResult
from tests.models import families
from tests.models.parts import BUILDERS

T = TypeVar("T")

PROMPT = "a red cat and a blue ball"
LONGER = "a blue ball left of a dog and a red cat"
REGIONS = (Region("red cat", box=(0.0, 0.0, 0.5, 1.0)), Region("blue ball", box=(0.5, 0.25, 1.0, 1.0)))
STEPS = 2

_SOURCE = {"source_prompt": "a blue cat and a red ball"}
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("prompt_to_prompt", "cross_attention_control", "masactrl", "plug_and_play"), _SOURCE),
    **{name: {"thresholds": {}} for name in ("attend_and_excite", "box_diff", "divide_and_bind", "count_guidance")},
    **{name: {"iterations": 1} for name in ("r_and_b", "layout_guidance", "bounded_attention")},
    **{f"inject{number}": {"start": 0.0} for number in range(1, 9)},
    "map_injection": {"start": 0.0},
    "conform": {"refinements": 0},
    "initno": {"rounds": 1, "iterations": 1, "last_iterations": 1},
    "saga": {"iterations": 2},
    "best_of_k": {"judge": f"{Path(__file__).stem}:redness"},
}
"""Options that a method needs to run at all, or to act within few steps."""


@dataclass
class Findings:
    """Results of the checks of one family.

    Attributes:
        plain: Largest difference from the pipeline's own latents, with one pass a step.
        guided: Largest difference from the pipeline's own latents at a guidance weight of 4.
        capture: Largest difference of the latents between reading every map and none.
        reached: Number of rows to which a gradient leads from every cross-attention site, of all rows, and of sites.
        batch: Largest difference between rows of a batch and the rows alone, as a share of their size, in float64.
        methods: Method -> ``runs``, or the reason why it does not.
        seconds: Duration of the checks.
    """

    plain: float = 0.0
    guided: float = 0.0
    capture: float = 0.0
    reached: str = ""
    batch: float = 0.0
    methods: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def redness(result: SampleResult) -> dict[str, float]:
    """A judge for :class:`~attnguide.sampling.best_of_k.BestOfK`, in [0, 255]."""
    assert result.image is not None
    return {"red": fmean(result.image.getdata(0))}


def supported() -> list[str]:
    """Families with a tiny pipeline, an adapter, and a class in the installed diffusers."""
    return [name for name in families.available() if BUILDERS[name][0] in FAMILIES]


def row(family: str, id: str = "0", **settings: Any) -> Sample:
    """A plain row of a picture that is not square, 8 x 12 cells."""
    height, width = (128, 192) if family == "qwen_image_21" else (32, 48)
    common = {"prompt": PROMPT, "steps": STEPS, "seed": 3, "cfg_scale": 1.0, "height": height, "width": width}
    return Sample(id, **{**common, **settings})


def latents_of(adapter: ModelAdapter, rows: Sequence[Sample]) -> Tensor:
    """Latents of rows that come out well, ``batch channels height width``.

    Raises:
        ValueError: With the status of a row that does not.
    """
    found = []
    for result in sample_batch(adapter, rows):
        if result.latents is None:
            raise ValueError(result.status)
        found.append(result.latents)
    return torch.stack(found)


def largest(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of two tensors."""
    return float((found - expected).abs().max())


def plain_difference(family: str, adapter: ModelAdapter, cfg_scale: float = 1.0) -> float:
    """Largest difference of plain latents from those of diffusers' own pipeline."""
    plain = row(family, cfg_scale=cfg_scale)
    return largest(latents_of(adapter, [plain])[0], families.peer(family, plain, adapter))


class _ReadsAll(Observer):
    def probes(self, info: BatchInfo) -> list[Probe]:
        return [Probe("probs", Recorder())]


def capture_difference(family: str, adapter: ModelAdapter) -> float:
    """Largest difference of latents between reading every map of every step and none."""
    (result,) = Sampler(adapter, observer=_ReadsAll()).run([row(family)])
    assert result.latents is not None, result.status
    return largest(result.latents, latents_of(adapter, [row(family)])[0])


def gradients_reached(family: str, adapter: ModelAdapter) -> str:
    """``rows of rows, sites``: to how many of two rows a gradient leads from every site of cross-attention."""
    first = row(family)
    assert first.height is not None and first.width is not None
    modules = adapter.attention_modules(first.height, first.width)
    sites = [site for site in modules if site.kind == "cross"]
    step, states = adapter.make_scheduler(None, STEPS).steps[1], adapter.encode_prompt([PROMPT, LONGER], None)
    shape = (2, *adapter.latent_shape(first.height, first.width))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    recorder, context = Recorder(), pass_context(step, "guide", [0, 1], ("cond",))
    reading = Probe("probs", recorder, kinds=frozenset({"guide"}))
    with adapter.frozen(), attach(modules, [reading], [], adapter.network, [1, 2]) as attention, torch.enable_grad():
        with attention.during(context, sites):
            adapter.predict(noise, step, states.for_pass(context), until=sites)
        parts = [recorder.tensors[site].square().sum() for site in sites]
        gradients = [torch.autograd.grad(part, noise, retain_graph=True)[0].flatten(1).abs().amax(1) for part in parts]
    reached = int((torch.stack(gradients) > 0).all(0).sum())
    return f"{reached} of 2, from {len(sites)}"


def batch_difference(family: str) -> float:
    """Relative difference of two rows with prompts of different lengths, guided and injected, in one batch and one by one."""
    adapter = adapt(families.build(family).to(torch.float64), family)
    methods = (MethodConfig("layout_guidance", {"iterations": 1}), MethodConfig("inject3", {"start": 0.0}))
    texts = enumerate((PROMPT, LONGER))
    rows = [row(family, str(i), prompt=text, seed=i, regions=REGIONS, methods=methods, cfg_scale=4.0) for i, text in texts]
    together = latents_of(adapter, rows)
    alone = torch.cat([latents_of(adapter, [one]) for one in rows])
    return largest(together, alone) / float(alone.abs().max())


def verdict(family: str, adapter: ModelAdapter, method: str, plain: Tensor) -> str:
    """``runs`` if a method changes the latents; else the row's refusal or its status."""
    config = MethodConfig(method, OPTIONS.get(method, {}))
    one = row(family, regions=REGIONS, methods=(config,), cfg_scale=4.0)
    (marked,) = mark_rows(adapter, [one])
    if marked.problem is not None:
        return f"refused: {marked.problem.replace(adapter.name, 'it')}"
    try:
        (result,) = sample_batch(adapter, [one])
    except ValueError as error:
        return f"refused: {error}"
    if result.latents is None or result.status != "ok":
        return result.status
    chooses = method == "best_of_k"  # best of k may keep the picture of the row's own seed
    return "runs" if chooses or not torch.equal(result.latents, plain) else "changes nothing"


def check(family: str, methods: Sequence[str]) -> Findings:
    """All checks of one family."""
    began, adapter = time.monotonic(), adapt(families.shared(family), family)
    found = Findings(plain_difference(family, adapter), plain_difference(family, adapter, 4.0))
    found.capture, found.reached = capture_difference(family, adapter), gradients_reached(family, adapter)
    found.batch = batch_difference(family)
    plain = latents_of(adapter, [row(family, cfg_scale=4.0)])[0]
    found.methods = {method: verdict(family, adapter, method, plain) for method in methods}
    return replace(found, seconds=time.monotonic() - began)


# ----------------------------------------------------------------------------------------------------------- the page


def tables(found: dict[str, Findings]) -> str:
    """Both tables and the notes they refer to, as Markdown."""
    lines = [
        "| family | pipeline | plain | with guidance | capture | gradient reaches | batch |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, one in found.items():
        numbers = [number(one.plain), number(one.guided), number(one.capture), one.reached, number(one.batch)]
        lines.append(f"| {family} | {BUILDERS[family][0]} | {' | '.join(numbers)} |")
    notes: dict[str, int] = {}
    methods = list(dict.fromkeys(method for one in found.values() for method in one.methods))
    lines += ["", f"| method | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    for method in methods:
        marks = [mark(one.methods.get(method, ""), notes) for one in found.values()]
        lines.append(f"| {method} | {' | '.join(marks)} |")
    return "\n".join([*lines, "", *noted(notes)]).rstrip()


def noted(notes: dict[str, int]) -> list[str]:
    """Markdown lines of the numbered notes of a table."""
    return [f"{place}. {note}" for note, place in notes.items()]


def number(value: float) -> str:
    """A difference, formatted for the tables."""
    return "0" if value == 0 else f"{value:.1e}"


def mark(text: str, notes: dict[str, int]) -> str:
    """``+`` for a method that runs, else the number of the note with the reason; notes are numbered in order of occurrence."""
    if text in ("", "runs"):
        return {"": "-", "runs": "+"}[text]
    return f"[{notes.setdefault(text, len(notes) + 1)}]"


PAGE = """# Which families, and what works on them

This page lists the families of models and says which method runs on which. `scripts/check_families.py` writes it from tiny
pipelines with random weights, one of every family; the same checks in a short form are among the tests. Random weights show
that a method runs and acts, not what its pictures are like.

* *plain*: largest difference between our latents and those of diffusers' own pipeline, same seed, a picture that is not square,
  one pass a step; latents are of the order of 3 (PixArt: 600).
* *with guidance*: the same at a guidance weight of 4. Where it is not 0, diffusers asks for the two halves of classifier-free
  guidance one after the other, and we in one pass, which rounds differently.
* *capture*: the same, between a run in which every map of every step is read and one without.
* *gradient reaches*: rows of a batch of two that get a gradient from every site of cross-attention, and the number of sites.
* *batch*: rows with prompts of differing lengths, under guidance and injection, in one batch against one by one, as a share of
  the latents, in float64.
* `+` a method runs and changes the latents; a number points to the note with its message. Two notes are due to the size of
  these tiny networks: four blocks have no middle (`pag`), and the tiny XL has one block of the decoder (`plug_and_play`).

If a method is refused, its note says what would work. Three limits are due to the networks:

* Lumina 2 and Qwen-Image 2.1 read texts of different lengths in forwards of their own, the halves of classifier-free guidance
  among them. Methods that compare a row with a source (`prompt_to_prompt`, `masactrl`, `cross_attention_control`) run where the
  source prompt has as many tokens as the prompt, and are refused where it has not; `bounded_attention` takes rows with prompts
  of another length one by one. MasaCtrl's masks by `words` follow both halves at once, and are refused there under guidance.
* `plug_and_play` takes over features of a UNet's decoder. On a transformer its other half works: `feature_stop=0` and
  `attention_names=null` leave queries and keys of self-attention.
* `regional_prompts` puts further texts behind the prompt, each padded to one length. Z-Image, Lumina 2 and Qwen-Image 2.1 drop
  a text's padding before they number its positions, so that a region's words would stand elsewhere.

{tables}
"""


def checked(check: Callable[[str, Sequence[str]], T], names: Sequence[str], told: Sequence[str], workers: int) -> Iterator[T]:
    """Results of ``check`` for each name, in order, by one process or several."""
    if workers < 2:
        yield from (check(name, told) for name in names)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), warnings.simplefilter, ("ignore",)) as pool:
        yield from pool.map(check, names, [told] * len(names))


def main(arguments: Sequence[str] | None = None) -> None:
    """Check families, print the tables, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(supported())}; all when none is named")
    parser.add_argument("--methods", default=",".join(METHODS), help="names separated by commas; all when not given")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with a family at a time")
    parser.add_argument("--write", type=Path, help="file for the whole page")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.families if name not in supported()]
    if unknown:
        parser.error(f"unknown family {unknown[0]!r}; choose from {', '.join(supported())}")
    warnings.simplefilter("ignore")
    names, methods = given.families or supported(), [name for name in given.methods.split(",") if name]
    found: dict[str, Findings] = {}
    for family, one in zip(names, checked(check, names, methods, given.workers), strict=True):
        found[family] = one
        print(f"{family}: {one.seconds:.0f} s", file=sys.stderr, flush=True)
    print(tables(found))
    if given.write is not None:
        given.write.write_text(PAGE.format(tables=tables(found)))


if __name__ == "__main__":
    main()
