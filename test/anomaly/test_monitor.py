"""The monitors that the node uses, one window at a time."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import replace

import numpy as np
import pytest

from mmfuse_ros.anomaly import Debounce, Detector
from mmfuse_ros.anomaly.gathering import Gathering
from mmfuse_ros.anomaly.monitor import CalibratedMonitor, CosineMonitor, make_monitor
from mmfuse_ros.config import AnomalyConfig
from mmfuse_ros.errors import CalibrationError, ConfigError
from mmfuse_ros.samples import Level

SECOND = 1_000_000_000


def window(rng, shift=0.0):
    return {
        "embedding": np.ones(4, np.float32),
        "audio": (rng.normal(size=4) + shift).astype(np.float32),
        "emg:statistics": rng.normal(size=3).astype(np.float32),
    }


@pytest.fixture(scope="module")
def detector():
    rng = np.random.default_rng(0)
    data = [
        {
            "audio": rng.normal(size=(20, 4)).astype(np.float32),
            "emg:statistics": rng.normal(size=(20, 3)).astype(np.float32),
        }
        for _ in range(20)
    ]
    return Detector.fit(data, alpha=0.02)


class TestCosine:
    def test_is_stale_until_a_baseline_exists(self):
        monitor = CosineMonitor()
        verdict = monitor.observe(0, {"embedding": np.ones(3)})
        assert verdict.level is Level.STALE
        assert verdict.message == "uncalibrated"
        assert np.isnan(verdict.score)
        assert monitor.calibration_id == ""
        monitor.begin_baseline(2)
        verdict = monitor.observe(1, {"embedding": np.ones(3)})
        assert verdict.message == "uncalibrated, gathering 1 of 2"
        verdict = monitor.observe(2, {"embedding": np.ones(3)})
        assert verdict.level is Level.OK
        assert verdict.score == pytest.approx(0.0, abs=1e-6)
        assert len(monitor.calibration_id) == 12
        monitor.clear_baseline()
        assert monitor.observe(3, {"embedding": np.ones(3)}).level is Level.STALE

    def test_flags_at_the_threshold_and_names_the_modality(self):
        monitor = CosineMonitor(0.85, Debounce(1, 1))
        x = np.array([1.0, 0.0])
        monitor.begin_baseline(1)
        monitor.observe(0, {"embedding": x, "audio": x, "emg:statistics": x})

        def turned(cosine):
            return np.array([cosine, np.sqrt(1 - cosine**2)])

        below = {"embedding": turned(0.84), "audio": turned(0.5), "emg:statistics": x}
        verdict = monitor.observe(1, below)
        assert verdict.flag
        assert verdict.level is Level.ERROR
        assert verdict.score == pytest.approx(0.16, abs=1e-6)
        assert verdict.threshold == pytest.approx(0.15)
        assert verdict.top == "audio"
        assert set(verdict.modalities) == {"audio", "emg"}
        assert verdict.modalities["emg"].level is Level.OK
        above = monitor.observe(2, {"embedding": turned(0.86), "audio": x})
        assert not above.flag
        assert above.level is Level.OK
        assert above.top == ""
        assert set(above.modalities) == {"audio"}

    def test_baseline_is_the_mean(self):
        monitor = CosineMonitor()
        monitor.begin_baseline(2)
        monitor.observe(0, {"embedding": np.array([2.0, 0.0])})
        monitor.observe(1, {"embedding": np.array([0.0, 2.0])})
        verdict = monitor.observe(2, {"embedding": np.array([3.0, 3.0])})
        assert verdict.score == pytest.approx(0.0, abs=1e-6)

    def test_save_and_load(self, tmp_path):
        monitor = CosineMonitor()
        with pytest.raises(CalibrationError, match="must be gathered before it is saved"):
            monitor.save(tmp_path / "b")
        monitor.begin_baseline(1)
        monitor.observe(0, {"embedding": np.array([1.0, 2.0]), "audio": np.ones(3)})
        monitor.context = {"preset": "balanced"}
        monitor.save(tmp_path / "b")
        config = AnomalyConfig(method="cosine", calibration=str(tmp_path / "b"))
        loaded = make_monitor(config, {"preset": "balanced"})
        assert loaded.calibration_id == monitor.calibration_id
        verdict = loaded.observe(0, {"embedding": np.array([1.0, 2.0])})
        assert verdict.score == pytest.approx(0.0, abs=1e-6)
        with pytest.raises(CalibrationError, match="preset: calibrated with 'balanced', now"):
            make_monitor(config, {"preset": "lightweight"})
        with pytest.raises(CalibrationError, match="must be a mmfuse-calibration file"):
            make_monitor(dataclasses.replace(config, method="calibrated"))

    def test_a_live_baseline_is_kept_in_the_file_of_the_parameter(self, tmp_path):
        path = tmp_path / "b"
        config = AnomalyConfig(method="cosine", calibration=str(path))
        monitor = make_monitor(config, {"preset": "x"})
        assert monitor.observe(0, {"embedding": np.ones(2)}).level is Level.STALE
        monitor.begin_baseline(1)
        monitor.observe(1, {"embedding": np.ones(2)})
        again = make_monitor(config, {"preset": "x"})
        assert again.calibration_id == monitor.calibration_id != ""
        kept = path.read_bytes()
        monitor.clear_baseline()
        assert path.read_bytes() == kept

    def test_a_baseline_that_cannot_be_saved_is_used_and_says_so(self, tmp_path):
        config = AnomalyConfig(method="cosine", calibration=str(tmp_path / "nowhere" / "b"))
        monitor = make_monitor(config)
        monitor.begin_baseline(1)
        assert monitor.observe(0, {"embedding": np.ones(2)}).level is Level.OK
        assert "could not be saved (No such file or directory)" in monitor.fault
        monitor.begin_baseline(1)
        assert monitor.fault == ""

    def test_refuses_nonsense(self):
        with pytest.raises(ConfigError, match="at least 1 window, got 0"):
            CosineMonitor().begin_baseline(0)
        with pytest.raises(ConfigError, match="between -1 and 1, got 2"):
            CosineMonitor(2.0)


class TestCalibrated:
    def test_is_stale_without_a_calibration(self):
        verdict = make_monitor(AnomalyConfig()).observe(0, {"audio": np.ones(3)})
        assert verdict.level is Level.STALE
        assert verdict.message == "uncalibrated"
        assert not verdict.flag

    def test_warns_then_alarms_then_clears(self, detector):
        rng = np.random.default_rng(1)
        monitor = CalibratedMonitor(detector, Debounce(2, 3))
        assert monitor.observe(0, window(rng)).level in (Level.OK, Level.WARN)
        monitor.reset()
        first = monitor.observe(1, window(rng, 20.0))
        assert first.level is Level.WARN
        assert not first.flag
        second = monitor.observe(2, window(rng, 20.0))
        assert second.level is Level.ERROR
        assert second.flag
        assert second.top == "audio"
        assert second.p <= 0.02
        assert 0 < second.severity <= 1
        assert second.modalities["audio"].level is Level.ERROR
        assert second.modalities["emg"].level is not Level.ERROR
        assert second.calibration_id == detector.id
        levels = [monitor.observe(3 + i, window(rng)).flag for i in range(12)]
        assert not levels[-1]

    def test_the_most_ordinary_window_scores_zero_without_a_sign(self, detector, monkeypatch):
        x = {"audio": np.zeros((1, 4)), "emg:statistics": np.zeros((1, 3))}
        scored = detector.score(x)
        ones = {name: np.ones(1) for name in scored.modality_p}
        ordinary = replace(scored, modality_p=ones)
        monkeypatch.setattr(Detector, "score", lambda *_, **__: ordinary)
        verdict = CalibratedMonitor(detector).observe(0, window(np.random.default_rng(1)))
        assert [str(v.score) for v in verdict.modalities.values()] == ["0.0", "0.0"]

    def test_a_lost_modality_raises_nothing(self, detector):
        rng = np.random.default_rng(2)
        monitor = CalibratedMonitor(detector)
        flags = []
        for i in range(200):
            x = window(rng)
            del x["audio"]
            verdict = monitor.observe(i, x)
            flags.append(verdict.flag)
            assert set(verdict.modalities) == {"emg"}
        assert np.mean(flags) < 0.05
        verdict = monitor.observe(201, {"embedding": np.ones(4)})
        assert verdict.level is Level.STALE
        assert verdict.message == "no calibrated modality is live"

    def test_parameters_can_change_at_run_time(self, detector):
        monitor = CalibratedMonitor(detector, alpha=0.02)
        config = AnomalyConfig(alpha=0.3, debounce_k=1, debounce_n=1, modalities=("emg",))
        monitor.configure(config)
        verdict = monitor.observe(0, window(np.random.default_rng(3), 20.0))
        assert verdict.top in ("", "emg")
        assert verdict.threshold == pytest.approx(-np.log10(0.3))
        with pytest.raises(CalibrationError, match="alpha must be at least"):
            monitor.configure(AnomalyConfig(alpha=1e-6, modalities=("audio",)))
        assert detector.enabled == ("emg",)  # nothing was changed
        monitor.configure(AnomalyConfig(alpha=0.02))
        assert detector.enabled == ("audio", "emg")

    def test_gathers_a_calibration_live(self, tmp_path):
        rng = np.random.default_rng(4)
        monitor = CalibratedMonitor(alpha=0.05, context={"preset": "x"}, window_s=0.5)
        monitor.path = str(tmp_path / "live")
        monitor.begin_baseline(10)
        texts = []
        for i in range(200):  # 2 Hz, 100 s
            verdict = monitor.observe(i * SECOND // 2, window(rng))
            texts.append(verdict.message)
            if monitor._fit is not None:  # it runs beside the windows
                assert verdict.message == "uncalibrated, fitting the calibration gathered live"
                assert monitor._fit.wait(60.0)
                break
        assert monitor.observe(i * SECOND // 2, window(rng)).level is not Level.STALE
        assert texts[0].startswith("uncalibrated, gathering: 1 of 10 windows, 0 of 32 s")
        assert i == 64  # three blocks of 10 s that alpha 5 % needs, and 2 s to spare
        assert monitor.detector.promise.unit == "block"
        assert monitor.detector.context == {"preset": "x"}
        assert len(monitor.calibration_id) == 12
        assert monitor.observe(i * SECOND, window(rng, 30.0)).level is Level.WARN
        assert (
            make_monitor(
                AnomalyConfig(calibration=monitor.path, alpha=0.05), {"preset": "x"}
            ).calibration_id
            == monitor.calibration_id
        )
        with pytest.raises(CalibrationError, match="alpha must be at least"):
            monitor.check(AnomalyConfig(alpha=1e-5))
        monitor.clear_baseline()
        assert monitor.observe(0, window(rng)).message == "uncalibrated"

    def test_windows_are_judged_while_a_new_calibration_is_fitted(self, detector, monkeypatch):
        rng = np.random.default_rng(6)
        go_on = threading.Event()
        fit = Gathering.fit
        monkeypatch.setattr(
            Gathering, "fit", lambda *given: go_on.wait(60.0) and fit(*given), raising=True
        )
        monitor = CalibratedMonitor(detector, alpha=0.05, window_s=0.5)
        monitor.begin_baseline(1)
        for i in range(160):
            verdict = monitor.observe(i * SECOND // 2, window(rng))
        assert verdict.level is not Level.STALE
        assert verdict.message.endswith("; fitting the calibration gathered live")
        assert monitor.detector is detector
        go_on.set()
        assert monitor._fit.wait(60.0)
        monitor.observe(81 * SECOND, window(rng))
        assert monitor.detector is not detector

    def test_a_live_fit_that_fails_says_why_and_one_that_is_dropped_is_not_used(self):
        rng = np.random.default_rng(7)
        monitor = CalibratedMonitor(alpha=0.05, window_s=0.5)
        monitor.begin_baseline(1)
        for i in range(80):
            monitor.observe(i * SECOND // 2, window(rng))
        monitor.alpha = 1e-6  # what was gathered cannot support it
        monitor.observe(40 * SECOND, window(rng))
        monitor._fit.wait(60.0)
        verdict = monitor.observe(41 * SECOND, window(rng))
        assert "gathered live failed: alpha must be at least" in verdict.message
        monitor.alpha = 0.05
        monitor.begin_baseline(1)
        for i in range(81):
            monitor.observe(i * SECOND // 2, window(rng))
        assert monitor._fit is not None
        monitor.clear_baseline()
        assert monitor.observe(50 * SECOND, window(rng)).message == "uncalibrated"

    def test_time_that_jumps_is_not_gathered(self):
        rng = np.random.default_rng(5)
        monitor = CalibratedMonitor(alpha=0.2)
        monitor.begin_baseline(1)
        for stamp in (0, 1000 * SECOND, 10 * SECOND, 5000 * SECOND):
            verdict = monitor.observe(stamp, window(rng))
        assert "0 of 32 s" in verdict.message

    def test_a_calibration_from_a_file_is_checked(self, detector, tmp_path):
        path = tmp_path / "c"
        detector.save(path)
        config = AnomalyConfig(calibration=str(path), alpha=0.03, modalities=("audio",))
        monitor = make_monitor(config)
        assert monitor.calibration_id == detector.id
        assert monitor.detector.alpha == 0.03
        assert monitor.detector.enabled == ("audio",)
        with pytest.raises(CalibrationError, match="precision: calibrated with 'nothing'"):
            make_monitor(config, {"precision": "fp32"})
        with pytest.raises(CalibrationError, match="alpha must be at least"):
            make_monitor(dataclasses.replace(config, alpha=1e-4))

    def test_drift_asks_for_a_recalibration_and_raises_no_alarm(self, detector):
        rng = np.random.default_rng(6)
        monitor = CalibratedMonitor(detector, Debounce(3, 3))
        said = [monitor.observe(i * 10 * SECOND, window(rng, 0.9)) for i in range(400)]
        asking = [v for v in said if "has drifted" in v.message]
        assert asking
        assert asking[0].level in (Level.WARN, Level.ERROR)
        monitor.reset()
        calm = [monitor.observe(i * 10 * SECOND, window(rng)) for i in range(400)]
        assert not any("has drifted" in v.message for v in calm)

    def test_unknown_phase_is_stale_and_not_an_alarm(self):
        rng = np.random.default_rng(7)
        data = [{"audio": rng.normal(size=(10, 4)).astype(np.float32)} for _ in range(8)]
        monitor = CalibratedMonitor(Detector.fit(data, 0.05, phases=["hold"] * 8))
        x = {"audio": np.zeros(4, np.float32)}
        assert monitor.observe(0, x, "hold").level is Level.OK
        assert monitor.observe(0, x).level is Level.OK
        verdict = monitor.observe(0, x, "tea")
        assert verdict.level is Level.STALE
        assert verdict.message == "uncalibrated: phase 'tea' was not recorded"
