"""``attnguide init``: what it copies, what it refuses, and what a wheel holds for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from attnguide.cli.errors import RunError
from attnguide.cli.init import configs_beside

from .conftest import Command

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*") if path.is_file()}


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("words", [[], ["."], ["new/study"]], ids=str)
def test_files_are_copied_as_they_are(attnguide: Command, words: list[str]) -> None:
    ended = attnguide("init", *words)
    folder = Path(*words)
    assert (ended.status, ended.err) == (0, "")
    assert _files(folder) == SHIPPED
    assert all((folder / file).read_bytes() == (ROOT / file).read_bytes() for file in SHIPPED)
    assert [path.name for path in folder.iterdir()] == ["configs"]


def test_what_it_says_can_be_typed(attnguide: Command) -> None:
    *_, next_command = attnguide("init").out.splitlines()
    assert attnguide(*next_command.split()[1:], "--print_config").status == 0
    assert attnguide("init", "study").out.splitlines()[-1].startswith("cd study && attnguide sample")


@pytest.mark.parametrize("there", ["configs/methods/box_diff.yaml", "configs/my_own.yaml", "configs"])
def test_nothing_is_overwritten(attnguide: Command, there: str) -> None:
    Path(there).parent.mkdir(exist_ok=True, parents=True)
    Path(there).write_text("mine")
    ended = attnguide("init")
    named = there if there in SHIPPED else "configs"
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("error: folder: ") and f"'{named}' is there already" in ended.err
    assert _files(Path()) == {there} and Path(there).read_text() == "mine"


def test_a_place_that_cannot_be_written(attnguide: Command) -> None:
    Path("file").write_text("mine")
    for place in ("file", "file/below"):
        ended = attnguide("init", place)
        assert ended.status == 2 and ended.err.count("\n") == 1 and place in ended.err
    assert _files(Path()) == {"file"} and attnguide("init", "a", "b").status == 2


@pytest.mark.parametrize(
    "packages", ["lib/python3.11/site-packages", "Lib/site-packages", ""], ids=["posix", "windows", "target"]
)
def test_an_installed_package_finds_the_data_of_its_wheel(tmp_path: Path, packages: str) -> None:
    package, data = tmp_path / packages / "attnguide", tmp_path / "share" / "attnguide" / "configs"
    package.mkdir(parents=True)
    (package.parent / "configs").mkdir()  # somebody else's
    with pytest.raises(RunError, match="configurations"):
        configs_beside(package)
    data.mkdir(parents=True)
    assert configs_beside(package) == data


def test_a_wheel_holds_every_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "configs", source / "configs")
    (source / "attnguide").mkdir()
    (source / "attnguide" / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    data = wheel.name.removesuffix("-py3-none-any.whl") + ".data/data/share/attnguide/"
    with zipfile.ZipFile(wheel) as archive:
        held = {name.removeprefix(data) for name in archive.namelist() if name.startswith(data)}
    assert held == SHIPPED
