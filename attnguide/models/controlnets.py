"""ControlNets of a run: parsing, checking and loading. Importing this needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnguide.text.parsing import shown

ANY = ""
"""Type of the fallback ControlNet, for control pictures whose type has no ControlNet of its own."""

_WIDTHS = ("block_out_channels", "cross_attention_dim", "joint_attention_dim", "num_attention_heads", "attention_head_dim")
"""Config entries in which a ControlNet and its network must agree."""

_NAMED = re.compile(r"([A-Za-z0-9_-]{1,60})=(.+)", re.DOTALL)


class ControlNetError(ValueError):
    """A ControlNet cannot be used; the message names its source."""


@dataclass(frozen=True)
class ControlNetSource:
    """Source of a ControlNet and the type of control pictures that it reads.

    Attributes:
        source: A folder in diffusers format, or a hub id.
        type: Type of control pictures; :data:`ANY` for all types without a ControlNet of their own.
    """

    source: str
    type: str = ANY

    def __str__(self) -> str:
        return f"{self.type}={self.source}" if self.type else self.source


def read_controlnets(value: Any) -> list[ControlNetSource]:
    """ControlNets from ``[TYPE=]PATH``, a list of these, or a mapping from type to path; local paths are made absolute.

    Raises:
        ValueError: If a value has another form, or two ControlNets read the same type.
    """
    if isinstance(value, Mapping):
        given = [ControlNetSource(str(source), str(kind)) for kind, source in value.items()]
    else:
        given = [_read(item) for item in (value if isinstance(value, list | tuple) else [value])]
    found = [ControlNetSource(_absolute(one.source), one.type) for one in given]
    types = [one.type for one in found]
    if len(set(types)) < len(types):
        told = ", ".join(kind or "any" for kind in types)
        raise ValueError(f"expected one ControlNet for each type of control, as TYPE=PATH; got {told}")
    return found


def _read(item: Any) -> ControlNetSource:
    if isinstance(item, ControlNetSource):
        return item
    if not isinstance(item, str | Path) or not str(item).strip():
        raise ValueError(f"expected [TYPE=]PATH, with a folder in diffusers format or a hub id; got {shown(item)}")
    named = _NAMED.fullmatch(str(item))
    return ControlNetSource(str(item)) if named is None else ControlNetSource(named[2], named[1])


def _absolute(source: str) -> str:
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def check_controlnet(one: ControlNetSource) -> None:
    """Find what is wrong with a ControlNet before any model is loaded.

    Raises:
        ControlNetError: Naming its source.
    """
    path = Path(one.source)
    if not path.exists():
        if one.source.startswith((".", "/", "~")) or one.source.count("/") != 1:
            raise ControlNetError(f"{one.source}: expected a folder in diffusers format or a hub id; there is none")
        return
    class_of(one.source)
    if not list(path.glob("*.safetensors*")):
        raise ControlNetError(f"{one.source}: expected weights as .safetensors; pickled weights are not read")


def class_of(source: str) -> str:
    """Class name in diffusers of a local folder's ControlNet.

    Raises:
        ControlNetError: If the folder holds no ControlNet.
    """
    try:
        name = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ControlNetError(
            f"{source}: expected a ControlNet's folder with its config.json ({type(error).__name__})"
        ) from error
    if "ControlNet" not in str(name):
        raise ControlNetError(f"{source}: expected a ControlNet; its config.json says {shown(name)}")
    return str(name)


def serving(types: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Type of the ControlNet that reads each type of control pictures.

    Args:
        types: Types of control pictures.
        known: Types of the loaded ControlNets.

    Raises:
        ValueError: If a type has no ControlNet.
    """
    there = set(known)
    found = {kind: kind if kind in there else ANY for kind in types}
    for kind, one in found.items():
        if one not in there:
            told = ", ".join(sorted(there)) or "none"
            raise ValueError(f"control {kind!r} needs a ControlNet of the run: --controlnet {kind}=PATH; the run has {told}.")
    return found


def load_controlnets(pipeline: Any, given: Sequence[ControlNetSource], dtype: Any, device: Any) -> dict[str, Any]:
    """Load the ControlNets of a run for a pipeline's family, by type of control.

    Raises:
        ControlNetError: If one cannot be loaded, or is of another family or for another network.
    """
    from attnguide.models.kinds import CONTROLNETS
    from attnguide.models.quiet import quietly

    found: dict[str, Any] = {}
    for one in given:
        check_controlnet(one)
        kind = CONTROLNETS.get(type(pipeline).__name__)
        if kind is None:
            raise ControlNetError(f"{one.source}: {type(pipeline).__name__} takes no ControlNet here{_why_not(pipeline)}")
        if Path(one.source).exists() and class_of(one.source) != kind:
            raise ControlNetError(f"{one.source}: {type(pipeline).__name__} takes a {kind}; got a {class_of(one.source)}")
        import diffusers

        try:
            with quietly():
                loaded = getattr(diffusers, kind).from_pretrained(one.source, torch_dtype=dtype, use_safetensors=True)
        except Exception as error:  # a foreign folder may be wrong in many ways, each found elsewhere in the library
            told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ControlNetError(f"{one.source}: could not be loaded: {told}") from error
        if getattr(loaded, "union", False):
            raise ControlNetError(
                f"{one.source}: is a union, which must be told what its pictures are; steer a pipeline with it"
            )
        _check_widths(one.source, loaded, pipeline)
        found[one.type] = loaded.to(device).eval()
    return found


def _why_not(pipeline: Any) -> str:
    from attnguide.models.kinds import CONTROLNETS, SEEDLESS

    why = SEEDLESS.get(type(pipeline).__name__)
    told = f" ({why}), but inside attnguide.steer" if why else ""
    return f"{told}; those that do are {', '.join(CONTROLNETS)}"


def _check_widths(source: str, controlnet: Any, pipeline: Any) -> None:
    """Refuse a ControlNet whose widths differ from the network's, to which its residuals are added."""
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    for name in _WIDTHS:
        own, other = controlnet.config.get(name), network.config.get(name)
        if own is not None and other is not None and _widths(own) != _widths(other):
            raise ControlNetError(f"{source}: is for another network: its {name} is {own}, and that of the model {other}")


def _widths(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
