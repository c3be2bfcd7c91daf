"""A steered call as a run folder: the files of any other run."""

from pathlib import Path

import numpy as np
import pytest
import torch

import attnguide
from attnguide.run_folder.records import read_records
from tests import tiny
from tests.steering.watch import REGIONS


def test_a_call_is_written_as_a_run(tmp_path: Path) -> None:
    pipeline = tiny.shared_pipeline()
    with attnguide.steer(pipeline, regions=REGIONS, method="mask_guidance", step_size=40.0, seed=5) as run:
        images = pipeline(tiny.PROMPT, num_inference_steps=2, latents=run.latents(2), num_images_per_prompt=2).images
        page = run.save(tmp_path / "inside")
    assert page == tmp_path / "inside" / "report.html" and page.is_file()
    run.save(tmp_path / "after")
    files = {path.relative_to(tmp_path / "after").as_posix() for path in (tmp_path / "after").rglob("*.*")}
    maps = {f"maps/row0/{name}" for name in ("red_cat.npy", "red_cat.png", "red_cat-steps.png", "_overview.png")}
    wanted = {
        "records.csv",
        "loss_trace.csv",
        "sheet.png",
        "report.html",
        "config.yaml",
        "samples/row0.png",
        "samples/row1.png",
    }
    assert wanted | maps <= files
    first, second = read_records(tmp_path / "after")
    assert (first["id"], first["seed"], second["seed"], first["method"]) == ("row0", "5", "6", "mask_guidance")
    assert first["status"] == "ok" and float(first["loss_mask_guidance"]) > 0
    assert int(first["steps"]) == 2 and first["scheduler"] == "DDIMScheduler"
    assert [result.image for result in run.results] == images
    kept = np.load(tmp_path / "after" / "maps" / "row1" / "red_cat.npy")
    assert np.allclose(kept.mean(0), run.maps["red cat"][1], atol=1e-6)
    with pytest.raises(ValueError, match="already holds a run"):
        run.save(tmp_path / "after")
    for nowhere in ("", None, 3):  # a path that is empty would be the working directory
        with pytest.raises(ValueError, match="folder must be a path; got"):
            run.save(nowhere)  # type: ignore[arg-type]


def test_pictures_of_every_kind_of_output() -> None:
    """What the pipeline hands out as numbers is a picture on record; latents are decoded."""
    pipeline, found = tiny.shared_pipeline(), []
    for kind in ("pil", "np", "pt", "latent"):
        with attnguide.steer(pipeline) as run:
            pipeline(tiny.PROMPT, num_inference_steps=1, output_type=kind, generator=torch.Generator().manual_seed(1))
        found.append(np.asarray(run.results[0].image).astype(int))
    assert all(np.abs(picture - found[0]).max() <= 1 for picture in found)


def test_nothing_can_be_saved_before_a_call_has_ended(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no call of the pipeline has ended"):
        with attnguide.steer(tiny.shared_pipeline()) as run:
            run.save(tmp_path / "early")
    assert not (tmp_path / "early").exists()
