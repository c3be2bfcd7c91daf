"""The Lightning module, its dispatcher and its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from attnguide.callbacks import SamplingCallback
from attnguide.data import SampleDataModule
from attnguide.module import GuidanceModule, make_trainer
from attnguide.sampling.table import sample_rows
from attnguide.types import MethodConfig, Region, Sample
from tests import tiny

REGIONS = (Region("red cat", box=(0, 0, 0.5, 1)),)
GUIDED = Sample("g", tiny.PROMPT, regions=REGIONS, steps=2, methods=(MethodConfig("mask_guidance", {"stop": 1.0}),))

HOOKS = (
    "setup",
    "on_predict_start",
    "on_predict_batch_start",
    "probes",
    "on_sample_start",
    "on_denoise_step_start",
    "on_guidance_update",
    "on_row_stopped",
    "on_denoise_step_end",
    "on_sample_end",
    "on_predict_batch_end",
    "on_predict_end",
    "teardown",
)


class Diary(SamplingCallback):
    """Writes down every hook under its own name."""

    def __init__(self, name: str, pages: list[str]) -> None:
        for hook in HOOKS:
            setattr(self, hook, self._note(name, hook, pages))

    @staticmethod
    def _note(name: str, hook: str, pages: list[str]) -> Any:
        def note(*args: Any, **named: Any) -> tuple[()]:
            pages.append(f"{name} {hook}")
            return ()

        return note


class Stock(L.Callback):
    """Knows nothing of sampling."""

    ended = False

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ended = True


def test_hooks_come_in_the_documented_order(tmp_path: Path) -> None:
    pages: list[str] = []
    stock = Stock()
    trainer = make_trainer(tmp_path, callbacks=[Diary("a", pages), stock, Diary("b", pages)], device="cpu")
    trainer.predict(GuidanceModule(tiny.model()), datamodule=SampleDataModule([GUIDED, Sample("p", tiny.PROMPT, steps=1)], 1))
    step = ["on_denoise_step_start", "on_guidance_update", "on_denoise_step_end"]
    batch = ["on_predict_batch_start", "probes", "on_sample_start"], ["on_sample_end", "on_predict_batch_end"]
    expected = ["setup", "on_predict_start", *batch[0], *step, *step, *batch[1]]
    expected += [*batch[0], "on_denoise_step_start", "on_denoise_step_end", *batch[1], "on_predict_end", "teardown"]
    assert pages == [f"{name} {hook}" for hook in expected for name in "ab"]
    assert stock.ended


def test_pictures_are_those_of_the_bare_engine(tmp_path: Path) -> None:
    plain = Sample("p", tiny.PROMPT, steps=2, seed=1)
    bare = {result.sample.id: result for result in sample_rows(tiny.model(), [GUIDED, plain])}
    trainer = make_trainer(tmp_path, device="cpu")
    batches = trainer.predict(GuidanceModule(tiny.model()), datamodule=SampleDataModule([GUIDED, plain]))
    found = {result.sample.id: result for batch in batches or [] for result in batch}
    assert set(found) == {"g", "p"}
    for id, result in found.items():
        assert torch.equal(result.latents, bare[id].latents), id
    assert found["g"].cost.unet_backwards == 2


def test_inference_mode_is_refused_by_name(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, device="cpu", inference_mode=True)
    with pytest.raises(RuntimeError, match=r"Trainer\(inference_mode=False\)"):
        trainer.predict(GuidanceModule(tiny.model()), datamodule=SampleDataModule([GUIDED]))


def test_a_pipeline_of_the_user_stays_as_it_was(tmp_path: Path) -> None:
    adapter = tiny.model()
    before = {name: (network, network.training) for name, network in adapter.networks.items()}
    module = GuidanceModule(adapter)
    make_trainer(tmp_path, device="cpu").predict(module, datamodule=SampleDataModule([GUIDED]))
    assert list(module.parameters()) == []
    assert adapter.device == torch.device("cpu")
    for name, network in adapter.networks.items():
        assert (network, network.training) == before[name]
        assert all(parameter.requires_grad for parameter in network.parameters())


def test_networks_are_submodules_during_the_run(tmp_path: Path) -> None:
    class Look(L.Callback):
        count = 0

        def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.count = sum(1 for _ in pl_module.parameters())

    look = Look()
    make_trainer(tmp_path, callbacks=[look], device="cpu").predict(
        GuidanceModule(tiny.model()), datamodule=SampleDataModule([GUIDED])
    )
    assert look.count == sum(1 for network in tiny.model().networks.values() for _ in network.parameters())


def test_a_model_by_name_is_loaded_when_the_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    tiny.pipeline().save_pretrained(folder)
    module = GuidanceModule(str(folder), dtype="bf16")
    with pytest.raises(RuntimeError, match="loaded when a run begins"):
        module.adapter  # noqa: B018
    make_trainer(tmp_path, device="cpu").predict(module, datamodule=SampleDataModule([Sample("p", tiny.PROMPT, steps=1)]))
    assert module.adapter.dtype == torch.bfloat16


def test_trainer_takes_overrides_and_refuses_devices(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, device="cpu", limit_predict_batches=1)
    assert trainer.default_root_dir == str(tmp_path) and trainer.loggers == [] and trainer.limit_predict_batches == 1
    with pytest.raises(ValueError, match="Unknown device 'gpu'"):
        make_trainer(tmp_path, device="gpu")


def test_a_pipeline_needs_its_adapter() -> None:
    with pytest.raises(
        ValueError, match=r"model must be an adapter, which .*adapt\(pipeline\) makes; got StableDiffusionPipeline"
    ):
        GuidanceModule(tiny.shared_pipeline())  # type: ignore[arg-type]
