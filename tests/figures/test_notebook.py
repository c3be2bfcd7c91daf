"""The notebook of the documentation, run as a reader runs it, and what objects show in one."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import attnguide
from attnguide.figures.results import Results
from attnguide.method_docs import OWN_RANGES, method_meaning, option_meanings, option_range
from attnguide.methods import METHODS, method_class, method_options
from attnguide.text.html import figure, table
from attnguide.types import Cost, Region, Sample, SampleResult
from tests import tiny

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def _kinds(notebook: nbformat.NotebookNode) -> list[set[str]]:
    """Which kinds of output each code cell that shows something has, streams excepted."""
    cells = [cell.get("outputs", []) for cell in notebook.cells if cell.cell_type == "code"]
    return [{kind for output in outputs for kind in output.get("data", {})} for outputs in cells]


def test_the_notebook_runs_and_shows_pictures_without_the_libraries_advice(tmp_path: Path) -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    for cell in fresh.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
            cell.source = cell.source.replace("steps=10", "steps=2")
    NotebookClient(fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    streams = "".join(o.text for cell in fresh.cells for o in cell.get("outputs", []) if o.output_type == "stream")
    assert streams and all(
        line.startswith("rows 1 to 1 of 1") for line in streams.replace("\r", "\n").splitlines() if line.strip()
    )
    assert _kinds(fresh) == _kinds(kept), "the outputs that are kept are those of this code"
    assert sum("image/png" in kinds for kinds in _kinds(fresh)) == 3
    pages = [o.data["text/html"] for c in fresh.cells for o in c.get("outputs", []) if "text/html" in o.get("data", {})]
    assert (
        pages[0].count("<img") == 4
        and pages[1].count("<img") == 3
        and "step_size" in pages[2]
        and "Updates a step." in pages[2]
    )


def _result(**settings: object) -> SampleResult:
    row = Sample("a", "a <b> cat", seed=3, regions=(Region("cat", box=(0.25, 0, 0.75, 0.5)),))
    return SampleResult(
        **{"sample": row, "image": Image.new("RGB", (64, 32), "red"), "latents": None, "cost": Cost(2, 1, 0.5, 0), **settings}
    )


def test_a_result_is_its_picture_with_boxes() -> None:
    result = _result()
    assert result._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    page = result._repr_html_()
    assert "left:25.00%;top:0.00%;width:50.00%;height:50.00%" in page and ">cat</span>" in page
    assert "plain, seed 3, 2 forwards, 1 backwards" in page and 'width="192" height="96"' in page
    failed = _result(image=None, status="loss is <nan>")
    assert failed._repr_png_() is None and "&lt;nan&gt;" in failed._repr_html_() and "<img" not in failed._repr_html_()


def test_a_list_of_results_stays_one_when_it_is_cut_or_joined() -> None:
    results = Results([_result(), _result(), _result()])
    assert isinstance(results[:2], Results) and isinstance(results + results, Results) and results[0].status == "ok"
    assert results[1:]._repr_html_().count("<img") == 2
    assert "and 2 more" in Results([_result()] * 66)._repr_html_()


def test_text_cannot_leave_its_place() -> None:
    assert "<script>" not in figure(None, "<script>") and "<script>" not in table(["<script>"], [["<script>"]])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_option_of_every_method_says_what_it_means(name: str) -> None:
    meanings = option_meanings(name)
    assert set(method_options(name)) - set(meanings) == set() and all(meanings.values())
    assert method_meaning(name) and "Args:" not in method_meaning(name)
    assert escape(METHODS[name].summary) in METHODS[name]._repr_html_()


_PROBES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "from 0 to 1": ((0.5, 1), (-0.1, 1.5)),
    "above 0, at most 1": ((0.5, 1), (0, -1, 1.5)),
    "above 0": ((0.5, 2), (0, -1)),
    "0 or more": ((0, 1, 2), (-1,)),
    "1 or more": ((1, 2), (0,)),
    "0 or more, below 1": ((0,), (-0.1, 1, 1.5)),
    "above 0, below 1": ((0.5,), (0, 1)),
}
"""Numbers that are taken and numbers that are refused."""


def _takes(method: str, option: str, value: float) -> bool:
    try:
        method_class(method)(**{option: value})
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_ranges_that_are_told_are_those_that_a_method_takes(name: str) -> None:
    for option, default in method_options(name).items():
        taken, refused = _PROBES.get(told := option_range(name, option), ((0,), (-0.1,)))
        if told and isinstance(default, int | float):
            assert [value for value in taken if not _takes(name, option, value)] == [], option
            assert [value for value in refused if _takes(name, option, value)] == [], option


def test_ranges_are_told_of_options_that_exist_and_of_all_that_refuse_what_is_below_0() -> None:
    for name, told in OWN_RANGES.items():
        assert set(told) <= set(method_options(name)), name
    for name in METHODS:
        numbers = {option: default for option, default in method_options(name).items() if type(default) in (int, float)}
        untold = [option for option in numbers if not option_range(name, option)]
        assert [option for option in untold if not _takes(name, option, -1)] == [], name


def test_a_watch_keeps_maps_and_losses_of_each_row() -> None:
    watch = attnguide.Watch()
    places = {"red cat": (0, 0, 0.5, 1), "blue ball": (0.5, 0, 1, 1)}
    results = attnguide.sample(
        tiny.PROMPT, regions=places, method="mask_guidance", seed=[0, 1], steps=3, model=tiny.model(), observer=watch
    )
    assert [row.result.sample.seed for row in watch.rows] == [0, 1] and watch[1].result.image is results[1].image
    assert {phrase: maps.shape[0] for phrase, maps in watch[0].maps.items()} == {"red cat": 3, "blue ball": 3}
    steps = [step for step, _ in watch[0].losses["mask_guidance"]]
    assert steps == sorted(steps) and all(loss > 0 for _, loss in watch[0].losses["mask_guidance"])
    assert watch._repr_html_().count("<img") == 6
    for kind, axes in (("maps", 4 * 4 + 1), ("loss", 1), ("sheet", 2)):
        drawn = attnguide.plot(watch, kind)
        assert len(drawn.axes) == axes and drawn._repr_png_()[:4] == b"\x89PNG"
    assert len(attnguide.plot(watch[0].result).axes) == 1


def test_places_of_every_kind_are_outlined() -> None:
    places = (
        Region("red cat", box=(0.25, 0.25, 0.75, 0.75)),
        Region("red cat", polygon=((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))),
        Region("red cat", blob=(0.5, 0.5, 0.25, 0.25)),
        Region("red cat", mask=np.pad(np.ones((8, 8)), 4)),  # type: ignore[arg-type]
    )
    for region in (*places, Region("red cat", mask=np.ones((8, 8)))):  # type: ignore[arg-type]
        row = Sample("a", "a red cat", regions=(region,))
        drawn = attnguide.plot(_result(sample=row, image=Image.new("RGB", (32, 32), "grey")))
        field = np.asarray(Image.open(io.BytesIO(drawn._repr_png_())).convert("RGB")).astype(int)
        red = (field[..., 0] - field[..., 1]) > 100
        assert red.any() == (region in places), region
        if region in places:
            rows, columns = np.nonzero(red)
            grey = (abs(field - 128) <= 1).all(-1)
            for found, along in ((rows, grey.sum(1)), (columns, grey.sum(0))):
                picture = np.nonzero(along > 20)[0]
                assert found.min() + found.max() == pytest.approx(picture[0] + picture[-1], abs=6), "in the middle"
                assert np.ptp(found) == pytest.approx(np.ptp(picture) / 2, rel=0.1)


def test_results_print_no_tensors() -> None:
    assert "tensor" not in repr([_result(latents=torch.zeros(4, 8, 8))])


def test_what_cannot_be_plotted_is_said() -> None:
    with pytest.raises(ValueError, match="needs an attnguide"):
        attnguide.plot([_result()], "maps")
    with pytest.raises(ValueError, match=r"kind must be one of sheet, maps, loss; got"):
        attnguide.plot([_result()], "map")
    with pytest.raises(ValueError, match="at least one result"):
        attnguide.plot([])


def test_progress_counts_steps_and_rows(capsys: pytest.CaptureFixture[str]) -> None:
    attnguide.sample(tiny.PROMPT, seed=[0, 1], steps=3, model=tiny.model(), batch_size=1, progress=True)
    said = capsys.readouterr()
    assert "rows 1 to 1 of 2" in said.err and "rows 2 to 2 of 2" in said.err and "3/3" in said.err and said.out == ""
    with pytest.raises(ValueError, match="progress must be True or False"):
        attnguide.sample("a cat", progress=2)
