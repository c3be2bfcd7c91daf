"""The table of families: one family of each kind in a short form, and the page that keeps all of it."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import check_families

from attnguide.methods import METHODS
from attnguide.models.load import adapt
from tests.models import families

PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.mark.parametrize("family", check_families.supported())
def test_a_family_in_short(family: str) -> None:
    adapter = adapt(families.shared(family), family)
    assert check_families.plain_difference(family, adapter) == 0
    assert check_families.capture_difference(family, adapter) == 0
    assert check_families.gradients_reached(family, adapter).startswith("2 of 2")


def test_verdicts() -> None:
    adapter = adapt(families.shared("sd"), "sd")
    plain = check_families.latents_of(adapter, [check_families.row("sd", cfg_scale=4.0)])[0]
    assert check_families.verdict("sd", adapter, "forward_layout", plain) == "runs"
    assert check_families.verdict("sd", adapter, "forward_layout", plain * 2) == "runs"
    adapter = adapt(families.shared("sd3"), "sd3")
    refused = check_families.verdict("sd3", adapter, "plug_and_play", plain)
    assert refused.startswith("refused: Method 'plug_and_play' takes over features of a UNet's decoder")


def test_tables_by_hand() -> None:
    one = check_families.Findings(0.0, 1e-6, 0.0, "2 of 2, from 3", 0.5, {"a": "runs", "b": "refused: no"})
    other = check_families.Findings(methods={"a": "refused: no", "c": "runs"})
    written = check_families.tables({"sd": one, "sdxl": other})
    assert "| sd | StableDiffusionPipeline | 0 | 1.0e-06 | 0 | 2 of 2, from 3 | 5.0e-01 |" in written
    assert "| a | + | [1] |\n| b | [1] | - |\n| c | - | + |" in written and written.endswith("1. refused: no")


def test_the_page_knows_every_family_and_method() -> None:
    kept = set(re.findall(r"^\| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(check_families.supported()) | set(METHODS) <= kept
