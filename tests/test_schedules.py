import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnguide.schedules import SCHEDULES, Unit, Window, constant, linear, noise_variance, position, sqrt_linear
from attnguide.types import Step


def _step(index: int, count: int = 50, timestep: float = 500.0, sigma: float = 1.6) -> Step:
    return Step.at_sigma(index, count, timestep, sigma)


def test_positions_in_every_unit() -> None:
    step = _step(5, 20, 750.0, 4.0)
    assert (position(step, "progress"), position(step, "timestep"), position(step, "sigma")) == (0.25, 0.75, 4.0)


@pytest.mark.parametrize(
    ("start", "stop", "count", "expected"), [(0, 0.5, 50, 25), (0, 1, 7, 7), (0.2, 0.6, 5, 2), (0.4, 0.4, 10, 0)]
)
def test_progress_window_holds_so_many_steps(start: float, stop: float, count: int, expected: int) -> None:
    window = Window(start, stop)
    active = [index for index in range(count) if window.active(_step(index, count))]
    assert len(active) == expected
    assert not active or active[0] == math.ceil(start * count)


@given(st.integers(1, 100), st.floats(0, 1))
def test_two_windows_share_the_steps_between_them(count: int, cut: float) -> None:
    for index in range(count):
        step = _step(index, count)
        assert Window(0, cut).active(step) != Window(cut, 1).active(step)


@pytest.mark.parametrize(("unit", "inside", "outside"), [("timestep", 850.0, 799.0), ("sigma", 0.9, 0.7)])
def test_falling_units_take_either_order(unit: Unit, inside: float, outside: float) -> None:
    for window in (Window(0.8, 1.0, unit), Window(1.0, 0.8, unit)):
        assert window.active(Step.at_sigma(0, 1, inside, inside)) and not window.active(Step.at_sigma(0, 1, outside, outside))
    assert Window(0.8, 1.0, unit).active(Step.at_sigma(0, 1, 800.0, 0.8))


def test_sigma_window_without_upper_bound() -> None:
    assert Window(2.0, math.inf, "sigma").active(_step(0, sigma=14.6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -0.1}, "window start must be a number of at least 0; got -0.1"),
        ({"stop": math.nan}, "window stop must be a number of at least 0; got nan"),
        ({"stop": math.inf}, "window stop"),
        ({"start": 0.6, "stop": 0.5}, "start <= stop <= 1; got 0.6 to 0.5"),
        ({"stop": 1.5}, "start <= stop <= 1"),
        ({"unit": "steps"}, "unit must be one of progress, timestep, sigma; got 'steps'"),
    ],
)
def test_window_refuses(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Window(**options)  # type: ignore[arg-type]


def test_sqrt_linear_is_attend_and_excites_step_size() -> None:
    expected = 20 * np.sqrt(np.linspace(1, 0.5, 50))
    np.testing.assert_allclose([sqrt_linear(20)(_step(index)) for index in range(50)], expected)
    assert sqrt_linear(20)(_step(0, 1)) == 20


def test_the_other_rules() -> None:
    assert constant(3.0)(_step(10)) == 3
    assert linear(4.0, 0.0)(_step(25)) == 2
    assert linear(4.0, 1.0, end=0.5)(_step(40)) == 1
    assert noise_variance(10.0)(_step(0, sigma=2.0)) == pytest.approx(8)


def _flow(noise: float, index: int = 0) -> Step:
    return Step(index, 10, 1000 * noise, 1 - noise, noise)


def test_under_flow_matching() -> None:
    """The first step has no signal: the noise's share is all of it, and sigma is infinite."""
    assert [noise_variance(10.0)(_flow(noise)) for noise in (1.0, 0.5, 0.0)] == pytest.approx([10, 5, 0])
    assert noise_variance(1.0)(_flow(0.75)) == pytest.approx(0.9)
    assert Window(0.8, 1.0, "timestep").active(_flow(0.9)) and not Window(0.8, 1.0, "timestep").active(_flow(0.7))
    sigma = Window(3.0, math.inf, "sigma")
    assert sigma.active(_flow(1.0)) and sigma.active(_flow(0.75)) and not sigma.active(_flow(0.7))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_rule_has_its_peak_first_and_refuses_nan(name: str) -> None:
    rule = SCHEDULES[name](5.0)
    for step in (lambda index: Step.at_sigma(index, 10, 0.0, 10.0 - index), lambda index: _flow(1 - index / 10, index)):
        values = [rule(step(index)) for index in range(10)]
        assert values[0] == max(values) <= 5 and min(values) >= 0
    with pytest.raises(ValueError, match="step size must be finite; got nan"):
        SCHEDULES[name](math.nan)
