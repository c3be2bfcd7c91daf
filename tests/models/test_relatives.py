"""Pipelines of the same parts, and the ControlNets of a run."""

import json
from pathlib import Path

import diffusers
import pytest
import torch

from attnguide.inputs import Kind
from attnguide.models.controlnets import (
    ControlNetError,
    ControlNetSource,
    check_controlnet,
    load_controlnets,
    read_controlnets,
    serving,
)
from attnguide.models.kinds import CONTROLNETS, PIPELINES, pipeline_name
from attnguide.models.load import adapt
from attnguide.models.names import FAMILIES
from attnguide.models.relatives import relative
from tests.steering import pipelines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controlnet")
    pipelines.shared("sd_controlnet").controlnet.save_pretrained(folder)
    return folder


def test_the_tables_name_what_diffusers_has() -> None:
    for family, kinds in PIPELINES.items():
        assert family in FAMILIES
        assert all(hasattr(diffusers, name) for name in [*kinds.values(), *filter(None, [CONTROLNETS.get(family)])])
    with pytest.raises(ValueError, match="PixArtAlphaPipeline has no pipeline for inpaint; those that have one are Stable"):
        pipeline_name("PixArtAlphaPipeline", "inpaint")
    with pytest.raises(ValueError, match=r"No adapter for StableDiffusionInpaintPipeline \(it draws inside masks alone; a"):
        pipeline_name("StableDiffusionInpaintPipeline", "inpaint")


@pytest.mark.parametrize("kind", ["img2img", "inpaint", "controlnet", "controlnet_img2img", "controlnet_inpaint"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_relative_shares_every_part(family: str, kind: Kind) -> None:
    model = adapt(pipelines.shared(family))
    model.controlnets["canny"] = pipelines.shared("sd_controlnet").controlnet
    scheduler = diffusers.EulerDiscreteScheduler()
    made = relative(model, kind, scheduler, ["canny"] if "controlnet" in kind else [])
    assert type(made).__name__ == pipeline_name(type(model.pipeline).__name__, kind)
    assert made.scheduler is scheduler
    shared = {name: part for name, part in model.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert all(getattr(made, name) is part for name, part in shared.items())
    assert model.pipeline.scheduler is not scheduler


def test_several_controls_are_read_by_several_nets() -> None:
    model = adapt(pipelines.shared("sd"))
    model.controlnets.update(canny=pipelines.shared("sd_controlnet").controlnet)
    with pytest.raises(ValueError, match=r"control 'depth' needs a ControlNet of the run: --controlnet depth=PATH; .* canny"):
        relative(model, "controlnet", None, ["canny", "depth"])
    model.controlnets[""] = model.controlnets["canny"]
    made = relative(model, "controlnet", diffusers.DDIMScheduler(), ["canny", "depth"])
    assert isinstance(made.controlnet, diffusers.MultiControlNetModel) and len(made.controlnet.nets) == 2


def test_controlnets_are_named_by_type(folder: Path) -> None:
    named = [ControlNetSource("a/b", "canny"), ControlNetSource(str(folder))]
    assert read_controlnets({"canny": "a/b", "": folder}) == named
    assert read_controlnets(["canny=a/b", str(folder)]) == named
    assert [str(one) for one in named] == ["canny=a/b", str(folder)]
    assert serving(["canny", "depth"], ["canny", ""]) == {"canny": "canny", "depth": ""}
    for value in (["a/b", "c/d"], ["canny=a/b", "canny=c/d"], 3, ""):
        with pytest.raises(ValueError, match="expected"):
            read_controlnets(value)


def test_a_folder_is_loaded_for_its_network(folder: Path) -> None:
    found = load_controlnets(pipelines.shared("sd"), read_controlnets(["canny=" + str(folder)]), torch.float32, "cpu")
    assert list(found) == ["canny"]
    own = pipelines.shared("sd_controlnet").controlnet.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in found["canny"].state_dict().items())
    assert not found["canny"].training


def test_a_controlnet_of_flux_is_loaded_and_a_union_of_them_is_not(tmp_path: Path) -> None:
    control, flux = pipelines.shared("flux_controlnet").controlnet, pipelines.shared("flux_dev")
    control.save_pretrained(tmp_path / "one")
    union = {**control.config, "num_mode": 3}
    union.pop("_use_default_values", None)
    type(control).from_config(union).save_pretrained(tmp_path / "union")
    found = load_controlnets(flux, read_controlnets([str(tmp_path / "one")]), torch.float32, "cpu")
    assert all(torch.equal(value, control.state_dict()[name]) for name, value in found[""].state_dict().items())
    with pytest.raises(ControlNetError, match="is a union, which must be told what its pictures are"):
        load_controlnets(flux, read_controlnets([str(tmp_path / "union")]), torch.float32, "cpu")


def test_what_is_no_controlnet_is_refused(folder: Path, tmp_path: Path) -> None:
    def refused(source: str, said: str) -> None:
        with pytest.raises(ControlNetError, match=said):
            check_controlnet(ControlNetSource(source))

    refused("./missing", "there is none")
    refused(str(tmp_path), "expected a ControlNet's folder with its config.json")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    refused(str(tmp_path), "says 'UNet2DConditionModel'")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    refused(str(tmp_path), "pickled")
    given = [ControlNetSource(str(folder))]
    with pytest.raises(ControlNetError, match="PixArtSigmaPipeline takes no ControlNet here"):
        load_controlnets(pipelines.shared("pixart_sigma"), given, torch.float32, "cpu")
    with pytest.raises(ControlNetError, match=r"StableDiffusion3Pipeline takes no ControlNet here .*no seed.*steer"):
        load_controlnets(pipelines.shared("sd3"), given, torch.float32, "cpu")
    with pytest.raises(ControlNetError, match="is for another network: its"):
        load_controlnets(pipelines.shared("sdxl"), given, torch.float32, "cpu")
