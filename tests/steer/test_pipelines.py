"""The tiny pipelines themselves: every kind runs, and reads what it is given."""

import pytest
import torch

from tests.steer import pipelines


@pytest.mark.parametrize("name", pipelines.available())
def test_a_kind_runs(name: str) -> None:
    found = pipelines.sample(name, num_inference_steps=2)
    assert bool(torch.isfinite(found).all()) and float(found.std()) > 0.1


def test_control_acts() -> None:
    plain, none = (pipelines.sample("flux_controlnet", controlnet_conditioning_scale=scale) for scale in (0.7, 0.0))
    assert not torch.allclose(plain, none)
