"""One stream at a time: motor sound, robot force and torque, muscle signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly import Debounce
from mmfuse_ros.evaluation.baselines import METHODS, Features, Method
from mmfuse_ros.evaluation.data import (
    Gesture,
    Recordings,
    emg_features,
    force_features,
    gesture_windows,
    motor_features,
)
from mmfuse_ros.evaluation.metrics import auprc, auroc

FloatArray = npt.NDArray[np.floating]
Row = dict[str, float]

HOP_S = 0.5
ELECTRODE_NOISE_V = 1e-6


def motors(data: Recordings, seed: int, alpha: float, train: int = 12) -> dict[str, Row]:
    """Damaged propeller against healthy: fit on `train` healthy recordings, test on the rest."""
    healthy = [m for m in data.motors if m.healthy]
    broken = [m for m in data.motors if not m.healthy]
    order = np.random.default_rng(seed).permutation(len(healthy))
    fit = [
        {"audio:log_mel": motor_features(m.samples, m.rate_hz)}
        for m in _pick(healthy, order[:train])
    ]
    tests = _pick(healthy, order[train:])
    normal = [{"audio:log_mel": motor_features(m.samples, m.rate_hz)} for m in tests]
    odd = [{"audio:log_mel": motor_features(m.samples, m.rate_hz)} for m in broken]
    rows = {}
    for name, make in METHODS.items():
        method = make(fit, alpha)
        row = compare(method, normal, odd)
        delays = []
        for i, motor in enumerate(broken):
            before = tests[i % len(tests)]
            spliced = np.concatenate((before.samples, motor.samples))
            flags = method.judge({"audio:log_mel": motor_features(spliced, motor.rate_hz)})[1]
            ends_s = 3.0 + HOP_S * np.arange(len(flags))
            delays.append(delay(flags, ends_s, len(before.samples) / before.rate_hz))
        found = [d for d in delays if np.isfinite(d)]
        row["delay_s"] = float(np.mean(found)) if found else float("nan")
        row["faults_alarmed"] = len(found) / len(delays)
        rows[name] = row
    return rows


def normal_alarms(data: Recordings, seed: int, alpha: float = 0.01, train: int = 12) -> Row:
    """Count alarms, 2 of 3, on held-out healthy motor recordings."""
    healthy = [m for m in data.motors if m.healthy]
    order = np.random.default_rng(seed).permutation(len(healthy))
    rows = [{"audio:log_mel": motor_features(m.samples, m.rate_hz)} for m in healthy]
    method = METHODS["calibrated"](_pick(rows, order[:train]), alpha)
    alarms, windows = 0, 0
    for features in _pick(rows, order[train:]):
        flags = method.judge(features)[1]
        alarms += count_alarms(flags)
        windows += len(flags)
    minutes = windows * HOP_S / 60.0
    return {"alarms": float(alarms), "minutes": minutes}


def force(data: Recordings, seed: int, alpha: float, train: int = 14) -> dict[str, Row]:
    """Failed robot motions against normal ones; every run is a recording of one window."""
    x = force_features(data.force_runs)
    label = np.asarray(data.force_labels)
    normal = np.flatnonzero(label == "normal")
    order = np.random.default_rng(seed).permutation(normal)
    fit = [{"pressure:statistics": x[i : i + 1]} for i in order[:train]]
    held = [{"pressure:statistics": x[i : i + 1]} for i in order[train:]]
    odd = [{"pressure:statistics": x[i : i + 1]} for i in np.flatnonzero(label != "normal")]
    return {name: compare(make(fit, alpha), held, odd) for name, make in METHODS.items()}


def emg(data: Recordings, seed: int, alpha: float) -> dict[str, dict[str, Row]]:
    """Fit on four gestures of series 1, test on series 2.

    Faults: a gesture that was not fitted; an electrode off (one channel, drawn by the seed, gives
    1 microvolt of noise); a gain of three on all channels.
    """
    rng = np.random.default_rng(seed)
    labels = sorted({g.label for g in data.gestures})
    known = set(rng.permutation(labels)[:4].tolist())
    fit = [_emg([g]) for g in data.gestures if g.series == 0 and g.label in known]
    later = [g for g in data.gestures if g.series == 1]
    same = [g for g in later if g.label in known]
    normal = [_emg([g]) for g in same]
    channel = int(rng.integers(8))
    faults = {
        "novel_gesture": [_emg([g]) for g in later if g.label not in known],
        "electrode_off": [_emg([_without(g, channel, rng)]) for g in same],
        "gain_x3": [_emg([Gesture(g.label, g.series, g.samples * 3.0)]) for g in same],
    }
    fitted = {name: make(fit, alpha) for name, make in METHODS.items()}
    return {
        fault: {name: compare(method, normal, odd) for name, method in fitted.items()}
        for fault, odd in faults.items()
    }


def compare(method: Method, normal: Sequence[Features], odd: Sequence[Features]) -> Row:
    """Return the window-level figures of one method on held-out normal and odd recordings."""
    calm = [method.judge(features) for features in normal]
    loud = [method.judge(features) for features in odd]
    low = np.concatenate([score for score, _, _ in calm])
    high = np.concatenate([score for score, _, _ in loud])
    return {
        "auroc": auroc(low, high),
        "auprc": auprc(low, high),
        "fpr": float(np.concatenate([flag for _, flag, _ in calm]).mean()),
        "tpr": float(np.concatenate([flag for _, flag, _ in loud]).mean()),
    }


def delay(flags: npt.NDArray[np.bool_], ends_s: FloatArray, onset_s: float) -> float:
    """Return seconds from the onset to the first alarm, 2 of 3; NaN where there is none.

    An alarm that was already raised at the onset does not count.
    """
    debounce = Debounce()
    was = False
    for flag, end_s in zip(flags, ends_s, strict=True):
        active = debounce.update(bool(flag))
        if active and not was and end_s >= onset_s:
            return float(end_s - onset_s)
        was = active
    return float("nan")


def count_alarms(flags: npt.NDArray[np.bool_]) -> int:
    """Return how often an alarm, 2 of 3, is raised."""
    debounce = Debounce()
    states = [debounce.update(bool(flag)) for flag in flags]
    return sum(now and not before for before, now in zip([False, *states], states, strict=False))


def _emg(gestures: Sequence[Gesture]) -> Mapping[str, FloatArray]:
    return {"emg:statistics": emg_features(np.concatenate([gesture_windows(g) for g in gestures]))}


def _without(gesture: Gesture, channel: int, rng: np.random.Generator) -> Gesture:
    samples = gesture.samples.copy()
    samples[channel] = rng.normal(0.0, ELECTRODE_NOISE_V, samples.shape[1])
    return Gesture(gesture.label, gesture.series, samples)


def _pick(items: Sequence, order: npt.NDArray[np.integer]) -> list:  # type: ignore[type-arg]
    return [items[i] for i in order]
