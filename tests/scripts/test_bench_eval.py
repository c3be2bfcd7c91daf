"""The parts of a long comparison that make no picture are measured on a whole run folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_eval


def test_every_part_is_measured_and_the_page_written(tmp_path: Path) -> None:
    lines, page, pictures = bench_eval.measure(tmp_path, 6)
    assert [line["part"] for line in lines] == [
        "reading and planning",
        "closing tables",
        "closing tables again, and sheets",
        "page",
    ]
    assert pictures == 6 * 4 and all(line["seconds"] > 0 for line in lines)
    text = page.read_text()
    assert "Difference at equal compute" in text and 'id="means"' not in text  # which the tables say, by prompt
    assert (page.parent / "table.tex").exists() and text.count("<img") > 6
