"""The recipes of docs/pipelines.md, run one after the other on tiny pipelines in the place of those that they load."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from attnguide.run_folder.records import read_records
from tests import tiny
from tests.models.lora_files import save_lora
from tests.steering import pipelines, unets

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pipelines.md"
RECIPES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _load_ip_adapter(pipeline: Any, *names: str, **places: str) -> None:
    """An adapter with random weights, and an encoder of pictures to go with it."""
    pipeline.unet._load_ip_adapter_weights([unets._ip_weights(pipeline.unet)])
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPVisionConfig(**width, image_size=32, patch_size=16, projection_dim=12)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        encoder = CLIPVisionModelWithProjection(config).eval()
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    pipeline.register_modules(image_encoder=encoder, feature_extractor=CLIPImageProcessor(**sizes))


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An empty folder with a LoRA; hub ids and pictures stand for tiny ones."""
    monkeypatch.chdir(tmp_path)
    save_lora(tiny.shared_pipeline(), tmp_path / "lora").rename("style.safetensors")

    def loads(name: str, made: Any) -> None:
        monkeypatch.setattr(getattr(diffusers, name), "from_pretrained", lambda source, **parts: made)

    loads("ControlNetModel", pipelines.shared("sd_controlnet").controlnet)
    loads("StableDiffusionControlNetPipeline", pipelines.build("sd_controlnet"))
    loads("StableDiffusionInpaintPipeline", pipelines.build("sd_inpaint_9"))
    loads("StableDiffusionXLPipeline", pipelines.shared("sdxl"))
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", lambda source: tiny.pipeline())
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "load_ip_adapter", _load_ip_adapter)
    pictures = {"edges.png": pipelines.picture(1, 32, 32), "photo.png": pipelines.picture(2, 32, 32)}
    pictures["mask.png"] = pipelines.inputs("sd")["mask_image"].resize((32, 32))
    monkeypatch.setattr("diffusers.utils.load_image", pictures.__getitem__)
    return {"__name__": "page"}


def test_recipes_run(names: dict[str, Any]) -> None:
    passes = []
    for recipe in RECIPES:
        exec(compile(recipe, PAGE.name, "exec"), names)
        run = names["run"]
        assert run.calls == 1 and all(result.status == "ok" and result.image for result in run.results), run.notes
        assert set(run.maps) <= {"cat", "dog"} and all(float(place.abs().max()) > 0 for place in run.maps.values())
        passes.append([cost.unet_backwards for cost in run.cost])
    controlnet, inpaint, lora, adapter, large = passes
    assert controlnet[0] > 0 and adapter[0] > 0 and inpaint == [0] and large == [0, 0] and lora[0] >= 0
    assert [record["method"] for record in read_records("runs/controlnet")] == ["mask_guidance"]


def test_the_page_says_what_rows_are_made_by() -> None:
    """Kinds of rows that it names are all that there are."""
    text = PAGE.read_text(encoding="utf-8")
    for name in ("init_image", "strength", "inpaint_mask", "control", "--controlnet", "--lora"):
        assert f"`{name}" in text, name
