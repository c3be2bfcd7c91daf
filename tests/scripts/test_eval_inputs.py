"""Rows that begin from pictures, compared on a short table; and a ControlNet of the shapes world, trained for two steps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from attnguide.models.load import load_model
from attnguide.sampling.table import sample_rows
from attnguide.shapes.layouts import Layout
from attnguide.types import MethodConfig
from scripts import eval_inputs, train_controlnet


def test_layouts_have_a_half_of_their_own() -> None:
    def layout(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> Layout:
        return Layout("x", "boxes", "a red circle and a blue square", ("red circle", "blue square"), (first, second))

    assert eval_inputs.half_of(layout((0, 0, 0.4, 1), (0.6, 0, 1, 1))) == (0.5, 0.0, 1.0, 1.0)
    assert eval_inputs.half_of(layout((0, 0.6, 1, 0.9), (0, 0.1, 1, 0.4))) == (0.0, 0.0, 1.0, 0.5)
    assert eval_inputs.half_of(layout((0, 0, 0.6, 1), (0.6, 0, 1, 1))) is None
    chosen = eval_inputs.chosen(16)
    assert len(chosen) == 16 and all(eval_inputs.half_of(one) for one in chosen)


def test_options_of_methods() -> None:
    given = ["guide=true", "step_size=300", "guide_until=0.8"]
    expected = {"guide": True, "step_size": 300, "guide_until": 0.8}
    assert eval_inputs.read_options(given, "stable") == {"attempts": 1, **expected}
    assert eval_inputs.read_options(given, "mask_guidance") == expected


def test_a_controlnet_is_trained_and_used_with_a_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steered and controlled at once, on the embedded model."""
    words = ["--steps", "2", "--batch", "2", "--device", "cpu", "--out", str(tmp_path / "net")]
    monkeypatch.setattr(sys, "argv", ["train_controlnet.py", *words])
    train_controlnet.main()
    assert "2 steps in" in capsys.readouterr().out
    model = load_model("shapes", controlnets={"outlines": tmp_path / "net"})
    assert any(bool(weight.any()) for weight in model.controlnets["outlines"].controlnet_down_blocks.parameters())
    bench = eval_inputs.Bench(tmp_path, model.default_size[0], 2, 0.6, MethodConfig("forward_layout"), controls=True)
    told = list(eval_inputs.evaluate(model, bench, eval_inputs.chosen(1), [0]))
    assert [line.split()[0] for line in told] == [kind for kind in eval_inputs.KINDS for _ in "ab"]
    assert all("1 pictures" in line and "presence" in line for line in told) and "kept pixels differ by 0" in told[6]
    row = bench.text(eval_inputs.chosen(1)[0], 0)
    (plain,) = sample_rows(model, [row])
    (controlled,) = sample_rows(model, [bench.rows(eval_inputs.chosen(1)[0], 0, plain)["controlnet"]])
    assert plain.latents is not None and controlled.latents is not None
    assert not torch.equal(plain.latents, controlled.latents)
