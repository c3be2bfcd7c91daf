from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from attnguide.metrics import FixedFeatures, PictureDistance
from attnguide.shapes.renderer import render
from attnguide.shapes.scene import random_scene

COUNT = 40


def _pictures(first: int) -> Tensor:
    pixels = np.stack([np.asarray(render(random_scene(seed))) for seed in range(first, first + COUNT)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def real() -> Tensor:
    return _pictures(0)


def _distance(real: Tensor, generated: Tensor) -> float:
    metric = PictureDistance(subsets=2, subset_size=COUNT)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return float(metric.compute()[0])


def _blurred(pictures: Tensor, std: float) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(pictures.numpy().astype(np.float32), (0, 0, std, std)) / 255)


def test_ruined_pictures_are_farther(real: Tensor) -> None:
    other = _pictures(1000)
    noise = torch.randint(0, 256, other.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    distances = [_distance(real, pictures) for pictures in (other, _blurred(other, 3), _blurred(other, 12), noise)]
    assert abs(distances[0]) < 0.05
    assert distances == sorted(distances)
    assert distances[2] > 0.1 and distances[3] > 2


def test_the_distance_is_the_unbiased_estimator(real: Tensor) -> None:
    features = FixedFeatures()
    x, y = features(real), features(_blurred(real, 3))
    size = features.num_features

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / size + 1) ** 3

    def off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.diagonal().sum()) / (COUNT * (COUNT - 1))

    expected = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert _distance(real, _blurred(real, 3)) == pytest.approx(float(expected), abs=1e-4)


def test_batches_add_up(real: Tensor) -> None:
    whole, parts = (PictureDistance(subsets=1, subset_size=COUNT) for _ in range(2))
    for metric, size in ((whole, COUNT), (parts, 16)):
        for batch in real.split(size):
            metric.update(batch, real=True)
            metric.update(255 - batch, real=False)
    torch.testing.assert_close(parts.compute()[0], whole.compute()[0], atol=1e-3, rtol=1e-3)


def test_features_are_fixed_and_know_bytes_and_fractions(real: Tensor) -> None:
    first = FixedFeatures()(real[:3])
    assert first.shape == (3, FixedFeatures().num_features)
    torch.testing.assert_close(FixedFeatures()(real[:3]), first)
    torch.testing.assert_close(FixedFeatures()(real[:3].float() / 255), first)
    assert not torch.allclose(FixedFeatures(seed=1)(real[:3]), first)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="batch 3 height width"):
        FixedFeatures()(torch.zeros(2, 1, 32, 32))
