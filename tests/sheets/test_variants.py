"""Labels that tell the rows of a run apart."""

import json

from attnguide.sheets.variants import variant_labels

Record = dict[str, str]


def _record(method: str, options: object = None, **others: str) -> Record:
    return {"method": method, "options": json.dumps({method: options}) if options else "", "steps": "30", **others}


def _axes(**values: object) -> Record:
    return {f"axis.{name}": str(value) for name, value in values.items()}


def test_one_method_is_told_by_the_options_that_differ() -> None:
    rows = [_record("mask_guidance", {"step_size": size, "stop": 0.5}) for size in (40.0, 120.0)]
    assert variant_labels([_record("plain"), *rows]) == ["plain", "step_size = 40", "step_size = 120"]


def test_several_methods_keep_their_names() -> None:
    rows = [_record("inject5", {"scale": 1}), _record("stable"), _record("inject5", {"scale": 2})]
    assert variant_labels(rows) == ["inject5, scale = 1", "stable", "inject5, scale = 2"]


def test_an_option_that_one_row_leaves_to_its_default_tells_the_other_apart() -> None:
    assert variant_labels([_record("stable"), _record("stable", {"guide": True})]) == ["stable", "guide = true"]


def test_settings_tell_rows_apart_too() -> None:
    rows = [_record("plain", steps="10"), _record("plain", steps="20", scheduler="euler")]
    assert variant_labels(rows) == ["plain, steps = 10", "plain, steps = 20, scheduler = euler"]


def test_options_of_methods_that_work_together_name_their_method() -> None:
    rows = [{"method": "a+b", "options": json.dumps({"a": {"scale": scale}, "b": {"scale": 1}})} for scale in (1, 2)]
    assert variant_labels(rows) == ["a.scale = 1", "a.scale = 2"]


def test_an_ablation_is_told_by_its_axes() -> None:
    cells = [
        _record("inject5", {"scale": scale}, cell=f"{form}_{scale}", **_axes(form=form, scale=scale, steps=1))
        for form in ("probs", "scores")
        for scale in (1, 2)
    ]
    assert variant_labels([_record("plain"), *cells])[:3] == ["plain", "form = probs, scale = 1", "form = probs, scale = 2"]
    twin = {"method": "plain", "cell": "plain, 2", "steps": "9", **_axes(form="", scale=2)}
    assert variant_labels([twin, *cells])[0] == "plain, scale = 2", "what it has of the axes, not its settings"
    assert variant_labels([{"method": "inject5", "cell": cell} for cell in "xy"]) == ["x", "y"], "cells without axes"


def test_damaged_options_are_shown_as_they_stand() -> None:
    rows = [{"method": "inject5", "options": text} for text in ("{", "[1]")]
    assert variant_labels(rows) == ["options = {", "options = [1]"]
