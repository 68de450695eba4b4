"""From a score to a probability, and the units it is counted in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse_ros.anomaly.calibration import (
    TailModel,
    check_alpha,
    fold_units,
    smallest_alpha,
    split_blocks,
    surprise,
    upper_rate,
)
from mmfuse_ros.anomaly.recordings import modality_of, tabulate
from mmfuse_ros.errors import CalibrationError, InputError


def left_out(units, windows, between, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(0, between, units)[:, None] + rng.normal(size=(units, windows))
    return values.ravel(), np.repeat(np.arange(units), windows)


@pytest.mark.parametrize("between", [0.0, 1.0, 3.0])
def test_tail_holds_its_rate_for_new_recordings(between):
    rates = []
    for seed in range(300):
        tail = TailModel(*left_out(12, 15, between, seed))
        rng = np.random.default_rng(10_000 + seed)
        new = rng.normal(0, between) + rng.normal(size=50)
        rates.append((tail.p(new) <= 0.05).mean())
    assert np.mean(rates) < 0.05 + 2 * np.std(rates) / np.sqrt(len(rates))


def test_windows_taken_as_independent_would_promise_too_much():
    """The same data, every window a unit of its own: the false-alarm rate is twice alpha."""
    rates = []
    for seed in range(200):
        values, _ = left_out(6, 40, 3.0, seed)
        tail = TailModel(values, np.arange(len(values)))
        rng = np.random.default_rng(10_000 + seed)
        rates.append((tail.p(rng.normal(0, 3.0) + rng.normal(size=50)) <= 0.05).mean())
    assert np.mean(rates) > 0.08


def test_counted_p_is_exact_at_its_boundaries():
    tail = TailModel(np.array([1.0, 2.0, 3.0, 4.0]), np.arange(4))
    np.testing.assert_allclose(
        tail.counted_p(np.array([0.0, 1.0, 1.5, 4.0, 4.1])), np.array([5, 5, 4, 2, 1]) / 5
    )


def test_tail_is_never_below_the_count():
    values = np.r_[np.zeros(50), 30.0]  # one unit far off
    tail = TailModel(values + 0.01 * np.arange(51), np.arange(51))
    assert tail.p(np.array([25.0]))[0] >= 1 / 51


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 5), st.integers(3, 20), st.integers(1, 20))
def test_p_is_a_falling_probability(seed, between, units, windows):
    tail = TailModel(*left_out(units, windows, between, seed))
    p = tail.p(np.linspace(-1e4, 1e6, 2000))
    assert ((p > 0) & (p <= 1)).all()
    assert (np.diff(p) <= 1e-12).all()
    assert np.isnan(tail.p(np.array([np.nan])))[0]


def test_equal_scores_do_not_break_the_tail():
    tail = TailModel(np.zeros(30), np.repeat(np.arange(6), 5))
    p = tail.p(np.array([0.0, 1.0]))
    assert p[0] == pytest.approx(1.0)
    assert 0 < p[1] < 0.05
    with pytest.raises(CalibrationError, match="at least 2 units"):
        TailModel(np.zeros(3), np.zeros(3, int))


@pytest.mark.parametrize(("alpha", "units"), [(0.05, 3), (0.01, 9), (0.001, 99)])
def test_units_that_an_alpha_needs(alpha, units):
    check_alpha(alpha, units)
    with pytest.raises(CalibrationError, match=r"add 1 more recordings"):
        check_alpha(alpha, units - 1)
    assert smallest_alpha(units) <= alpha + 1e-12


def test_surprise_is_a_normal_deviate():
    np.testing.assert_allclose(surprise(np.array([0.5, 0.025])), [0.0, 1.96], atol=1e-2)
    assert np.isfinite(surprise(np.array([1.0, 0.0, 1e-310]))).all()


def test_tail_alone_is_never_above_p():
    tail = TailModel(*left_out(8, 5, 1.0, 0))
    p, alone = tail.both(np.linspace(-5, 9, 200))
    np.testing.assert_array_equal(p, tail.p(np.linspace(-5, 9, 200)))
    assert (alone <= p).all()
    assert (np.diff(alone) < 0).all()


def test_blocks_and_folds():
    assert split_blocks(10, 4).tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert split_blocks(9, 4).tolist() == [0] * 4 + [1] * 5  # a short rest joins the last
    assert split_blocks(2, 4).tolist() == [0, 0]
    assert fold_units(5, 2) == [[0, 2, 4], [1, 3]]
    assert fold_units(3, 9) == [[0], [1], [2]]


def test_upper_rate_of_no_event_is_three_in_the_time():
    assert upper_rate(0, 2.0) == pytest.approx(3.0 / 2.0, rel=0.01)


def test_guard_leaves_out_windows_that_reach_into_the_block_before():
    table = tabulate([{"a": np.zeros((10, 1))}], unit="block", block_windows=5, guard=2)
    assert table.row.tolist() == [0, 1, 2, 3, 4, 7, 8, 9]
    assert table.unit.tolist() == [0] * 5 + [1] * 3


def test_recordings_stay_units_unless_blocks_are_asked_for():
    data = [{"a": np.zeros((40, 1))}, {"a": np.zeros((40, 1))}]
    assert tabulate(data).units == 2
    assert tabulate(data, unit="block", block_windows=10).units == 8
    with pytest.raises(InputError, match="unit must be 'auto', 'recording' or 'block'"):
        tabulate(data, unit="window")
    with pytest.raises(InputError, match=r"phases must have one entry per recording \(2\)"):
        tabulate(data, phases=["a"])
    with pytest.raises(InputError, match=r"phases\[1\] must be one label or 40"):
        tabulate(data, phases=["a", ["b"]])


def test_modality_is_what_stands_before_the_colon():
    assert [modality_of(k) for k in ("audio", "audio:log_mel", "a:b:c", ":x")] == [
        "audio",
        "audio",
        "a",
        "",
    ]
