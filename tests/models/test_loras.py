"""LoRAs: as diffusers runs them, and refused in one line where they are none or of another model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import attnguide
from attnguide.models.loras import Lora, LoraError, check_lora, load_loras, read_lora
from tests import tiny

from .lora_files import save_lora

NAME = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("loras")
    first = save_lora(tiny.shared_pipeline(), folder / "first", text=True)
    return first, save_lora(tiny.shared_pipeline(), folder / "second", seed=1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.pipeline().save_pretrained(folder)
    return folder


def test_pictures_are_those_of_diffusers(files: tuple[Path, Path], model_folder: Path) -> None:
    held = tiny.pipeline()
    for name, file in zip("ab", files, strict=True):
        held.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    held.set_adapters(["a", "b"], [0.5, -1.5])
    expected = held(
        tiny.PROMPT, num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(0), output_type="latent"
    ).images[0]
    # A file with a weight in its name, and a folder with one beside it.
    model = attnguide.load_model(model_folder, loras=[f"{files[0]}:0.5", (str(files[1].parent), -1.5)])
    (found,) = attnguide.sample(tiny.PROMPT, model=model, steps=3)
    assert found.latents is not None
    assert torch.equal(found.latents, expected)
    plain = attnguide.sample(tiny.PROMPT, model=tiny.model(), steps=3)[0].latents
    assert plain is not None and not torch.allclose(found.latents, plain, atol=1e-2)


def test_methods_steer_through_a_lora(files: tuple[Path, Path]) -> None:
    held = tiny.pipeline()
    load_loras(held, [Lora(str(files[0]), 0.5)])
    regions = {"red cat": (0, 0, 0.5, 1)}
    plain, steered = attnguide.sample(tiny.PROMPT, regions=regions, model=held, steps=2, plain=True)
    assert steered.status == "ok"
    assert plain.latents is not None and steered.latents is not None
    assert not torch.equal(plain.latents, steered.latents)


@pytest.mark.parametrize(
    ("text", "source", "weight"),
    [("a/b", "a/b", 1.0), ("a/b:0.5", "a/b", 0.5), ("a/b:-1e-1", "a/b", -0.1), ("C:\\x.safetensors", "C:\\x.safetensors", 1.0)],
)
def test_a_text_names_source_and_weight(text: str, source: str, weight: float) -> None:
    assert read_lora(text) == Lora(source, weight)
    assert read_lora(str(read_lora(text))) == Lora(source, weight)


def test_what_is_local_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.safetensors").touch()
    assert read_lora("a.safetensors:2") == Lora(str(tmp_path / "a.safetensors"), 2.0)


@pytest.mark.parametrize("value", [3, ("a/b", "x"), "", ("a/b", float("nan"))], ids=["number", "text", "nothing", "nan"])
def test_what_names_no_lora_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_lora(value)


def _write(path: Path, kind: str, first: Path) -> None:
    state = load_file(first)
    if kind == "other names":
        state = {name.replace("lora", "x"): value for name, value in state.items()}
    elif kind == "layers":
        state = {name.replace("up_blocks.1", "up_blocks.7"): value for name, value in state.items()}
    elif kind == "another network":
        state = {name.replace("unet", "transformer").replace("text_encoder", "x"): value for name, value in state.items()}
    elif kind == "sizes":
        state = {name: value[:-1].contiguous() if "lora_B" in name else value for name, value in state.items()}
    if kind == "garbage":
        path.write_bytes(b"no tensors")
    else:
        save_file(state, path)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("garbage", "cannot be read as .safetensors"),
        ("other names", "holds no LoRA: none of its 58 tensors"),
        ("layers", r"weights for 8 layers that StableDiffusionPipeline lacks, such as 'unet.up_blocks.7"),
        ("another network", "weights for 29 layers that StableDiffusionPipeline lacks"),
        ("sizes", "cannot be loaded into StableDiffusionPipeline: size mismatch for"),
    ],
)
def test_a_file_of_something_else_is_refused(
    kind: str, said: str, files: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / NAME, kind, files[0])
    with pytest.raises(LoraError, match=said) as caught:
        load_loras(tiny.pipeline(), [Lora(str(tmp_path))])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("missing.safetensors", "there is none"),
        ("./missing", "there is none"),
        ("owner/name/file.bin", "pickled"),
        (str(Path(__file__)), "pickled"),
        (str(Path(__file__).parent), "one .safetensors file; it has none"),
    ],
    ids=["missing file", "missing folder", "pickled of a hub id", "no weights", "no weights in the folder"],
)
def test_a_source_that_cannot_be_read_is_refused(source: str, said: str) -> None:
    with pytest.raises(LoraError, match=said):
        check_lora(Lora(source))


def test_a_missing_package_is_told_before_anything_is_loaded(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LoraError, match=r"pip install 'attnguide\[lora\]'"):
        attnguide.load_model(loras=[str(files[0])])


def test_a_pipeline_that_takes_none_says_so(files: tuple[Path, Path]) -> None:
    with pytest.raises(LoraError, match="object takes no LoRA"):
        load_loras(object(), [Lora(str(files[0]))])
