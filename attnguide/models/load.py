"""From a name, folder, file or pipeline object to an adapter."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from attnguide.models.base import ModelAdapter
from attnguide.models.controlnets import load_controlnets, read_controlnets
from attnguide.models.folder import UnsupportedModelError, check_class, check_folder, usual_half
from attnguide.models.loras import Lora, checked_loras, load_loras
from attnguide.models.names import DEFAULT_MODEL, EMBEDDED, FAMILIES, check_device, check_dtype, model_path, nearest
from attnguide.models.offload import Placement
from attnguide.models.quiet import quietly
from attnguide.text.parsing import shown

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


WEIGHTS: tuple[str, ...] = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of weight files; only the first is read, since the others are pickled and may run code."""

_LONGEST = 250
"""Longest model name; file systems may refuse to look up longer ones."""

_TRANSFORMER = re.compile(
    r"(^|\.)(joint_blocks|double_(blocks|layers)|single_blocks|noise_refiner|blocks\.\d+\.(attn|cross_attn)\.)"
)
"""Names of weights that only transformers have, no UNet."""

_CONFIGURATION = ("*.json", "*.txt", "*.model")


class ModelNotFoundError(ValueError):
    """No model under this name."""


def quiet_libraries() -> None:
    """Switch off warnings and progress bars of diffusers and transformers; errors are still shown."""
    # The variables are read at import; the calls below serve libraries that are imported already.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def adapt(pipeline: Any, name: str | None = None) -> ModelAdapter:
    """The adapter of a diffusers pipeline the user already holds.

    Raises:
        UnsupportedModelError: If the pipeline is not supported, naming its class or the part, and what would work.
    """
    from attnguide.models.fitting import doubtful_scale
    from attnguide.models.support import adapter_class, check_pipeline

    check_pipeline(pipeline)
    kind = type(pipeline).__name__
    if (doubt := doubtful_scale(pipeline, kind)) is not None:
        warnings.warn(f"{name or kind}: {doubt}.", stacklevel=2)
    return adapter_class(kind)(pipeline, name or kind)


def resolve_dtype(name: str | torch.dtype | None, device: torch.device, half: str = "fp16") -> torch.dtype:
    """Dtype by name; by default ``half`` on a GPU (:func:`~attnguide.models.folder.usual_half`) and fp32 elsewhere."""
    if name is None:
        return DTYPES[half] if device.type == "cuda" else torch.float32
    return DTYPES[check_dtype(str(name))]


def resolve_device(name: str | torch.device | None) -> torch.device:
    """Device by name; by default the first GPU, else the CPU.

    Raises:
        ValueError: If the name is unknown or the device is not there.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    device = torch.device(check_device(str(name)))
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device.type] or (device.index or 0) >= max(torch.cuda.device_count(), 1):
        raise ValueError(f"Device {str(name)!r} is not available on this machine.")
    return device


def load_model(
    name: str | Path = DEFAULT_MODEL,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    config: str | None = None,
    variant: str | None = None,
    offload: str = "none",
    checkpointing: bool = False,
    loras: Sequence[str | tuple[str, float] | Lora] = (),
    controlnets: Any = (),
) -> ModelAdapter:
    """Load a model.

    Args:
        name: ``shapes`` or ``shapes-mmdit`` (the embedded models), a local folder in diffusers format, a single
            ``.safetensors`` checkpoint, or a hub id.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or one of torch's; the best available by default.
        dtype: ``fp32``, ``fp16`` or ``bf16``, or one of torch's; by default fp16 (some families: bf16) on a GPU and fp32
            elsewhere.
        config: For a single-file checkpoint, which holds weights alone: a folder in diffusers format with the model's
            configuration and tokenizer; weights in it are not read. From the hub or its cache when ``None``.
        variant: Variant of the weights of a folder or on the hub, such as ``fp16``; found by itself if there is only one.
        offload: What is kept in CPU memory while it does not run: ``none``; ``model``, whole networks; ``group``, all blocks
            of a network but the running one; ``sequential``, all modules but the running one.
        checkpointing: Gradient checkpointing: guided steps need less memory, and one forward more.
        loras: LoRAs, each ``PATH[:WEIGHT]`` or a pair of both: a ``.safetensors`` file, a folder with one, or a hub id. They
            need the package peft.
        controlnets: Folders or hub ids of ControlNets, by the type of control picture that each reads:
            ``{"canny": PATH}``, or ``["canny=PATH"]``; one without a type reads all types.

    Raises:
        ControlNetError: If a ControlNet cannot be loaded, or is for another network.
        LoraError: If a LoRA cannot be read, or has weights for layers that the model lacks.
        ModelNotFoundError: If there is no such folder or file, it is incomplete or broken, or the hub cannot be reached.
        UnsupportedModelError: If the pipeline's family is not supported.
        ValueError: If device, dtype or offload is unknown or cannot be used here, or ``config`` or ``variant`` does not apply
            to this kind of model.

    Weights are read from safetensors only.
    """
    if not isinstance(name, str | Path):
        raise ModelNotFoundError(f"A model is loaded by its name or path; got {shown(name)} (adapt() is for pipelines).")
    name = str(name)
    chosen, nets = checked_loras(loras), read_controlnets(controlnets)
    on = resolve_device(device)
    where = Placement(on, resolve_dtype(dtype, on, usual_half(name)), offload)
    pipeline = _pipeline(name, where, config, variant)
    if on.type == "cpu" and where.dtype != torch.float32:
        short = next(known for known, value in DTYPES.items() if value is where.dtype)
        warnings.warn(f"{short} on a CPU is slower than fp32 and less exact; it saves memory only.", stacklevel=2)
    load_loras(pipeline, chosen)
    adapter = adapt(pipeline, name)
    adapter.controlnets = load_controlnets(pipeline, nets, where.dtype, on)
    if checkpointing:
        adapter.enable_checkpointing()
    return adapter


def _pipeline(name: str, where: Placement, config: str | None, variant: str | None) -> Any:
    """The pipeline of a file, a folder or a hub id; arguments and errors are those of :func:`load_model`."""
    path = model_path(name)
    if len(name) > _LONGEST:
        raise ModelNotFoundError(f"Model {name[:40]!r}... not found: a name of {len(name)} characters is no file's.")
    if path.is_file():
        if variant is not None:
            raise ValueError(f"variant is for a model's folder or a hub id; got {variant!r} for the file {name!r}.")
        return _from_file(path, where, config)
    if config is not None:
        raise ValueError(f"config is for a single .safetensors file; got {config!r} for the model {name!r}.")
    if path.is_dir():
        return _from_folder(path, name, where, variant)
    if name.endswith(WEIGHTS) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        near = nearest(name, EMBEDDED)
        raise ModelNotFoundError(f"Model {name!r} not found{near}: no such file or folder, and not a hub id (owner/name).")
    return _from_hub(name, where, variant)


@contextmanager
def _old_names() -> Iterator[None]:
    """Silence deprecation warnings of ``torch_dtype``, which every supported version takes; the newest call it ``dtype``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch_dtype.*")
        yield


@quietly()
def _from_file(path: Path, where: Placement, config: str | None) -> Any:
    import diffusers

    if path.suffix != ".safetensors":
        raise ModelNotFoundError(f"Model file {str(path)!r} must be a .safetensors file; pickled checkpoints are not read.")
    try:
        _check_family(path)
        large = _has_second_encoder(path)
        kind = diffusers.StableDiffusionXLPipeline if large else diffusers.StableDiffusionPipeline
        options = {} if large else {"safety_checker": None}
        with _old_names(), _configuration(config) as folder:
            return where.put(kind.from_single_file(str(path), config=folder, torch_dtype=where.dtype, **options))
    except UnsupportedModelError:
        raise
    except Exception as error:  # a foreign file fails in many places of the library, each in its own way
        hint = (
            "the configuration comes from the hub; offline, give a folder with it: --model-config, or config= in Python"
            if config is None
            else f"with the configuration in {config!r}"
        )
        raise ModelNotFoundError(f"Model file {str(path)!r} could not be loaded: {_first_line(error)} ({hint})") from error


def _check_family(path: Path) -> None:
    """Refuse a single-file checkpoint of a transformer, which lacks the text encoders.

    Raises:
        UnsupportedModelError: Naming what would work.
    """
    with safe_open(path, framework="pt") as weights:
        if any(_TRANSFORMER.search(name) for name in weights.keys()):
            raise UnsupportedModelError(
                f"Model file {str(path)!r} holds a transformer; single files are read of Stable Diffusion and Stable Diffusion "
                "XL only. Give a folder in diffusers format, or hand over a pipeline that you have loaded."
            )


def _has_second_encoder(path: Path) -> bool:
    """Whether a single-file checkpoint is of Stable Diffusion XL, which holds two text encoders under ``conditioner``."""
    with safe_open(path, framework="pt") as weights:
        return any(name.startswith("conditioner.embedders.1.") for name in weights.keys())


@contextmanager
def _configuration(config: str | None) -> Iterator[str | None]:
    """A copy of a configuration without weights: diffusers would load parts missing in the checkpoint from it, even pickled."""
    if config is None:
        yield None
        return
    if not (Path(config) / "model_index.json").is_file():
        raise ValueError(f"config must be a folder in diffusers format, with a model_index.json; got {config!r}")
    with tempfile.TemporaryDirectory() as folder:
        for pattern in _CONFIGURATION:
            for source in (*Path(config).glob(pattern), *Path(config).glob(f"*/{pattern}")):
                target = Path(folder, source.relative_to(config))
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target)
        yield folder


@quietly()
def _from_folder(path: Path, name: str, where: Placement, variant: str | None) -> Any:
    from attnguide.models.fitting import check_index

    try:
        chosen = check_folder(path, variant)
        check_index(json.loads((path / "model_index.json").read_text(encoding="utf-8")), path)
        return _from_pretrained(str(path), where, chosen)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"Model {name!r}: {error}") from error
    except Exception as error:  # a foreign folder may be wrong in many ways, each found elsewhere in the libraries
        raise ModelNotFoundError(f"Model {name!r} could not be loaded: {_first_line(error)}") from error


@quietly()
def _from_hub(name: str, where: Placement, variant: str | None) -> Any:
    from diffusers import DiffusionPipeline

    from attnguide.models.fitting import check_index

    try:
        index = DiffusionPipeline.load_config(name)  # before gigabytes are fetched
        check_class(index)
        check_index(index)
        try:
            return _from_pretrained(name, where, variant)
        except OSError as error:
            if variant is not None:
                raise
            try:
                return _from_pretrained(name, where, "fp16")  # all that some models have
            except OSError:
                raise error from None
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"Model {name!r}: {error}") from error
    except Exception as error:
        hint = "offline, give a local folder in diffusers format, or 'shapes' for an embedded model"
        raise ModelNotFoundError(f"Model {name!r} could not be loaded: {_first_line(error)}; {hint}") from error


def _from_pretrained(source: str, where: Placement, variant: str | None) -> Any:
    from diffusers import DiffusionPipeline

    index = DiffusionPipeline.load_config(source)
    # Diffusers refuses a pipeline without an optional part unless the part is passed as None.
    absent = {part: None for part in FAMILIES[index["_class_name"]].optional if not any(index.get(part) or ())}
    with _old_names():
        loaded = DiffusionPipeline.from_pretrained(
            source, torch_dtype=where.dtype, use_safetensors=True, variant=variant, **absent
        )
    return where.put(loaded)


def _first_line(error: BaseException) -> str:
    if isinstance(error, NotImplementedError):  # weights that were never filled in cannot be moved
        return "it lacks some of the weights that its configuration asks for"
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
