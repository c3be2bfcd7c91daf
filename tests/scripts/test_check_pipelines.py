"""The table of pipelines in a short form: a kind of each way of calling a network, and what is said of others."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import check_pipelines

from attnguide.steering.pipelines import PIPELINES


@pytest.mark.parametrize(
    ("kind", "scheduler"), [("sd_controlnet", "heun"), ("flux_control_img2img", "own"), ("qwen_image_inpaint", "own")]
)
def test_a_kind_in_short(kind: str, scheduler: str) -> None:
    found = check_pipelines.check_under(kind, scheduler, ["forward_layout", "layout_guidance"], first=False)
    assert found is not None and found.methods == {"forward_layout": "runs", "layout_guidance": "runs"}
    assert found.zero == "0" and found.restored and found.loss is not None
    assert found.loss[1] < found.loss[0]


@pytest.mark.parametrize(("family", "method"), [("flux_dev", "layout_guidance"), ("lumina2", "forward_layout")])
def test_a_family_is_compared_with_our_own_loop(family: str, method: str) -> None:
    """Under a corrector that looks at the step before: at tokens, and where the network's time runs backwards."""
    found = check_pipelines.check_under(family, "unipc", [method])
    assert found is not None and found.methods == {method: "0"} and found.zero == "0" and found.restored


def test_a_pipeline_that_does_not_take_a_scheduler_is_left_out() -> None:
    assert check_pipelines.check_under("flux_fill", "unipc") is None  # it cannot begin at a picture with it


def test_what_is_refused_is_said() -> None:
    found = check_pipelines.check_under("sd3_pag", "own", ["forward_layout"], first=False)
    assert found is not None and found.restored and found.loss is None
    assert found.methods["forward_layout"].startswith("refused: Attention at 'transformer_blocks.1.attn' cannot be read")


def test_table_by_hand() -> None:
    one = check_pipelines.Findings("ddim", {"stable": "0", "inject5": "refused: no"}, "0", (0.5, 0.4), 1e-6)
    other = check_pipelines.Findings("unipc", {"stable": "runs", "inject5": "refused: no"}, "refused: no", restored=False)
    written = check_pipelines.table({"sd": [one], "flux_fill": [other]})
    assert "| StableDiffusionPipeline (sd) | ddim | [1] | - | 0 | - | - | - | 0 | 2.0e-01 | 1.0e-06 | yes |" in written
    assert "| FluxFillPipeline (flux_fill) | unipc | [1] | - | + | - | - | - | [1] |  |  | no |" in written
    assert written.endswith("1. refused: no")


def test_the_page_names_every_class_and_kind() -> None:
    kept = (Path(__file__).parents[2] / "docs" / "known_pipelines.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in kept for name in PIPELINES)
    assert all(f" ({kind}) | " in kept for kind in check_pipelines.supported())
