"""Debounce with hysteresis, severity, and the drift monitor."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmfuse_ros.anomaly import Debounce, DriftMonitor
from mmfuse_ros.anomaly.debounce import severity
from mmfuse_ros.errors import ConfigError


def run(debounce, flags):
    return "".join("x" if debounce.update(f == "x") else "." for f in flags)


@pytest.mark.parametrize(
    ("k", "n", "clear", "flags", "alarm"),
    [
        (1, 1, 0, ".x.x", ".x.x"),
        (2, 3, 0, ".x..x..", "......."),
        (2, 3, 0, ".x.x....", "...xxx.."),  # cleared when none of the last three is flagged
        (2, 3, 1, ".xx....", "..xx..."),
        (3, 3, 0, "xx.xxx.", ".....xx"),
    ],
)
def test_k_of_n_with_hysteresis(k, n, clear, flags, alarm):
    assert run(Debounce(k, n, clear), flags) == alarm


def test_a_window_without_a_score_neither_raises_nor_clears():
    debounce = Debounce(2, 3)
    debounce.update(True)
    assert not debounce.update(None)
    assert debounce.update(True)
    assert all(debounce.update(None) for _ in range(9))


def test_reset_and_change():
    debounce = Debounce(1, 3)
    debounce.update(True)
    assert debounce.changed(1, 3) is debounce
    assert debounce.changed(2, 4).active
    debounce.reset()
    assert not debounce.active
    assert not debounce.update(False)


@pytest.mark.parametrize(("k", "n", "clear"), [(0, 3, 0), (4, 3, 0), (2, 3, 2), (2, 3, -1)])
def test_impossible_numbers_are_refused(k, n, clear):
    with pytest.raises(ConfigError, match="must have 0 <= clear_at < raise_at <= of"):
        Debounce(k, n, clear)


def test_severity():
    assert severity(1.0, 2.0) == 0.0
    assert severity(2.0, 2.0) == 0.0
    assert severity(3.0, 2.0) == pytest.approx(0.5)
    assert severity(99.0, 2.0) == 1.0


def test_drift_stays_silent_on_uniform_p_and_speaks_on_small_ones():
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(100):
        monitor = DriftMonitor()
        for p in rng.uniform(size=300):
            monitor.update(p)
        false += monitor.asks
    assert false <= 5  # Ville: at most 1 in 100 expected
    monitor = DriftMonitor()
    steps = 0
    while not monitor.update(rng.uniform() ** 2):
        steps += 1
        assert steps < 300
    monitor.reset()
    assert not monitor.asks
    assert monitor.log_capital == pytest.approx(0.0)


def test_drift_does_not_bet_on_large_p_which_cautious_calibration_gives():
    monitor = DriftMonitor()
    for p in np.random.default_rng(1).uniform(size=500) ** 0.5:
        monitor.update(p)
    assert not monitor.asks


def test_drift_spacing_and_absence():
    dense, sparse = DriftMonitor(), DriftMonitor(spacing=10)
    for i in range(30):
        dense.update(0.01)
        if i < 3:
            assert not sparse.update(math.nan)
        sparse.update(0.01)
    assert dense.log_capital > sparse.log_capital > 0
    with pytest.raises(ConfigError, match="spacing must be at least 1, got 0"):
        DriftMonitor(spacing=0)
    with pytest.raises(ConfigError, match="capital_limit must be above 1"):
        DriftMonitor(capital_limit=1.0)
