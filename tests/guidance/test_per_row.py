"""One value for all rows, or one per row."""

import math

import pytest
import torch

from attnguide.guidance.per_row import EachRow


def test_one_number_or_one_per_row() -> None:
    like = torch.zeros(3, dtype=torch.float16)
    assert EachRow(2).at([0, 4], like).tolist() == [2.0, 2.0]
    found = EachRow([1.0, 2.0, 3.0]).at([2, 0], like)
    assert found.tolist() == [3.0, 1.0] and found.dtype == torch.float32


def test_a_number_too_few() -> None:
    with pytest.raises(ValueError, match="scale must be one number, or one per row; got 2 for row 2"):
        EachRow([1.0, 2.0], "scale").at([0, 2], torch.zeros(2))


@pytest.mark.parametrize("given", ["a text", {"cat": 2.0}, None, 3])
def test_texts_mappings_and_nothing_are_one_value(given: object) -> None:
    assert EachRow(given).over(2) == [given, given] and EachRow(given).common
    assert EachRow([given, None]).over(2) == [given, None]


def test_as_many_values_as_rows() -> None:
    with pytest.raises(ValueError, match="words must be one value, or a list with one per row; got 2 for 1 rows"):
        EachRow(["a", "b"], "words").over(1)
    assert EachRow((1, 2)).over(2) == [1, 2]


@pytest.mark.parametrize("given", [math.nan, math.inf, [1.0, -math.inf]])
def test_numbers_that_are_not_finite(given: float) -> None:
    with pytest.raises(ValueError, match="scale must be finite; got"):
        EachRow(given, "scale").require_finite()


@pytest.mark.parametrize("given", [1.1, [0.5, -0.1], math.nan])
def test_numbers_out_of_range(given: float) -> None:
    with pytest.raises(ValueError, match=r"scale must lie in \[0, 1\]; got"):
        EachRow(given, "scale").require_within(0, 1)
    EachRow([0.0, 1.0]).require_within(0, 1)
