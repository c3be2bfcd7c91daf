"""LoRAs (low-rank additions to a model's weights): parsing, checking and loading. Importing this needs no torch."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnguide.text.parsing import as_real, real_number, shown

_FILE = ".safetensors"
_USUAL = "pytorch_lora_weights.safetensors"
"""Diffusers' file name in a folder or hub repository."""

_WEIGHTS = re.compile(r"lora|lokr_")
"""Pattern in the name of every tensor of a LoRA file."""

_FIRST_FACTOR = re.compile(r"\.(?:processor\.)?(\w*?)[._]?lora(?:_A|[._]down|_linear_layer\.down)\b.*$")
"""Suffix of a layer's first (down) factor, one for each layer; an old format has part of the layer's name in it."""


class LoraError(ValueError):
    """A LoRA cannot be used; the message begins with its source."""


@dataclass(frozen=True)
class Lora:
    """A LoRA and its weight.

    Attributes:
        source: A ``.safetensors`` file, a folder with one, a hub id (``owner/name``), or a file of a hub id
            (``owner/name/file.safetensors``).
        weight: Factor on the LoRA's term in each layer's output; may be negative.

    Raises:
        ValueError: If the source is empty or no string, or the weight is not finite.
    """

    source: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source.strip():
            raise ValueError(f"expected a .safetensors file, a folder or a hub id; got {shown(self.source)}")
        number = as_real(self.weight)
        if number is None or number != number or abs(number) == float("inf"):
            raise ValueError(f"expected a finite weight of {self.source!r}; got {shown(self.weight)}")
        object.__setattr__(self, "weight", number)

    def __str__(self) -> str:
        return f"{self.source}:{self.weight:g}"

    @property
    def path(self) -> Path:
        """The source as a path, which need not exist."""
        return Path(self.source).expanduser()


def read_lora(value: Any) -> Lora:
    """A LoRA from ``PATH[:WEIGHT]``, a pair of path and weight, or a :class:`Lora`; local paths are made absolute.

    Raises:
        ValueError: If the value has another form.
    """
    if isinstance(value, Lora):
        lora = value
    elif isinstance(value, tuple | list) and len(value) == 2:
        lora = Lora(str(value[0]) if isinstance(value[0], Path) else value[0], value[1])
    elif isinstance(value, str | Path):
        path, colon, number = str(value).rpartition(":")
        weight = real_number(number) if colon else None
        lora = Lora(str(value)) if weight is None else Lora(path, weight)
    else:
        raise ValueError(f"expected PATH[:WEIGHT]; got {shown(value)}")
    return Lora(str(lora.path.absolute()), lora.weight) if lora.path.exists() else lora


def checked_loras(values: Sequence[Any]) -> list[Lora]:
    """Parse LoRAs with :func:`read_lora` and check each with :func:`check_lora`.

    Raises:
        ValueError: If a value is no LoRA's name.
        LoraError: If a LoRA cannot be used.
    """
    found = [read_lora(value) for value in values]
    for lora in found:
        check_lora(lora)
    return found


def check_lora(lora: Lora) -> None:
    """Check a LoRA before any model is loaded: package, file, format.

    Raises:
        LoraError: Naming the source.
    """
    if importlib.util.find_spec("peft") is None:
        raise LoraError(f"{lora.source}: a LoRA needs a package that is not installed: pip install 'attnguide[lora]'")
    if lora.path.exists():
        _check_file(_local_file(lora))
    elif lora.source.startswith((".", "/", "~")) or not 1 <= lora.source.count("/") <= 2 + lora.source.endswith(_FILE):
        raise LoraError(f"{lora.source}: expected a {_FILE} file, a folder with one, or a hub id (owner/name); there is none")
    elif lora.source.count("/") > 1 and not lora.source.endswith(_FILE):
        raise LoraError(f"{lora.source}: expected a {_FILE} file of a hub id; pickled weights are not read")


def _local_file(lora: Lora) -> Path:
    """The LoRA's weight file on disk."""
    if lora.path.is_file():
        return lora.path
    found = sorted(lora.path.glob(f"*{_FILE}"))
    usual = [path for path in found if path.name == _USUAL]
    if len(found) != 1 and not usual:
        names = ", ".join(path.name for path in found[:3]) or "none"
        raise LoraError(f"{lora.source}: expected a folder with one {_FILE} file; it has {names}")
    return (usual or found)[0]


def _check_file(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    if path.suffix != _FILE:
        raise LoraError(f"{path}: expected a {_FILE} file; pickled weights are not read")
    try:
        with safe_open(path, framework="numpy") as weights:
            names = list(weights.keys())
    except (OSError, SafetensorError) as error:
        raise LoraError(f"{path}: cannot be read as {_FILE}: {str(error).splitlines()[0]}") from error
    if not any(_WEIGHTS.search(name) for name in names):
        example = f", such as {names[0]!r}" if names else ""
        raise LoraError(f"{path}: holds no LoRA: none of its {len(names)} tensors is a low-rank factor{example}")


def load_loras(pipeline: Any, loras: Sequence[Lora]) -> None:
    """Load LoRAs into a pipeline of diffusers and set their weights.

    Raises:
        LoraError: If the pipeline takes no LoRAs, or one cannot be loaded or has weights for layers that the networks lack.
    """
    if not loras:
        return
    if not hasattr(pipeline, "load_lora_weights") or not hasattr(pipeline, "set_adapters"):
        raise LoraError(f"{loras[0].source}: {type(pipeline).__name__} takes no LoRA")
    names = [f"lora{number}" for number in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        check_lora(lora)
        _load(pipeline, lora, name)
    pipeline.set_adapters(names, [lora.weight for lora in loras])


def _load(pipeline: Any, lora: Lora, name: str) -> None:
    source, options = _place(lora)
    try:
        with _silence():
            state = pipeline.lora_state_dict(source, **options)
            state = state[0] if isinstance(state, tuple) else state
            pipeline.load_lora_weights(source, adapter_name=name, **options)
    except Exception as error:  # a foreign file fails in many places of the libraries, each in its own way
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = (lines[1] if len(lines) > 1 and lines[0].endswith(":") else (lines or [type(error).__name__])[0])[:300]
        hint = "" if lora.path.exists() else "; offline, give a local file"
        raise LoraError(f"{lora.source}: cannot be loaded into {type(pipeline).__name__}: {told}{hint}") from error
    lacking = _unknown_layers(state, set(_wrapped_layers(pipeline, name)))
    if lacking is None:
        return
    count, first = lacking
    raise LoraError(
        f"{lora.source}: has weights for {count} layers that {type(pipeline).__name__} lacks, such as {first!r}; it was "
        "trained for another model"
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Silence the libraries: errors are raised, and unmatched layers are found afterwards."""
    from diffusers.utils import logging as library

    from attnguide.models.quiet import quietly

    with quietly(), warnings.catch_warnings():  # the former restores the library's verbosity
        warnings.simplefilter("ignore")
        library.set_verbosity(logging.CRITICAL)
        yield


def _place(lora: Lora) -> tuple[str, dict[str, Any]]:
    """Folder or hub id, and the loading arguments that name the file in it."""
    if lora.path.exists():
        file = _local_file(lora)
        return str(file.parent), {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    owner, name, *inner = lora.source.split("/")
    return f"{owner}/{name}", {"weight_name": "/".join(inner) or None, "use_safetensors": True}


def _wrapped_layers(pipeline: Any, name: str) -> Iterator[str]:
    """Module paths of the layers that the LoRA ``name`` was added to, in all networks."""
    for network in pipeline.components.values():
        if not hasattr(network, "named_modules"):
            continue
        for path, module in network.named_modules():
            if any(name in getattr(module, factors, ()) for factors in ("lora_A", "lora_embedding_A", "lokr_w1")):
                yield path


def _unknown_layers(state: Mapping[str, Any], wrapped: Collection[str]) -> tuple[int, str] | None:
    """Number of a LoRA's layers that the networks lack, and one of them; ``None`` where all were found."""
    wanted = [layer for key in state if (layer := _layer_of(key)) is not None]
    if len(wanted) <= len(wrapped) and (wrapped or not state):
        return None
    ends = {path.rpartition("text_model.")[2] for path in wrapped}
    lost = [layer for layer in wanted if not any(layer.endswith(end) for end in ends)]
    return max(len(wanted) - len(wrapped), 1), (lost or wanted or list(state))[0]


def _layer_of(key: str) -> str | None:
    """Layer name of a first-factor tensor; ``None`` for other tensors."""
    found = _FIRST_FACTOR.search(key)
    if found is None:
        return None
    return ".".join(filter(None, [key[: found.start()], found[1]]))
