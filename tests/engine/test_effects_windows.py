import warnings
from collections.abc import Sequence

import pytest

from attnguide.engine.effects import warn_of_idle
from attnguide.methods import build_method
from attnguide.sampling.table import sample_batch
from attnguide.types import MethodConfig, Step
from tests import tiny


def _steps(*timesteps: float) -> list[Step]:
    return [Step.at_sigma(index, len(timesteps), timestep, 1.0 + timestep / 100) for index, timestep in enumerate(timesteps)]


FOUR = _steps(751, 501, 251, 1)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_window_that_no_step_falls_into_is_named_with_its_steps(number: int) -> None:
    message = (
        rf"Method 'inject{number}' does nothing: its window, start 0.8 and stop 1 in timestep / 1000, holds none of the 4 "
        r"steps, which lie at 0.751, 0.501, 0.251, 0.001\. Widen"
    )
    with pytest.warns(UserWarning, match=message):
        warn_of_idle([build_method(f"inject{number}", {})], FOUR)


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("inject5", {}, _steps(801, 401)),  # one step is enough
        ("inject5", {"start": 0.7}, FOUR),
        ("inject5", {"start": 12.0, "stop": 9.0, "unit": "sigma"}, _steps(901, 101)),
        ("attend_and_excite", {"stop": 0.0}, FOUR),  # empty by choice
        ("saga", {}, FOUR),
        ("paint_with_words", {}, FOUR),
    ],
)
def test_no_word_where_a_step_falls_in_or_none_was_asked_for(
    name: str, options: dict[str, object], steps: Sequence[Step]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_idle([build_method(name, options)], steps)


def test_other_units() -> None:
    with pytest.warns(
        UserWarning, match=r"start 0.9 and stop 1 in progress, holds none of the 4 steps, which lie at 0, 0.25, "
    ):
        warn_of_idle([build_method("pag", {"start": 0.9})], FOUR)
    with pytest.warns(UserWarning, match="start 50 and stop 40 in sigma"):
        warn_of_idle([build_method("pag", {"start": 50.0, "stop": 40.0, "unit": "sigma"})], FOUR)


def test_sampling_warns() -> None:
    row = tiny.row(steps=4, methods=(MethodConfig("inject7"),))
    with pytest.warns(UserWarning, match="Method 'inject7' does nothing"):
        sample_batch(tiny.model(), [row])
