"""Fingerprints of model files: changed weights under the same path are another model. Importing this needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from attnguide.models.controlnets import read_controlnets
from attnguide.models.folder import cached_folder
from attnguide.models.loras import read_lora
from attnguide.models.names import model_path

_READ = (".json", ".safetensors", ".txt", ".model")
_PIECES, _PIECE = 64, 4096
"""A large file is sampled at 64 evenly spread places, 4096 bytes each."""


def model_fingerprint(name: str, config: str | None = None) -> str | None:
    """Fingerprint of a model's files: a digest, or the commit of a hub id.

    Args:
        name: Model name as :func:`~attnguide.models.load.load_model` takes it.
        config: Folder with the configuration of a single-file checkpoint.

    Returns:
        The fingerprint; ``None`` if there are no files, such as of a hub id that has not been loaded yet.
    """
    path = model_path(name)
    if not path.exists():
        return _revision(name)
    digest = hashlib.blake2b(digest_size=8)
    for root in (path, *([Path(config)] if config else [])):
        files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.suffix in _READ)
        for file in files:
            digest.update(f"{file.relative_to(root).as_posix()} {file.stat().st_size}\n".encode())
            digest.update(_sampled(file))
    return digest.hexdigest()


def lora_fingerprints(loras: Iterable[str]) -> dict[str, str | None]:
    """Fingerprints of LoRAs by ``PATH:WEIGHT``; ``None`` for a hub id that is not cached."""
    return {text: model_fingerprint(read_lora(text).source) for text in loras}


def controlnet_fingerprints(controlnets: Iterable[str]) -> dict[str, str | None]:
    """Fingerprints of ControlNets by ``TYPE=PATH``; ``None`` for a hub id that is not cached."""
    return {str(one): model_fingerprint(one.source) for one in read_controlnets(list(controlnets))}


def _sampled(file: Path) -> bytes:
    """Bytes of a small file, or sampled pieces of a large one: reading gigabytes would take longer than making a picture."""
    size = file.stat().st_size
    if size <= _PIECES * _PIECE:
        return file.read_bytes()
    found = []
    with file.open("rb") as opened:
        for piece in range(_PIECES):
            opened.seek(piece * (size - _PIECE) // (_PIECES - 1))
            found.append(opened.read(_PIECE))
    return b"".join(found)


def _revision(name: str) -> str | None:
    """The commit of a hub id in the cache."""
    folder = cached_folder(name)
    return None if folder is None else folder.name
