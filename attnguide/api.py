"""Steered pictures in one call, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.methods import method_info
from attnguide.models.names import DEFAULT_MODEL
from attnguide.rows import check_samples
from attnguide.types import MapSource, MethodConfig, Region, Sample, SampleResult

if TYPE_CHECKING:
    import torch

    from attnguide.models.base import ModelAdapter
    from attnguide.sampling.observer import Observer

Method = str | MethodConfig
"""A method by name, or by name with options."""


def sample(
    prompt: str,
    *,
    regions: Mapping[str, Any] | Sequence[Region] = (),
    groups: Sequence[str | Sequence[str]] = (),
    method: Method | Sequence[Method] | None = None,
    seed: int | Sequence[int] = 0,
    model: Any = DEFAULT_MODEL,
    plain: bool = False,
    steps: int = 30,
    cfg_scale: float = 5.0,
    scheduler: str | None = None,
    negative_prompt: str = "",
    height: int | None = None,
    width: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> list[SampleResult]:
    """Sample one prompt.

    Args:
        prompt: What to draw.
        regions: Phrase -> place: a box ``(x0, y0, x1, y1)`` as fractions from the top left, the path of a mask, a mask
            ``height width`` in [0, 1], a :class:`~attnguide.types.MapSource` for a place where a word looks elsewhere,
            ``None`` for no place, or a list of places; or a list of regions.
        groups: Words that belong together, the noun last (``"red circle"``), for methods that bind words; found by rule where
            none are given.
        method: One, or several that work together; ``mask_guidance`` where a region has a place and nothing is said;
            ``"plain"`` for none.
        seed: One picture for each.
        model: ``shapes``, a folder, a file, a hub id, an adapter, or a diffusers pipeline. A name is loaded at every call: keep
            what :func:`~attnguide.models.load.load_model` gives to sample more often.
        plain: Give each seed's plain picture, too, before its steered one.
        steps: Denoising steps.
        cfg_scale: Classifier-free guidance weight.
        scheduler: Name of a noise scheduler; the model's own when ``None``.
        negative_prompt: What the unconditional half reads.
        height: Of the pictures in pixels; the model's own when ``None``.
        width: Likewise.
        batch_size: Most rows sampled together; as many as suit the pictures' size when ``None``.
        device: For a model given by name.
        dtype: For a model given by name: ``fp32``, ``fp16``, ``bf16``, or one of torch's.
        observer: Told of everything.
        options: Of the method, if it is given by name and alone.

    Returns:
        One result for each seed (two with ``plain``), in order; a row that stopped has no picture and says why in ``status``.

    Raises:
        ValueError: If a phrase is not in the prompt, or a place, option or name is wrong.

    Example:
        >>> (result,) = sample("a red circle and a blue square", regions={"red circle": (0, 0.2, 0.45, 0.8)}, steps=4)
        >>> result.status, result.image.size
        ('ok', (128, 128))
    """
    placed = _regions(regions)
    methods = _methods(method, options, placed)
    common = Sample(
        id="row",
        prompt=prompt,
        regions=placed,
        groups=tuple(tuple(group.split() if isinstance(group, str) else group) for group in groups),
        methods=methods,
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        steps=steps,
        cfg_scale=cfg_scale,
        scheduler=scheduler,
    )
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if not seeds:
        raise ValueError("seed must be a number, or at least one; got none.")
    rows = [replace(common, id=f"seed{number}", seed=number) for number in seeds]
    if plain and methods:
        rows = [twin for row in rows for twin in (row.plain(), row)]
    check_samples(rows)
    return _sample(_adapter(model, device, dtype), rows, batch_size, observer)


def _sample(
    model: ModelAdapter, rows: Sequence[Sample], batch_size: int | None, observer: Observer | None
) -> list[SampleResult]:
    from attnguide.sampling.check import check_rows
    from attnguide.sampling.table import sample_rows

    check_rows(model, rows)
    found = {result.sample.id: result for result in sample_rows(model, rows, batch_size=batch_size, observer=observer)}
    return [found[row.id] for row in rows]


def _adapter(model: Any, device: str | None, dtype: str | torch.dtype | None) -> ModelAdapter:
    from attnguide.models.base import ModelAdapter
    from attnguide.models.load import adapt, load_model

    if isinstance(model, str | Path):
        return load_model(str(model), device=device, dtype=dtype)
    if device is not None or dtype is not None:
        raise ValueError("device and dtype are for a model given by name; move the one you hold yourself.")
    return model if isinstance(model, ModelAdapter) else adapt(model)


def _methods(
    method: Method | Sequence[Method] | None, options: Mapping[str, Any], regions: Sequence[Region]
) -> tuple[MethodConfig, ...]:
    if method is None:
        method = "mask_guidance" if any(region.has_place for region in regions) else "plain"
    several = [method] if isinstance(method, str | MethodConfig) else list(method)
    chosen = [item if isinstance(item, MethodConfig) else MethodConfig(item) for item in several if item != "plain"]
    for config in chosen:
        method_info(config.name)
    if options:
        if len(chosen) != 1 or chosen[0].options:
            raise ValueError(
                f"Options ({', '.join(options)}) need one method given by its name; else put them in a MethodConfig."
            )
        chosen = [MethodConfig(chosen[0].name, dict(options))]
    return tuple(chosen)


def _regions(regions: Mapping[str, Any] | Sequence[Region]) -> tuple[Region, ...]:
    if not isinstance(regions, Mapping):
        return tuple(regions)
    return tuple(_region(phrase, place) for phrase, places in regions.items() for place in _places(places))


def _places(places: Any) -> list[Any]:
    """A list of boxes, paths or masks is several places; four numbers are one box."""
    if isinstance(places, list) and not all(isinstance(item, int | float) for item in places):
        return places
    return [places]


def _region(phrase: str, place: Any) -> Region:
    if isinstance(place, Region):
        return place
    if place is None:
        return Region(phrase)
    if isinstance(place, MapSource):
        return Region(phrase, source=place)
    if isinstance(place, str | Path):
        return Region(phrase, mask=Path(place).expanduser())
    if hasattr(place, "shape"):
        return Region(phrase, mask=place)
    numbers = tuple(place) if isinstance(place, list | tuple) else ()
    if len(numbers) != 4 or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"Region {phrase!r}: a place must be x0,y0,x1,y1, a path, a mask or None; got {place!r}.")
    return Region(phrase, box=(numbers[0], numbers[1], numbers[2], numbers[3]))
