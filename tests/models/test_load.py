from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from attnguide.models.load import ModelNotFoundError, load_model, resolve_device, resolve_dtype
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny.shared_pipeline().save_pretrained(path)
    return path


def test_a_saved_folder_is_the_same_model(folder: Path) -> None:
    model = load_model(str(folder), device="cpu")
    assert model.name == str(folder) and model.dtype == torch.float32
    before, after = (m.networks["unet"].state_dict() for m in (tiny.model(), model))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert model.tokenize(tiny.PROMPT) == tiny.model().tokenize(tiny.PROMPT)


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_precision(folder: Path, name: str, dtype: torch.dtype) -> None:
    assert load_model(str(folder), device="cpu", dtype=name).dtype == dtype


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model.safetensors", "model.ckpt", "just-a-name"])
def test_missing_file_or_folder(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="not found: no such file or folder, and not a hub id"):
        load_model(name, device="cpu")


def test_hub_out_of_reach_says_what_to_do() -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"could not be loaded: .*; offline, give a local folder in diffusers format"
    ) as error:
        load_model("nobody/nothing", device="cpu")
    assert "\n" not in str(error.value)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"could not be loaded"):
        load_model(str(tmp_path), device="cpu")


def test_pickled_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"must be a \.safetensors file; pickled checkpoints are not read"):
        load_model(str(path), device="cpu")


@pytest.mark.parametrize("weights", [None, {"something": torch.zeros(2)}])
def test_a_single_file_that_is_no_checkpoint(tmp_path: Path, weights: dict[str, torch.Tensor] | None) -> None:
    path = tmp_path / "model.safetensors"
    if weights is None:
        path.write_bytes(b"not weights")
    else:
        save_file(weights, path)
    with pytest.raises(
        ModelNotFoundError, match=r"Model file '.*model.safetensors' could not be loaded: .*offline, give a local folder"
    ) as error:
        load_model(str(path), device="cpu")
    assert "\n" not in str(error.value)


def test_names_of_devices_and_precisions() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_dtype(None, torch.device("cpu")) == torch.float32
    assert resolve_dtype(None, torch.device("cuda")) == torch.float16
    with pytest.raises(ValueError, match="Unknown device 'gpu'; choose from cpu, cuda, cuda:N, mps"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="Unknown dtype 'fp8'; choose from fp32, fp16, bf16"):
        resolve_dtype("fp8", torch.device("cpu"))
