"""Expected cost of an ablation as text, printed before it runs. Importing this needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from attnguide.ablation.axes import Ablation
from attnguide.ablation.cells import Row
from attnguide.types import ExpectedCost


def costs_of(rows: Sequence[Row], model: str) -> list[ExpectedCost]:
    """Expected network passes of every row on a model."""
    from attnguide.ablation.cost import expected_costs
    from attnguide.models.folder import is_distilled

    return expected_costs((row.sample for row in rows), distilled=is_distilled(model))


def headline(ablation: Ablation, rows: Sequence[Row]) -> str:
    """Two lines about an ablation: its axes with their numbers of values, and the numbers of cells and rows."""
    axes = " x ".join(f"{axis.name} ({len(axis.points)})" for axis in ablation.axes) or "none"
    plain = sum(len(row.cell.points) < len(ablation.axes) for row in rows)
    subjects = len({row.subject for row in rows})
    lines = [f"ablation {ablation.name}: {axes}"]
    pictures = f"{len(ablation.cells)} cells for {subjects} prompts and seeds"
    lines.append(f"cells    {pictures}, {len(rows)} rows" + (f", {plain} of them plain" if plain else ""))
    return "\n".join(lines)


def cost_table(rows: Sequence[Row], costs: Sequence[ExpectedCost]) -> str:
    """Text table of network passes, per row and in all, for every cell, with the total as its last line."""
    from attnguide.ablation.cost import total

    cells: dict[str, list[ExpectedCost]] = {}
    for row, cost in zip(rows, costs, strict=True):
        cells.setdefault(str(row.sample.tags["cell"]), []).append(cost)
    lines = [("cell", "rows", "forwards a row", "backwards a row", "forwards in all", "backwards in all")]
    for name, members in cells.items():
        lines.append((name, str(len(members)), *_per_row(members), *_told(total(members))))
    lines.append(("all", str(len(rows)), "", "", *_told(total(costs))))
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _per_row(members: Sequence[ExpectedCost]) -> tuple[str, str]:
    if len(set(members)) == 1:
        return _told(members[0])
    return tuple(f"{min(found)}-{max(found)}" for found in ([m.forwards for m in members], [m.backwards for m in members]))  # type: ignore[return-value]


def _told(cost: ExpectedCost) -> tuple[str, str]:
    """Forwards and backwards as text; a range ``least to most`` if thresholds decide on repetitions."""
    pairs = ((cost.forwards, cost.most), (cost.backwards, cost.most_backwards))
    forwards, backwards = (str(least) if least == most else f"{least} to {most}" for least, most in pairs)
    return forwards, backwards
