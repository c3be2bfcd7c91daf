"""Which model a name meant: changed weights under the same path are another model. Importing this needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from attnguide.models.controlnets import read_controlnets
from attnguide.models.folder import cached_folder
from attnguide.models.loras import read_lora
from attnguide.models.names import DEFAULT_MODEL

_READ = (".json", ".safetensors", ".txt", ".model")
_PIECES, _PIECE = 64, 4096
"""How much of a large file is read: so many bytes at so many places, evenly spread."""


def model_fingerprint(name: str, config: str | None = None) -> str | None:
    """A short text that differs where a model's files differ: a digest, or the revision of a hub id.

    Args:
        name: What :func:`~attnguide.models.load.load_model` takes.
        config: The folder of its configuration, for a single file.

    Returns:
        ``None`` if there are no such files, say because a hub id has not been loaded yet.
    """
    from attnguide.models.load import shapes_folder

    path = shapes_folder() if name == DEFAULT_MODEL else Path(name)
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
    """LoRAs as ``PATH:WEIGHT``, each with the fingerprint of its files; ``None`` for one of the hub."""
    return {text: model_fingerprint(read_lora(text).source) for text in loras}


def controlnet_fingerprints(controlnets: Iterable[str]) -> dict[str, str | None]:
    """ControlNets as ``TYPE=PATH``, each with the fingerprint of its files; ``None`` for one of the hub."""
    return {str(one): model_fingerprint(one.source) for one in read_controlnets(list(controlnets))}


def _sampled(file: Path) -> bytes:
    """A small file, or pieces of a large one: weights of several gigabytes would take longer to read than a picture to make."""
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
