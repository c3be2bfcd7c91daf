from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest

from attnguide.text.hints import fits, spelt


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (float, [0, 1.5, float("nan"), np.float32(2)], [True, "1", None, [1.0]]),
        (int, [0, -3, np.int64(2)], [True, 1.0, "1", None]),
        (bool, [True], [1, "true", None]),
        (str, ["", "x"], [1, None, ["x"]]),
        (float | None, [None, 1], ["x"]),
        (Literal["a", "b"], ["a"], ["c", None, ["a"], {}]),
        (float | Sequence[float], [1, [1, 2.5], (3,)], ["12", [True], {1: 2}]),
        (tuple[int, ...] | None, [[0, 1], (), None], [3, "01", [0.5]]),
        (tuple[float, str], [(1, "x"), [2, "y"]], [(1,), (1, 2), "1x"]),
        (Sequence[str], [["a"], ()], ["a", [1]]),
        (Mapping[str, float], [{}, {"a": 1}], [{"a": "b"}, {1: 1}, [("a", 1)], None]),
        (Mapping[float, float], [{0.2: 1}, {"0.2": 1}], [{"x": 1}, {None: 1}]),
        (Any, [None, 3], []),
        (Callable[[int], int], [abs, 3], []),
        (complex, [1j], ["x"]),
    ],
)
def test_values_of_a_type(hint: Any, good: list[Any], bad: list[Any]) -> None:
    assert [fits(value, hint) for value in good] == [True] * len(good)
    assert [fits(value, hint) for value in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (float | Sequence[float], "a number, or a list of numbers, like [0.3, 0.7]"),
        (int | None, "a whole number"),
        (Literal["a", 2], "one of a, 2"),
        (Mapping[float, float] | Sequence[Mapping[float, float]], "a mapping to numbers, like {NAME: VALUE}, or a list"),
        (tuple[str, ...] | None, "a list of texts, like [first, second]"),
        (str | Sequence[str | None] | None, "text, or a list"),
        (complex, "complex"),
    ],
)
def test_types_in_words(hint: Any, told: str) -> None:
    assert spelt(hint) == told
