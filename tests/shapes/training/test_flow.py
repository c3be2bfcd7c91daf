from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from attnguide.shapes.training import flow
from attnguide.shapes.training.architecture import build_text_encoder, build_tokenizer
from attnguide.shapes.training.drawing import NAMES
from attnguide.shapes.training.flow import ContentHead, FlowModule, draw_noise_levels, pack
from attnguide.shapes.training.mmdit import build_transformer


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> FlowModule:
    monkeypatch.setattr(flow, "build_transformer", lambda *size: build_transformer(heads=2, dual=1, single=2))
    tokenizer = build_tokenizer(300)
    made = FlowModule((tokenizer, build_text_encoder(tokenizer)), lambda step: 0.0)
    made.log_dict = lambda values, **kwargs: made.__dict__.setdefault("logged", {}).update(values)  # type: ignore[method-assign]
    return made


def _batch(rows: int = 3) -> dict[str, torch.Tensor]:
    return {
        "latents": torch.randn(rows, 8, 16, 16),
        "t5_ids": torch.randint(0, 100, (rows, 24)),
        "clip_ids": torch.randint(0, 500, (rows, 32)),
        "contents": torch.stack([torch.randint(0, len(names), (rows, 64)) for names in NAMES], -1),
    }


def test_an_untrained_network_says_nothing(module: FlowModule) -> None:
    """Modulations and last layer are 0: the velocity is, and the error is that of ``noise - latents``, 2 for unit variances."""
    batch = _batch(16)
    module.training_step(batch, 0)
    assert module.logged["flow/error"].item() == pytest.approx(1 + batch["latents"].square().mean().item(), rel=0.1)
    assert module.logged["flow/content"].item() == pytest.approx(math.log(9) + math.log(12), rel=0.5)


def test_what_is_trained(module: FlowModule) -> None:
    torch.nn.init.normal_(module.transformer.proj_out.weight)
    for name, weight in module.transformer.named_parameters():
        if "norm" in name and weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.1)
    module.training_step(_batch(), 0).backward()
    assert {name.split(".")[0] for name in module.state_dict()} == {
        "t5",
        "transformer",
        "content",
    }  # neither CLIP nor autoencoder
    silent = [name for name, weight in module.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not [name for name in silent if "to_add_out" not in name and "context" not in name]  # text's last states go unread
    assert all(weight.grad is None for weight in module.__dict__["_frozen"]["clip"].parameters())


def test_loss_is_the_velocity_s_error_and_a_tenth_of_the_contents(module: FlowModule, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = _batch()
    seen: dict[str, torch.Tensor] = {}

    def forward(**inputs: torch.Tensor) -> SimpleNamespace:
        seen.update(inputs)
        module.middle = torch.zeros(3, 64, 64)
        level = inputs["timestep"][:, None, None]
        noise = (inputs["hidden_states"] - (1 - level) * pack(batch["latents"])) / level
        return SimpleNamespace(sample=noise - pack(batch["latents"]) + 0.5)

    monkeypatch.setattr(module.transformer, "forward", forward)
    loss = module.training_step(batch, 0)
    assert module.logged["flow/error"].item() == pytest.approx(0.25, rel=1e-3)
    assert loss.item() == pytest.approx(0.25 + 0.1 * module.logged["flow/content"].item(), rel=1e-3)
    assert seen["txt_ids"].shape == (24, 3) and seen["img_ids"].shape == (64, 3)


def test_pooled_vectors_are_dropped_in_their_share(module: FlowModule) -> None:
    empty, some = module.empty_clip_ids, torch.randint(0, 500, (1, 32))
    clip = module.__dict__["_frozen"]["clip"]
    nothing = clip(empty[None]).pooler_output
    dropped = (module.pooled(some.expand(400, -1)) - nothing).abs().amax(1) < 1e-5
    assert 0.2 < dropped.float().mean() < 0.4
    module.drop_pooled = 0.0
    torch.testing.assert_close(module.pooled(some), clip(some).pooler_output)


def test_noise_levels_by_hand() -> None:
    """Half of the logistic-normal levels lie below 1/2, which a shift of 1.5 moves to 1.5 / 2.5."""
    levels = draw_noise_levels(2000)
    assert levels.min() > 0 and levels.max() < 1
    assert levels.median().item() == pytest.approx(0.6, abs=0.01)
    assert draw_noise_levels(2000, shift=1.0).median().item() == pytest.approx(0.5, abs=0.01)
    first, second = draw_noise_levels(2, shift=1.0).tolist()
    assert first <= 0.5 <= second  # one from each half


def test_content_loss_by_hand() -> None:
    head = ContentHead(4)
    torch.nn.init.zeros_(head.classes.weight)
    with torch.no_grad():
        head.classes.bias.copy_(torch.arange(21) * 0.1)
    contents = torch.tensor([[[2, 5]]])
    shapes, colors = torch.arange(9) * 0.1, torch.arange(9, 21) * 0.1
    wanted = -F.log_softmax(shapes, 0)[2] - F.log_softmax(colors, 0)[5]
    assert head(torch.randn(1, 1, 4), contents).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_middle_states_are_kept_where_blocks_are_compiled(module: FlowModule) -> None:
    block = module.transformer.single_transformer_blocks[0]
    block.compile(backend="eager")
    batch: dict[str, Any] = _batch(2)
    torch.manual_seed(0)
    compiled = module.training_step(batch, 0)
    block._compiled_call_impl = None
    torch.manual_seed(0)
    torch.testing.assert_close(compiled, module.training_step(batch, 0))
    assert module.middle is None
