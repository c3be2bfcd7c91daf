"""Operations and memory of other families: what is counted without data is what runs with it, and what the method needs."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import nn
from torch._subclasses import FakeTensorMode

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_memory
import bench_operations
from bench_networks import Architecture, Bench
from bench_operations import Need


def _flux(num_layers: int = 2, num_single_layers: int = 2) -> nn.Module:
    transformer: nn.Module = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return transformer


def _flux_inputs(rows: int) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(rows, 10, 32),
        "pooled_projections": torch.randn(rows, 32),
        "timestep": torch.randn(rows),
        "guidance": torch.randn(rows),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(10, 3),
    }


JOINT = Architecture(
    "tiny FLUX",
    _flux,
    (64, 16),
    _flux_inputs,
    r"(single_)?transformer_blocks\.\d+\.attn",
    (8, 8),
    2,
    ((-64, None), (0, -64)),
    halves=1,
)


def _unet() -> nn.Module:
    unet: nn.Module = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    return unet


CROSS = Architecture(
    "tiny UNet",
    _unet,
    (4, 16, 16),
    lambda rows: {"timestep": torch.zeros(()), "encoder_hidden_states": torch.randn(rows, 7, 16)},
    r"(down_blocks\.1|mid_block|up_blocks\.0)\..*attn2",
    (8, 8),
    2,
)


@pytest.mark.parametrize("case", [JOINT, CROSS], ids=["FLUX", "UNet"])
def test_what_is_counted_is_what_is_needed(case: Architecture) -> None:
    found = bench_operations.costs(Bench(case, 2))
    for step, needed in zip((found.guided, found.fused), found.needs, strict=True):
        assert found.run(step) == pytest.approx(found.run(needed), rel=0.02)
    assert found.plain < found.fused < found.guided


def test_needs_by_hand() -> None:
    """Two linear layers around an attention of 4 cells to 4 + 3 positions; the second layer lies behind the site."""

    class Attention(nn.Module):
        def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(query, key, key)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.attn, self.second = nn.Linear(6, 6), Attention(), nn.Linear(6, 6)

        def forward(self, hidden_states: torch.Tensor, text: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            both = torch.cat([text, self.first(hidden_states)], 1).unflatten(-1, (2, 3)).transpose(1, 2)
            return (self.second(self.attn(both, both).transpose(1, 2).flatten(2)),)

    case = Architecture(
        "two layers",
        Network,
        (4, 6),
        lambda rows: {"text": torch.randn(rows, 3, 6)},
        "attn",
        (2, 2),
        2,
        ((-4, None), (0, -4)),
        1,
    )
    linear, square, columns = 2 * 4 * 6 * 6, 2 * 7 * 7 * 6, 2 * 4 * 2 * 6
    need = Need.of(Bench(case, 2))
    assert need.forward == linear + 2 * square + 2 * 7 * 6 * 6
    assert (need.ahead, need.backward) == (linear + square, linear + 2 * square)
    assert need.columns == 3 * columns


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_calculated_without_data_is_that_of_a_real_pass(checkpointing: bool) -> None:
    found = []
    for data in (False, True):
        with nullcontext() if data else FakeTensorMode():
            found.append(bench_memory.guided(Bench(JOINT, 2, "cpu"), checkpointing=checkpointing))
    assert found[0] == found[1]
    assert found[0].columns == 4 * 4 * 2 * 64 * 2  # sites, bytes, heads, cells, columns
    assert found[0].kept < found[0].peak


def test_further_blocks_add_what_the_third_adds() -> None:
    deeper = JOINT.with_blocks(num_layers=3, num_single_layers=4)
    found = bench_memory.guided_pass(deeper, 2, torch.float32, checkpointing=True)
    with FakeTensorMode():
        whole = bench_memory.guided(Bench(deeper, 2, "cpu"), checkpointing=True)
    assert (found.kept, found.columns) == (whole.kept, whole.columns)
    assert found.peak == pytest.approx(whole.peak, rel=0.05)


def test_bytes_that_are_alive_by_hand() -> None:
    given = torch.zeros(100)
    with bench_memory.Alive([given]) as alive:
        first = given * 2
        assert (alive.now, alive.peak) == (400, 400)
        second = torch.cat([first, first])
        view = second[:50]
        del first
        assert (alive.now, alive.peak) == (800, 1200)
        del second
        assert alive.now == 800  # the view holds it
        del view
        assert (alive.now, alive.peak) == (0, 1200)


def test_checkpointing_and_offloading_take_less() -> None:
    lines = bench_memory.records(Bench(JOINT, 2), 24.0)
    totals = {(line["checkpointing"], line["offload"]): line["total"] for line in lines}
    assert totals["yes", "group"] < min(totals["yes", "none"], totals["no", "group"]) < totals["no", "none"]
    weights = bench_memory.Weights.of(_flux())
    assert weights.resident < weights.whole
    one, every = bench_memory.squares(Bench(JOINT, 2))
    assert (one, every) == (4 * 2 * 74**2, 4 * 4 * 2 * 74**2)


def test_columns_beside_squares() -> None:
    columns, squares = bench_operations.columns_and_squares(Bench(JOINT, 2))
    product = 2 * 74 * 74 * 32 * 4
    assert squares["TFLOP"] == pytest.approx(6 * product / 1e12)
    assert columns["TFLOP"] == pytest.approx((6 * product + 3 * 4 * 2 * 64 * 2 * 32) / 1e12)
    assert columns["kept, GB"] < squares["kept, GB"] / 10


def test_command_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_operations, "ARCHITECTURES", {"tiny": JOINT})
    bench_operations.main(["--models", "tiny", "--columns", "2"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line and line[0] in ("plain", "guided", "fused", "columns", "squares")] == [
        *("plain", "guided", "fused"),
        *("columns", "squares"),
    ]
    monkeypatch.setattr(bench_memory, "ARCHITECTURES", {"flux_dev": JOINT})
    bench_memory.main(["--columns", "2"])
    assert "As squares instead of columns" in capsys.readouterr().out
    for script in (bench_operations, bench_memory):
        with pytest.raises(SystemExit):
            script.main(["--columns", "0"])
        assert "--columns must be at least 1; got 0" in capsys.readouterr().err
