"""LoRAs that a held pipeline has loaded already: read as they are, left as they were."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from attnguide.methods import build_method
from attnguide.models.load import adapt
from attnguide.sampling.sampler import Sampler
from tests import tiny
from tests.models import families


class _LowRank(nn.Module):
    """A linear layer with a low-rank addition, as peft wraps one."""

    def __init__(self, base: nn.Linear, scale: float) -> None:
        super().__init__()
        self.base_layer, self.scale = base, scale
        self.down = nn.Parameter(torch.randn(2, base.in_features) * 0.3)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) * 0.3)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, states: Tensor) -> Tensor:
        return self.base_layer(states) + self.scale * states @ self.down.T @ self.up.T


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_layers_that_a_lora_has_wrapped_are_run(scale: float) -> None:
    held = tiny.pipeline()
    for name, module in held.unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            for layer in ("to_q", "to_v"):
                setattr(module, layer, _LowRank(getattr(module, layer), scale))
    row = tiny.row()
    expected = held(
        row.prompt,
        num_inference_steps=4,
        guidance_scale=row.cfg_scale,
        generator=torch.Generator().manual_seed(row.seed),
        output_type="latent",
    ).images[0]
    (result,) = Sampler(adapt(held), [build_method("mask_guidance", {"step_size": 0.0})]).run([row])
    assert result.latents is not None and torch.equal(result.latents, expected)
    plain = Sampler(tiny.model()).run([row])[0].latents
    assert plain is not None and not torch.allclose(plain, expected, rtol=0.01)


@pytest.mark.parametrize("family", ["sdxl", "flux_dev", "sd35"])
def test_a_lora_that_is_held_makes_the_pipeline_s_latents_and_keeps_its_weights(family: str) -> None:
    held = families.build(family)
    network = held.unet if family == "sdxl" else held.transformer
    network.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"]))
    low = {name: weight for name, weight in network.named_parameters() if "lora_" in name}
    for number, weight in enumerate(low.values()):
        weight.data = 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    row = tiny.row(steps=2, height=32, width=32, cfg_scale=3.0)
    expected = held(
        row.prompt,
        num_inference_steps=2,
        height=32,
        width=32,
        guidance_scale=row.cfg_scale,
        generator=torch.Generator().manual_seed(row.seed),
        output_type="latent",
    )[0]
    (still,) = Sampler(adapt(held), [build_method("mask_guidance", {"step_size": 0.0})]).run([row])
    assert still.latents is not None
    assert torch.equal(still.latents, families.unpacked(expected, *still.latents.shape[-2:])[0])
    (moved,) = Sampler(adapt(held), [build_method("mask_guidance", {})]).run([row])
    assert moved.status == "ok" and moved.latents is not None and not torch.equal(moved.latents, still.latents)
    assert low and all(weight.requires_grad and weight.grad is None for weight in low.values())
