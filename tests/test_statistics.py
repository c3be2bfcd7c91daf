"""Means, intervals and significance, by hand and by their properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnguide.statistics import clustered_mean, holm, paired_difference


def test_the_mean_is_over_pictures_and_the_interval_over_clusters() -> None:
    alike = {name: [value] * 4 for name, value in (("a", 0.0), ("b", 1.0), ("c", 0.0), ("d", 1.0))}
    apart = {f"{name}{index}": [value] for name, (value, *_) in alike.items() for index in range(4)}
    wide, narrow = clustered_mean(alike), clustered_mean(apart)
    assert wide is not None and narrow is not None
    assert (wide.mean, wide.pictures, wide.clusters) == (0.5, 16, 4) and narrow.clusters == 16
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    uneven = clustered_mean({"a": [1.0, 1.0, 1.0], "b": [0.0]})
    assert uneven is not None and uneven.mean == 0.75


def test_the_interval_is_the_normal_one_where_clusters_are_many() -> None:
    values = np.random.default_rng(3).normal(0.3, 0.2, size=400)
    found = clustered_mean({index: [value] for index, value in enumerate(values)})
    assert found is not None
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.003)
    assert found.high == pytest.approx(values.mean() + half, abs=0.003)


def test_nothing_and_one() -> None:
    assert clustered_mean({}) is None and clustered_mean({"a": []}) is None
    one = clustered_mean({"a": [0.25, 0.75]})
    assert one is not None and (one.low, one.mean, one.high) == (0.5, 0.5, 0.5)
    assert paired_difference({"a": 1.0}, {"b": 0.0}, {"a": 0, "b": 1}) is None


def test_equal_values_leave_no_interval() -> None:
    found = clustered_mean({index: [0.1] * (index + 1) for index in range(5)})
    assert found is not None and found.low <= found.mean <= found.high
    assert found.low == pytest.approx(found.high, abs=1e-12)


def test_differences_are_pair_by_pair() -> None:
    before = {(name, seed): 0.1 * index for index, name in enumerate("abcdefgh") for seed in (0, 1)}
    after = {key: value + 0.2 for key, value in before.items()} | {("z", 0): 9.0}
    found = paired_difference(after, before, {key: key[0] for key in after})
    assert found is not None
    assert found.mean == pytest.approx(0.2) and found.low == pytest.approx(0.2, abs=1e-6) and found.clusters == 8
    assert found.p == pytest.approx(2 / 2**8, abs=0.006)  # all eight signs alike
    none = paired_difference(before, before, {key: key[0] for key in before})
    assert none is not None and none.p == 1.0


def test_seeds_of_one_prompt_are_no_evidence_of_their_own() -> None:
    after = {("a", seed): 1.0 for seed in range(50)} | {("b", seed): 1.0 for seed in range(50)}
    found = paired_difference(after, dict.fromkeys(after, 0.0), {key: key[0] for key in after})
    assert found is not None and found.p > 0.4  # two prompts


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.7]) == [0.7]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_keeps_the_order_and_never_lowers(ps: list[float]) -> None:
    found = holm(ps)
    assert all(1 >= after >= before for after, before in zip(found, ps, strict=True))
    pairs = sorted(zip(ps, found, strict=True))
    assert [after for _, after in pairs] == sorted(after for _, after in pairs)
