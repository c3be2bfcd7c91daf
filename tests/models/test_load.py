import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attnguide.models.folder import UnsupportedModelError, _weights
from attnguide.models.load import ModelNotFoundError, load_model, resolve_device, resolve_dtype
from tests import tiny
from tests.models import families, ldm


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


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model.safetensors", "model.ckpt", "models/sd.pt", "just-a-name"])
def test_missing_file_or_folder(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="not found: no such file or folder, and not a hub id"):
        load_model(name, device="cpu")


def test_a_name_longer_than_a_file_may_have() -> None:
    with pytest.raises(ModelNotFoundError, match="a name of 300 characters is no file's"):
        load_model("x" * 300)


def test_hub_out_of_reach_says_what_to_do() -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"could not be loaded: .*; offline, give a local folder in diffusers format"
    ) as error:
        load_model("nobody/nothing", device="cpu")
    assert "\n" not in str(error.value)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"could not be loaded"):
        load_model(str(tmp_path), device="cpu")


@pytest.fixture(scope="module")
def configuration(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder without its weights."""
    path = tmp_path_factory.mktemp("configuration") / "tiny"
    return Path(shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as one file of the original layout."""
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_file(ldm.checkpoint(tiny.shared_pipeline()), path)
    return path


def test_a_single_file_is_the_same_model(single: Path, configuration: Path) -> None:
    model = load_model(str(single), device="cpu", config=str(configuration))
    assert model.name == str(single) and model.dtype == torch.float32
    assert model.networks.keys() == tiny.model().networks.keys()
    for part, network in tiny.model().networks.items():
        before, after = network.state_dict(), model.networks[part].state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before), part
    assert model.tokenize(tiny.PROMPT) == tiny.model().tokenize(tiny.PROMPT)
    assert load_model(str(single), device="cpu", dtype="bf16", config=str(configuration)).dtype == torch.bfloat16


def test_a_single_file_without_a_configuration_says_what_to_do(single: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"tiny.safetensors' could not be loaded: .*--model-config, or config="
    ) as error:
        load_model(str(single), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kept", "lacks"), [("model.diffusion_model.", "cond_stage_model."), ("model.", "first_stage_model.")])
def test_what_a_single_file_lacks_is_not_taken_from_elsewhere(
    tmp_path: Path, single: Path, folder: Path, kept: str, lacks: str
) -> None:
    """Not even from the configuration's folder, where it might be pickled."""
    weights = {name: value for name, value in load_file(single).items() if not name.startswith(lacks)}
    assert any(name.startswith(kept) for name in weights)
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"part.safetensors' could not be loaded: .*with the configuration in"):
        load_model(str(tmp_path / "part.safetensors"), device="cpu", config=str(folder))


def test_a_single_file_with_gaps(tmp_path: Path, single: Path, configuration: Path) -> None:
    weights = load_file(single)
    del weights["model.diffusion_model.out.2.bias"]
    save_file(weights, tmp_path / "gap.safetensors")
    with pytest.raises(
        ModelNotFoundError, match=r"could not be loaded: it lacks some of the weights that its configuration asks for"
    ):
        load_model(str(tmp_path / "gap.safetensors"), device="cpu", config=str(configuration))


def test_a_configuration_of_another_model(tmp_path: Path, single: Path, configuration: Path) -> None:
    other = shutil.copytree(configuration, tmp_path / "other")
    written = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps({**written, "cross_attention_dim": 24}))
    with pytest.raises(ModelNotFoundError, match=r"could not be loaded: .*with the configuration in '.*other'\)$") as error:
        load_model(str(single), device="cpu", config=str(other))
    assert "\n" not in str(error.value)


def test_a_configuration_must_be_one_and_is_for_single_files(tmp_path: Path, single: Path, folder: Path) -> None:
    for wrong in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ModelNotFoundError, match=r"config must be a folder in diffusers format, with a model_index.json"):
            load_model(str(single), device="cpu", config=str(wrong))
    with pytest.raises(ValueError, match=r"config is for a single .safetensors file; got '.*' for the model '.*'"):
        load_model(str(folder), device="cpu", config=str(folder))


class _Trap:
    """Whoever unpickles this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickled_weights_in_a_folder_are_refused(folder: Path, tmp_path: Path, part: str) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    (weights,) = (copied / part).glob("*.safetensors")
    weights.unlink()
    torch.save(
        _Trap(tmp_path / "sprung"), weights.with_name({"unet": "diffusion_pytorch_model.bin"}.get(part, "pytorch_model.bin"))
    )
    with pytest.raises(ModelNotFoundError, match=r"could not be loaded"):
        load_model(str(copied), device="cpu")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickled_checkpoint_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save(_Trap(tmp_path / "sprung"), path)
    with pytest.raises(ModelNotFoundError, match=r"must be a \.safetensors file; pickled checkpoints are not read"):
        load_model(str(path), device="cpu")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("weights", [None, {"something": torch.zeros(2)}])
def test_a_single_file_that_is_no_checkpoint(tmp_path: Path, weights: dict[str, torch.Tensor] | None) -> None:
    path = tmp_path / "model.safetensors"
    if weights is None:
        path.write_bytes(b"not weights")
    else:
        save_file(weights, path)
    with pytest.raises(
        ModelNotFoundError, match=r"Model file '.*model.safetensors' could not be loaded: .*offline, give a folder with it"
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


# ------------------------------------------------------------------------------------------------------------ broken folders


def _copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def _refused(path: Path, **options: str) -> str:
    with pytest.raises(ModelNotFoundError) as error:
        load_model(str(path), device="cpu", **options)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"Model {str(path)!r} could not be loaded: ")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model_index.json", "{}", "model_index.json is empty"),
        ("model_index.json", "not JSON", "model_index.json cannot be read"),
        ("model_index.json", '{"a": 1}', "does not say which pipeline"),
        ("model_index.json", "[" * 100_000, "model_index.json cannot be read"),
        ("unet/config.json", "{}", "unet/config.json is empty"),
        ("unet/config.json", "[1]", "unet/config.json is empty; expected a JSON object with settings"),
        ("text_encoder/config.json", "\x00", "text_encoder/config.json cannot be read"),
        ("scheduler/scheduler_config.json", "", "scheduler/scheduler_config.json cannot be read"),
        ("tokenizer/tokenizer.json", "{}", "tokenizer/tokenizer.json is empty"),
        ("text_encoder/model.safetensors", "", "text_encoder/model.safetensors is empty (0 bytes)"),
        ("vae/diffusion_pytorch_model.safetensors", "cut off", ""),
        ("tokenizer/tokenizer.json", '{"model": 1}', ""),
    ],
)
def test_a_broken_file_of_a_folder(folder: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    copied = _copied(folder, tmp_path)
    (copied / file).write_text(text)
    assert message in _refused(copied)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_of_a_folder(folder: Path, tmp_path: Path, part: str) -> None:
    copied = _copied(folder, tmp_path)
    shutil.rmtree(copied / part)
    assert _refused(copied) == f"the folder lacks its part '{part}'"


def test_a_safety_checker_that_is_named_but_missing(folder: Path, tmp_path: Path) -> None:
    copied = _copied(folder, tmp_path)
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "safety_checker": ["stable_diffusion", "X"]}))
    assert "to do without it, let its entry in model_index.json be [null, null]" in _refused(copied)


def test_pickled_weights_tell_the_way(folder: Path, tmp_path: Path) -> None:
    copied = _copied(folder, tmp_path)
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "pickled weights only (diffusion_pytorch_model.bin), which may run code and are not read; where" in _refused(copied)


def test_a_folder_of_another_family_is_refused_before_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    copied = _copied(folder, tmp_path)
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxFillPipeline"}))
    (copied / "unet" / "config.json").unlink()
    with pytest.raises(TypeError, match=r"No adapter for FluxFillPipeline; supported are StableDiffusionPipeline,"):
        load_model(str(copied), device="cpu")


def test_a_refusal_names_all_that_is_supported(folder: Path, tmp_path: Path) -> None:
    copied = _copied(folder, tmp_path)
    (copied / "model_index.json").write_text(json.dumps({"_class_name": "FluxFillPipeline"}))
    with pytest.raises(UnsupportedModelError, match=r"No adapter for FluxFillPipeline; .* and Flux2KleinPipeline\.$"):
        load_model(str(copied), device="cpu")


def test_lists_in_a_pipelines_index_may_be_settings(tmp_path: Path) -> None:
    families.build("krea2").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["text_encoder_select_layers"] == [1, 3]
    assert list(load_model(str(tmp_path), device="cpu").pipeline.config.text_encoder_select_layers) == [1, 3]


def test_weights_that_the_configuration_asks_for_and_the_folder_lacks(tmp_path: Path) -> None:
    families.build("flux_dev").save_pretrained(tmp_path)
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_layers": 7}))
    assert _refused(tmp_path) == "it lacks some of the weights that its configuration asks for"


def test_a_wrong_prediction_type_is_found_when_the_scheduler_is_made(folder: Path, tmp_path: Path) -> None:
    copied = _copied(folder, tmp_path)
    path = copied / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "nonsense"}))
    with pytest.raises(ValueError, match="prediction_type of DDIMScheduler must be one of epsilon, v_prediction, sample; got"):
        load_model(str(copied), device="cpu").make_scheduler(None, 4)


def _renamed(folder: Path, *variants: str, parts: tuple[str, ...] = ("unet", "vae", "text_encoder")) -> None:
    for part in parts:
        (weights,) = (folder / part).glob("*.safetensors")
        for variant in variants:
            shutil.copyfile(weights, weights.with_suffix(f".{variant}.safetensors"))
        weights.unlink()


def test_variants_are_found_by_themselves_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    for parts in (("unet", "vae", "text_encoder"), ("unet",)):
        copied = _copied(folder, tmp_path)
        _renamed(copied, "fp16", parts=parts)
        model = load_model(str(copied), device="cpu")
        assert torch.equal(next(model.networks["unet"].parameters()), next(tiny.model().networks["unet"].parameters()))
        assert "fp16" in _refused(copied, variant="ema")
        shutil.rmtree(copied)


def test_a_variant_is_chosen_among_several(folder: Path, tmp_path: Path) -> None:
    copied = _copied(folder, tmp_path)
    _renamed(copied, "fp16", "ema")
    assert _refused(copied).endswith("has several variants (ema, fp16); choose one: --variant, or variant= in Python")
    assert load_model(str(copied), device="cpu", variant="ema").dtype == torch.float32


def test_a_variant_is_not_for_a_single_file(single: Path) -> None:
    with pytest.raises(ValueError, match="variant is for a model's folder or a hub id; got 'fp16' for the file"):
        load_model(str(single), device="cpu", variant="fp16")


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("model.safetensors", None),
        ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
        ("model-00001-of-00002.safetensors", None),
        ("diffusion_pytorch_model-00001-of-00002.fp16.safetensors", "fp16"),
        ("model.fp16-00001-of-00002.safetensors", "fp16"),
        ("diffusion_pytorch_model.non_ema.safetensors", "non_ema"),
    ],
)
def test_names_of_weights(tmp_path: Path, name: str, variant: str | None) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert _weights(tmp_path) == {variant}


def test_half_precision_on_a_cpu_is_said_to_be_slow(folder: Path) -> None:
    with pytest.warns(UserWarning, match="bf16 on a CPU is slower than fp32"):
        assert load_model(str(folder), device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("odd", [None, 3, b"shapes", ["shapes"]], ids=repr)
def test_a_model_is_named_by_text_or_a_path(odd: object) -> None:
    with pytest.raises(ModelNotFoundError, match="loaded by its name or path"):
        load_model(odd)  # type: ignore[arg-type]


def test_a_single_file_of_a_transformer_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "flux.safetensors"
    save_file({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, path)
    with pytest.raises(UnsupportedModelError, match="holds a transformer; single files are read of Stable Diffusion and"):
        load_model(path, device="cpu")


def test_a_name_close_to_an_embedded_model_s_is_suggested() -> None:
    with pytest.raises(ModelNotFoundError, match=r"'shapes-mmd' not found \(did you mean 'shapes-mmdit'\?\): no such file"):
        load_model("shapes-mmd", device="cpu")
