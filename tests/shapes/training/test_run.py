"""The training command from nothing to a pipeline, with a real trainer and a handful of steps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from attnguide.models.load import load_model
from attnguide.shapes.training import run
from attnguide.shapes.training.autoencoder import AutoencoderModule
from attnguide.shapes.training.diffusion import DiffusionModule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # Lightning's advice


def _train(out: Path, *arguments: object) -> None:
    common = ["--out", out, "--scenes", 8, "--batch-size", 4, "--precision", "32-true", "--checkpoint-every", 1]
    run.main([str(word) for word in [*common, *arguments]])


def _checkpoint(out: Path, stage: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(out / stage / "last.ckpt", weights_only=True)
    return loaded


def _count_steps(monkeypatch: pytest.MonkeyPatch, module: type) -> list[int]:
    """The global step at every training step from now on."""
    steps: list[int] = []
    original = module.training_step  # type: ignore[attr-defined]

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        steps.append(self.global_step)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(module, "training_step", training_step)
    return steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages and the export, two steps each."""
    out = tmp_path_factory.mktemp("shapes")
    _train(out, "--autoencoder-steps", 2, "--diffusion-steps", 2)
    return out


def test_both_stages_leave_a_pipeline(trained: Path) -> None:
    assert _checkpoint(trained, "autoencoder")["global_step"] == 2
    assert _checkpoint(trained, "diffusion")["global_step"] == 2
    assert isinstance(AutoencoderKL.from_pretrained(trained / "vae"), AutoencoderKL)
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "pipeline")
    state = _checkpoint(trained, "diffusion")["state_dict"]
    weight = pipeline.unet.conv_in.weight
    assert torch.equal(weight, state["unet.conv_in.weight"].half().to(weight.dtype))
    assert load_model(str(trained / "pipeline")).default_size == (128, 128)


def test_the_pipeline_names_no_path_of_the_machine(trained: Path) -> None:
    files = [path for path in (trained / "pipeline").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}
    for path in files:
        content = path.read_bytes()
        assert str(trained).encode() not in content and str(Path.home()).encode() not in content, path
        assert b"_name_or_path" not in content, path


def test_more_steps_go_on_from_the_last_checkpoint(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vae", "diffusion"):
        shutil.copytree(trained / name, tmp_path / name)
    shutil.copy(trained / "latents.safetensors", tmp_path)
    steps = _count_steps(monkeypatch, DiffusionModule)
    first = _count_steps(monkeypatch, AutoencoderModule)
    _train(tmp_path, "--autoencoder-steps", 2, "--diffusion-steps", 4, "--export", tmp_path / "longer")
    assert steps == [2, 3] and first == []  # the autoencoder is done
    assert _checkpoint(tmp_path, "diffusion")["global_step"] == 4
    assert (tmp_path / "longer" / "model_index.json").exists()


def test_a_training_can_begin_from_a_pipeline(trained: Path, tmp_path: Path) -> None:
    source = trained / "pipeline"
    _train(tmp_path, "--start-from", source, "--diffusion-steps", 1, "--lr", 0.0)  # one step that moves nothing
    begun, before = (StableDiffusionPipeline.from_pretrained(folder) for folder in (tmp_path / "pipeline", source))
    for name in ("unet", "text_encoder", "vae"):
        old = getattr(before, name).state_dict()
        assert all(torch.equal(weight, old[key]) for key, weight in getattr(begun, name).state_dict().items()), name


def test_a_stage_out_of_time_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = ("--stage", "autoencoder", "--autoencoder-steps", 3)
    with pytest.raises(SystemExit, match="run the same command again"):
        _train(tmp_path, *autoencoder, "--max-time", "00:00:00:00")
    original = AutoencoderModule.training_step

    def last_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.trainer.should_stop = True  # what the timer does
        return original(self, batch, batch_idx)

    with monkeypatch.context() as early, pytest.raises(SystemExit, match="run the same command again"):
        early.setattr(AutoencoderModule, "training_step", last_step)
        _train(tmp_path, *autoencoder)
    assert _checkpoint(tmp_path, "autoencoder")["global_step"] == 1 and not (tmp_path / "vae").exists()
    steps = _count_steps(monkeypatch, AutoencoderModule)
    _train(tmp_path, *autoencoder)
    assert steps == [1, 2] and (tmp_path / "vae").exists()


def test_export_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no checkpoint in"):
        run.main(["--stage", "export", "--out", str(tmp_path)])
