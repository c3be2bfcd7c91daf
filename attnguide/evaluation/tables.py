"""Tables of a comparison as Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attnguide.evaluation.choosing import RULE, Tuned
from attnguide.evaluation.compare import DISTANCE, PRECISION, Comparison, Line
from attnguide.statistics import Difference, Mean
from attnguide.types import PLAIN

TABLE_FILES = ("table.md", "table.csv", "table.tex")

COLUMNS = (
    "arm", "category", "metric", "mean", "low", "high", "pictures", "prompts",
    "to_plain", "to_plain_low", "to_plain_high", "to_plain_p",
    "rival", "to_rival", "to_rival_low", "to_rival_high", "to_rival_p",
)  # fmt: skip
"""Columns of ``table.csv``."""

_SIGNIFICANT = 0.05
_MOST_REASONS = 8


def table_lines(found: Comparison) -> list[dict[str, Any]]:
    """Lines of ``table.csv``: one for each arm, category and metric."""
    lines = [_csv_line(line) for line in found.lines]
    return [*lines, *({"arm": arm, "category": "", "metric": name, "mean": v} for (arm, name), v in found.totals.items())]


def _csv_line(line: Line) -> dict[str, Any]:
    own = {"arm": line.arm, "category": line.category, "metric": line.metric, **_numbers("", line.mean)}
    own |= {"mean": line.mean.mean, "pictures": line.mean.pictures, "prompts": line.mean.clusters}
    for name, difference in (("to_plain", line.to_plain), ("to_rival", line.to_best)):
        if difference is not None:
            own |= {name: difference.mean, **_numbers(f"{name}_", difference), f"{name}_p": difference.p}
    return {**own, "rival": line.best}


def _numbers(prefix: str, mean: Mean) -> dict[str, float]:
    return {f"{prefix}low": mean.low, f"{prefix}high": mean.high}


# ------------------------------------------------------------------------------------------------------------- Markdown


def markdown(found: Comparison, title: str, about: Mapping[str, str], tuned: Sequence[Tuned] = ()) -> str:
    """All tables of a comparison as Markdown text.

    Args:
        found: The comparison.
        title: First line.
        about: Lines below the title: name -> text.
        tuned: Outcomes of tuning.
    """
    parts = [f"# {title}", "\n".join(f"* {name}: {value}" for name, value in about.items())]
    if found.metrics:
        parts += [*_scores(found), *_differences(found), *_categories(found)]
    else:
        parts.append("Not judged: no judge knows these prompts.")
    return "\n\n".join([*parts, *_settings(tuned), *_accounts(found)]) + "\n"


def _scores(found: Comparison) -> Iterator[str]:
    yield "## Scores"
    yield (
        "Percent, mean over pictures with a 95 % bootstrap interval over prompts (all pictures of a drawn prompt together; "
        "over pictures where all are of one prompt). A "
        "picture that failed counts as 0, a row that was refused is left out and counted below. "
        f"`{PRECISION}` (average precision of boxes) and `{DISTANCE}` (kernel distance to the reference pictures, no percent, "
        "less is better) are over all pictures of an arm together."
    )
    heads = list(dict.fromkeys(name for _, name in found.totals))
    rows = []
    for arm in found.arms:
        cells = [_percent(line.mean) if (line := found.line(arm, metric)) else "" for metric in found.metrics]
        rows.append([arm, *cells, *(_total(name, found.totals.get((arm, name))) for name in heads)])
    yield _table(["arm", *found.metrics, *heads], rows)


def _total(name: str, value: float | None) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.3f}" if name == DISTANCE else f"{100 * value:.1f}"


def _differences(found: Comparison) -> Iterator[str]:
    steered = [arm for arm in found.arms if arm != PLAIN]
    note = f"* p < {_SIGNIFICANT:g} after Holm's correction for the arms of the column (sign flips of prompts)."
    if steered:
        yield "## Difference to plain sampling"
        yield f"Points, pair by pair: the same rows and seeds. {note}"
        yield _pairs(found, steered, lambda line: line.to_plain, lambda arm: arm)
    rivals = {line.arm: line.best for line in found.lines if line.to_best is not None}
    if rivals:
        yield "## Difference at equal compute"
        yield (
            "Points, against the best of as many plain pictures as cost at least as much, chosen by the judges themselves; "
            f"`{PLAIN}` where one does. {note}"
        )
        yield _pairs(found, list(rivals), lambda line: line.to_best, lambda arm: f"{arm} against {rivals[arm]}")


def _pairs(found: Comparison, arms: Sequence[str], of: Callable[[Line], Difference | None], name: Callable[[str], str]) -> str:
    rows = []
    for arm in arms:
        lines = [found.line(arm, metric) for metric in found.metrics]
        rows.append([name(arm), *(_difference(of(line) if line else None) for line in lines)])
    return _table(["arm", *found.metrics], rows)


def _categories(found: Comparison) -> Iterator[str]:
    if not found.categories:
        return
    yield "## By category"
    yield "Percent; arms within each category."
    rows = []
    for category in found.categories:
        for arm in found.arms:
            lines = [found.line(arm, metric, category) for metric in found.metrics]
            if any(lines):
                rows.append([category, arm, *("" if line is None else f"{100 * line.mean.mean:.1f}" for line in lines)])
    yield _table(["category", "arm", *found.metrics], rows)


def _settings(tuned: Sequence[Tuned]) -> Iterator[str]:
    if not tuned:
        return
    yield "## Tuned settings"
    yield f"Chosen: {RULE}. Points against plain sampling, on rows that no other table here is over."
    rows = [
        [one.arm.name, one.changes or "as given", str(one.tried)]
        + [
            f"{metric} {_points(before)} to {_points(after)}" if metric else "none"
            for metric, (before, after) in zip(one.metrics, _scores_of(one), strict=True)
        ]
        for one in tuned
    ]
    yield _table(["arm", "changed", "tried", "control", "quality"], rows)


def _scores_of(one: Tuned) -> tuple[tuple[float | None, float | None], tuple[float | None, float | None]]:
    """For control and for quality: score of the user's setting, and of the chosen one."""
    before, after = one.before, one.after
    return (
        (before.control if before else None, after.control if after else None),
        (before.quality if before else None, after.quality if after else None),
    )


def _points(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:+.1f}"


def _accounts(found: Comparison) -> Iterator[str]:
    yield "## Rows and cost"
    yield "Passes are forward and backward passes of the network for one branch; of best of k, those of all its tries."
    kinds = [kind for kind in ("ok", "refused", "failed", "missing") if any(one.ended.get(kind) for one in found.accounts)]
    rows = [
        [
            one.arm,
            *(str(one.ended.get(kind, 0)) for kind in kinds),
            f"{one.passes[0]:.1f}",
            f"{one.passes[1]:.1f}",
            f"{one.seconds:.2f}",
        ]
        for one in found.accounts
    ]
    yield _table(["arm", *kinds, "forwards", "backwards", "seconds"], rows)
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in found.accounts:
        for subject, why in one.reasons:
            reasons.setdefault((subject, why), []).append(one.arm)
    if reasons:
        yield "Rows that gave no picture:"
        told = [f"* `{subject}` ({', '.join(dict.fromkeys(arms))}): {why}" for (subject, why), arms in reasons.items()]
        more = len(told) - _MOST_REASONS
        yield "\n".join([*told[:_MOST_REASONS], *([f"* and {more} more, see records.csv"] if more > 0 else [])])


def _percent(mean: Mean) -> str:
    return f"{100 * mean.mean:.1f} [{100 * mean.low:.0f}, {100 * mean.high:.0f}]"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    star = "*" if found.p < _SIGNIFICANT else ""
    return f"{100 * found.mean:+.1f}{star} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ---------------------------------------------------------------------------------------------------------------- LaTeX

_ESCAPES = {"\\": r"\textbackslash{}", **{letter: "\\" + letter for letter in "&%$#_{}"}, "~": r"\~{}", "^": r"\^{}"}


def latex(found: Comparison, caption: str) -> str:
    """LaTeX table of scores (package ``booktabs``): percent, intervals in small print, the best of a column bold."""
    columns = list(found.metrics)
    best: dict[str, float] = {}
    for line in found.lines:
        if not line.category:
            best[line.metric] = max(best.get(line.metric, 0.0), line.mean.mean)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["", *(_tex(metric) for metric in columns)]) + r" \\",
        r"\midrule",
    ]
    for arm in found.arms:
        own = [found.line(arm, metric) for metric in columns]
        cells = ["" if line is None else _tex_cell(line.mean, best[line.metric]) for line in own]
        lines.append(" & ".join([_tex(arm), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _tex_cell(mean: Mean, best: float) -> str:
    number = f"{100 * mean.mean:.1f}"
    shown = rf"\textbf{{{number}}}" if mean.mean >= best - 1e-12 else number
    return rf"{shown} {{\scriptsize [{100 * mean.low:.0f}, {100 * mean.high:.0f}]}}"


def _tex(text: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in text)
