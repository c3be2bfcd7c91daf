"""Inspection of a folder in diffusers format, before anything is loaded. Importing this needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attnguide.models.names import FAMILIES, model_path, no_adapter

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?(?:-\d{5}-of-\d{5})?(?:\.(?P<late>[\w-]+))?"
    r"\.safetensors(?:\.index(?:\.[\w-]+)?\.json)?"
)
"""Names of weight files, whole or sharded; a variant stands before or after the shard number."""

_SENTENCE_PIECES = ("spiece.model", "tokenizer.model")
"""SentencePiece vocabularies, as of T5."""

_NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")

_PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth")


class UnsupportedModelError(TypeError):
    """A model or a part of it is not supported."""


def check_class(index: Any) -> None:
    """Refuse the ``model_index.json`` of an unsupported pipeline.

    Raises:
        ValueError: If it names no pipeline class.
        UnsupportedModelError: Naming the pipeline's class.
    """
    name = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(name, str):
        raise ValueError("model_index.json does not say which pipeline it is of (_class_name)")
    if name not in FAMILIES:
        raise UnsupportedModelError(no_adapter(name))


def is_distilled(name: str) -> bool:
    """Whether guidance is distilled into a local or cached model, so that a step is one pass; False where neither is found."""
    index = _model_index(name)
    family = FAMILIES.get(str(index.get("_class_name")))
    if family is not None and family.distilled != "never":
        return family.distilled == "always" or bool(index.get("is_distilled"))
    try:
        return bool(_read_json(model_path(name) / "unet" / "config.json").get("time_cond_proj_dim"))
    except ValueError:
        return False


def pipeline_class(name: str) -> str | None:
    """Pipeline class of a model in a local folder, or of a cached hub id; ``None`` where there is no ``model_index.json``."""
    index = _model_index(name)
    return str(index.get("_class_name")) if index else None


def _model_index(name: str) -> dict[str, Any]:
    """Content of ``model_index.json`` of an embedded model, a local folder or a cached hub id; empty where there is none."""
    folder = model_path(name)
    try:
        return _read_json((folder if folder.is_dir() else cached_folder(name) or folder) / "model_index.json")
    except (ValueError, OSError):
        return {}


def usual_half(name: str) -> str:
    """Half-precision dtype (``fp16`` or ``bf16``) for the model of a local folder or of a cached hub id."""
    family = FAMILIES.get(pipeline_class(name) or "")
    return "fp16" if family is None else family.half


def cached_folder(name: str) -> Path | None:
    """Snapshot folder of a hub id in the cache, named by its commit; ``None`` if it is not cached."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "model_index.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def check_folder(folder: Path, variant: str | None) -> str | None:
    """Check that a model's folder is complete, and choose the variant of its weights.

    Args:
        folder: Folder in diffusers format.
        variant: Variant of the weights that the user asked for, such as ``fp16``.

    Returns:
        The variant to load: the one that was asked for, else the only one that parts without plain weights have.

    Raises:
        ValueError: Naming the missing part, and what would work.
        UnsupportedModelError: If the pipeline's class is not supported.
    """
    index = _read_json(folder / "model_index.json")
    check_class(index)
    family = FAMILIES[index["_class_name"]]
    needed = family.parts
    named = {part for part, entry in index.items() if _is_part(entry)}
    missing = [part for part in (*needed, *named) if part not in named or not (folder / part).is_dir()]
    if missing:
        without = "" if missing[0] in needed else "; to do without it, let its entry in model_index.json be [null, null]"
        raise ValueError(f"the folder lacks its part {missing[0]!r}{without}")
    _check_configurations(folder, [part for part in (*needed, *family.optional) if part in named])
    found = {part: chosen for part in named if (chosen := _weights(folder / part)) is not None}
    if variant is not None:
        if not any(variant in names for names in found.values()):
            every = sorted({name for names in found.values() for name in names if name})
            raise ValueError(f"variant {variant!r} is not there; the folder has {', '.join(every) if every else 'none'}")
        return variant
    return _only_variant({part: names for part, names in found.items() if None not in names})


def _is_part(entry: object) -> bool:
    """Whether an entry of ``model_index.json`` names a part, as ``[library, class]``; other lists are settings."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)


def _check_configurations(folder: Path, parts: Iterable[str]) -> None:
    """Refuse a part whose configuration is missing or empty."""
    for part in parts:
        if part == "scheduler":
            _read_json(folder / part / "scheduler_config.json")
        elif part.startswith(("tokenizer", "processor")):
            _check_tokenizer(folder / part)
        else:
            _read_json(folder / part / "config.json")


def _check_tokenizer(folder: Path) -> None:
    there = [folder / name for name in ("tokenizer.json", "vocab.json", *_SENTENCE_PIECES) if (folder / name).is_file()]
    if not there:
        raise ValueError(f"the part {folder.name!r} has neither tokenizer.json nor vocab.json")
    if there[0].name not in _SENTENCE_PIECES:
        _read_json(there[0])


def _read_json(path: Path) -> dict[str, Any]:
    place = "/".join(path.parts[-2:]) if path.name != "model_index.json" else path.name
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"the folder has no {place}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{place} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{place} is empty; expected a JSON object with settings")
    return values


def _weights(folder: Path) -> set[str | None] | None:
    """Variants of a part's weights, with ``None`` for plain weights; ``None`` instead of a set where the part has no weights.

    Raises:
        ValueError: If a file is empty, or all are pickled.
    """
    files = [path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name)]
    for path in files:
        if path.stat().st_size == 0:
            raise ValueError(f"{folder.name}/{path.name} is empty (0 bytes)")
    if files:
        matches = [_WEIGHTS.fullmatch(path.name) for path in files]
        return {match["variant"] or match["late"] for match in matches if match}
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"the part {folder.name!r} has pickled weights only ({pickled[0]}), which may run code and are not read; where you "
            "trust them: DiffusionPipeline.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(OTHER)"
        )
    if folder.name in _NETWORKS:
        raise ValueError(f"the part {folder.name!r} has no weights (.safetensors)")
    return None


def _only_variant(parts: dict[str, set[str | None]]) -> str | None:
    """The variant that all parts without plain weights share; ``None`` if there are no such parts."""
    if not parts:
        return None
    shared = set.intersection(*parts.values())
    if len(shared) == 1:
        return shared.pop()
    names = ", ".join(sorted({name for found in parts.values() for name in found if name}))
    part = next(iter(parts))
    raise ValueError(f"the part {part!r} has several variants ({names}); choose one: --variant, or variant= in Python")
