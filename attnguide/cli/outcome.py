"""Text that a run prints at its start and end. Importing this needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from attnguide.cli.plan import Plan
from attnguide.run_folder.records import COSTS, RECORDS_FILE, SETTINGS, is_cell_column, read_records
from attnguide.text.aligned import aligned
from attnguide.types import verdict

SHOWN_SETTINGS = ("id", "seed", "method")
_ALWAYS = ("id", "status", "rows")
MANY = 24
"""Number of rows above which the table shows means by method instead of rows."""

MOST_TOLD = 10
"""Most rows of one outcome (failed, refused, note) that are listed one by one."""


def describe(plan: Plan, done: int) -> str:
    """Description of a run before it starts: prompt, regions, rows, model, notes and folder, a line each.

    Args:
        plan: The run.
        done: Number of rows that are complete already.
    """
    rows, config = plan.samples, plan.config
    prompts = list(dict.fromkeys(sample.prompt for sample in rows))
    counts = Counter(sample.method for sample in rows)
    lines = [f"prompt   {prompts[0]!r}" + (f" and {len(prompts) - 1} more" if prompts[1:] else "")]
    lines += [f"region   {line}" for line in _regions(plan)]
    lines.append("rows     " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    if done:
        lines.append(f"resume   {done} of {len(rows)} rows are complete")
    size = f", {config['height'] or '?'}x{config['width'] or '?'} pixels" if config["height"] or config["width"] else ""
    lines.append(f"model    {config['model']}, {config['steps']} steps, {guidance_told(config)}{size}")
    lines += [f"note     {note}" for note in plan.notes]
    lines.append(f"folder   {plan.folder}")
    return "\n".join(lines)


def guidance_told(config: Mapping[str, Any]) -> str:
    """The run's guidance weights in words; the true scale where it is set."""
    true = config["true_cfg_scale"]
    return f"cfg scale {config['cfg_scale']:g}" + (f", true cfg scale {true:g}" if true != 1 else "")


def _regions(plan: Plan) -> list[str]:
    """A line for each region with its place; empty if rows differ in their regions or come from a table."""
    first = plan.samples[0].regions
    if any(sample.regions is not first and len(sample.regions) != len(first) for sample in plan.samples) or plan.config["rows"]:
        return []
    texts = []
    for region in first:
        box = ",".join(f"{value:g}" for value in region.box) if region.box else None
        source = region.source and f"attention of another picture ({region.source.kind})"
        places = (source, region.mask, region.polygon, region.blob)
        place = box or next((str(p) for p in places if p is not None), "anywhere")
        texts.append(f"{region.phrase} = {place}")
    return texts


def report(plan: Plan, notes: Sequence[str] = ()) -> int:
    """Print the table of metrics, how rows ended, and the paths of the results.

    Returns:
        0, or 1 if a row failed or is missing.
    """
    ids = {sample.id for sample in plan.samples}
    records = [record for record in read_records(plan.folder) if record["id"] in ids]
    order = {sample.id: index for index, sample in enumerate(plan.samples)}
    records.sort(key=lambda record: order[record["id"]])
    print()
    if records:
        print(table(records if len(records) <= MANY else means(records)))
    lines, status = endings(records, plan)
    for line in lines:
        print(line)
    print()
    for name, what in _places(plan):
        print(f"{plan.folder / name}  {what}")
    for note in notes:
        print(note)
    return status


def endings(records: Sequence[Mapping[str, str]], plan: Plan) -> tuple[list[str], int]:
    """Lines on how the rows ended: up to :data:`MOST_TOLD` rows of each outcome other than ``ok``, then the counts.

    Args:
        records: Records of the rows that ended.
        plan: The run, with all its rows.

    Returns:
        Lines, the last of which counts the rows, and the exit status: 1 if a row was refused, failed or is missing, else 0.
    """
    lines, counts = [], Counter(verdict(record["status"]) for record in records)
    told = {"failed": "failed", "refused": "refused", "ok": "note"}
    for kind, word in told.items():
        ended = [r for r in records if verdict(r["status"]) == kind and r["status"] != "ok"]
        texts = [(record["id"], record["status"].removeprefix(f"{kind}: ")) for record in ended]
        lines += [f"{word:<8} {id}: {text}" for id, text in texts[:MOST_TOLD]]
        if more := len(texts) - MOST_TOLD:
            lines += [f"{word:<8} and {more} more rows; {RECORDS_FILE} has the status of each"] if more > 0 else []
    missing = len(plan.samples) - len(records)
    if missing:
        lines.append(f"missing  {missing} of {len(plan.samples)} rows; go on with --resume --out {plan.folder}")
    idle = sum(record["status"].startswith("ok: ") for record in records)
    parts = [f"{counts['ok']} ok" + (f" ({idle} with a note)" if idle else "")]
    parts += [f"{counts[kind]} {kind}" for kind in ("refused", "failed") if counts[kind]]
    parts += [f"{missing} missing"] if missing else []
    return [*lines, f"rows     {', '.join(parts)}"], int(len(parts) > 1)


def _places(plan: Plan) -> list[tuple[str, str]]:
    found = [
        ("sheet.png", "all pictures side by side, regions drawn"),
        ("samples", "the pictures"),
        ("maps", "attention of each word over the picture"),
        (RECORDS_FILE, "settings, scores and costs, a line a row"),
        ("config.yaml", "the whole configuration: attnguide sample --config makes the same run"),
    ]
    return [(name, what) for name, what in found if (plan.folder / name).exists()]


def means(records: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """One line a method: the number of rows, and the mean of each metric over rows that gave a picture."""
    groups: dict[str, list[Mapping[str, str]]] = {}
    for record in records:
        groups.setdefault(record.get("method", ""), []).append(record)
    lines = []
    for method, rows in groups.items():
        line = {"method": method, "rows": str(len(rows))}
        for column in _numbers(records):
            values = [float(row[column]) for row in rows if row.get(column) and verdict(row["status"]) == "ok"]
            line[column] = str(sum(values) / len(values)) if values else ""
        lines.append(line)
    return lines


def _numbers(records: Sequence[Mapping[str, str]]) -> list[str]:
    return [name for name in records[0] if name not in SETTINGS and name != "status" and not is_cell_column(name)]


def table(records: Sequence[Mapping[str, str]], width: int | None = None) -> str:
    """Records as an aligned text table: status if a row is not ``ok``, then the columns that differ between rows and fit.

    Args:
        records: Lines of ``records.csv``, or of :func:`means`.
        width: Characters of a line; the terminal's when ``None``.
    """
    hidden = set(SETTINGS) - set(SHOWN_SETTINGS)
    columns = [name for name in records[0] if name not in hidden and any(record.get(name) for record in records)]
    columns = [name for name in columns if name != "status" or any(record[name] != "ok" for record in records)]
    columns.sort(key=lambda name: 0 if name == "id" else 1 if name == "status" else 2)
    cells = {name: [_cell(name, record.get(name, "")) for record in records] for name in columns}
    shown = [name for name in columns if name in _ALWAYS or len(records) == 1 or len(set(cells[name])) > 1] or columns[:1]
    text, left_out = _laid_out(shown, cells, width)
    if left_out and all(_says_itself(record) for record in records):  # room for more numbers
        text, _ = _laid_out([name for name in shown if name not in ("seed", "method")], cells, width)
    return text + (f"\nall columns are in {RECORDS_FILE}" if left_out or len(shown) < len(columns) else "")


def _laid_out(columns: Sequence[str], cells: Mapping[str, Sequence[str]], width: int | None) -> tuple[str, int]:
    heads = [name.replace("unet_", "") for name in columns]
    lines = list(zip(*(cells[name] for name in columns), strict=True))
    return aligned(heads, lines, width=width, kept=2 if "status" in columns else 1)


def _says_itself(record: Mapping[str, str]) -> bool:
    """Whether a row's id names its seed and method."""
    id = record.get("id", "")
    return f"seed{record.get('seed')}" in id and record.get("method", "").replace("+", "_") in id


def _cell(name: str, text: str) -> str:
    if name == "status":
        return verdict(text) + (" *" if text.startswith("ok: ") else "")
    if name in ("id", "method"):
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    if name in COSTS or name == "seed":
        return f"{number:.1f}" if name in ("seconds", "peak_memory_mb") else f"{number:g}"
    return f"{number:.3f}" if name != "rows" else text
