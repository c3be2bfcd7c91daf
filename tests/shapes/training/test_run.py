"""The training command from nothing to pipelines, with a real trainer and a handful of steps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, StableDiffusionPipeline

from attnguide.models.load import load_model
from attnguide.sampling.table import sample_rows
from attnguide.shapes.renderer import SIDE
from attnguide.shapes.training import flow, run, store
from attnguide.shapes.training import preview as preview_module
from attnguide.shapes.training.architecture import build_tokenizer
from attnguide.shapes.training.autoencoder import AutoencoderModule
from attnguide.shapes.training.diffusion import DiffusionModule
from attnguide.shapes.training.flow import FlowModule
from attnguide.shapes.training.mmdit import TEXT_TOKENS, build_transformer
from attnguide.shapes.training.preview import draw_flux
from attnguide.types import Sample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # Lightning's advice


@pytest.fixture(autouse=True, scope="module")
def _small() -> Any:
    """Few pictures where many are only slower, a small transformer, and one tokenizer for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "STANDARD", 8)
        patch.setattr(run, "build_tokenizer", cache(build_tokenizer))
        patch.setattr(store, "CHUNK", 8)
        patch.setattr(flow, "build_transformer", lambda *size: build_transformer(heads=1, dual=1, single=2))
        yield


SHORT = 1e-6
"""Minutes that are over before the first step, which is the only one then."""


def _train(out: Path, *arguments: object) -> None:
    common = ["--out", out, "--scenes", 8, "--batch-size", 4, "--device", "cpu"]
    run.main([str(word) for word in [*common, *arguments]])


def _checkpoint(out: Path, stage: str, name: str = "last") -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(out / stage / f"{name}.ckpt", weights_only=True)
    return loaded


def _count_steps(monkeypatch: pytest.MonkeyPatch, module: type, end: Any = lambda module: None) -> list[int]:
    """The global step at every training step from now on; ``end`` is called before each."""
    steps: list[int] = []
    original = module.training_step  # type: ignore[attr-defined]

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        steps.append(self.global_step)
        end(self)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(module, "training_step", training_step)
    return steps


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both stages of the UNet model and the mmdit, two steps each, and their export."""
    out = tmp_path_factory.mktemp("shapes")
    _train(out, "--autoencoder-steps", 2, "--diffusion-steps", 2)
    _train(out, "--stage", "mmdit", "--mmdit-steps", 2)
    return out


@pytest.fixture
def resumed(trained: Path, tmp_path: Path) -> Path:
    """A copy of that training to go on with."""
    for name in ("vae", "diffusion", "mmdit", "scenes"):
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


def test_both_stages_leave_a_pipeline(trained: Path) -> None:
    assert _checkpoint(trained, "autoencoder")["global_step"] == 2
    assert _checkpoint(trained, "diffusion")["global_step"] == 2
    assert isinstance(AutoencoderKL.from_pretrained(trained / "vae"), AutoencoderKL)
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "pipeline")
    state = _checkpoint(trained, "diffusion")["state_dict"]
    weight = pipeline.unet.conv_in.weight
    assert torch.equal(weight, state["unet.conv_in.weight"].half().to(weight.dtype))
    assert load_model(str(trained / "pipeline")).default_size == (128, 128)


def test_the_mmdit_opens_as_flux_and_draws(trained: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(trained / "pipeline-mmdit", torch_dtype=torch.float32)
    state = _checkpoint(trained, "mmdit")["state_dict"]
    assert torch.equal(pipeline.transformer.proj_out.weight, state["transformer.proj_out.weight"].half().float())
    assert torch.equal(pipeline.text_encoder_2.shared.weight, state["t5.shared.weight"].half().float())
    embedded = StableDiffusionPipeline.from_pretrained(run.EMBEDDED, torch_dtype=torch.float32)
    with torch.no_grad():
        ids = torch.tensor([embedded.tokenizer("a red circle", padding="max_length").input_ids])
        theirs, ours = embedded.text_encoder(ids).pooler_output, pipeline.text_encoder(ids).pooler_output
    assert torch.equal(theirs, ours)
    first, second = draw_flux(pipeline, ["a red circle", "a blue square"], [0, 1], steps=2)
    assert first.size == second.size == (SIDE, SIDE) and first.tobytes() != second.tobytes()


def test_the_mmdit_is_a_model_with_the_length_and_size_of_its_training(trained: Path) -> None:
    model = load_model(str(trained / "pipeline-mmdit"), device="cpu")
    assert model.default_size == (SIDE, SIDE) and len(model.tokenize("a red circle").tokens) == TEXT_TOKENS
    row = Sample("a", "a red circle", seed=3, steps=2, true_cfg_scale=2.0, negative_prompt="")
    (result,) = sample_rows(model, [row])
    (theirs,) = draw_flux(model.pipeline, [row.prompt], [3], steps=2, guidance=2.0)
    assert result.image is not None
    difference = np.abs(np.asarray(result.image, dtype=int) - np.asarray(theirs, dtype=int))
    assert difference.max() <= 1


@pytest.mark.parametrize("folder", ["pipeline", "pipeline-mmdit"])
def test_the_pipelines_name_no_path_of_the_machine(trained: Path, folder: str) -> None:
    files = [path for path in (trained / folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}
    for path in files:
        content = path.read_bytes()
        assert str(trained).encode() not in content and str(Path.home()).encode() not in content, path
        assert b"_name_or_path" not in content, path


def test_more_steps_go_on_from_the_last_checkpoint(resumed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, others = _count_steps(monkeypatch, DiffusionModule), _count_steps(monkeypatch, FlowModule)
    first = _count_steps(monkeypatch, AutoencoderModule)
    _train(resumed, "--autoencoder-steps", 2, "--diffusion-steps", 4, "--export", resumed / "longer")
    assert steps == [2, 3] and first == others == []  # the autoencoder is done
    assert _checkpoint(resumed, "diffusion")["global_step"] == 4
    assert (resumed / "longer" / "pipeline" / "model_index.json").exists()


def test_sigterm_leaves_a_state_that_a_later_call_goes_on_from(resumed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(module: Any) -> None:
        if module.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        assert _count_steps(patch, FlowModule, terminated) is not None
        _train(resumed, "--stage", "mmdit", "--minutes", 60)
    state = _checkpoint(resumed, "mmdit")
    assert state["global_step"] == 4 and signal.getsignal(signal.SIGTERM) == before
    kept = state["current_model_state"]["transformer.proj_out.weight"]
    assert not torch.equal(kept, state["state_dict"]["transformer.proj_out.weight"])  # its average
    begun: list[torch.Tensor] = []
    steps = _count_steps(
        monkeypatch, FlowModule, lambda module: begun.append(module.transformer.proj_out.weight.detach().clone())
    )
    _train(resumed, "--stage", "mmdit", "--mmdit-steps", 5)
    assert steps == [4] and torch.equal(begun[0], kept)


def test_time_ends_a_stage(resumed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = _count_steps(monkeypatch, FlowModule)
    _train(resumed, "--stage", "mmdit", "--minutes", SHORT)
    assert steps == [2] and _checkpoint(resumed, "mmdit")["global_step"] == 3


def test_a_finished_training_can_still_go_on(resumed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate falls to 0 within the minutes; the state before that stays, and the export takes what is newer."""
    old = _checkpoint(resumed, "mmdit")["state_dict"]
    _train(resumed, "--stage", "mmdit", "--minutes", SHORT, "--finish")
    finished = _checkpoint(resumed, "mmdit", "finished")
    assert finished["global_step"] == 3 and _checkpoint(resumed, "mmdit")["global_step"] == 2
    assert finished["optimizer_states"][0]["param_groups"][0]["lr"] == 0.0
    transformer = FluxPipeline.from_pretrained(resumed / "pipeline-mmdit").transformer
    name = "time_text_embed.text_embedder.linear_1.weight"
    assert not torch.equal(finished["state_dict"][f"transformer.{name}"], old[f"transformer.{name}"])
    assert torch.equal(transformer.state_dict()[name].float(), finished["state_dict"][f"transformer.{name}"].half().float())
    steps = _count_steps(monkeypatch, FlowModule)
    _train(resumed, "--stage", "mmdit", "--mmdit-steps", 3)
    assert steps == [2]


@pytest.mark.parametrize(
    ("stage", "module", "weight", "finish"),
    [
        ("mmdit", FlowModule, "transformer.proj_out.weight", []),
        ("diffusion", DiffusionModule, "unet.conv_in.weight", ["--finish"]),
    ],
    ids=["mmdit-held", "diffusion-finished"],
)
def test_a_training_of_finishing_calls_alone_goes_on_from_what_they_left(
    resumed: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: str,
    module: Any,
    weight: str,
    finish: list[str],
) -> None:
    """Also beside ``--start-from``, whose weights are for a new training alone."""
    (resumed / stage / "last.ckpt").rename(resumed / stage / "finished.ckpt")
    left = _checkpoint(resumed, stage, "finished")["current_model_state"][weight]
    begun: list[torch.Tensor] = []
    steps = _count_steps(monkeypatch, module, lambda one: begun.append(one.get_parameter(weight).detach().clone()))
    with caplog.at_level("INFO", run.__name__):
        _train(resumed, "--stage", stage, "--minutes", SHORT, "--start-from", run.EMBEDDED, *finish)
    assert steps == [2] and torch.equal(begun[0], left)
    assert f"{stage}: goes on from {resumed / stage / 'finished.ckpt'}, step 2" in caplog.messages
    assert _checkpoint(resumed, stage, "finished" if finish else "last")["global_step"] == 3


def test_two_processes_train_one_network(resumed: Path) -> None:
    """As a command, since the second process is started with the first one's line."""
    words = ["--out", resumed, "--scenes", 8, "--batch-size", 4, "--device", "cpu", "--stage", "mmdit", "--mmdit-steps", 4]
    line = [sys.executable, Path("scripts/train_shapes.py"), *words, "--processes", 2, "--preview-every", 3]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert _checkpoint(resumed, "mmdit")["global_step"] == 4 and done.stderr.count("pipeline: ") == 1
    assert FluxPipeline.from_pretrained(resumed / "pipeline-mmdit").transformer.num_parameters() < 1_000_000
    assert len(list((resumed / "previews-mmdit").iterdir())) == 1 and not list(resumed.rglob("*.part"))


def test_previews_are_drawn_and_judged(resumed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def preview(pipeline: Any, seeds: list[int], path: Path) -> dict[str, float]:
        asked.append(len(seeds))
        assert isinstance(pipeline, FluxPipeline) and path == resumed / "previews-mmdit" / "000003.png"
        return {"preview/single": 0.5}

    monkeypatch.setattr(preview_module, "preview", preview)
    _train(resumed, "--stage", "mmdit", "--mmdit-steps", 3, "--preview-every", 1)
    assert asked == [24]
    logged = "".join(path.read_text() for path in resumed.glob("log-mmdit/*/metrics.csv"))
    assert "preview/single" in logged


def test_a_training_can_begin_from_a_pipeline(trained: Path, tmp_path: Path) -> None:
    source = trained / "pipeline"
    _train(tmp_path, "--start-from", source, "--diffusion-steps", 1, "--lr", 1e-30)  # one step that moves nothing
    begun, before = (StableDiffusionPipeline.from_pretrained(folder) for folder in (tmp_path / "pipeline", source))
    for name in ("unet", "text_encoder", "vae"):
        old = getattr(before, name).state_dict()
        assert all(torch.equal(weight, old[key]) for key, weight in getattr(begun, name).state_dict().items()), name


def test_the_mmdit_can_begin_from_a_pipeline(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is that of the folder, whatever size was asked for; the same holds of a checkpoint."""
    sizes: list[tuple[int, ...]] = []
    monkeypatch.setattr(flow, "build_transformer", lambda *size: (sizes.append(size), build_transformer(*size))[1])
    source = trained / "pipeline-mmdit"
    _train(tmp_path, "--stage", "mmdit", "--start-from", source, "--mmdit-steps", 1, "--lr", 1e-30, "--size", "large")
    assert sizes == [(1, 1, 2), (1, 1, 2)]  # trained and exported
    begun, before = (FluxPipeline.from_pretrained(folder) for folder in (tmp_path / "pipeline-mmdit", source))
    for name in ("transformer", "text_encoder_2", "text_encoder", "vae"):
        old = getattr(before, name).state_dict()
        assert all(torch.equal(weight, old[key]) for key, weight in getattr(begun, name).state_dict().items()), name


def test_what_a_graphics_card_is_given_runs_here_too(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision, scenes drawn by another process; previews are drawn in float32."""
    seen: list[bool] = []
    monkeypatch.setattr(preview_module, "preview", lambda *_: seen.append(torch.is_autocast_enabled("cpu")) or {})
    shutil.copytree(trained / "vae", tmp_path / "vae")
    card = ("--precision", "bf16-mixed", "--workers", 1, "--preview-every", 1)
    _train(tmp_path, "--stage", "mmdit", "--mmdit-steps", 1, *card)
    assert seen == [False]
    assert {weight.dtype for weight in _checkpoint(tmp_path, "mmdit")["state_dict"].values()} == {torch.float32}
    theirs, ours = (store.load(folder / "scenes") for folder in (trained, tmp_path))
    assert all(torch.equal(theirs[name], values) for name, values in ours.items())


def test_an_autoencoder_out_of_time_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = ("--stage", "autoencoder", "--autoencoder-steps", 3)
    with pytest.raises(SystemExit, match="run the same command again"):
        _train(tmp_path, *autoencoder, "--minutes", SHORT)
    assert _checkpoint(tmp_path, "autoencoder")["global_step"] == 1 and not (tmp_path / "vae").exists()
    steps = _count_steps(monkeypatch, AutoencoderModule)
    with pytest.raises(SystemExit, match="run the same command again"):
        _train(tmp_path, *autoencoder, "--minutes", SHORT, "--finish")  # its rate falls by steps in any call
    assert _checkpoint(tmp_path, "autoencoder")["global_step"] == 2
    _train(tmp_path, *autoencoder)
    assert steps == [1, 2] and (tmp_path / "vae").exists()


def test_scenes_can_be_prepared_alone(tmp_path: Path) -> None:
    _train(tmp_path, "--stage", "scenes", "--scenes", 9)
    assert len(list((tmp_path / "scenes").iterdir())) == 2
    embedded, taken = (AutoencoderKL.from_pretrained(folder / "vae").state_dict() for folder in (run.EMBEDDED, tmp_path))
    assert all(torch.equal(taken[name].float(), weight.float()) for name, weight in embedded.items())


def test_export_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no checkpoint in"):
        run.main(["--stage", "export", "--out", str(tmp_path)])
