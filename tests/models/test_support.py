"""What is refused of a held pipeline, and that what is accepted equals diffusers."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    LatentConsistencyModelPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from attnguide.methods import build_method
from attnguide.models.base import ModelAdapter
from attnguide.models.folder import UnsupportedModelError, check_class, usual_half
from attnguide.models.load import adapt
from attnguide.models.names import FAMILIES, supported_pipelines
from attnguide.models.support import adapter_class
from attnguide.sampling.sampler import Sampler
from tests import tiny
from tests.models import families


def _parts() -> dict[str, Any]:
    return dict(tiny.shared_pipeline().components)


def _refusal(pipeline: Any) -> str:
    with pytest.raises(UnsupportedModelError) as error:
        adapt(pipeline)
    assert "\n" not in str(error.value)
    return str(error.value)


def _unet(**settings: Any) -> UNet2DConditionModel:
    config = {name: value for name, value in tiny.shared_pipeline().unet.config.items() if not name.startswith("_")}
    return UNet2DConditionModel(**{**config, **settings}).eval()


def _with_unet(**settings: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**{**_parts(), "unet": _unet(**settings)}, requires_safety_checker=False)


@pytest.mark.parametrize(
    "kind",
    [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPAGPipeline],
)
def test_a_pipeline_that_adds_something_is_refused_by_name_with_the_way_that_works(kind: Any) -> None:
    held = kind(**_parts(), requires_safety_checker=False)
    message = _refusal(held)
    assert message.startswith(f"No adapter for {kind.__name__}") and f"; supported are {supported_pipelines()}. " in message
    way = "StableDiffusionPipeline.from_pipe(pipeline, torch_dtype=pipeline.dtype)"
    assert message.endswith(f"for plain text-to-image with its parts, hand over {way}.")
    assert adapt(eval(way, {"StableDiffusionPipeline": StableDiffusionPipeline, "pipeline": held})).dtype == torch.float32


def test_a_controlnet_is_not_dropped() -> None:
    control = ControlNetModel.from_unet(tiny.shared_pipeline().unet, conditioning_embedding_out_channels=(8, 16))
    held = StableDiffusionControlNetPipeline(**_parts(), controlnet=control, requires_safety_checker=False)
    assert "What StableDiffusionControlNetPipeline adds would be dropped" in _refusal(held)


def test_a_pipeline_class_of_one_s_own_is_refused_too() -> None:
    class MyPipeline(StableDiffusionPipeline):
        pass

    assert "No adapter for MyPipeline" in _refusal(MyPipeline(**_parts(), requires_safety_checker=False))


@pytest.mark.parametrize("two", [SimpleNamespace(unet=None), object(), SimpleNamespace(text_encoder_2=object())])
def test_other_objects(two: object) -> None:
    assert _refusal(two).endswith(f"supported are {supported_pipelines()}.")


def test_every_supported_name_is_a_class_of_diffusers() -> None:
    """Of the newest; an older one knows the first of them."""
    known = [name for name in FAMILIES if hasattr(diffusers, name)]
    assert known[:7] == list(FAMILIES)[:7] and all(name.endswith("Pipeline") for name in FAMILIES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 9}, "it reads 9 and predicts 4: such a UNet reads a mask and a masked picture as well (inpainting)"),
        ({"in_channels": 8}, "reads a picture as well (instruct-pix2pix)"),
        ({"out_channels": 8}, "it reads 4 and predicts 8."),
        ({"num_class_embeds": 4}, "unet reads class labels, which are not supported (num_class_embeds=4)."),
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64},
            "unet reads added conditions (sizes, pooled text or images), which are not supported",
        ),
        ({"attention_type": "gated"}, "unet has attention of the type 'gated' (GLIGEN), which is not supported."),
        (
            {"down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D")},
            "unet has blocks that are not supported: AttnDownBlock2D.",
        ),
        ({"encoder_hid_dim": 16, "encoder_hid_dim_type": "text_proj"}, "unet reads image prompts (IP-Adapter)"),
    ],
)
def test_a_unet_that_reads_more(settings: dict[str, Any], message: str) -> None:
    assert message in _refusal(_with_unet(**settings))


def test_a_loaded_ip_adapter() -> None:
    class IPAdapterAttnProcessor2_0:  # noqa: N801
        pass

    held = tiny.pipeline()
    next(module for name, module in held.unet.named_modules() if name.endswith("attn2")).processor = IPAdapterAttnProcessor2_0()
    assert _refusal(held) == (
        "unet has a loaded IP-Adapter (IPAdapterAttnProcessor2_0). Call pipeline.unload_ip_adapter() first."
    )


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_part(part: str) -> None:
    held = copy.copy(tiny.shared_pipeline())
    setattr(held, part, None)
    assert _refusal(held) == f"StableDiffusionPipeline lacks its {part}."


def test_a_tokenizer_of_another_text_encoder() -> None:
    held = copy.copy(tiny.shared_pipeline())
    held.tokenizer = tiny.tokenizer(length=77)
    assert _refusal(held) == "tokenizer's model_max_length must be at most 24, which the text encoder reads; got 77."
    held.tokenizer = tiny.tokenizer((*tiny.WORDS, "zebra", "elephant"))
    assert "but the text encoder knows" in _refusal(held)


# --------------------------------------------------------------------------------------------------------- safety checker


class _Checker(nn.Module):
    """Holds back the pictures of a batch whose places are told."""

    dtype = torch.float32

    def __init__(self, *held: int) -> None:
        super().__init__()
        self.held, self.calls = held, 0

    def forward(self, images: Tensor, clip_input: Tensor) -> tuple[Tensor, list[bool]]:
        self.calls += 1
        for row in self.held:
            images[row] = 0
        return images, [row in self.held for row in range(len(images))]


class _Extractor:
    def __call__(self, pictures: Any, return_tensors: str) -> Any:
        class _Features(SimpleNamespace):
            def to(self, device: torch.device) -> Any:
                return self

        return _Features(pixel_values=torch.zeros(len(pictures), 3, 4, 4))


def _guarded(checker: Any) -> StableDiffusionPipeline:
    held = copy.copy(tiny.shared_pipeline())
    held.safety_checker, held.feature_extractor = checker, _Extractor()
    return held


def test_the_safety_checker_is_called_and_what_it_holds_back_is_said() -> None:
    checker = _Checker(1)
    model = adapt(_guarded(checker))
    first, second = Sampler(model).run([tiny.row("0"), tiny.row("1", seed=4)])
    assert checker.calls == 1 and "safety_checker" in model.networks
    assert first.status == "ok" and first.image is not None
    assert second.status == "the pipeline's safety checker holds the picture back" and second.image is None


@pytest.mark.parametrize("answer", [None, False, [False]])
def test_a_safety_checker_that_is_switched_off_by_hand(answer: Any) -> None:
    model = adapt(_guarded(lambda images, clip_input: (images, answer)))
    assert "safety_checker" not in model.networks
    assert Sampler(model).run([tiny.row()])[0].status == "ok"


def test_a_safety_checker_without_its_extractor() -> None:
    held = copy.copy(tiny.shared_pipeline())
    held.safety_checker, held.feature_extractor = _Checker(), None
    assert "has a safety_checker without the feature_extractor" in _refusal(held)


# --------------------------------------------------------------------------------------------- precisions and the decoder


class _Overflows(AutoencoderKL):
    """Gives infinite values in half precision for latents above a limit, as large autoencoders do."""

    limit: float = 0.0
    always = False

    def decode(self, z: Tensor, *args: Any, **kwargs: Any) -> Any:
        (pixels,) = super().decode(z, *args, **kwargs)
        broken = z.flatten(1).mean(1) > self.limit
        if self.dtype == torch.float16 or self.always:
            pixels = torch.where(broken.view(-1, 1, 1, 1), torch.full_like(pixels, float("nan")), pixels)
        return (pixels,)


def _half(always: bool = False) -> Any:
    held = tiny.pipeline().to(torch.float16)
    held.vae.__class__ = _Overflows
    held.vae.always = always
    return held


def test_an_overflow_of_the_decoder_is_decoded_again_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    held = _half()
    monkeypatch.setattr("attnguide.models.support._DECODERS", (AutoencoderKL, _Overflows))
    latents = torch.stack([torch.full((4, 8, 8), -0.1), torch.full((4, 8, 8), 0.1)]).half()
    low, high = adapt(held).decode(latents)
    wide = adapt(tiny.pipeline().to(torch.float16).to(torch.float32)).decode(latents.float())
    assert low.status == high.status == "ok" and low.image is not None and high.image is not None
    values, others = (np.asarray(picture.image, dtype=int) for picture in (high, wide[1]))
    assert np.abs(values - others).max() <= 1 and values.std() > 5  # decoded alone, and in a batch
    assert held.vae.dtype == torch.float16


def test_a_picture_that_is_not_finite_in_float32_either_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnguide.models.support._DECODERS", (AutoencoderKL, _Overflows))
    model = adapt(_half(always=True))
    monkeypatch.setattr(_Overflows, "limit", -1e9)
    (result,) = Sampler(model).run([tiny.row()])
    assert result.status == "the autoencoder's picture is not finite, in float32 neither" and result.image is None


def test_parts_in_different_precisions_work_together() -> None:
    held = tiny.pipeline()
    expected = Sampler(adapt(held)).run([tiny.row()])[0]
    held.text_encoder.half()
    held.vae.to(torch.bfloat16)
    mixed = Sampler(adapt(held)).run([tiny.row()])[0]
    assert mixed.status == "ok" and expected.latents is not None and mixed.latents is not None
    torch.testing.assert_close(mixed.latents, expected.latents, rtol=0.05, atol=0.05)


def test_an_active_cache_is_refused() -> None:
    """Its hooks would hand the passes of one row what those of another have computed."""
    built = families.build("flux_dev")
    built.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.2))
    with pytest.raises(UnsupportedModelError, match=r"transformer has an active cache .* pipeline\.transformer\.disable_cache"):
        adapt(built)
    built.transformer.disable_cache()
    assert adapt(built).pipeline is built


def test_a_compiled_unet_runs_as_it_is() -> None:
    held = copy.copy(tiny.shared_pipeline())
    held.unet = torch.compile(held.unet)
    with pytest.warns(UserWarning, match="the UNet runs as it is, not compiled"):
        model = adapt(held)
    assert model.networks["unet"] is tiny.shared_pipeline().unet


# ------------------------------------------------------------------------------------------------- guidance-distilled UNets


def _distilled(kind: Any = StableDiffusionPipeline) -> Any:
    torch.manual_seed(0)
    unet = _unet(time_cond_proj_dim=8)
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight)
    parts = {**tiny.pipeline().components, "unet": unet}
    if kind is LatentConsistencyModelPipeline:
        parts["scheduler"] = diffusers.LCMScheduler.from_config(parts["scheduler"].config)
    built = kind(**parts, requires_safety_checker=False)
    built.set_progress_bar_config(disable=True)
    return built


@pytest.mark.parametrize("kind", [StableDiffusionPipeline, LatentConsistencyModelPipeline])
@pytest.mark.parametrize("scale", [1.0, 8.5])
def test_a_distilled_unet_reads_the_guidance_weight_and_runs_once_a_step(kind: Any, scale: float) -> None:
    held = _distilled(kind)
    rows = [tiny.row("0", cfg_scale=scale, regions=()), tiny.row("1", "a dog", seed=4, cfg_scale=scale, regions=())]
    expected = held(
        [row.prompt for row in rows],
        num_inference_steps=4,
        guidance_scale=scale,
        generator=[torch.Generator().manual_seed(row.seed) for row in rows],
        output_type="latent",
    ).images
    results = Sampler(adapt(held)).run(rows)
    for result, latents in zip(results, expected, strict=True):
        assert result.latents is not None and torch.equal(result.latents, latents)
        assert result.cost.unet_forwards == 4


def test_a_distilled_unet_under_methods_and_with_a_weight_per_row() -> None:
    model = adapt(_distilled().to(torch.float64))
    rows = [tiny.row("0", cfg_scale=8.0), tiny.row("1", seed=4, cfg_scale=3.0)]
    assert model.guidance_distilled and model.halves(rows[0]) == ("cond",)
    assert tiny.model().halves(rows[0]) == ("uncond", "cond")
    together = Sampler(model, [build_method("mask_guidance", {})]).run(rows)
    for row, result in zip(rows, together, strict=True):
        alone = Sampler(model, [build_method("mask_guidance", {})]).run([row])[0]
        assert alone.latents is not None and result.latents is not None
        torch.testing.assert_close(result.latents, alone.latents, rtol=1e-4, atol=1e-4)
        assert result.cost == alone.cost or result.cost.unet_forwards == alone.cost.unet_forwards


def test_a_negative_prompt_that_nothing_would_read_is_refused() -> None:
    with pytest.raises(ValueError, match="negative_prompt: StableDiffusionPipeline is distilled for guidance"):
        Sampler(adapt(_distilled())).run([tiny.row(negative_prompt="blue")])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("SanaPipeline", "its self-attention is linear, without a map"),
        ("StableCascadeCombinedPipeline", "it makes a picture in stages of several networks"),
        ("KandinskyV22CombinedPipeline", "it makes a picture in stages of several networks"),
        ("WanPipeline", "it makes videos"),
        ("FluxModularPipeline", "modular pipelines are not read"),
        (
            "StableDiffusionInpaintPipeline",
            "it draws inside masks alone; a text-to-image checkpoint of its family takes --inpaint-mask",
        ),
    ],
)
def test_why_some_kinds_of_pipelines_are_not_supported(name: str, why: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        check_class({"_class_name": name})
    assert str(error.value).startswith(f"No adapter for {name} ({why}); supported are StableDiffusionPipeline, ")


def test_every_family_s_adapter_is_there() -> None:
    for name in [name for name in FAMILIES if hasattr(diffusers, name)]:
        adapter = adapter_class(name)
        assert issubclass(adapter, ModelAdapter)
        assert bool(adapter.kinds) == ("transformer" in FAMILIES[name].parts)


def test_the_usual_half_precision(tmp_path: Path) -> None:
    assert usual_half("shapes") == "fp16" and usual_half(str(tmp_path)) == "fp16"
    family = next((name for name, family in FAMILIES.items() if family.half == "bf16"), "StableDiffusionPipeline")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": family}))
    assert usual_half(str(tmp_path)) == FAMILIES[family].half
