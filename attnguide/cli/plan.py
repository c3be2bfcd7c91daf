"""Plans a run: makes and checks its rows from the settings. Importing this needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.cli.errors import UsageError
from attnguide.cli.folders import timed
from attnguide.inputs import INPUTS
from attnguide.methods import DEFAULT
from attnguide.types import MethodConfig, Sample
from attnguide.weighted import words_of

if TYPE_CHECKING:
    from attnguide.rows.tables import Table

DEMO: dict[str, Any] = {
    "prompt": "a red circle and a blue square on a white background",
    "regions": ["red circle=0.05,0.3,0.45,0.7", "blue square=0.55,0.3,0.95,0.7"],
    "seed": [0, 1, 2],
    "methods": [{"name": "inject5", "scale": 2.0}, {"name": "mask_guidance"}, {"name": "stable"}],
    "compare": True,
}
"""Settings of the demonstration, which runs if the user names no prompt: plain and three methods on three seeds."""

ROW_SETTINGS = (
    "regions",
    "groups",
    "negative_prompt",
    "prompt_syntax",
    "height",
    "width",
    "steps",
    "cfg_scale",
    "true_cfg_scale",
    "scheduler",
    *INPUTS,
)
"""Settings that a row of a table may override."""

_LARGE = 2**20
"""Size in bytes of a table above which a line is printed before it is read."""

_SETTLED: dict[str, Any] = {"seed": None, "box_size": None, "box_format": None}
"""Settings that are reset once the rows have their values."""

NOT_KEPT = ("out", "resume")
"""Settings about the run's folder, which ``config.yaml`` leaves out."""


@dataclass(frozen=True)
class Plan:
    """A run to be made: its rows, settings and folder.

    Attributes:
        config: Every setting, defaults filled in; feeding it back gives the same plan.
        samples: The rows, plain twins included.
        folder: The run folder.
        notes: Remarks on the rows for the user, a line each.
        command: Subcommand that makes the run, for loggers.
        facts: Entries that loggers show beside the settings.
        sheet: Whether ``sheet.png`` with all pictures is drawn.
    """

    config: dict[str, Any]
    samples: tuple[Sample, ...]
    folder: Path
    notes: tuple[str, ...] = ()
    command: str = "sample"
    facts: Mapping[str, Any] = field(default_factory=dict)
    sheet: bool = True

    @property
    def resume(self) -> bool:
        """Whether finished rows of the folder are kept."""
        return bool(self.config["resume"])

    @property
    def kept_config(self) -> dict[str, Any]:
        """Settings that ``config.yaml`` of the run folder keeps."""
        return {name: value for name, value in self.config.items() if name not in NOT_KEPT}


def make_plan(settings: Mapping[str, Any]) -> Plan:
    """Fill in defaults, make the rows and check them.

    Raises:
        UsageError: If the settings contradict each other or a row is invalid.
    """
    from attnguide.rows.samples import checked_samples
    from attnguide.rows.twins import with_twins

    config = _filled(settings)
    if config["resume"] and config["out"] is None:
        raise UsageError("resume: expected --out with the folder of the run to go on with; got none")
    try:
        table = _own_rows(config)
        own = table.samples
        samples = [sample for row in own for sample in _arms(row, config, named=row.id in table.named)]
        samples = with_twins(samples, _itself, _twin) if config["plain"] else samples
        samples = checked_samples(samples, strict=is_strict(config))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if config["rows"] is not None:
        config |= {"rows": [_kept_row(row, named=row.id in table.named) for row in own], **_SETTLED}
    folder = Path(config["out"] or Path("runs") / timed())
    notes = [f"columns {', '.join(table.tags)} are tags"] if table.tags else []
    return Plan(config, tuple(samples), folder, (*notes, *_weight_notes(samples)))


def _weight_notes(samples: Sequence[Sample]) -> list[str]:
    """A note if a row has a CFG scale below 1, which acts as 1."""
    low = [f"{weight:g}" for weight in dict.fromkeys(sample.cfg_scale for sample in samples) if weight < 1]
    told = ", ".join(low[:3]) + (f" and {len(low) - 3} more" if low[3:] else "")
    return [f"cfg scale {told}: switches classifier-free guidance off, as 1 does"] if low else []


def _kept_row(row: Sample, *, named: bool) -> dict[str, Any]:
    """A row as ``config.yaml`` keeps it; one whose table names ``plain`` keeps an empty list of methods."""
    from attnguide.rows.samples import sample_to_dict

    plain = sample_to_dict(row)
    return {**plain, "methods": []} if named and not row.methods else plain


def is_strict(config: Mapping[str, Any]) -> bool:
    """Whether one row that cannot be made refuses the run: with ``--strict``, and always if the rows are from no table."""
    return bool(config["strict"]) or config["rows"] is None


def _filled(settings: Mapping[str, Any]) -> dict[str, Any]:
    config = dict(settings)
    if config["prompt"] is not None and config["rows"] is not None:
        raise UsageError("rows: expected either a prompt or a table of rows; got both")
    for name in ("box_size", "box_format"):
        if config[name] is not None and not isinstance(config["rows"], str):
            raise UsageError(f"{name}: expected --rows with a file, whose boxes it is for; got none")
    if config["prompt"] is None and config["rows"] is None:
        if config["regions"] is not None:
            raise UsageError("prompt: expected the prompt that the regions are of; got none")
        chosen = {name: value for name, value in DEMO.items() if config[name] in (None, False)}
        if config["methods"] is not None:
            chosen.pop("compare", None)
        config |= chosen
    if config["rows"] is None:
        config["seed"] = config["seed"] or [0]
        config["regions"] = [_plain_region(item, config) for item in config["regions"] or ()]
        if config["methods"] is None:
            placed = any(len(region) > 1 for region in config["regions"])
            config["methods"] = [{"name": DEFAULT}] if placed else []
    return config


def _plain_region(item: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """A region as a dictionary with absolute paths, so that ``config.yaml`` works from any folder."""
    from attnguide.prompt.notation import parse_region, region_from_dict, region_to_dict
    from attnguide.prompt.regions import absolute_region, check_region

    try:
        words = words_of(config["prompt"], config["prompt_syntax"])
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        region = parse_region(item) if isinstance(item, str) else region_from_dict(item)
        check_region(region, words)
    except ValueError as error:
        raise UsageError(f"region: {error}") from error
    return region_to_dict(absolute_region(region))


def _own_rows(config: Mapping[str, Any]) -> Table:
    """One row for each prompt and seed, before the run's methods are applied."""
    from attnguide.prompt.inputs import absolute_row
    from attnguide.rows.samples import sample_from_dict, table_row
    from attnguide.rows.tables import Table, read_table

    common = {name: config[name] for name in ROW_SETTINGS if config[name] is not None}
    if config["rows"] is None:
        values = {**common, "prompt": config["prompt"]}
        first = sample_from_dict({**values, "seed": 0}, id="first")
        return Table(tuple(replace(first, seed=seed, id=f"seed{seed}") for seed in config["seed"]))
    if isinstance(config["rows"], str):
        height, width = config["box_size"] or (None, None)
        _announce(config["rows"])
        size = (height, width) if height and width else None
        table = read_table(config["rows"], size=size, box_format=config["box_format"], defaults=common)
    else:
        rows = [table_row({**common, **row}, id=f"{index:04d}") for index, row in enumerate(config["rows"])]
        given = zip(rows, config["rows"], strict=True)
        table = Table(tuple(rows), frozenset(row.id for row, values in given if values.get("methods") is not None))
    table = replace(table, samples=tuple(map(absolute_row, table.samples)))
    return table if config["seed"] is None else _seeded(table, config["seed"])


def _announce(path: str) -> None:
    """Print a line if a table is large, since reading it may take some seconds."""
    try:
        size = Path(path).stat().st_size
    except (OSError, ValueError):  # reading the file will report it
        return
    if size > _LARGE:
        print(f"reading  {path} ({size / 2**20:.1f} MiB) ...", flush=True)


def _seeded(table: Table, seeds: Sequence[int]) -> Table:
    """The table with each row repeated for each seed."""
    from attnguide.rows.samples import MOST_ROWS

    if len(table.samples) * len(seeds) > MOST_ROWS:
        told = f"{len(table.samples):,} rows with {len(seeds):,} seeds each"
        raise ValueError(f"seed: expected at most {MOST_ROWS:,} rows in all; got {told}")
    rows, named = [], set()
    for row in table.samples:
        for seed in seeds:
            id = f"{row.id}-seed{seed}" if len(seeds) > 1 else row.id
            rows.append(replace(row, seed=seed, id=id))
            if row.id in table.named:
                named.add(id)
    return replace(table, samples=tuple(rows), named=frozenset(named))


def _arms(row: Sample, config: Mapping[str, Any], *, named: bool) -> list[Sample]:
    """Copies of a row for each set of methods: its own, all of the run's together, or, with ``compare``, each alone.

    Args:
        row: A row of the table, with its own methods if it names any.
        config: Settings of the run.
        named: Whether its table names its methods, ``plain`` included, so that the default method does not apply.
    """
    given = config["methods"]
    if given is None:
        placed = any(region.has_place for region in row.regions)
        given = [{"name": DEFAULT}] if placed and not named else []
    methods = [MethodConfig(method["name"], {k: v for k, v in method.items() if k != "name"}) for method in given]
    if row.methods or not methods:
        return [row if row.methods or config["rows"] is not None else row.plain()]
    sets = [[method] for method in methods] if config["compare"] else [methods]
    arms: list[Sample] = []
    for chosen in sets:
        name = _joined(chosen)
        before = sum(arm.id == f"{row.id}-{name}" or arm.id.startswith(f"{row.id}-{name}-") for arm in arms)
        arms.append(replace(row, id=f"{row.id}-{name}" + (f"-{before + 1}" if before else ""), methods=tuple(chosen)))
    return arms


def _joined(methods: Sequence[MethodConfig]) -> str:
    """Names of methods, joined for a row's id."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", "_".join(method.name for method in methods))


def _itself(sample: Sample) -> Sample:
    return sample


def _twin(sample: Sample) -> Sample:
    suffix = f"-{_joined(sample.methods)}"
    return replace(sample, id=sample.id.removesuffix(suffix)).plain()
