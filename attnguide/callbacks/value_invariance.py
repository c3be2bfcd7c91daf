"""Do the values of attention stay constant? Cross-attention reads them off the prompt, self-attention off the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, SiteKind, SiteSelector
from attnguide.callbacks.base import SamplingCallback, run_folder
from attnguide.records import append_table, read_table, write_atomic
from attnguide.sampling.observer import BatchInfo
from attnguide.types import PassContext, SampleResult

_COLUMNS = ("id", "site", "kind", "height", "width", "largest_difference", "largest_value", "relative_difference")

_NAMES: dict[str, str] = {"cross": "cross-attention", "self": "self-attention", "joint": "joint attention"}


class ValuesChangedError(RuntimeError):
    """Cross-attention values differed between steps."""


class ValueInvariance(SamplingCallback):
    """Compares every site's values V with those of the first step, conditional half, before any edit.

    Files: ``value_invariance.csv`` (a line per row and site: largest absolute difference over all steps, largest absolute
    value, and their ratio) and ``value_invariance.txt``, a verdict for people. Adds the metric ``cross_value_change``, the
    largest ratio of a cross-attention site.

    Args:
        sites: Which sites; all when ``None``.
        tolerance: Largest ratio that counts as constant.
        fail: Raise at the end of the run if cross-attention values changed. Put the callback last then: the others finish.

    Raises:
        ValuesChangedError: At the end, if ``fail`` is set and cross-attention values changed.
    """

    def __init__(self, sites: SiteSelector | None = None, tolerance: float = 1e-6, fail: bool = False) -> None:
        self.sites = sites or SiteSelector()
        self.tolerance = tolerance
        self.fail = fail
        self.verdict = ""
        self._ids: tuple[str, ...] = ()
        self._first: dict[Site, Tensor] = {}
        self._size: dict[Site, Tensor] = {}
        self._largest: dict[Site, Tensor] = {}

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        return (Probe("value", self._record, self.sites),)

    def _record(self, site: Site, values: Tensor, context: PassContext) -> None:
        now = values.detach()[context.positions("cond")]
        if site not in self._first:
            self._first[site] = now.clone()
            self._size[site] = now.abs().flatten(1).amax(1).float()
            self._largest[site] = now.new_zeros(len(now)).float()
            return
        difference = (now - self._first[site]).abs().flatten(1).amax(1).float()
        self._largest[site] = difference.maximum(self._largest[site])

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        self._ids = tuple(sample.id for sample in info.samples)
        self._first.clear()
        self._size.clear()
        self._largest.clear()

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        lines = [line for row in range(len(self._ids)) for line in self._lines(row)]
        append_table(run_folder(trainer) / "value_invariance.csv", _COLUMNS, lines)
        self._first.clear()

    def _lines(self, row: int) -> list[dict[str, Any]]:
        lines = []
        for site, largest in self._largest.items():
            change, size = float(largest[row]), float(self._size[site][row])
            where = {"id": self._ids[row], "site": site.name, "kind": site.kind, "height": site.height, "width": site.width}
            ratio = change / max(size, 1e-12)
            lines.append({**where, "largest_difference": change, "largest_value": size, "relative_difference": ratio})
        return lines

    def row_metrics(self, result: SampleResult) -> Mapping[str, float]:
        if result.sample.id not in self._ids:
            return {}
        ratios = [
            line["relative_difference"] for line in self._lines(self._ids.index(result.sample.id)) if line["kind"] == "cross"
        ]
        return {"cross_value_change": max(ratios)} if ratios else {}

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.strategy.barrier()
        lines = read_table(run_folder(trainer) / "value_invariance.csv")
        changed = {kind: _largest(lines, kind) for kind in ("cross", "self", "joint")}
        self.verdict = (
            " ".join(_sentence(kind, line, self.tolerance) for kind, line in changed.items() if line) or "No site was read."
        )
        if trainer.is_global_zero:
            write_atomic(run_folder(trainer) / "value_invariance.txt", f"{self.verdict}\n")
        cross = changed["cross"]
        if self.fail and cross and float(cross["relative_difference"]) > self.tolerance:
            raise ValuesChangedError(self.verdict)


def _largest(lines: Sequence[Mapping[str, str]], kind: str) -> Mapping[str, str] | None:
    chosen = [line for line in lines if line["kind"] == kind and line["relative_difference"] != "nan"]
    return max(chosen, key=lambda line: float(line["relative_difference"]), default=None)


def _sentence(kind: SiteKind | str, line: Mapping[str, str], tolerance: float) -> str:
    change, size = float(line["largest_difference"]), float(line["largest_value"])
    name = _NAMES[kind]
    if change == 0:
        return f"{name.capitalize()} values are constant: bit-equal in all steps."
    if change / max(size, 1e-12) <= tolerance:
        return f"{name.capitalize()} values are constant up to rounding: they change by at most {change:.3g} of {size:.3g}."
    where = f"at {line['site']} (row {line['id']})"
    return f"{name.capitalize()} values change over the steps by up to {change:.3g} (largest at first: {size:.3g}), {where}."
