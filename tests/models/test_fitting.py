"""Parts of other pipelines in a folder or a held pipeline: found before a weight is read, or before a row is sampled."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from attnguide.models.fitting import stands_for, wanted_classes
from attnguide.models.folder import UnsupportedModelError
from attnguide.models.load import adapt, load_model
from tests import tiny
from tests.models import families, parts, readers


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("saved")

    def folder(family: str) -> Path:
        if not (root / family).exists():
            families.shared(family).save_pretrained(root / family)
        return root / family

    return folder


def _mixed(saved: Callable[[str], Path], to: Path, base: str, index: dict[str, Any], **taken: tuple[str, str]) -> Path:
    """A copy of a family's folder with entries of its index replaced, and parts taken out of other families' folders."""
    shutil.copytree(saved(base), to)
    for part, (family, name) in taken.items():
        shutil.rmtree(to / part)
        shutil.copytree(saved(family) / name, to / part)
    written = json.loads((to / "model_index.json").read_text())
    (to / "model_index.json").write_text(json.dumps({**written, **index}))
    return to


def _refusal(model: Any) -> str:
    with pytest.raises((UnsupportedModelError, ValueError)) as error:
        load_model(model, device="cpu") if isinstance(model, Path) else adapt(model)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("base", "index", "taken", "message"),
    [
        (
            "flux_dev",
            {"_class_name": "StableDiffusion3Pipeline"},
            {},
            "names a FluxTransformer2DModel as its transformer; StableDiffusion3Pipeline needs a SD3Transformer2DModel",
        ),
        (
            "sd3",
            {"vae": ["diffusers", "AutoencoderKLQwenImage"]},
            {"vae": ("qwen_image", "vae")},
            "names a AutoencoderKLQwenImage as its vae; StableDiffusion3Pipeline needs a AutoencoderKL",
        ),
        (
            "sd",
            {},
            {"unet": ("sd3", "transformer")},
            "names a UNet2DConditionModel as its unet, but unet/config.json is that of a SD3Transformer2DModel",
        ),
        (
            "sd",
            {},
            {"text_encoder": ("flux_dev", "text_encoder_2")},
            "names a CLIPTextModel as its text_encoder, but text_encoder/config.json is that of a t5",
        ),
    ],
    ids=["pipeline", "vae", "unet", "text encoder"],
)
def test_a_folder_whose_parts_are_of_other_pipelines(
    saved: Callable[[str], Path],
    tmp_path: Path,
    base: str,
    index: dict[str, Any],
    taken: dict[str, tuple[str, str]],
    message: str,
) -> None:
    assert message in _refusal(_mixed(saved, tmp_path / "mixed", base, index, **taken))


def test_what_may_stand_for_what() -> None:
    class Small:
        pass

    Small.__name__ = "AutoencoderTiny"
    wanted = wanted_classes("StableDiffusionXLPipeline")
    assert set(wanted) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert stands_for(Small, wanted["vae"]) and not stands_for(Small, wanted["unet"])
    assert stands_for(CLIPTextModel, wanted["text_encoder"]) and not stands_for(CLIPTextModel, wanted["text_encoder_2"])
    assert not wanted_classes("NoPipeline")


def _held(family: str, **changed: Any) -> Any:
    built = copy.copy(families.shared(family))
    for part, value in changed.items():
        setattr(built, part, value)
    return built


def test_interchanged_text_encoders() -> None:
    shared = families.shared("sdxl")
    held = _held("sdxl", text_encoder=shared.text_encoder_2, text_encoder_2=shared.text_encoder)
    assert _refusal(held) == "text_encoder must be a CLIPTextModel; got CLIPTextModelWithProjection."
    reader = tiny.tokenizer()
    kind, width = CLIPTextModelWithProjection, parts.WIDTH
    wide = parts.clip(kind, reader, hidden_size=2 * width, intermediate_size=32, projection_dim=16)
    assert _refusal(_held("sd35", text_encoder=wide)) == (
        "text_encoder, of 32 channels, and text_encoder_2, of 8, are interchanged."
    )
    other = parts.clip(kind, reader, hidden_size=8, projection_dim=8)
    assert _refusal(_held("sd35", text_encoder=other)) == (
        "transformer reads 32 channels of pooled text; text_encoder and text_encoder_2 give 8 and 16."
    )


def test_text_states_of_another_width() -> None:
    reader = tiny.tokenizer()
    wide = parts.clip(CLIPTextModel, reader, hidden_size=32)
    assert _refusal(_held("sd", text_encoder=wide)) == (
        "unet reads text states of 16 channels (cross_attention_dim); text_encoder gives 32."
    )
    assert _refusal(_held("flux_dev", text_encoder=wide)) == (
        "transformer reads text states of 16 channels (pooled_projection_dim); text_encoder gives 32."
    )


def test_a_text_encoder_of_another_class_and_equal_width() -> None:
    encoder = parts.t5(readers.t5(), "UMT5")
    assert _refusal(_held("chroma", text_encoder=encoder)) == "text_encoder must be a T5EncoderModel; got UMT5EncoderModel."


def test_an_autoencoder_of_other_channels() -> None:
    vae = parts.autoencoder(8)
    assert _refusal(_held("sd35", vae=vae)) == "transformer reads latents of 4 channels; the vae has 8."
    assert _refusal(_held("flux_dev", vae=vae)) == "transformer reads latents of 4 channels of 4 cells each; the vae has 8."


def test_an_autoencoder_of_equal_channels_that_scales_as_another_family_s() -> None:
    other = tiny.autoencoder(16, scaling_factor=0.13025).eval()
    with pytest.warns(UserWarning, match=r"scales latents by 0\.13025, as those of Stable Diffusion XL, .* by 0\.18215"):
        adapt(_held("sd", vae=other))
