"""Rows with input pictures (img2img, inpainting, ControlNet), made by a steered pipeline of diffusers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.batching import build_methods
from attnguide.engine.branches import common_source
from attnguide.engine.noise import generators, initial_noise
from attnguide.engine.observer import BatchInfo, Observer, Observers
from attnguide.guidance.base import Guidance
from attnguide.guidance.initno import InitNO
from attnguide.guidance.saga import Saga
from attnguide.injection.base import Injection
from attnguide.methods import method_info
from attnguide.models.base import ModelAdapter
from attnguide.models.embeds import prompt_embeds
from attnguide.models.kinds import CENTRED, ROUNDING_UP
from attnguide.models.pictures import Picture
from attnguide.models.relatives import check_relative, reads, relative
from attnguide.prompt.inputs import mask_at, picture_at
from attnguide.sampling.keeping import Keeping, way_of
from attnguide.steering.context import steer_calls
from attnguide.steering.methods import fitting_methods
from attnguide.steering.request import Request
from attnguide.steering.run import SteerRun
from attnguide.types import MethodConfig, Sample, SampleResult

_OWN_NOISE = ("DPMSolverSDEScheduler",)
"""Schedulers that ignore the pipeline's generator when they draw noise."""


def check_foreign(model: ModelAdapter, sample: Sample) -> None:
    """Refuse a row with input pictures that the model's family cannot make, or whose methods cannot run in a pipeline's call.

    Args:
        model: The adapter.
        sample: Any row; one without input pictures passes.

    Raises:
        ValueError: Naming the pipeline, the type of control, the scheduler or the method.
    """
    if sample.kind is None:
        return
    check_relative(model, sample.kind, [control.type for control in sample.control])
    both = model.true_cfg and sample.true_cfg_scale > 1 and sample.negative_prompt is not None
    if both and not reads(model, sample.kind, "true_cfg_scale"):
        raise ValueError(f"true_cfg_scale must be 1 in rows of {sample.kind}, whose pipeline computes one half alone.")
    if (name := model.make_scheduler(sample.scheduler, sample.steps).name) in _OWN_NOISE:
        raise ValueError(f"Scheduler {name} draws noise that no row's seed decides where a pipeline of diffusers drives it.")
    with warnings.catch_warnings():  # they are shown when the row is made
        warnings.simplefilter("ignore")
        fitting_methods(_within(sample), [])
    guidances, injections = build_methods([sample])
    source = common_source([*guidances, *injections])
    methods: list[Guidance | Injection] = [*guidances, *injections]
    for method in methods:
        if method.source is not None and source is not None and source.trajectory == "own":
            raise ValueError(
                f"Method {method.name!r} reads another picture that is made beside the row's own; a row with input pictures "
                "has none."
            )
        own = isinstance(method, Injection) and method.changes_noise
        if (own or isinstance(method, InitNO | Saga)) and sample.init_image is not None:
            raise ValueError(f"Method {method.name!r} chooses where a picture begins, but the row begins at its init_image.")


def sample_foreign(model: ModelAdapter, samples: Sequence[Sample], observer: Observer) -> list[SampleResult]:
    """Sample rows with input pictures that share a batch, in one call of their pipeline.

    Args:
        model: The adapter.
        samples: Rows of one :attr:`~attnguide.types.Sample.kind`, with the same methods; each has its own generator, so that
            its noise is the same alone or in a batch.
        observer: Observer of the batch.

    Raises:
        ValueError: If a picture cannot be read, or a method cannot act.
        SteerError: If the pipeline does something that cannot be followed.
    """
    first = samples[0]
    assert first.kind is not None
    size = first.height or model.default_size[0], first.width or model.default_size[1]
    with torch.inference_mode(False), torch.no_grad(), model.evaluating():
        scheduler = model.make_scheduler(first.scheduler, first.steps, model.latent_shape(*size)).unset()
        pipeline = relative(model, way_of(model, first), scheduler, [control.type for control in first.control])
        run = _TableRun(model, samples, size)
        request = Request(
            prompts=tuple(sample.prompt for sample in samples),
            regions=tuple(sample.regions for sample in samples),
            groups=first.groups,
            methods=_within(first),
            observer=_OfRows(observer, samples, model),
            maps=False,
            prompt_syntax=first.prompt_syntax,
        )
        with steer_calls(pipeline, request, run):
            latents = pipeline(**_arguments(model, pipeline, samples, size, run), output_type="latent", return_dict=False)[0]
        if latents.ndim == 3:  # packed tokens of 2x2 cells
            latents = pipeline._unpack_latents(latents, *size, pipeline.vae_scale_factor)
        pictures = model.decode(latents)
    results = [_result(run, row, sample, pictures[row], latents[row], size) for row, sample in enumerate(samples)]
    observer.on_sample_end(results)
    return results


def _within(sample: Sample) -> tuple[MethodConfig, ...]:
    """The row's methods that run inside a pipeline's call, without baselines."""
    return tuple(config for config in sample.methods if method_info(config.name).family != "baseline")


def _result(run: _TableRun, row: int, sample: Sample, picture: Picture, latents: Tensor, size: tuple[int, int]) -> SampleResult:
    status, cost = run.statuses[row], run.cost[row]
    if row in run.stopped or picture.image is None:
        return SampleResult(sample, None, None, cost, run.stopped.get(row, picture.status))
    image = picture.image
    if sample.inpaint_mask is not None and sample.init_image is not None:
        image = _kept(image, picture_at(sample.init_image, size, "init_image"), mask_at(sample.inpaint_mask, size))
    return SampleResult(sample, image, latents.float().cpu(), cost, status)


def _kept(made: Image.Image, before: Image.Image, mask: Image.Image) -> Image.Image:
    """Paste the init image back outside the mask, which the autoencoder reproduces only approximately."""
    return Image.composite(made, before, mask)


class _TableRun(SteerRun):
    """A run whose rows have their own seeds, and whose results have no pictures, which are decoded afterwards.

    Attributes:
        noise: Unit noise of every row, the same as that of a row without input pictures.
    """

    def __init__(self, model: ModelAdapter, samples: Sequence[Sample], size: tuple[int, int]) -> None:
        super().__init__()
        sources = generators([sample.seed for sample in samples])
        self.noise = initial_noise(sources, model.latent_shape(*size), model.latents_dtype, model.device)
        self._states = [source.get_state() for source in sources]

    def drawn(self, rows: int) -> tuple[Tensor | None, list[torch.Generator]]:
        return None, self.sources()

    def sources(self) -> list[torch.Generator]:
        """The rows' generators after their unit noise."""
        return [torch.Generator("cpu").set_state(state) for state in self._states]

    @property
    def results(self) -> list[SampleResult]:
        return [
            SampleResult(sample, None, None, cost, status)
            for sample, cost, status in zip(self.samples, self.cost, self.statuses, strict=True)
        ]


class _OfRows(Observers):
    """Forwards to an observer, with the table's rows and model in place of those of the pipeline's call.

    Args:
        observer: Receives all hooks but ``on_sample_end``, which is called once the pictures are decoded.
        samples: The rows.
        model: The table's adapter, instead of the one that follows the call.
    """

    def __init__(self, observer: Observer, samples: Sequence[Sample], model: ModelAdapter) -> None:
        super().__init__([observer])
        self._samples, self._model = tuple(samples), model

    def _extended(self, info: BatchInfo) -> BatchInfo:
        return replace(info, samples=self._samples, model=self._model)

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        return super().probes(self._extended(info))

    def on_sample_start(self, info: BatchInfo) -> None:
        super().on_sample_start(self._extended(info))

    def on_sample_end(self, results: Sequence[SampleResult]) -> None:
        pass


# ------------------------------------------------------------------------------------------------- the pipeline's arguments


def _arguments(
    model: ModelAdapter, pipeline: Any, samples: Sequence[Sample], size: tuple[int, int], run: _TableRun
) -> dict[str, Any]:
    """Keyword arguments of the rows' pipeline call."""
    first = samples[0]
    negative = [sample.negative_prompt or "" for sample in samples]
    given: dict[str, Any] = {
        "prompt": [sample.prompt for sample in samples],
        "negative_prompt": None if first.negative_prompt is None else negative,
        "num_inference_steps": first.steps,
        "guidance_scale": first.cfg_scale,
        "true_cfg_scale": first.true_cfg_scale,
        "height": size[0],
        "width": size[1],
    }
    given |= _beginning(model, samples, size, run)
    if first.prompt_syntax == "weights":
        prompts, negatives = given.pop("prompt"), given.pop("negative_prompt")
        given |= prompt_embeds(pipeline, prompts, negatives)
    known = inspect.signature(pipeline.__call__).parameters
    if first.control:
        centred = type(model.pipeline).__name__ in CENTRED
        given |= _controls(samples, size, "control_image" if "control_image" in known else "image", centred)
    optional = ("height", "width", "true_cfg_scale", "negative_prompt")  # arguments that some pipelines do not have
    return {name: value for name, value in given.items() if name in known or name not in optional}


def _strength(model: ModelAdapter, sample: Sample) -> float:
    """Strength argument for which the pipeline makes the row's :attr:`~attnguide.types.Sample.denoising_steps`."""
    if sample.noised == 1 or type(model.pipeline).__name__ not in ROUNDING_UP:
        return sample.noised
    return (sample.denoising_steps - 0.5) / sample.steps


def _beginning(model: ModelAdapter, samples: Sequence[Sample], size: tuple[int, int], run: _TableRun) -> dict[str, Any]:
    """Pipeline arguments for noise, init images and masks of the rows."""
    first, way = samples[0], way_of(model, samples[0]) or ""
    pictures = [picture_at(sample.init_image, size, "init_image") for sample in samples if sample.init_image is not None]
    masks = [mask_at(sample.inpaint_mask, size) for sample in samples if sample.inpaint_mask is not None]
    pack = getattr(model, "pack", None)  # the pipeline takes packed noise
    given: dict[str, Any] = {"latents": run.noise if pack is None else pack(run.noise), "generator": run.sources()}
    if way.endswith(("img2img", "inpaint")):  # the pipeline draws its own noise from the seed
        sources = generators([sample.seed for sample in samples])
        given = {"image": pictures, "strength": _strength(model, first), "generator": sources}
    if way.endswith("inpaint"):
        given["mask_image"] = masks
    elif masks:
        given["callback_on_step_end"] = Keeping(model, pictures, masks, run.noise)
    return given


def _controls(samples: Sequence[Sample], size: tuple[int, int], name: str, centred: bool) -> dict[str, Any]:
    """Pipeline arguments for control pictures ``batch 3 height width`` per type, and their conditioning scales.

    Args:
        samples: Rows of one call.
        size: Height and width of the pictures in pixels.
        name: Name of the pipeline's argument for control pictures.
        centred: Whether pixels lie in [-1, 1] instead of [0, 1].
    """
    pixels = []
    for number, control in enumerate(samples[0].control):
        pictures = [picture_at(sample.control[number].image, size, f"control {control.type}") for sample in samples]
        values = torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2).float() / 255
        pixels.append(2 * values - 1 if centred else values)
    scales = [control.scale for control in samples[0].control]
    single = len(scales) == 1
    return {name: pixels[0] if single else pixels, "controlnet_conditioning_scale": scales[0] if single else scales}
