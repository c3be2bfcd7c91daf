"""Numbers about maps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from attnguide.attention.sites import SiteSelector
from attnguide.callbacks import MapNorms, RunFolder
from attnguide.callbacks.map_norms import STATISTICS, map_statistics
from attnguide.run_folder.records import read_records
from attnguide.run_folder.tables import read_table
from attnguide.types import MethodConfig, Region, SampleResult
from tests.callbacks.conftest import Run, row


def test_statistics_by_hand() -> None:
    maps = torch.tensor([[[3.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]])
    masks = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    found = map_statistics(maps, masks)[0]
    first = dict(zip(STATISTICS, found[0].tolist(), strict=True))
    assert first["mean"] == 1 and first["l1"] == 4 and first["max"] == 3 and first["inside"] == 0.75
    assert first["l2"] == pytest.approx(math.sqrt(10))
    assert first["entropy"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    flat = dict(zip(STATISTICS, found[1].tolist(), strict=True))
    assert flat["entropy"] == pytest.approx(math.log(4)) and math.isnan(flat["inside"])


def test_a_map_of_nothing_has_no_nan() -> None:
    found = map_statistics(torch.zeros(1, 1, 4), torch.ones(1, 1, 4))
    assert torch.isfinite(found).all() and found[..., -1] == 0


def test_a_line_per_row_step_site_region_and_stage(run: Run, tmp_path: Path) -> None:
    nowhere = row("n", regions=(Region("red cat"),))
    run([MapNorms(), RunFolder(sheet=False)], [row("p"), nowhere])
    lines = read_table(tmp_path / "map_norms.csv")
    sites = {line["site"] for line in lines}
    assert len(lines) == (2 + 1) * 3 * len(sites) * 2 and len(sites) >= 4
    assert all(name.endswith("attn2") for name in sites)
    assert {line["inside"] == "" for line in lines if line["id"] == "n"} == {True}
    before = [line for line in lines if line["stage"] == "before"]
    after = [line for line in lines if line["stage"] == "after"]
    assert all(
        {**b, "stage": ""} == {**a, "stage": ""} for b, a in zip(sorted(before, key=str), sorted(after, key=str), strict=True)
    )
    mean = np.mean([float(line["inside"]) for line in after if line["id"] == "p"])
    records = {record["id"]: record for record in read_records(tmp_path)}
    assert float(records["p"]["inside"]) == pytest.approx(mean, rel=1e-4)
    assert records["n"]["inside"] == ""


def test_injection_shows_between_before_and_after(run: Run, tmp_path: Path) -> None:
    injected = row("i", methods=(MethodConfig("inject2", {"start": 0.0, "stop": 1.0, "unit": "progress"}),))
    run([MapNorms(SiteSelector(kind="cross", levels=(0,)), every=2)], [injected])
    lines = read_table(tmp_path / "map_norms.csv")
    assert {line["step"] for line in lines} == {"0", "2"} and {line["height"] for line in lines} == {"16"}
    cat = {
        stage: [float(n["inside"]) for n in lines if n["phrase"] == "red cat" and n["stage"] == stage]
        for stage in ("before", "after")
    }
    assert min(cat["after"]) > 0.95 > max(cat["before"])


def test_every_must_count_up() -> None:
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        MapNorms(every=0)


def test_the_first_probs_of_a_site_are_what_the_file_says(run: Run, tmp_path: Path) -> None:
    """Measured again here, from a probe of the test's own."""
    from attnguide.attention.capture import Probe, Recorder
    from attnguide.callbacks import SamplingCallback

    class Keep(SamplingCallback):
        recorder = Recorder()
        targets = None

        def probes(self, info):  # type: ignore[no-untyped-def]
            self.targets = info.targets
            return (Probe("probs", self.recorder, SiteSelector(kind="cross")),)

    keep = Keep()
    run([MapNorms(), keep], [row("p", steps=1), row("q", steps=1, seed=5)])
    site, probs = next((site, probs) for site, probs in keep.recorder.tensors.items() if site.level == 1)
    positions = keep.targets.token_indices[1][0]  # type: ignore[union-attr]
    map_ = probs[3].mean(0)[:, list(positions)].mean(-1)  # uncond, uncond, cond, cond
    (line,) = [
        line
        for line in read_table(tmp_path / "map_norms.csv")
        if (line["id"], line["site"], line["region"], line["stage"]) == ("q", site.name, "0", "after")
    ]
    assert float(line["l1"]) == pytest.approx(float(map_.sum()), rel=1e-4)
    assert float(line["inside"]) == pytest.approx(float(map_.view(8, 8)[:, :4].sum() / map_.sum()), rel=1e-4)


def test_metrics_of_an_unknown_row_are_none() -> None:
    from attnguide.types import Cost

    assert MapNorms().row_metrics(SampleResult(row("x"), None, None, Cost(0, 0, 0, 0))) == {}
