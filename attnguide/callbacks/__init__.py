"""Lightning callbacks that watch sampling: they measure, write and log, and change nothing."""

from attnguide.callbacks.attention_maps import AttentionMapsLogger
from attnguide.callbacks.base import SamplingCallback, row_metrics, run_folder
from attnguide.callbacks.loss_trace import LossTrace
from attnguide.callbacks.map_norms import MapNorms
from attnguide.callbacks.progress import LineProgress, ProgressBar, progress_bar
from attnguide.callbacks.run_folder import RunFolder
from attnguide.callbacks.run_log import RunLog
from attnguide.callbacks.samples import Samples
from attnguide.callbacks.standard import standard_callbacks
from attnguide.callbacks.target_maps import TargetMaps
from attnguide.callbacks.value_invariance import ValueInvariance, ValuesChangedError

__all__ = [
    "AttentionMapsLogger",
    "LineProgress",
    "LossTrace",
    "MapNorms",
    "ProgressBar",
    "RunFolder",
    "RunLog",
    "Samples",
    "SamplingCallback",
    "TargetMaps",
    "ValueInvariance",
    "ValuesChangedError",
    "progress_bar",
    "row_metrics",
    "run_folder",
    "standard_callbacks",
]
