"""What ``attnguide eval`` prints: a comparison's title, means by arm, rows without a picture, places of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.cli.outcome import endings, guidance_told
from attnguide.cli.plan import Plan
from attnguide.types import Sample

if TYPE_CHECKING:
    from attnguide.evaluation.callback import EvalLog


def title_of(config: Mapping[str, Any]) -> str:
    """Title of the tables: the benchmark's file and the model."""
    return f"{Path(str(config['rows'])).name} on {config['model']}"


def about(config: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, str]:
    """Benchmark, model and judges of a comparison, each in words, by name."""
    subjects = {sample.tags["subject"] for sample in samples}
    judges = ["shapes"] if config["judge"] is None else [_judge(one) for one in config["judge"]]
    scheduler = f", {config['scheduler']}" if config["scheduler"] else ""
    return {
        "benchmark": f"{config['rows']}, {len(subjects)} rows, {len(config['seed'])} pictures of each and arm",
        "model": f"{config['model']}, {config['steps']} steps, {guidance_told(config)}{scheduler}",
        "judges": ", ".join(judges) or "none",
    }


def _judge(config: Mapping[str, Any]) -> str:
    options = [f"{key} {value}" for key, value in config.items() if key not in ("name", "model")]
    model = f"={config['model']}" if "model" in config else ""
    return f"{config['name']}{model}" + (f" ({', '.join(options)})" if options else "")


def tell(plan: Plan, log: EvalLog, notes: Sequence[str]) -> int:
    """Print the arms with their means, rows that gave no picture, and paths of the results; 1 if there are such rows."""
    from attnguide.run_folder.records import read_records

    found = log.found or log.write(plan.folder)
    ids = {one.id for one in plan.samples}
    told, status = endings([record for record in read_records(plan.folder) if record["id"] in ids], plan)
    print("\n".join(["", *summary(found), *told, "", *places(plan.folder), *notes]))
    return status


def summary(found: Any) -> list[str]:
    """Arms and their means in percent, as an aligned table; empty if no judge gave a score."""
    from attnguide.evaluation.tables import TABLE_FILES
    from attnguide.text.aligned import aligned

    if not found.metrics:
        return []
    rows = []
    for arm in found.arms:
        lines = [found.line(arm, metric) for metric in found.metrics]
        rows.append([arm, *("" if line is None else f"{100 * line.mean.mean:.1f}" for line in lines)])
    text, left_out = aligned(["arm, %", *found.metrics], rows)
    return [text, *([f"all numbers are in {TABLE_FILES[1]}"] if left_out else [])]


def places(folder: Path) -> list[str]:
    """Files and folders of the run folder that exist, each with a sentence about its content."""
    found = [
        ("table.md", "scores, differences, categories and cost; table.csv and table.tex say the same"),
        ("sheets", "examples of each category, arms side by side"),
        ("tuned", "the settings that were chosen, a file an arm: --method FILE uses them"),
        ("samples", "the pictures"),
        ("judged.csv", "what every judge saw of every picture"),
        ("records.csv", "settings, scores and costs, a line a row"),
        ("config.yaml", "the whole configuration: attnguide eval --config makes the same run"),
    ]
    return [f"{folder / name}  {what}" for name, what in found if (folder / name).exists()]
