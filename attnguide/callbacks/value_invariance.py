"""Checks whether attention values stay constant over steps: cross-attention's depend on the prompt, self-attention's change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
from torch import Tensor

from attnguide.attention.capture import Probe
from attnguide.attention.sites import Site, SiteKind, SiteSelector
from attnguide.callbacks.base import SamplingCallback, run_folder
from attnguide.engine.observer import BatchInfo
from attnguide.inputs import inputs_key
from attnguide.run_folder.files import write_atomic
from attnguide.run_folder.records import VALUES_FILE
from attnguide.run_folder.tables import append_table, read_table
from attnguide.types import PassContext, Sample, SampleResult

_COLUMNS = (
    *("id", "seed", "method", "site", "kind", "height", "width"),
    *("largest_difference", "largest_value", "relative_difference", "seed_difference", "method_difference"),
)

_COMPARED: dict[str, str] = {"seed_difference": "another seed", "method_difference": "no method"}
"""Columns that compare a row with a reference row -> how the reference differs from it."""

_METRICS: dict[str, str] = {
    "": "relative_difference",
    "_by_seed": "seed_difference",
    "_by_method": "method_difference",
}
"""Suffix of a metric's name -> the column whose maximum over sites it is."""

_NAMES: dict[str, str] = {"cross": "cross-attention", "self": "self-attention", "joint": "joint attention"}


class ValuesChangedError(RuntimeError):
    """Cross-attention values differed between steps."""


class ValueInvariance(SamplingCallback):
    """Compares every site's values V over steps, seeds and methods, in the conditional half, before any edit.

    Files: ``value_invariance.csv`` and ``value_invariance.txt``, a verdict for people. The table has a line per row and site:
    the largest absolute difference between any step and the first one, the largest absolute value of the first step, and their
    ratio; then the same ratio between the last step's values and those of two reference rows: the first row that differs only
    in its seed, and the row that differs only in having no methods. Both are empty if no such row came before.

    Metrics, each the largest ratio over sites of a kind (cross, self, joint): ``<kind>_value_change`` over the steps,
    ``<kind>_value_change_by_seed`` and ``<kind>_value_change_by_method``.

    Args:
        sites: Sites to compare; all when ``None``.
        references: Most reference rows whose values are kept in memory.
        tolerance: Largest ratio that counts as constant.
        fail: Raise at the end of the run if cross-attention values changed; the callback must then be the last one.

    Raises:
        ValuesChangedError: At the end, if ``fail`` is set and cross-attention values changed.
    """

    def __init__(
        self, sites: SiteSelector | None = None, tolerance: float = 1e-6, fail: bool = False, references: int = 32
    ) -> None:
        if references < 0:
            raise ValueError(f"references must be at least 0; got {references}.")
        self.sites = sites or SiteSelector()
        self.tolerance = tolerance
        self.fail = fail
        self.verdict = ""
        self._samples: tuple[Sample, ...] = ()
        self._first: dict[Site, Tensor] = {}
        self._last: dict[Site, Tensor] = {}
        self._size: dict[Site, Tensor] = {}
        self._largest: dict[Site, Tensor] = {}
        self._others = _References(references)
        self._compared: list[dict[str, dict[Site, float]]] = []

    def probes(self, info: BatchInfo) -> Sequence[Probe]:
        return (Probe("value", self._record, self.sites),)

    def _record(self, site: Site, values: Tensor, context: PassContext) -> None:
        now = values.detach()[context.positions("cond")]
        if context.step.index == context.step.count - 1:
            self._last[site] = now.clone()
        if site not in self._first:
            self._first[site] = now.clone()
            self._size[site] = now.abs().flatten(1).amax(1).float()
            self._largest[site] = now.new_zeros(len(now)).float()
            return
        difference = (now - self._first[site]).abs().flatten(1).amax(1).float()
        self._largest[site] = difference.maximum(self._largest[site])

    def on_sample_start(self, trainer: L.Trainer, module: L.LightningModule, info: BatchInfo) -> None:
        self._samples = info.samples
        self._compared = []
        for kept in (self._first, self._last, self._size, self._largest):
            kept.clear()

    def on_sample_end(self, trainer: L.Trainer, module: L.LightningModule, results: Sequence[SampleResult]) -> None:
        lines = [line for row in range(len(self._samples)) for line in self._lines(row)]
        append_table(run_folder(trainer) / VALUES_FILE, _COLUMNS, lines)
        self._first.clear()
        self._last.clear()

    def _lines(self, row: int) -> list[dict[str, Any]]:
        if not self._compared:  # once a batch, before its values are cleared
            self._compared = [
                self._others.compare(sample, {site: values[index] for site, values in self._last.items()})
                for index, sample in enumerate(self._samples)
            ]
        sample, lines = self._samples[row], []
        for site, largest in self._largest.items():
            change, size = float(largest[row]), float(self._size[site][row])
            who = {"id": sample.id, "seed": sample.seed, "method": sample.method}
            where = {**who, "site": site.name, "kind": site.kind, "height": site.height, "width": site.width}
            ratio = change / max(size, 1e-12)
            found = {"largest_difference": change, "largest_value": size, "relative_difference": ratio}
            others = {column: self._compared[row].get(column, {}).get(site, "") for column in _COMPARED}
            lines.append({**where, **found, **others})
        return lines

    def row_metrics(self, result: SampleResult) -> Mapping[str, float]:
        ids = [sample.id for sample in self._samples]
        if result.sample.id not in ids:
            return {}
        metrics: dict[str, float] = {}
        for line in self._lines(ids.index(result.sample.id)):
            for ending, column in _METRICS.items():
                if line[column] != "":
                    name = f"{line['kind']}_value_change{ending}"
                    metrics[name] = max(metrics.get(name, 0.0), line[column])
        return metrics

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.strategy.barrier()
        lines = read_table(run_folder(trainer) / VALUES_FILE)
        changed = {kind: _largest(lines, kind) for kind in ("cross", "self", "joint")}
        self.verdict = (
            " ".join(_sentence(kind, line, self.tolerance) for kind, line in changed.items() if line) or "No site was read."
        )
        compared = [(kind, column) for column in _COMPARED for kind in ("cross", "self", "joint")]
        self.verdict += "".join(_comparison(lines, kind, column, self.tolerance) for kind, column in compared)
        if trainer.is_global_zero:
            write_atomic(run_folder(trainer) / "value_invariance.txt", f"{self.verdict}\n")
        cross = changed["cross"]
        if self.fail and cross and float(cross["relative_difference"]) > self.tolerance:
            raise ValuesChangedError(self.verdict)


class _References:
    """Values of reference rows, to compare later rows with that differ only in seed or methods."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[str, dict[Site, Tensor]] = {}
        self._seeds: dict[str, str] = {}

    def compare(self, sample: Sample, values: Mapping[Site, Tensor]) -> dict[str, dict[Site, float]]:
        """Ratios to the reference rows, by column and site; the row becomes a reference itself if it is needed as one."""
        own, any_seed = _identity(sample), _identity(replace(sample, seed=0))
        others = {"seed_difference": self._seeds.get(any_seed), "method_difference": _identity(replace(sample, methods=()))}
        is_first = any_seed not in self._seeds
        if (is_first or not sample.methods) and len(self._kept) < self._limit:
            self._kept[own] = {site: tensor.float().cpu() for site, tensor in values.items()}
            self._seeds.setdefault(any_seed, own)
        return {
            column: {site: _ratio(values[site], before) for site, before in self._kept[key].items() if site in values}
            for column, key in others.items()
            if key is not None and key != own and key in self._kept
        }


def _identity(sample: Sample) -> str:
    """Key of all settings that a row's attention values depend on."""
    scales = (sample.cfg_scale, sample.true_cfg_scale)
    plain = (sample.prompt, sample.prompt_syntax, sample.negative_prompt, sample.seed, sample.steps, scales, sample.scheduler)
    methods = [(config.name, sorted(config.options.items())) for config in sample.methods]
    return repr((*plain, sample.height, sample.width, methods, inputs_key(sample)))


def _ratio(values: Tensor, before: Tensor) -> float:
    return float((values.float().cpu() - before).abs().max() / before.abs().max().clamp_min(1e-12))


def _comparison(lines: Sequence[Mapping[str, str]], kind: str, column: str, tolerance: float) -> str:
    ratios = [float(line[column]) for line in lines if line["kind"] == kind and line.get(column)]
    if not ratios:
        return ""
    start = f" Against the row with {_COMPARED[column]}, {_NAMES[kind]} values"
    if max(ratios) <= tolerance:
        return f"{start} are the same."
    return f"{start} differ at the last step by up to {max(ratios):.3g} of their largest."


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
