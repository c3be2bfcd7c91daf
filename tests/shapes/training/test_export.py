from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnguide.shapes.training.export import save_pipeline
from tests import tiny


@pytest.mark.parametrize("value", [float("nan"), 1e6], ids=["nan", "too-large"])
def test_weights_that_float16_cannot_hold_are_refused(value: float, tmp_path: Path) -> None:
    pipeline = tiny.pipeline()
    with torch.no_grad():
        pipeline.unet.conv_in.bias[0] = value
    with pytest.raises(ValueError, match=r"unet\.conv_in\.bias is not"):
        save_pipeline(pipeline, tmp_path / "new")
    assert not (tmp_path / "new").exists()
