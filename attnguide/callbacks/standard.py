"""The callbacks of a run from the command line, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from attnguide.callbacks.attention_maps import AttentionMapsLogger
from attnguide.callbacks.judging import Judging
from attnguide.callbacks.loss_trace import LossTrace
from attnguide.callbacks.map_norms import MapNorms
from attnguide.callbacks.progress import progress_bar
from attnguide.callbacks.run_folder import RunFolder, Scorer
from attnguide.callbacks.run_log import RunLog
from attnguide.callbacks.samples import Samples
from attnguide.callbacks.target_maps import TargetMaps
from attnguide.callbacks.value_invariance import ValueInvariance
from attnguide.judges.base import Judge
from attnguide.run_folder.folder import RunLock


def standard_callbacks(
    config: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    scorer: Scorer | None = None,
    maps: bool = True,
    norms: bool = True,
    values: bool = False,
    progress: bool = True,
    lock: RunLock | None = None,
    facts: Mapping[str, Any] | None = None,
    row_curves: int = 0,
    judges: Sequence[Judge] = (),
    sheet: bool = True,
) -> list[L.Callback]:
    """Callbacks in the order they need: measurements, files, loggers, and last the check that may stop the run.

    Args:
        config: The resolved configuration.
        resume: Go on in the run folder.
        scorer: Computes metrics of a finished row.
        maps: Draw attention maps.
        norms: Measure statistics of maps at every cross-attention site and step.
        values: Compare attention values over steps, seeds and methods.
        progress: Show the progress of the run.
        lock: Lock of the run folder, if the caller holds it already.
        facts: Entries that loggers show beside the configuration.
        row_curves: Number of rows whose own curves go to the loggers beside the means by method.
        judges: Judges that score every finished picture.
        sheet: Draw ``sheet.png``.
    """
    callbacks: list[L.Callback] = [*([MapNorms()] if norms else []), LossTrace(), TargetMaps()]
    callbacks += [AttentionMapsLogger()] if maps else []
    callbacks += [Judging(judges)] if judges else []
    callbacks += [Samples(), RunFolder(config, resume=resume, scorer=scorer, lock=lock, sheet=sheet)]
    callbacks += [RunLog(config, facts=facts, row_curves=row_curves)]
    callbacks += [progress_bar()] if progress else []
    callbacks += [ValueInvariance()] if values else []
    return callbacks
