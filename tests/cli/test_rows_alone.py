"""A row of a table that cannot be made ends alone, and the closing lines count it."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnguide.run_folder.records import read_records
from tests.cli.conftest import Command, Outcome

TABLE = """\
id,prompt,obj1,bbox1
good,a red cat,cat,"0,0,32,64"
thin,a red cat,cat,"8,0,8,64"
gone,a red cat,cow,"0,0,32,64"
vast,a red cat,cat,"0,0,64,64"
"""
QUICK = ("--steps", "2", "--no-plain", "--no-maps", "--no-norms")


@pytest.fixture
def table(attnguide: Command) -> Path:
    path = Path("rows.csv")
    path.write_text(TABLE)
    return path


def _sample(attnguide: Command, table: Path, tiny_folder: Path, *words: str) -> Outcome:
    chosen = ("--method", "mask_guidance", "--model", tiny_folder, "--out", "run")
    return attnguide("sample", "--rows", table, "--box-size", "64", *chosen, *QUICK, *words)


def test_the_others_go_on_and_are_counted(attnguide: Command, table: Path, tiny_folder: Path) -> None:
    ended = _sample(attnguide, table, tiny_folder)
    assert ended.status == 1
    statuses = {record["id"].removesuffix("-mask_guidance"): record["status"] for record in read_records("run")}
    assert statuses["good"] == "ok"
    assert statuses["thin"].startswith("refused: ") and "has no area" in statuses["thin"]
    assert statuses["gone"].startswith("refused: ") and "'cow' does not occur" in statuses["gone"]
    assert statuses["vast"] == "ok: mask_guidance did nothing (its loss is 0 at every step)"
    assert sorted(path.stem for path in Path("run/samples").glob("*.png")) == ["good-mask_guidance", "vast-mask_guidance"]
    assert "rows     2 ok (1 with a note), 2 refused" in ended.out.splitlines()
    assert any(line.startswith("refused  gone-mask_guidance: Phrase 'cow'") for line in ended.out.splitlines())
    assert any(line.startswith("note     vast-mask_guidance: mask_guidance did nothing") for line in ended.out.splitlines())
    again = attnguide("sample", "--resume", "--out", "run")
    assert again.status == 1 and "rows     2 ok (1 with a note), 2 refused" in again.out
    assert len(read_records("run")) == 4


def test_strict_refuses_the_table(attnguide: Command, table: Path, tiny_folder: Path) -> None:
    ended = _sample(attnguide, table, tiny_folder, "--strict")
    assert ended.status == 2 and "Row 'thin" in ended.err and len(ended.err.splitlines()) == 1
    assert not Path("run").exists()


def test_a_table_of_which_nothing_would_come_is_a_mistake(attnguide: Command, table: Path, tiny_folder: Path) -> None:
    table.write_text("id,prompt\na,a cat\nb,a dog\n")
    ended = attnguide("sample", "--rows", table, "--method", "syngen", "--model", tiny_folder, "--out", "run", "--steps", "2")
    assert ended.status == 2 and "Row 'a-syngen': Method 'syngen' needs a noun with a modifier" in ended.err
    assert not Path("run").exists()


def test_a_typed_prompt_is_refused_as_a_whole(attnguide: Command, tiny_folder: Path) -> None:
    for words in (("--region", "dog=0,0,1,1"), ("--method", "syngen")):
        ended = attnguide("sample", "a cat", *words, "--model", tiny_folder, "--out", "run", "--steps", "2")
        assert ended.status == 2 and len(ended.err.splitlines()) == 1 and not Path("run").exists()
