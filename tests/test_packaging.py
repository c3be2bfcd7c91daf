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


def test_import_does_no_heavy_work() -> None:
    heavy = "torch", "diffusers", "transformers", "lightning", "wandb", "numpy"
    code = f"import attnguide, sys; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
