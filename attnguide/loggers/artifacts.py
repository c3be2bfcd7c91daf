"""Logs a run's files as W&B artifacts."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnguide.loggers import WANDB_LOGGER

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

ARTIFACTS: dict[str, tuple[str, ...]] = {
    "results": ("config.yaml", "*.csv", "*.html", "sheet.png", "sheets/*.png", "plots/*.png", "value_invariance.txt"),
    "maps": ("maps/*/*", "targets/*/*"),
}
"""Kind of artifact -> patterns of the run folder's files that it holds."""

_MOST_FILES = 10_000

_log = logging.getLogger(__name__)


def keep_files(loggers: Iterable[Logger], folder: Path) -> None:
    """Log the artifacts ``<run>-results`` and ``<run>-maps`` to the W&B run.

    Files are not copied. Offline, W&B records their paths, and ``wandb sync`` uploads them.

    Args:
        loggers: Loggers of the run; only W&B's keeps artifacts, and only if its run has begun.
        folder: The run folder.
    """
    for logger in loggers:
        run = getattr(logger, "_experiment", None)
        if type(logger).__name__ == WANDB_LOGGER and run is not None:
            for kind, patterns in ARTIFACTS.items():
                files = list(_files(folder, patterns))[:_MOST_FILES]
                if files:
                    _add(run, f"{folder.resolve().name}-{kind}", kind, folder, files)


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def _add(run: Any, name: str, kind: str, folder: Path, files: Sequence[Path]) -> None:
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", name)[:128], type=f"attnguide-{kind}")
    try:
        for path in files:
            artifact.add_file(str(path.resolve()), name=str(path.relative_to(folder)), policy="immutable", skip_cache=True)
        run.log_artifact(artifact)
    except Exception as error:  # W&B raises many types; the run is complete without its artifacts
        _log.warning("W&B took no artifact %s (%s).", name, " ".join(str(error).split())[:200])
