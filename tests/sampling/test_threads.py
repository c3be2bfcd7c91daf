"""Several threads on one pipeline and on two: every picture as one thread alone makes it, and the pipeline as it was."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnguide import sample
from attnguide.engine.observer import Observer
from attnguide.models.base import ModelAdapter
from attnguide.models.load import adapt
from attnguide.types import Step
from tests import tiny
from tests.attention.test_attach import NetworkState
from tests.models import families

CALLS = (
    {"method": "mask_guidance", "start": 0.0, "stop": 1.0, "regions": {"red cat": (0.0, 0.0, 0.5, 1.0)}},
    {"method": "forward_layout", "regions": {"blue ball": (0.5, 0.25, 1.0, 1.0)}},
    {"method": "plain"},
)


@pytest.fixture(autouse=True)
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def _picture(model: ModelAdapter, number: int, **size: int) -> np.ndarray:
    """Picture of one of six calls: three methods, two seeds."""
    call = {**CALLS[number % 3], **size}
    (result,) = sample(tiny.PROMPT, seed=number % 2, steps=1, cfg_scale=1.0, model=model, **call)
    assert result.status == "ok"
    return np.asarray(result.image)


def _states(models: list[ModelAdapter]) -> list[NetworkState]:
    return [NetworkState(network) for model in models for network in model.networks.values()]


@pytest.mark.parametrize("pipelines", [1, 2])
def test_every_picture_is_right_and_the_pipeline_as_before(pipelines: int) -> None:
    models = [adapt(tiny.pipeline(seed, latent_size=8)) for seed in range(pipelines)]
    mid = models[0].networks["unet"].mid_block
    mid.train()  # flags that are not all alike, to be found again
    next(mid.parameters()).requires_grad_(False)
    expected = {(which, number): _picture(models[which], number) for which in range(pipelines) for number in range(6)}
    before = _states(models)

    def run(job: int) -> bool:
        which, number = job % pipelines, job // 2 % 6
        return np.array_equal(_picture(models[which], number), expected[which, number])

    with ThreadPoolExecutor(2 * pipelines) as pool:
        right = list(pool.map(run, range(100)))
    assert right == [True] * 100
    for state, now in zip(before, _states(models), strict=True):
        state.assert_same(now)


def test_two_threads_on_one_transformer() -> None:
    model = adapt(families.build("flux_dev"))
    expected = [_picture(model, number, height=32, width=32) for number in range(3)]
    before = _states([model])

    def run(number: int) -> bool:
        return np.array_equal(_picture(model, number % 3, height=32, width=32), expected[number % 3])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(10))) == [True] * 10
    for state, now in zip(before, _states([model]), strict=True):
        state.assert_same(now)


def test_a_pass_of_the_user_s_own_beside_a_run_is_plain() -> None:
    pipeline = tiny.pipeline(latent_size=8)
    model, unet = adapt(pipeline), pipeline.unet
    inputs = torch.ones(1, 4, 8, 8), torch.tensor(5), torch.ones(1, tiny.LENGTH, tiny.CHANNELS)
    with torch.no_grad():
        expected = unet(*inputs).sample
    found: list[Tensor] = []
    done = threading.Event()

    def pass_after_pass() -> None:
        with torch.no_grad():
            while not done.is_set():
                found.append(unet(*inputs).sample)

    other = threading.Thread(target=pass_after_pass)
    other.start()
    alone = _picture(model, 0)
    for _ in range(5):
        assert np.array_equal(_picture(model, 0), alone)
    done.set()
    other.join()
    assert found and all(torch.equal(one, expected) for one in found)


def test_a_run_within_a_run_of_the_same_thread() -> None:
    model = adapt(tiny.pipeline(latent_size=8))
    inner: list[np.ndarray] = []

    class Inside(Observer):
        def on_denoise_step_start(self, step: Step, latents: Tensor) -> None:
            inner.append(_picture(model, 1))

    call = dict(CALLS[0])
    alone = _picture(model, 0), _picture(model, 1)
    (outer,) = sample(tiny.PROMPT, seed=0, steps=1, cfg_scale=1.0, model=model, observer=Inside(), **call)
    assert np.array_equal(np.asarray(outer.image), alone[0])
    assert len(inner) == 1 and all(np.array_equal(one, alone[1]) for one in inner)


def _wait_for(ready: threading.Event) -> None:
    assert ready.wait(20)


@pytest.mark.parametrize("hold", ["evaluating", "frozen", "exclusive"])
def test_what_holds_a_network_makes_others_wait(hold: str) -> None:
    pipeline = tiny.pipeline(latent_size=8)
    first, second = adapt(pipeline), adapt(pipeline)  # two adapters, one network
    order: list[str] = []
    entered = threading.Event()

    def other() -> None:
        entered.set()
        with getattr(second, hold)():
            order.append("second")

    thread = threading.Thread(target=other)
    with getattr(first, hold)():
        thread.start()
        _wait_for(entered)
        thread.join(0.05)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_a_lock_goes_with_its_network() -> None:
    from attnguide.models import locks

    network = nn.Linear(1, 1)
    before = len(locks._locks)
    with locks.exclusive([network, network]), locks.exclusive([network]):
        assert len(locks._locks) == before + 1
    del network
    assert len(locks._locks) == before
