from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from attnguide.api import sample
from attnguide.attention.weights import weights_on_demand
from attnguide.cli import main
from attnguide.data import SampleDataModule
from attnguide.models.load import adapt, load_model
from attnguide.models.offload import Placement, offload_blocks
from attnguide.module import GuidanceModule, make_trainer
from attnguide.sampling.table import sample_rows
from attnguide.types import MethodConfig
from tests import tiny
from tests.closeness import assert_close
from tests.models import families

ROW = tiny.row(steps=2, methods=(MethodConfig("mask_guidance"), MethodConfig("forward_layout")))
CPU = torch.device("cpu")


def _latents(pipeline: Any, side: int | None = None) -> torch.Tensor:
    (result,) = sample_rows(adapt(pipeline), [replace(ROW, height=side, width=side)])
    assert result.status == "ok" and result.latents is not None
    return result.latents


def test_blocks_in_turn_make_the_same_picture() -> None:
    held = tiny.pipeline()
    expected = _latents(held)
    offload_blocks(held, CPU)
    assert adapt(held).device == CPU
    torch.testing.assert_close(_latents(held), expected, rtol=0, atol=0)


def _by_modules(pipeline: Any) -> None:
    """What ``enable_sequential_cpu_offload`` does, which asks for a GPU: the weights of one module at a time are there."""
    for network in pipeline.components.values():
        if isinstance(network, nn.Module):
            cpu_offload(network, execution_device=CPU, offload_buffers=len(network._parameters) > 0)


def _by_networks(pipeline: Any) -> None:
    pipeline.enable_model_cpu_offload(device="cpu")


@pytest.mark.parametrize("offload", [_by_modules, _by_networks], ids=["modules", "networks"])
@pytest.mark.parametrize("family", ["sd", "flux_dev", "lumina2"])
def test_modules_and_networks_in_turn_make_the_same_picture(family: str, offload: Callable[[Any], None]) -> None:
    held = families.build(family)
    offload(held)
    assert adapt(held).device.type == "cpu"
    torch.testing.assert_close(_latents(held, 32), _latents(families.shared(family), 32), rtol=0, atol=0)


def test_a_run_leaves_offloaded_weights_where_they_are(tmp_path: Path) -> None:
    held = tiny.pipeline()
    offload_blocks(held, CPU)
    module, seen = GuidanceModule(adapt(held)), []

    class Look(lightning.Callback):
        def on_predict_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
            seen.append(len(list(module.parameters())))

    trainer = make_trainer(tmp_path / "run", callbacks=[Look()], accelerator="cpu")
    trainer.predict(module, SampleDataModule([ROW]))
    assert seen == [0]


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and text states."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    return latents, torch.randn(2, tiny.LENGTH, tiny.CHANNELS, generator=torch.Generator().manual_seed(1))


def _gradient(network: nn.Module) -> torch.Tensor:
    """Of the sum of squares of a prediction, with respect to the latents."""
    latents, states = _inputs()
    with weights_on_demand(network):
        loss = network(latents, 7, encoder_hidden_states=states)[0].square().sum()
    return torch.autograd.grad(loss, latents)[0]


def _stored_in_8_bits() -> tuple[Any, Any]:
    """A pipeline that computes in float32 with weights of 8 bits, and one with the same values in float32."""
    stored, rounded = tiny.pipeline(), tiny.pipeline()
    stored.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with torch.no_grad():
        for one, other in zip(stored.unet.parameters(), rounded.unet.parameters(), strict=True):
            other.copy_(one.float())
    return stored, rounded


def test_weights_that_change_their_precision_give_the_gradient_of_what_they_store() -> None:
    stored, rounded = (pipeline.unet.requires_grad_(False) for pipeline in _stored_in_8_bits())
    torch.testing.assert_close(_gradient(stored), _gradient(rounded))
    assert {weight.dtype for weight in stored.parameters()} == {torch.float8_e4m3fn, torch.float32}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
def test_guidance_through_weights_that_change_their_precision(checkpointing: bool) -> None:
    stored, rounded = _stored_in_8_bits()
    if checkpointing:
        stored.unet.enable_gradient_checkpointing()
    assert_close(_latents(stored), _latents(rounded))


def test_a_graph_keeps_no_weights() -> None:
    """Their numbers may go once the forward is over: the backward pass finds those that are there by then."""
    network = tiny.pipeline().unet.requires_grad_(False)
    expected = _gradient(network)
    network.enable_layerwise_casting(storage_dtype=torch.float32, compute_dtype=torch.float32)
    latents, states = _inputs()
    kept = {name: weight.data for name, weight in network.named_parameters()}
    with weights_on_demand(network):
        loss = network(latents, 7, encoder_hidden_states=states)[0].square().sum()
    for weight in network.parameters():
        weight.data = torch.full_like(weight, torch.nan)
    assert torch.autograd.grad(loss, latents, retain_graph=True)[0].isnan().any()
    for name, weight in network.named_parameters():
        weight.data = kept[name].clone()
    torch.testing.assert_close(torch.autograd.grad(loss, latents)[0], expected)


def test_quantised_weights_without_gradients_are_refused_by_name() -> None:
    class GGUFQuantizer:
        is_trainable = False

    model = adapt(tiny.pipeline())
    model.network.hf_quantizer = GGUFQuantizer()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"which its quantised weights \(GGUFQuantizer\) do not have"):
        model.check_gradients()


def test_checkpointing_is_the_network_s_own() -> None:
    model = adapt(tiny.pipeline())
    model.enable_checkpointing()
    assert model.network.is_gradient_checkpointing
    expected, found = _latents(tiny.pipeline()), _latents(model.pipeline)  # type: ignore[attr-defined]
    assert_close(found, expected)
    model.network._supports_gradient_checkpointing = False  # type: ignore[assignment]
    with pytest.raises(ValueError, match="checkpointing: UNet2DConditionModel cannot compute its activations anew"):
        model.enable_checkpointing()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="offload must be one of none, model, group, sequential; got 'disk'"):
        Placement(CPU, torch.float32, "disk")
    for offload in ("model", "group", "sequential"):
        with pytest.raises(ValueError, match=f"offload '{offload}' keeps weights in the CPU's memory .* the device is 'cpu'"):
            Placement(CPU, torch.float32, offload)


def test_a_name_is_loaded_with_both_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.pipeline().save_pretrained(tmp_path / "tiny")
    model = load_model(tmp_path / "tiny", device="cpu", checkpointing=True)
    assert model.network.is_gradient_checkpointing
    for refused in (lambda: load_model(tmp_path / "tiny", device="cpu", offload="group"), lambda: sample("a", offload="all")):
        with pytest.raises(ValueError, match="offload"):
            refused()
    with pytest.raises(ValueError, match="offload and checkpointing are for a model given by name"):
        sample("a cat", model=model, checkpointing=True)
    words = ["sample", "a cat", "--model", str(tmp_path / "tiny"), "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*words, "--offload", "disk"]) == 2
    assert "offload must be one of none, model, group, sequential; got 'disk'" in capsys.readouterr().err
    assert main([*words, "--offload", "group"]) == 2
    assert "offload 'group' keeps weights in the CPU's memory" in capsys.readouterr().err and not (tmp_path / "run").exists()
