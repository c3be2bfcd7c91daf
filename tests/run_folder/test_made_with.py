"""What a run was made with, and what becomes of it under another version."""

from pathlib import Path

import pytest

from attnguide.run_folder.made_with import (
    full_options,
    kept_options,
    made_with,
    other_versions,
    read_made_with,
    with_kept_options,
)
from attnguide.types import MethodConfig, Sample

ROW = Sample("a", "a cat", methods=(MethodConfig("mask_guidance", {"stop": 0.75}), MethodConfig("inject1")))


def test_every_option_has_its_value() -> None:
    found = made_with([ROW, Sample("b", "a cat", methods=(MethodConfig("inject7"),))], batch_size=4)
    assert list(found) == ["versions", "batch_size", "method_options"] and found["batch_size"] == 4
    options = found["method_options"]
    assert set(options) == {"mask_guidance", "inject1", "inject7"}
    assert options["mask_guidance"]["stop"] == 0.5, "of rows that say nothing"
    assert (options["inject1"]["stage"], options["inject1"]["levels"], options["inject7"]["levels"]) == ("probs", [0], [0, 1])


def test_a_row_has_all_options_of_its_methods() -> None:
    full = full_options(ROW)
    assert full["mask_guidance"]["stop"] == 0.75 and full["inject1"]["scale"] == 3.0
    assert full_options(ROW, {}, {"inject1": {"scale": 9.0, "gone": 1}})["inject1"]["scale"] == 9.0
    assert "gone" not in full_options(ROW, {}, {"inject1": {"gone": 1}})["inject1"]


def test_a_default_that_has_changed_is_kept_where_the_row_says_nothing() -> None:
    before = made_with([ROW])["method_options"]
    assert with_kept_options([ROW], before) == [ROW]
    before["mask_guidance"] |= {"stop": 0.6, "step_size": 7.0, "gone": 1}
    before["forgotten_method"] = {"scale": 1.0}
    (row,) = with_kept_options([ROW], before)
    assert [dict(method.options) for method in row.methods] == [{"step_size": 7.0, "stop": 0.75}, {}]
    assert made_with([ROW], before)["method_options"]["mask_guidance"]["step_size"] == 7.0


def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = made_with([])
    assert other_versions(before) is None and other_versions({}) is None and other_versions({"versions": "?"}) is None
    monkeypatch.setattr(
        "attnguide.run_folder.made_with.metadata.version", lambda name: "9" if name == "torch" else before["versions"][name]
    )
    told = f"made with torch {before['versions']['torch']} (now 9): pictures may differ from those"
    assert other_versions(before) == told


DAMAGED = ["", "- 1", "a: [", "made_with: 3", "made_with: {method_options: [1]}", "made_with: {method_options: {a: 1}}"]


@pytest.mark.parametrize("text", DAMAGED)
def test_what_is_damaged_says_nothing(tmp_path: Path, text: str) -> None:
    assert read_made_with(tmp_path) == {}
    (tmp_path / "config.yaml").write_text(text)
    assert kept_options(read_made_with(tmp_path)) == {}
