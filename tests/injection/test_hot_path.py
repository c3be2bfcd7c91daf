"""What edits do at every site and step: nothing is drawn twice, and only what they change is spelt out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnguide.attention.edits import Edit
from attnguide.attention.sites import SiteSelector
from attnguide.injection import forward_layout, transport
from attnguide.injection.by_row import ForRows
from attnguide.injection.hand_maps import _MapEdit
from attnguide.injection.transport import Transport
from attnguide.methods import build_method
from attnguide.prompt.targets import Targets
from attnguide.sampling.table import sample_batch
from attnguide.schedules import Window, constant
from attnguide.types import MethodConfig, Region
from tests import tiny
from tests.injection import common

ROWS = [
    tiny.row("0"),
    tiny.row("1", "a dog", regions=(Region("dog", box=(0.2, 0.1, 0.9, 0.6)),)),
    tiny.row("2", "a cat and a ball", regions=(Region("cat", box=(0.0, 0.5, 1.0, 1.0)),)),
]
SCALES = [0.8, 0.0, 0.3]


def _edits(rows: list[Any]) -> dict[str, Edit]:
    targets = common.targets_of(rows)
    scales = SCALES[: len(rows)]

    def built(name: str, **options: Any) -> Edit:
        method: Any = build_method(name, {"scale": scales, **options})
        return method.edits(targets)[0]  # type: ignore[no-any-return]

    moved = Transport(SiteSelector("cross"), scales, Window(), constant(1.0), targets)
    injections = {f"inject{number}": built(f"inject{number}", start=0.0, stop=1.0) for number in (1, 2, 3, 4)}
    between = built("map_injection", operation="interpolate", reference="max", branch="both", start=0.0, stop=1.0)
    alone: Any = build_method("forward_layout", {"scale": [0.5, 0.8]})
    part = ForRows(alone, (2, 0)).edits(targets)[0]
    return {"forward_layout": built("forward_layout"), "transport": moved, **injections, "both": between, "part": part}


@pytest.mark.parametrize("name", list(_edits(ROWS)))
def test_what_is_touched_is_what_changes_and_depends_on_itself_alone(name: str) -> None:
    edit = _edits(ROWS)[name]
    context = common.context_of(3)
    values = common.random_scores(context, common.CROSS)
    act: Callable[..., Any] = edit.scores
    if "probs" in edit.stages:
        values, act = values.softmax(-1), edit.probs
    touched = edit.touches(context)
    assert touched is not None and sorted(touched) == ([0, 2, 3, 5] if name == "both" else [3, 5])
    whole = act(values, common.CROSS, context)
    changed = [position for position in range(6) if not torch.equal(whole[position], values[position])]
    assert changed == sorted(touched)
    at = sorted(touched)
    rows, branches = [context.rows[n] for n in at], [context.branches[n] for n in at]
    within = replace(context, rows=tuple(rows), branches=tuple(branches))
    assert torch.equal(act(values[at], common.CROSS, within), whole[at])


@pytest.mark.parametrize(
    ("method", "owner", "drawing"),
    [
        (MethodConfig("forward_layout", {"stop": 1.0}), forward_layout._Move, "_windows"),
        (MethodConfig("inject5", {"start": 0.0}), _MapEdit, "_drawn"),
        (MethodConfig("stable", {"inject_until": 0.0, "attempts": 1}), transport, "even_goals"),
    ],
)
def test_drawn_once_for_each_size(method: MethodConfig, owner: Any, drawing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    original = getattr(owner, drawing)

    def watched(*args: Any) -> Any:
        sizes.append(args[1:] if owner is transport else (args[1].height, args[1].width))
        return original(*args)

    monkeypatch.setattr(owner, drawing, watched)
    sample_batch(tiny.model(), [tiny.row(str(seed), seed=seed, methods=(method,)) for seed in range(2)])
    assert sorted(sizes) == [(8, 8), (16, 16)]


def test_targets_of_the_same_rows_are_one_object() -> None:
    targets: Targets = common.targets_of(ROWS)
    assert targets.select(range(3)) is targets
    assert targets.select([0, 2]) is targets.select((0, 2)) and targets.select([2, 0]) is not targets.select([0, 2])
