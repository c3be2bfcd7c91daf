"""The tiny pipelines themselves read what they are given."""

import torch

from tests.steering import pipelines


def test_control_acts() -> None:
    plain, none = (pipelines.sample("flux_controlnet", controlnet_conditioning_scale=scale) for scale in (0.7, 0.0))
    assert not torch.allclose(plain, none)
