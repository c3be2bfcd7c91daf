"""Published loss and edit functions beside attnguide's, on the same random tensors, in float64: how far they are apart.

    git clone https://github.com/showlab/BoxDiff refs/BoxDiff
    python scripts/compare_references.py --repos refs
    python scripts/compare_references.py --repos refs --methods box_diff syngen --cases
    python scripts/compare_references.py --repos refs --masks 2000

None of the published code is in this repository: clone what you want to compare, as listed below. The script EXECUTES functions
out of those clones, so they have to be ones you trust. Only named functions and classes are taken, not their files' imports, so
none of the repositories' requirements has to be installed, save for the packages listed.

Boxes are drawn at random, small ones among them. For each method the table holds the largest difference of its loss (or edited
attention) over all cases, relative to the largest published value, and the same for the gradient. A method whose clone, file,
function or package is missing has a line that says so. Known differences are described at the top of the method's file in
scripts/references/.

With ``--masks``, masks are compared instead, of the methods whose published code draws boxes: how many of them have any cell
that differs.
"""

from __future__ import annotations

import argparse
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from references import (
    bounded_attention,
    box_diff,
    concept_attention,
    conform,
    count_guidance,
    dense_diffusion,
    divide_and_bind,
    focus,
    groundit_global,
    initno,
    layout_guidance,
    paint_with_words,
    r_and_b,
    regional_prompts,
    self_cross,
    syngen,
    taca,
)
from references.base import Comparison, Reference
from references.boxes import random_boxes
from references.foreign import NotFoundError, require_packages, tamed

from attnguide.types import Box

_MODULES = (
    box_diff,
    layout_guidance,
    divide_and_bind,
    syngen,
    conform,
    r_and_b,
    count_guidance,
    bounded_attention,
    initno,
    paint_with_words,
    dense_diffusion,
    focus,
    self_cross,
    groundit_global,
    taca,
    regional_prompts,
    concept_attention,
)
REFERENCES = {module.REFERENCE.method: module.REFERENCE for module in _MODULES}
"""Method -> its reference, in the order of the README."""


@dataclass(frozen=True)
class Outcome:
    """Result of one method: a line of the table.

    Attributes:
        reference: The reference that was compared with.
        comparisons: Differences of each case; empty if the comparison could not be finished.
        status: ``ok``, or the reason why it could not.
    """

    reference: Reference
    comparisons: tuple[Comparison, ...] = ()
    status: str = "ok"


def outcome(reference: Reference, repos: Path) -> Outcome:
    """Compare one method with its clone under ``repos``, if it is there."""
    found: list[Comparison] = []
    status = _attempt(reference, repos, lambda clone: found.extend(reference.compare(clone)))
    return Outcome(reference, tuple(found) if status == "ok" else (), status)


def _attempt(reference: Reference, repos: Path, compare: Callable[[Path], None]) -> str:
    """Call ``compare`` with a clone; returns ``ok``, or the reason of its failure."""
    try:
        clone = repos / reference.folder
        if not clone.is_dir():
            raise NotFoundError(str(clone))
        require_packages(reference.packages)
        with tamed():
            compare(clone)
    except NotFoundError as error:
        return f"not found: {error}"
    except Exception as error:  # another version of the published code may do anything
        return _failure(error)
    return "ok"


def _failure(error: Exception) -> str:
    """Type, message and place of an error, in one line."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    return f"failed: {type(error).__name__}: {message} ({Path(where.filename).name}:{where.lineno})"


def largest(values: Sequence[float | None]) -> str:
    """The largest number as text; ``nan`` if there is one, empty text without numbers."""
    found = [value for value in values if value is not None]
    return f"{max(found, key=lambda value: (math.isnan(value), value)):.1e}" if found else ""


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown table of the methods."""
    lines = [_line("method", "repository", "comparisons", "loss or edit", "gradient", "status"), _line(*["---"] * 6)]
    for one in outcomes:
        values = largest([found.value for found in one.comparisons])
        gradients = largest([found.gradient for found in one.comparisons])
        count = len(one.comparisons)
        lines.append(_line(one.reference.method, one.reference.repository, count, values, gradients, one.status))
    return "\n".join(lines)


def cases(outcomes: Sequence[Outcome]) -> str:
    """Markdown table of every case."""
    lines = [_line("method", "case", "loss or edit", "gradient"), _line(*["---"] * 4)]
    for one in outcomes:
        for found in one.comparisons:
            lines.append(_line(one.reference.method, found.case, largest([found.value]), largest([found.gradient])))
    return "\n".join(lines)


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


@dataclass(frozen=True)
class MaskOutcome:
    """Result of one method's masks: a line of the table.

    Attributes:
        reference: The reference that was compared with.
        compared: Pairs of masks: one for each box, or one for each box and map size.
        unequal: Pairs that differ in any cell, by more than single precision makes of equal numbers.
        status: ``ok``, or why it could not be done.
    """

    reference: Reference
    compared: int = 0
    unequal: int = 0
    status: str = "ok"


def mask_outcome(reference: Reference, repos: Path, boxes: Sequence[Box]) -> MaskOutcome:
    """Compare the masks of one method with those of its clone under ``repos``, if it is there."""
    equal: list[bool] = []

    def compare(clone: Path) -> None:
        assert reference.masks is not None
        pairs = reference.masks(clone, boxes)
        equal.extend(bool((theirs.double() - ours.double()).abs().max() <= 1e-5) for theirs, ours in pairs)

    status = _attempt(reference, repos, compare)
    return MaskOutcome(reference, len(equal), equal.count(False), status)


def mask_table(outcomes: Sequence[MaskOutcome], boxes: int) -> str:
    """Markdown table of the methods."""
    lines = [_line("method", "repository", "boxes", "masks", "masks that differ", "status"), _line(*["---"] * 6)]
    for one in outcomes:
        lines.append(_line(one.reference.method, one.reference.repository, boxes, one.compared, one.unequal, one.status))
    return "\n".join(lines)


def clones() -> str:
    """Text with the expected folder and repository of each method's clone."""
    lines = ["clones expected under DIR:"]
    for method, reference in REFERENCES.items():
        packages = f" (and pip install {' '.join(reference.packages.values())})" if reference.packages else ""
        lines.append(f"  {method:18} DIR/{reference.folder:39} {reference.repository}{packages}")
    return "\n".join(lines)


def compared_masks(count: int, methods: Sequence[str], repos: Path) -> str:
    """The table of masks for ``count`` random boxes."""
    if count < 1:
        raise SystemExit(f"--masks: expected a number of at least 1; got {count}")
    boxes = random_boxes(count, seed=0)
    drawing = [REFERENCES[name] for name in methods if REFERENCES[name].masks is not None]
    return mask_table([mask_outcome(reference, repos, boxes) for reference in drawing], count)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=clones(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repos", type=Path, required=True, metavar="DIR", help="folder that holds the clones")
    parser.add_argument(
        "--methods", nargs="+", default=list(REFERENCES), metavar="NAME", help="default: all that are listed below"
    )
    parser.add_argument("--cases", action="store_true", help="print every comparison too")
    parser.add_argument("--masks", type=int, metavar="N", help="compare the masks of N random boxes instead")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    args = parse_args(argv)
    unknown = [name for name in args.methods if name not in REFERENCES]
    if unknown:
        raise SystemExit(f"--methods: expected names among {', '.join(REFERENCES)}; got {', '.join(unknown)}")
    if not args.repos.is_dir():
        raise SystemExit(f"--repos: expected a folder that holds clones; got {args.repos}")
    if args.masks is not None:
        print(compared_masks(args.masks, args.methods, args.repos))
        return
    outcomes = [outcome(REFERENCES[name], args.repos) for name in args.methods]
    print(table(outcomes))
    if args.cases:
        print(f"\n{cases(outcomes)}")


if __name__ == "__main__":
    main()
