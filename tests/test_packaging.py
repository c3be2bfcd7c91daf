import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()


def _requirements() -> list[Requirement]:
    extras = [name for group in PROJECT["optional-dependencies"].values() for name in group]
    return [r for r in map(Requirement, [*PROJECT["dependencies"], *extras]) if r.name != PROJECT["name"]]


def test_constraints_are_plain_pins() -> None:
    wrong = [line for line in CONSTRAINTS if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.]+", line)]
    assert wrong == []


def test_every_dependency_is_pinned_inside_its_range() -> None:
    pins = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in CONSTRAINTS)}
    outside = [str(r) for r in _requirements() if pins.get(canonicalize_name(r.name), Version("0")) not in r.specifier]
    assert outside == []


def test_the_lowest_versions_that_are_tested_are_the_lowest_that_are_declared() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pins = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}
    for requirement in map(Requirement, PROJECT["dependencies"]):
        (lowest,) = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        assert pins[canonicalize_name(requirement.name)] == lowest, requirement


def test_an_editable_install_is_a_plain_path() -> None:
    """Type checkers do not run the finder that setuptools writes for other layouts."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == {"": "."}


def test_import_does_no_heavy_work() -> None:
    heavy = "torch", "diffusers", "transformers", "lightning", "wandb", "numpy"
    code = f"import attnguide, sys; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
