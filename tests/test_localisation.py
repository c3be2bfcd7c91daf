from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnguide.attention.sites import Site
from attnguide.benchmark import Localisation
from attnguide.models.load import adapt
from attnguide.prompt.targets import Targets
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import Scene, SceneObject
from attnguide.types import PassContext, Region, Sample, Step
from tests import tiny


@pytest.mark.parametrize(
    ("per_block", "names"), [(False, ["4x4", "2x2"]), (True, ["first", "second", "small"])], ids=["sizes", "blocks"]
)
def test_shares_of_attention_by_hand(per_block: bool, names: list[str]) -> None:
    """A square over the left half's upper quarter: words that look at its cells have all their attention inside."""
    square = SceneObject("square", "red", 0.25, 0.25, 0.2)
    row = Sample("a", "a red square", regions=(Region("red square"),))
    model = adapt(tiny.pipeline())
    targets = Targets.build([row], [model.tokenize(row.prompt)], torch.device("cpu"))
    watch = Localisation(per_block)
    info: Any = SimpleNamespace(targets=targets)
    watch.probes(info)
    context = PassContext(Step(0, 1, 500.0, 0.7, 0.7), "denoise", (0, 0), ("uncond", "cond"))
    for name, side, depth in (("second", 4, 1.0), ("first", 4, 0.0), ("small", 2, 0.5)):
        probs = torch.zeros(2, 1, side * side, targets.tokens.shape[-1])
        probs[1, :, 0] = 1.0  # the first cell, which the square covers in part
        probs[1, :, -1] = 3.0 if name == "second" else 0.0
        watch._record(Site(name, "cross", side, side, 1, depth=depth), probs, context)
    watch.on_sample_end([SimpleNamespace(image=render(Scene((square,))), sample=row)])  # type: ignore[list-item]
    assert list(watch.table) == names
    shares = {name: watch.table[name][0] for name in names}
    area = shares[names[0]][1]
    assert area == pytest.approx((2 * 0.2 * 0.76) ** 2, rel=0.1) and all(
        share[1] == pytest.approx(area) for share in shares.values()
    )
    small = shares[names[-1]][0]
    assert small == pytest.approx(4 * area, rel=0.01)  # it holds the whole square
    if per_block:
        assert shares["second"][0] == pytest.approx(shares["first"][0] / 4)


def test_a_badly_drawn_object_counts_by_its_color_where_any_shape_does() -> None:
    """The same square under the word for another shape: nothing was drawn as asked, but where it was drawn is known."""
    picture = render(Scene((SceneObject("square", "red", 0.25, 0.25, 0.2),)))
    row = Sample("a", "a red star", regions=(Region("red star"),))
    model = adapt(tiny.pipeline())
    targets = Targets.build([row], [model.tokenize(row.prompt)], torch.device("cpu"))
    context = PassContext(Step(0, 1, 500.0, 0.7, 0.7), "denoise", (0, 0), ("uncond", "cond"))
    tables = []
    for any_shape in (False, True):
        watch = Localisation(any_shape=any_shape)
        watch.probes(SimpleNamespace(targets=targets))  # type: ignore[arg-type]
        even = torch.ones(2, 1, 16, targets.tokens.shape[-1])
        watch._record(Site("only", "cross", 4, 4, 1, depth=0.0), even, context)
        watch.on_sample_end([SimpleNamespace(image=picture, sample=row)])  # type: ignore[list-item]
        tables.append(watch.table)
    ((inside, area),) = tables[1]["4x4"]
    assert tables[0] == {} and inside == pytest.approx(area)  # even attention: as much inside as the object covers
