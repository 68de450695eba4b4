"""The detector as a whole: what it promises, what it refuses, what it says."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mmfuse_ros.anomaly import Detector
from mmfuse_ros.errors import CalibrationError, InputError

DIMS = {"audio": 6, "emg": 5, "pressure": 3}


def recordings(count, windows=20, seed=0, dims=DIMS, spread=0.5):
    """Recordings of normal windows around a centre of their own."""
    rng = np.random.default_rng(seed)
    return [
        {
            name: (rng.normal(0, spread, dim) + rng.normal(size=(windows, dim))).astype(np.float32)
            for name, dim in dims.items()
        }
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def detector():
    return Detector.fit(recordings(20), alpha=0.05)


def test_import_loads_no_torch_and_no_ros():
    code = (
        "import sys; from mmfuse_ros.anomaly import Detector; "
        "print([m for m in ('torch', 'rclpy', 'transformers', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("count", [8, 20])
def test_held_out_normal_recordings_are_flagged_at_about_alpha(count):
    flags = []
    for seed in range(12):
        fitted = Detector.fit(recordings(count, seed=seed), alpha=0.05)
        flags += [fitted.score(r).flag.mean() for r in recordings(10, seed=1000 + seed)]
    # 120 recordings: the standard error of the mean rate is at most 0.02.
    assert 0.002 < np.mean(flags) < 0.09


def test_fault_is_flagged_and_named(detector):
    for name in DIMS:
        bad = recordings(1, windows=40, seed=99)[0]
        bad[name] = bad[name] + 6.0
        result = detector.score(bad)
        assert result.flag.mean() > 0.95
        assert result.top.count(name) >= 38
        assert np.median(result.modality_p[name]) < 0.01


def test_shapes_and_meaning_of_the_result(detector):
    x = recordings(1, windows=7, seed=5)[0]
    result = detector.score(x)
    assert result.p.shape == result.score.shape == result.flag.shape == (7,)
    assert set(result.modality_p) == set(DIMS)
    assert all(p.shape == (7,) for p in result.modality_p.values())
    assert len(result.top) == 7
    assert set(result.top) <= set(DIMS)
    np.testing.assert_allclose(result.score, -np.log10(result.p))
    np.testing.assert_array_equal(result.flag, result.p <= 0.05)
    assert ((result.p > 0) & (result.p <= 1)).all()


def test_joint_p_is_corrected_for_the_number_of_live_modalities(detector):
    result = detector.score(recordings(1, windows=200, seed=7)[0])
    smallest = np.min(list(result.modality_p.values()), axis=0)
    members = 3 + np.isfinite(result.consistency_p)
    assert (result.p >= smallest - 1e-12).all()
    assert (result.p <= members * smallest + 1e-12).all()
    assert np.median(result.p / smallest) > 1.5
    assert (smallest <= 0.05).mean() > 1.5 * (result.p <= 0.05).mean()


def test_one_window_scores_as_in_a_batch(detector):
    x = recordings(1, windows=6, seed=8)[0]
    together = detector.score(x).p
    alone = [detector.score({k: v[i : i + 1] for k, v in x.items()}).p[0] for i in range(6)]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_absent_modality_raises_nothing_and_changes_no_other(detector):
    x = recordings(1, windows=300, seed=11)[0]
    full = detector.score(x)
    without = detector.score({k: v for k, v in x.items() if k != "audio"})
    assert "audio" not in without.modality_p
    np.testing.assert_array_equal(without.modality_p["emg"], full.modality_p["emg"])
    assert without.flag.mean() <= full.flag.mean() + 0.03
    assert "audio" not in without.top


def test_rows_of_nan_are_absent_windows(detector):
    x = recordings(1, windows=5, seed=12)[0]
    holed = {k: v.copy() for k, v in x.items()}
    holed["audio"][2, 1] = np.nan  # one NaN makes the row absent
    result = detector.score(holed)
    assert np.isnan(result.modality_p["audio"][2])
    assert np.isfinite(result.p).all()
    without = detector.score({k: v for k, v in x.items() if k != "audio"})
    assert result.p[2] == without.p[2]
    for values in holed.values():
        values[4] = np.nan
    nothing = detector.score(holed)
    assert np.isnan(nothing.p[4])
    assert not nothing.flag[4]
    assert nothing.top[4] == ""


def test_no_modality_at_all(detector):
    result = detector.score({})
    assert result.p.shape == (0,)
    assert result.top == []


def test_blocks_of_one_modality_become_one_score():
    dims = {"audio": 4, "audio:log_mel": 3, "emg": 2}
    fitted = Detector.fit(recordings(10, dims=dims))
    assert fitted.modalities == ("audio", "emg")
    bad = recordings(1, seed=3, dims=dims)[0]
    bad["audio:log_mel"] = bad["audio:log_mel"] + 8.0
    result = fitted.score(bad)
    assert set(result.modality_p) == {"audio", "emg"}
    assert result.top.count("audio") == len(result.top)


@pytest.mark.parametrize(
    ("units", "alpha", "more"),
    [(12, 0.001, "add 87 more recordings"), (3, 0.02, "add 1 more"), (9, 0.005, "add 10 more")],
)
def test_alpha_that_the_data_cannot_support_is_refused(units, alpha, more):
    with pytest.raises(CalibrationError, match=more):
        Detector.fit(recordings(units, windows=4), alpha=alpha)


def test_smallest_alpha_is_accepted_and_a_hair_less_is_not():
    data = recordings(9, windows=4)
    fitted = Detector.fit(data, alpha=0.01)  # 1 / (10 (9 + 1))
    assert fitted.promise.smallest_alpha == pytest.approx(0.01)
    assert fitted.promise.counted_alpha == pytest.approx(0.1)
    assert fitted.promise.extrapolated
    with pytest.raises(CalibrationError, match=r"alpha must be at least 0\.0100 with 9"):
        fitted.alpha = 0.0099
    fitted.alpha = 0.5
    assert not fitted.promise.extrapolated


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, float("nan")])
def test_alpha_outside_zero_to_one_is_refused(alpha):
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        Detector.fit(recordings(5), alpha=alpha)


def test_two_recordings_are_too_few():
    with pytest.raises(CalibrationError, match="at least 3 independent recordings are needed"):
        Detector.fit(recordings(2), alpha=0.4)


def test_single_recording_is_cut_into_blocks():
    fitted = Detector.fit(recordings(1, windows=400), alpha=0.05)
    assert fitted.promise.unit == "block"
    assert fitted.promise.units == 20
    timed = Detector.fit(recordings(1, windows=400), alpha=0.05, hop_s=1.0, window_s=3.0)
    assert timed.promise.units == 40  # 10 s each
    assert np.isfinite(timed.promise.false_alarms_per_hour)
    with pytest.raises(CalibrationError, match=r"10 s blocks \(record longer\)"):
        Detector.fit(recordings(1, windows=40), alpha=0.001, hop_s=1.0)


def test_overlapping_copies_do_not_buy_a_smaller_alpha():
    data = recordings(5, windows=4)
    repeated = [{k: np.repeat(v, 50, axis=0) for k, v in r.items()} for r in data]
    assert Detector.fit(repeated).promise.smallest_alpha == pytest.approx(1 / 60)


def test_alpha_and_modalities_can_be_changed_after_the_fit():
    fitted = Detector.fit(recordings(20))
    bad = recordings(1, windows=30, seed=2)[0]
    bad["emg"] = bad["emg"] + 6.0
    assert fitted.score(bad).flag.mean() > 0.9
    fitted.enable(["audio", "pressure"])
    result = fitted.score(bad)
    assert result.flag.mean() < 0.3
    assert "emg" not in result.top
    assert np.median(result.modality_p["emg"]) < 0.01  # still scored
    with pytest.raises(InputError, match="must be among audio, emg, pressure, got smell"):
        fitted.enable(["smell"])


def test_refit_gives_the_same_bytes_and_the_file_gives_the_same_scores(tmp_path, detector):
    detector.save(tmp_path / "a")
    Detector.fit(recordings(20), alpha=0.05).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Detector.load(tmp_path / "a")
    x = recordings(1, seed=4)[0]
    np.testing.assert_array_equal(loaded.score(x).p, detector.score(x).p)
    assert loaded.id == detector.id
    assert loaded.alpha == detector.alpha
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_phases_have_calibrations_of_their_own(tmp_path):
    calm, wild = recordings(8, seed=1), recordings(8, seed=2)
    for r in wild:
        r["audio"] = r["audio"] + 30.0
    fitted = Detector.fit(calm + wild, phases=["calm"] * 8 + ["wild"] * 8)
    assert fitted.phases == ("calm", "wild")
    x = recordings(1, seed=3)[0]
    loud = {**x, "audio": x["audio"] + 30.0}
    assert fitted.score(loud).flag.mean() < 0.3
    assert fitted.score(loud, phase="wild").flag.mean() < 0.3
    assert fitted.score(loud, phase="calm").flag.all()
    mixed = {k: np.concatenate((x[k], loud[k])) for k in x}
    labels = ["calm"] * 20 + ["wild"] * 20
    result = fitted.score(mixed, phase=labels)
    np.testing.assert_array_equal(result.p[20:], fitted.score(loud, phase="wild").p)
    with pytest.raises(InputError, match="phase 'tea' was not fitted; known: calm, wild"):
        fitted.score(x, phase="tea")
    fitted.save(tmp_path / "a")
    np.testing.assert_array_equal(
        Detector.load(tmp_path / "a").score(x, "calm").p, fitted.score(x, "calm").p
    )


def test_context_differences_are_named():
    fitted = Detector.fit(
        recordings(5), context={"model": "balanced", "precision": "fp32", "window_s": (3.0, 1.0)}
    )
    fitted.check_context({"model": "balanced", "precision": "fp32", "window_s": [3.0, 1.0]})
    with pytest.raises(CalibrationError, match="precision: calibrated with 'fp32', now 'bf16'"):
        fitted.check_context({"model": "balanced", "precision": "bf16", "window_s": [3.0, 1.0]})
    with pytest.raises(CalibrationError, match="model: calibrated with 'balanced', now 'nothing'"):
        fitted.check_context({"precision": "fp32", "window_s": [3.0, 1.0]})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "list of one or more"),
        ({"audio": np.zeros((3, 2))}, "list of one or more"),
        ([{}], "at least one window"),
        ([{"audio": np.zeros(3)}], r"must be \(n_windows, dim\)"),
        ([{"audio": np.zeros((3, 2)), "emg": np.zeros((4, 2))}], "must have 3 windows"),
        ([{"audio": np.zeros((3, 2))}, {"audio": np.zeros((3, 4))}], "must have 2 columns"),
        ([{"audio": np.full((3, 2), np.inf)}], "must be finite"),
    ],
)
def test_malformed_recordings_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        Detector.fit(data)


def test_malformed_windows_are_refused(detector):
    with pytest.raises(InputError, match="key 'smell' was not fitted"):
        detector.score({"smell": np.zeros((1, 2))})
    with pytest.raises(InputError, match="audio must have 6 columns, got 2"):
        detector.score({"audio": np.zeros((1, 2))})


def test_constant_features_neither_break_nor_alarm():
    rng = np.random.default_rng(0)
    data = [
        {"p": np.c_[np.full((10, 1), 5.0), rng.normal(size=(10, 1))].astype(np.float32)}
        for _ in range(8)
    ]
    fitted = Detector.fit(data)
    assert not fitted.score({"p": np.array([[5.0, 0.0]])}).flag[0]
    assert fitted.score({"p": np.array([[6.0, 0.0]])}).flag[0]
    same = [{"p": np.zeros((5, 3), dtype=np.float32)} for _ in range(8)]
    still = Detector.fit(same)
    assert not still.score({"p": np.zeros((1, 3))}).flag[0]
