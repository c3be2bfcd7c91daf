"""Layout of a dashboard: its sections and panels, as dataclasses. Importing this needs no torch and no W&B."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from attnguide.callbacks.keys import (
    ABLATION_PLOTS,
    ABLATION_SHEETS,
    EVAL_SHEETS,
    EVAL_TABLE,
    GUIDE_STEP,
    LIVE,
    MAPS_PICTURES,
    MAPS_STEP,
    PICTURES,
    ROWS_DONE,
    SHEET,
    TABLE,
)
from attnguide.dashboard.names import LoggedNames

Kind = Literal["lines", "bars", "scatter", "pictures", "parallel", "importance", "comparer", "table"]

QUALITIES: tuple[str, ...] = ("region_hit", "count", "presence", "inside")
"""Metrics of success, in order; the first that the runs have is plotted against cost."""

COSTS: tuple[str, ...] = ("unet_forwards", "unet_backwards", "seconds", "peak_memory_mb")


@dataclass(frozen=True)
class PanelPlan:
    """One panel of a dashboard.

    Attributes:
        kind: Type of the panel.
        title: Heading above it.
        keys: Logger keys that it shows; for ``scatter`` those of the two axes, for ``parallel`` keys of the summary.
        x: Key of the abscissa of ``lines``.
        config: Keys of the configuration that ``parallel`` shows before ``keys``.
        grid: Whether ``pictures`` are laid out as a grid with a row for each run.
    """

    kind: Kind
    title: str
    keys: tuple[str, ...] = ()
    x: str | None = None
    config: tuple[str, ...] = ()
    grid: bool = False


@dataclass(frozen=True)
class SectionPlan:
    """A section of a dashboard: panels under a heading.

    Attributes:
        name: The heading.
        text: Sentence below the heading, in the report.
        panels: Panels in order, each with something to show.
        pinned: Whether the section stands first in a workspace.
    """

    name: str
    text: str
    panels: tuple[PanelPlan, ...]
    pinned: bool = False


def sections(names: LoggedNames) -> list[SectionPlan]:
    """Sections of a dashboard for what the runs logged, from pictures to the table of all rows.

    A key gets a panel only if it was logged, and a section without panels is left out.

    Args:
        names: Keys that the runs logged.
    """
    told = (_pictures, _comparison, _guidance, _maps, _cost, _ablation, _table)
    found = [section(names) for section in told]
    return [section for section in found if section.panels]


def _pictures(names: LoggedNames) -> SectionPlan:
    others = (MAPS_PICTURES, SHEET)
    methods = [key for key in names.curves(f"{PICTURES}/") if key not in others]
    methods.sort(key=lambda key: not key.endswith("/plain"))
    panels = [PanelPlan("pictures", "By seed and run", tuple(methods), grid=True)] if methods else []
    titles = {SHEET: "Side by side", MAPS_PICTURES: "Where words look"}
    panels += [PanelPlan("pictures", titles[key], (key,)) for key in reversed(others) if key in names.history]
    text = (
        "The same place in a row of pictures is the same prompt and seed for every method; boxes and masks can be switched on."
    )
    return SectionPlan("Pictures", text, tuple(panels), pinned=True)


def _comparison(names: LoggedNames) -> SectionPlan:
    panels = [PanelPlan("table", "Methods by category", (EVAL_TABLE,))] if EVAL_TABLE in names.history else []
    panels += [PanelPlan("pictures", "Examples of each category", (EVAL_SHEETS,))] if EVAL_SHEETS in names.history else []
    text = "Every method on every category of the benchmark, with plain sampling and more seeds at equal cost beside it."
    return SectionPlan("Comparison", text, tuple(panels))


def _lines(names: LoggedNames, title: str, prefix: str, axis: str) -> list[PanelPlan]:
    keys = names.curves(prefix)
    return [PanelPlan("lines", title, tuple(keys), x=axis)] if keys else []


def _bars(names: LoggedNames, title: str, metric: str) -> list[PanelPlan]:
    keys = names.means(metric)
    return [PanelPlan("bars", title, tuple(keys))] if keys else []


def _guidance(names: LoggedNames) -> SectionPlan:
    panels = [
        *_lines(names, "Loss", "guide/loss/", GUIDE_STEP),
        *_lines(names, "Attention inside the regions", "guide/inside/", GUIDE_STEP),
        *_lines(names, "Attention inside the regions, so far", f"progress/{LIVE[0]}/", ROWS_DONE),
        *_lines(names, "Objects in their regions, so far", f"progress/{LIVE[1]}/", ROWS_DONE),
        *_lines(names, "Gradient norm", "guide/gradient_norm/", GUIDE_STEP),
        *_bars(names, "Objects in their regions", "region_hit"),
        *_bars(names, "Attention inside the regions, whole run", "inside"),
        *_bars(names, "Right number of objects", "count"),
        *_bars(names, "Rows without a picture", "failed"),
    ]
    text = "A method that works lowers its loss, draws attention into the regions, and objects with it."
    return SectionPlan("Did guidance work", text, tuple(panels))


def _maps(names: LoggedNames) -> SectionPlan:
    titles = {"l2": "Norm of the maps", "max": "Largest value", "entropy": "Entropy in nats"}
    panels = [panel for name, title in titles.items() for panel in _lines(names, title, f"maps/{name}/", MAPS_STEP)]
    text = "Injections change how strong a map is, guidance changes where it is strong."
    return SectionPlan("Maps", text, tuple(panels))


def _quality(names: LoggedNames) -> str | None:
    return next((metric for metric in QUALITIES if names.means(metric)), None)


def _cost(names: LoggedNames) -> SectionPlan:
    quality = _quality(names)
    panels: list[PanelPlan] = []
    for key in names.means("seconds") if quality else []:
        method = key.removeprefix("mean/seconds/")
        against = f"mean/{quality}/{method}"
        if against in names.summary:
            panels.append(PanelPlan("scatter", f"{method}: {quality} against seconds", (key, against)))
    panels += [panel for metric in COSTS for panel in _bars(names, metric.replace("_", " "), metric)]
    return SectionPlan(
        "Cost and quality", "A point is a run: what a method reaches, and what a row of it takes.", tuple(panels)
    )


def _ablation(names: LoggedNames) -> SectionPlan:
    axes = sorted(key for key in names.config if key.startswith("axis/"))
    if not axes:
        return SectionPlan("Ablation", "", ())
    metrics = [f"mean/{metric}" for metric in (*QUALITIES, "seconds") if f"mean/{metric}" in names.summary]
    drawn = [key for key in (ABLATION_PLOTS, ABLATION_SHEETS) if key in names.history]
    panels = [PanelPlan("parallel", "Axes and scores", tuple(metrics), config=tuple(axes))] if metrics else []
    panels += [PanelPlan("importance", "What matters", (metrics[0],))] if metrics else []
    panels += [PanelPlan("comparer", "What differs")]
    panels += [PanelPlan("pictures", "Curves, heat maps and sheets", tuple(drawn))] if drawn else []
    return SectionPlan(
        "Ablation", "Each run of a sweep, or each cell logged as a run, is a line through its settings.", tuple(panels)
    )


def _table(names: LoggedNames) -> SectionPlan:
    panels = (PanelPlan("table", "All rows", (TABLE,)),) if TABLE in names.history else ()
    return SectionPlan("Rows", "Every row with its picture, settings, scores and costs.", panels)


def keys_of(plans: Iterable[SectionPlan]) -> set[str]:
    """All logger keys of panels and of their axes, without keys of the configuration."""
    panels = [panel for section in plans for panel in section.panels]
    return {key for panel in panels for key in (*panel.keys, *([panel.x] if panel.x else []))}
