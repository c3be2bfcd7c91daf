"""``attnguide.sample`` and ``attnguide.adapt``: steered pictures in one call, for notebooks and scripts."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.inputs import Control, read_control
from attnguide.methods import DEFAULT, method_info
from attnguide.models.names import DEFAULT_MODEL, check_device, check_dtype, check_offload
from attnguide.prompt.notation import regions_from_places
from attnguide.rows.samples import MOST_ROWS, check_samples
from attnguide.rows.values import READERS
from attnguide.text.fields import FOREIGN_NAMES
from attnguide.text.parsing import as_whole, shown, unpacked
from attnguide.types import MethodConfig, Region, Sample

if TYPE_CHECKING:
    import torch

    from attnguide.engine.observer import Observer
    from attnguide.figures.results import Results
    from attnguide.models.base import ModelAdapter

Method = str | MethodConfig | Mapping[str, Any]
"""A method by name (``a+b`` is two), as a :class:`~attnguide.types.MethodConfig`, or as a mapping with name and options."""


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
    negative_prompt: str | None = None,
    prompt_syntax: str = "plain",
    true_cfg_scale: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    init_image: str | Path | None = None,
    strength: float | None = None,
    inpaint_mask: str | Path | None = None,
    control: str | Control | Sequence[str | Control] = (),
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offload: str = "none",
    checkpointing: bool = False,
    observer: Observer | None = None,
    progress: bool = False,
    **options: Any,
) -> Results:
    """Sample one prompt.

    Args:
        prompt: The prompt; may be empty for plain pictures only.
        regions: Phrase -> place: a box ``(x0, y0, x1, y1)`` as fractions from the top left, the path of a mask, a picture or an
            array ``height width`` as mask (in [0, 1] or ``uint8``; white is inside, black outside), a
            :class:`~attnguide.types.MapSource` for a place where a word looks elsewhere, ``None`` for no place, or a list of
            places; or a list of regions.
        groups: Words that belong together, the noun last (``"red circle"``), for methods that bind words; found by rule if
            none are given.
        method: One method, or several that work together; ``"plain"`` for none. When ``None``: ``forward_layout`` if a region
            has a place, else none.
        seed: Seeds, one picture for each; whole numbers of Python, numpy or torch.
        model: ``shapes`` or ``shapes-mmdit``, a folder, a file, a hub id, an adapter, or a diffusers pipeline. A name is loaded
            at every call; to sample more often, pass the adapter of :func:`~attnguide.models.load.load_model`.
        plain: Whether to make each seed's plain picture, too, before its steered one.
        steps: Denoising steps.
        cfg_scale: Classifier-free guidance weight.
        scheduler: Name of a noise scheduler; the model's own when ``None``.
        negative_prompt: Text that the unconditional half reads; ``None`` for none, which SDXL distinguishes from empty text.
        prompt_syntax: Syntax of the prompts: ``plain`` text, or ``weights``: ``(word:1.3)``, ``[word]``, ``BREAK``, and any
            number of chunks of 77 tokens (Stable Diffusion 1, 2 and XL; needs ``attnguide[prompts]``).
        true_cfg_scale: Classifier-free guidance weight of models that read ``cfg_scale`` as a condition (FLUX.1-dev): above 1,
            with a negative prompt, both halves are computed and combined with it.
        height: Height of the pictures in pixels; the model's own when ``None``.
        width: Width of the pictures in pixels; the model's own when ``None``.
        init_image: Path of a picture to begin from, stretched to the size of the picture that is made.
        strength: Share of the schedule that the ``init_image`` runs through, in (0, 1]; when ``None`` 0.8, or 1 with a mask.
        inpaint_mask: Path of a picture of the ``init_image``'s size, white where it is drawn anew and black where it is kept.
        control: Pictures that ControlNets read, each ``"TYPE=IMAGE[:SCALE]"`` or a :class:`~attnguide.inputs.Control`; for
            models that were loaded with ControlNets of these types (:func:`~attnguide.models.load.load_model`).
        batch_size: Most rows sampled together; as many as suit the pictures' size when ``None``.
        device: For a model given by name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or one of torch's.
        dtype: For a model given by name: ``fp32``, ``fp16``, ``bf16``, or one of torch's.
        offload: For a model given by name: the part that waits in the CPU's memory (:func:`~attnguide.models.load.load_model`).
        checkpointing: For a model given by name: whether guided steps recompute activations to take less memory.
        observer: Observer of the loop; an :class:`attnguide.Watch` keeps maps and losses for :func:`attnguide.plot`.
        progress: Whether to show a bar over the steps on standard error.
        options: Options of the method, if a single method is given by its name.

    Returns:
        One result for each seed (two with ``plain``), in order; a row that stopped has no picture and says why in ``status``.
        Notebooks show the list as pictures.

    Raises:
        ValueError: If a phrase is not in the prompt, or a place, option or name is invalid.

    Example:
        >>> (result,) = sample("a red circle and a blue square", regions={"red circle": (0, 0.2, 0.45, 0.8)}, steps=4)
        >>> result.status, result.image.size
        ('ok', (128, 128))
    """
    _check_names(options, given=method is not None)
    placed = regions_of(regions)
    methods = methods_of(method, options, placed)
    common = Sample(
        id="row",
        prompt=prompt,
        regions=placed,
        groups=groups_of(groups),
        methods=methods,
        negative_prompt=negative_prompt,
        prompt_syntax=prompt_syntax,
        true_cfg_scale=true_cfg_scale,
        height=height,
        width=width,
        steps=steps,
        cfg_scale=cfg_scale,
        scheduler=scheduler,
        init_image=init_image if init_image is None else str(init_image),
        strength=strength,
        inpaint_mask=inpaint_mask if inpaint_mask is None else str(inpaint_mask),
        control=tuple(read_control(one) for one in ([control] if isinstance(control, str | Control) else control)),
    )
    rows = [replace(common, id=f"seed{number}", seed=number) for number in _seeds(seed)]
    _check_kinds(plain=plain, progress=progress, batch_size=batch_size, device=device, dtype=dtype)
    check_offload(offload)
    if plain and methods:
        rows = [twin for row in rows for twin in (row.plain(), row)]
    check_samples(rows)
    return _sample(
        _adapter(model, device, dtype, offload, checkpointing),
        rows,
        batch_size,
        _observers(observer, len(rows) if progress else None),
    )


def _sample(model: ModelAdapter, rows: Sequence[Sample], batch_size: int | None, observer: Observer | None) -> Results:
    from attnguide.figures.results import Results
    from attnguide.sampling.check import check_rows
    from attnguide.sampling.table import sample_rows

    check_rows(model, rows)
    found = {result.sample.id: result for result in sample_rows(model, rows, batch_size=batch_size, observer=observer)}
    return Results(found[row.id] for row in rows)


def _observers(observer: Observer | None, rows: int | None) -> Observer | None:
    """The caller's observer, joined with a progress bar if the number of rows is given."""
    if rows is None:
        return observer
    from attnguide.engine.observer import Observers
    from attnguide.figures.progress import StepBar
    from attnguide.sampling.arguments import check_observer

    bar = StepBar(rows)
    if observer is None:
        return bar
    check_observer(observer)
    return Observers([observer, bar])


def adapt(pipeline: Any, name: str | None = None) -> ModelAdapter:
    """The adapter of a loaded diffusers pipeline; see :func:`attnguide.models.load.adapt`.

    Raises:
        UnsupportedModelError: If the pipeline is not supported, with its class or the part at fault, and an alternative, often
            :func:`attnguide.steer`.
    """
    from attnguide.models.folder import UnsupportedModelError
    from attnguide.models.load import adapt as adapted
    from attnguide.steering.pipelines import known_pipeline

    try:
        return adapted(pipeline, name)
    except UnsupportedModelError as error:
        try:
            known_pipeline(pipeline)
        except ValueError:
            raise error from None
        raise UnsupportedModelError(
            f"{error} As it is, it is steered inside its own call: with attnguide.steer(pipeline, ...): pipeline(...)."
        ) from error


def _adapter(
    model: Any, device: str | torch.device | None, dtype: str | torch.dtype | None, offload: str, checkpointing: bool
) -> ModelAdapter:
    from attnguide.models.base import ModelAdapter
    from attnguide.models.load import load_model

    if isinstance(model, str | Path):
        return load_model(str(model), device=device, dtype=dtype, offload=offload, checkpointing=checkpointing)
    if device is not None or dtype is not None or offload != "none" or checkpointing:
        raise ValueError(
            "device, dtype, offload and checkpointing are for a model given by name; place the one you hold yourself."
        )
    return model if isinstance(model, ModelAdapter) else adapt(model)


def methods_of(
    method: Method | Sequence[Method] | None, options: Mapping[str, Any], regions: Sequence[Region]
) -> tuple[MethodConfig, ...]:
    """Methods of a call, read as in a table of rows; ``None`` gives ``forward_layout`` if a region has a place, else none.

    Raises:
        ValueError: If a method does not exist, or options are given without a single method given by its name.
    """
    if method is None:
        method = DEFAULT if any(region.has_place for region in regions) else "plain"
    several = method if isinstance(method, list | tuple) else [method]
    if not all(isinstance(item, str | MethodConfig | Mapping) for item in several):
        raise ValueError(f"method must be a name, a+b, a MethodConfig, a mapping, or a list of these; got {shown(method)}.")
    chosen = [config for config in READERS["methods"]("method", method) if config.name != "plain"]
    for config in chosen:
        method_info(config.name)
    if options:
        if len(chosen) != 1 or chosen[0].options:
            raise ValueError(
                f"Options ({', '.join(options)}) need one method given by its name; else put them in a MethodConfig."
            )
        chosen = [MethodConfig(chosen[0].name, dict(options))]
    return tuple(chosen)


def regions_of(regions: Mapping[str, Any] | Sequence[Region]) -> tuple[Region, ...]:
    """Regions of a call, from a mapping of phrases to places or from a list.

    Raises:
        ValueError: If ``regions`` is neither, or a place is invalid.
    """
    if isinstance(regions, Mapping):
        return regions_from_places(regions)
    if isinstance(regions, list | tuple) and all(isinstance(region, Region) for region in regions):
        return tuple(regions)
    raise ValueError(f"regions must be a mapping from phrases to places, or a list of Regions; got {shown(regions)}.")


def groups_of(groups: Sequence[str | Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Groups of words of a call, each from a text or a list of words.

    Raises:
        ValueError: If ``groups`` is not a list of such groups.
    """
    given = groups if isinstance(groups, list | tuple) else None
    found = [group.split() if isinstance(group, str) else group for group in given or ()]
    for group in found:
        if not isinstance(group, list | tuple) or not all(isinstance(word, str) for word in group):
            given = None
    if given is None:
        raise ValueError(f"groups must be a list of words that belong together, like ['red circle']; got {shown(groups)}.")
    return tuple(tuple(group) for group in found)


def _seeds(seed: Any) -> list[int]:
    single = as_whole(seed)
    if single is not None:
        return [single]
    several = unpacked(seed)
    if not isinstance(several, list | tuple | range):
        raise ValueError(f"seed must be a whole number, or a list of them; got {shown(seed)}.")
    if not 1 <= len(several) <= MOST_ROWS:
        raise ValueError(f"seed must be a number, or 1 to {MOST_ROWS:,} of them; got {len(several) or 'none'}.")
    numbers = [as_whole(item) for item in several]
    if None in numbers:
        raise ValueError(f"seed must be whole numbers; got {shown(several[numbers.index(None)])}.")
    return [number for number in numbers if number is not None]


def _check_names(options: Mapping[str, Any], *, given: bool) -> None:
    """Refuse argument names of other packages, and misspelt ones if no method is given that could have such an option.

    Raises:
        ValueError: With the argument that is probably meant.
    """
    own = [name for name in inspect.signature(sample).parameters if name != "options"]
    for name in options:
        foreign = FOREIGN_NAMES.get(name)
        near = [foreign] if foreign else [] if given else difflib.get_close_matches(name[:100], own, 1, cutoff=0.85)
        if near:
            raise ValueError(f"sample has no argument {name!r} (did you mean {near[0]!r}?).")


def _check_kinds(*, plain: Any, progress: Any, batch_size: Any, device: Any, dtype: Any) -> None:
    for name, value in (("plain", plain), ("progress", progress)):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False; got {shown(value)}.")
    if batch_size is not None and ((number := as_whole(batch_size)) is None or number < 1):
        raise ValueError(f"batch_size must be a whole number of at least 1; got {shown(batch_size)}.")
    if device is not None:
        check_device(str(device))  # torch's own objects are spelt like their names
    if dtype is not None:
        check_dtype(str(dtype))
