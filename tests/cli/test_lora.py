"""``--lora``: loaded with the model, kept in the configuration, and compared when a run goes on."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.models.lora_files import save_lora

from .conftest import Command


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora(tiny.shared_pipeline(), tmp_path_factory.mktemp("lora"))


def test_a_lora_changes_pictures_and_is_kept(attnguide: Command, tiny_folder: Path, lora: Path) -> None:
    shutil.copy(lora, "style.safetensors")
    words = [tiny.PROMPT, "--steps", "1", "--no-maps", "--no-norms", "--logger", "none", "--model", str(tiny_folder)]
    assert attnguide("sample", *words, "--out", "plain").status == 0
    made = attnguide("sample", *words, "--lora", "style.safetensors:0.8", "--out", "run")
    assert made.status == 0, made.err
    assert made.err.count("\n") == 1, "a line for the row"
    before, after = (next(Path(run, "samples").glob("*.png")).read_bytes() for run in ("plain", "run"))
    assert before != after
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    name = f"{Path('style.safetensors').absolute()}:0.8"
    assert config["lora"] == [name]
    assert list(config["made_with"]["model"]["loras"]) == [name]
    again = attnguide("sample", "--config", "run/config.yaml", "--out", "again")
    assert again.status == 0, again.err
    assert next(Path("again", "samples").glob("*.png")).read_bytes() == after
    save_lora(tiny.shared_pipeline(), Path("other"), seed=1).rename("style.safetensors")
    next(Path("run", "samples").glob("*.png")).unlink()
    assert "made with a model of loras" in attnguide("sample", "--resume", "--out", "run").err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("missing.safetensors", "lora: missing.safetensors: expected a .safetensors file"),
        ("missing.safetensors:0.5", "lora: missing.safetensors: expected a .safetensors file"),
        ("other.safetensors", "holds no LoRA"),
    ],
)
def test_what_is_no_lora_is_refused_before_a_model_is_loaded(
    attnguide: Command, tiny_folder: Path, text: str, said: str
) -> None:
    shutil.copy(tiny_folder / "vae" / "diffusion_pytorch_model.safetensors", "other.safetensors")
    found = attnguide("sample", "a cat", "--model", "nowhere", "--lora", text, "--out", "run")
    assert found.status == 2
    assert found.err.count("\n") == 1 and said in found.err
    assert not Path("run").exists()


def test_a_lora_of_another_model_is_refused(attnguide: Command, lora: Path) -> None:
    found = attnguide("sample", "a red circle", "--lora", str(lora), "--out", "run")
    assert found.status == 2
    assert found.err.startswith("error: lora: ") and found.err.count("\n") == 1
