"""The page of a run folder."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from attnguide.cli import main
from attnguide.report.content import places, read_content
from attnguide.report.page import report_page, write_report
from attnguide.run_folder.files import write_atomic
from attnguide.run_folder.tables import append_table
from attnguide.sheets.colors import css, method_color

BASE = {
    "id": "",
    "prompt": "a red <circle>",
    "seed": "0",
    "method": "plain",
    "steps": "30",
    "cfg_scale": "5",
    "scheduler": "",
    "height": "32",
    "width": "32",
    "negative_prompt": "",
    "options": "",
    "regions": '[{"box": [0.1, 0.1, 0.5, 0.5], "phrase": "red"}]',
    "tags": "",
    "groups": "",
    "presence": "",
    "unet_forwards": "60",
    "status": "ok",
}
ROWS = [
    {**BASE, "id": "a", "presence": "1"},
    {**BASE, "id": "b", "presence": "0", "method": "inject1", "options": '{"inject1": {"scale": 1}}'},
    {**BASE, "id": "c", "presence": "1", "method": "inject1", "options": '{"inject1": {"scale": 2}}', "seed": "1"},
    {**BASE, "id": "d", "seed": "1", "status": "stopped at step 3: the loss is NaN"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    append_table(run / "records.csv", tuple(BASE), ROWS)
    write_atomic(run / "config.yaml", "steps: 30 # <b>\n")
    (run / "samples").mkdir()
    (run / "maps" / "a").mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (32, 32), "red").save(run / "samples" / f"{name}.png")
    for name in ("red_circle", "red_circle-steps", "_overview"):
        Image.new("RGB", (32, 32)).save(run / "maps" / "a" / f"{name}.png")
    Image.new("RGB", (64, 32)).save(run / "sheet.png")
    return run


def test_content(folder: Path) -> None:
    content = read_content(folder)
    assert (content.rows, content.failed, content.hidden) == (4, 1, 0)
    assert content.common["steps"] == "30" and "seed" not in content.common and "method" not in content.common
    assert content.heads == ["method"]
    assert [line.place for line in content.means] == [("plain",), ("inject1, scale = 1",), ("inject1, scale = 2",)]
    plain = content.means[0].estimates["presence"]
    assert plain is not None and (plain.mean, plain.n, content.means[0].count) == (1.0, 1, 2)
    assert [(subject.seed, [row.id for row in subject.rows]) for subject in content.subjects] == [
        ("0", ["a", "b"]),
        ("1", ["c", "d"]),
    ]
    first, last = content.subjects[0].rows[0], content.subjects[1].rows[1]
    assert list(first.maps) == ["red circle"] and first.numbers == {"presence": "1", "unet_forwards": "60"}
    assert last.picture is None and last.failed == "stopped at step 3: the loss is NaN"
    assert places(first.record) == "red 0.1, 0.1, 0.5, 0.5"


def test_an_ablation_is_labelled_by_its_cells(tmp_path: Path) -> None:
    cells = [("plain", "", ""), ("a, 1", "a", "1"), ("a, 2", "a", "2"), ("a, 2", "a", "2")]
    names = ("cell", "axis.form", "axis.scale")
    rows = [{**BASE, "id": str(i), **dict(zip(names, cell, strict=True)), "presence": "1"} for i, cell in enumerate(cells)]
    rows += [{**BASE, "id": "b", "cell": "b, 1", "axis.form": "b", "axis.scale": "1", "presence": "0"}]
    append_table(tmp_path / "records.csv", tuple(rows[0]), rows)
    content = read_content(tmp_path)
    assert content.heads == ["form", "scale"]
    assert [(*line.place, line.count) for line in content.means] == [
        ("plain", "", 1),
        ("a", "1", 1),
        ("a", "2", 2),
        ("b", "1", 1),
    ]
    assert content.leading == ["presence"] and content.same == {"unet_forwards": "60"}
    assert "presence" in content.metrics and not any(name.startswith(("axis", "cell")) for name in content.metrics)


def test_lines_of_an_ablation_stand_in_the_order_of_their_axes_however_rows_ended(tmp_path: Path) -> None:
    cells = [("2, 10", "2", "10"), ("2, 9", "2", "9"), ("plain, 2", "2", ""), ("1, 9", "1", "9"), ("plain, 1", "1", "")]
    names = ("cell", "axis.blobs", "axis.scale")
    rows = [{**BASE, "id": str(index), **dict(zip(names, cell, strict=True))} for index, cell in enumerate(cells)]
    append_table(tmp_path / "records.csv", tuple(rows[0]), rows)
    places = [line.place for line in read_content(tmp_path).means]
    assert places == [("1", "plain"), ("1", "9"), ("2", "plain"), ("2", "9"), ("2", "10")]


def test_tables_of_a_comparison_have_intervals_below_and_arms_in_the_colours_of_their_methods(folder: Path) -> None:
    table = "| category | arm | hits |\n| --- | --- | --- |\n| a <b> | stable | 31.2 [12, 56]* |\n| c | plain | |\n"
    write_atomic(folder / "table.md", f"# title\n\n## Scores\n\nPercent.\n\n{table}")
    text = report_page(folder)
    assert "<td>31.2*<small>12, 56</small></td>" in text and "a &lt;b&gt;" in text
    assert re.search(f'style="color: {css(method_color("stable"))}">[^<]*</span>[^<]*stable</td>', text)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file_and_is_well_formed(folder: Path) -> None:
    text = report_page(folder)
    reader = _Reader()
    reader.feed(text)
    assert not reader.open
    inside = [address for address in reader.addresses if address.startswith("#")]
    assert len(reader.addresses) - len(inside) == 5, "pictures"
    assert all(address.startswith("data:image/") for address in reader.addresses if address not in inside)
    assert all(f'id="{address[1:]}"' in text for address in inside)
    assert "stopped at step 3: the loss is NaN" in text and "1 stopped" in text
    assert "a red &lt;circle&gt;" in text and "<circle>" not in text and "# &lt;b&gt;" in text


def test_limit_hides_pictures_and_not_means(folder: Path) -> None:
    text = report_page(folder, limit=1)
    assert "The first 1 of 4 rows." in text and len(re.findall('class="card"', text)) == 1
    assert "inject1" in text
    with pytest.raises(ValueError, match="limit must be at least 0; got -1"):
        read_content(folder, limit=-1)


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text(encoding="utf-8") == report_page(folder)
    other = folder.parent / "pages" / "x.html"
    assert main(["report", str(folder), "--out", str(other), "--limit", "2"]) == 0 and other.exists()


def test_mistakes_are_one_line_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert main(["report", str(tmp_path / "none")]) == 2
    assert main(["report", str(tmp_path), "--limit", "-1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "is none" in lines[1] and all(line.startswith("error: ") for line in lines)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="holds no run"):
        write_report(tmp_path)


def test_what_is_no_page_is_not_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, link = folder.parent / "notes.html", folder.parent / "link"
    other.write_text("<html>mine</html>")
    link.symlink_to(folder / "records.csv")
    kept = (folder / "records.csv").read_bytes()
    for target in (folder / "records.csv", folder, other, link, "/dev/null", "s3://bucket/page.html"):
        assert main(["report", str(folder), "--out", str(target)]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: out: ") and said.err.count("\n") == 1 and not said.out
    assert (folder / "records.csv").read_bytes() == kept and other.read_text() == "<html>mine</html>"
    assert main(["report", str(folder)]) == main(["report", str(folder)]) == 0, "an earlier page is"


def test_what_cannot_be_read_is_named_and_the_page_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [
        {**BASE, "id": "long", "prompt": "x" * 200_000},
        {**BASE, "id": "cut", "regions": "[{"},
        {**BASE, "id": "list", "regions": '[1, {"box": [null]}]'},
        {**BASE, "id": "word", "presence": "many"},
        {**BASE, "id": "endless", "presence": "1e999"},
    ]
    append_table(folder / "records.csv", tuple(BASE), odd)
    (folder / "samples" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (folder / "sheet.png").write_bytes(b"")
    (folder / "maps" / "a" / "red_circle.png").write_text("x")
    (folder / "config.yaml").write_bytes(b"steps: \xff\n")
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr()
    text = (folder / "report.html").read_text(encoding="utf-8")
    for named in (
        "row &#39;cut&#39;: regions",
        "row &#39;list&#39;: regions",
        "row &#39;word&#39;: presence",
        "samples/a.png: not",
    ):
        assert named in text
    assert "sheet.png: not a picture" in text and "maps/a/red_circle.png: not" in text and "x" * 200_000 in text
    warned = [line for line in said.err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 6 and "more things" in warned[-1] and "out:" not in said.err
