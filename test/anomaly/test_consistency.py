"""Streams that are each normal but do not belong together."""

from __future__ import annotations

import numpy as np

from mmfuse_ros.anomaly import Detector
from mmfuse_ros.evaluation.metrics import auroc


def session(rng, windows=60, coupled=True):
    """Two streams that follow one hidden motion, or each its own."""
    motion = np.cumsum(rng.normal(size=(windows, 3)), axis=0)
    motion = 3.0 * np.sin(motion)
    other = motion if coupled else 3.0 * np.sin(np.cumsum(rng.normal(size=(windows, 3)), axis=0))
    mix = np.random.default_rng(42).normal(size=(2, 3, 8))
    return {
        "emg": (motion @ mix[0] + rng.normal(size=(windows, 8))).astype(np.float32),
        "pressure": (other @ mix[1] + rng.normal(size=(windows, 8))).astype(np.float32),
    }


def test_a_shifted_pairing_is_found_where_streams_depend_on_each_other():
    rng = np.random.default_rng(0)
    detector = Detector.fit([session(rng) for _ in range(12)])
    held = [session(rng) for _ in range(6)]
    shifted = [{**s, "emg": np.roll(s["emg"], 25, axis=0)} for s in held]
    calm = np.concatenate([detector.score(s).consistency_p for s in held])
    loud = np.concatenate([detector.score(s).consistency_p for s in shifted])
    assert auroc(-calm, -loud) > 0.95
    flags = [detector.score(s).flag.mean() for s in held]
    assert np.mean(flags) < 0.1
    # Each stream by itself stays ordinary: only together do they give it away.
    alone = np.concatenate([detector.score(s).modality_p["emg"] for s in shifted])
    assert (alone <= 0.05).mean() < 0.15


def test_streams_that_do_not_depend_on_each_other_are_not_judged_together():
    rng = np.random.default_rng(1)
    detector = Detector.fit([session(rng, coupled=False) for _ in range(12)])
    assert detector.calibrations[""].consistency is None
    assert np.isnan(detector.score(session(rng)).consistency_p).all()


def test_it_can_be_switched_off_and_needs_all_its_modalities(tmp_path):
    rng = np.random.default_rng(2)
    data = [session(rng) for _ in range(8)]
    assert Detector.fit(data, consistency=False).calibrations[""].consistency is None
    detector = Detector.fit(data)
    x = session(rng)
    assert np.isfinite(detector.score(x).consistency_p).all()
    assert np.isnan(detector.score({"emg": x["emg"]}).consistency_p).all()
    holed = {**x, "emg": x["emg"].copy()}
    holed["emg"][3] = np.nan
    assert np.isnan(detector.score(holed).consistency_p).tolist() == [i == 3 for i in range(60)]
    detector.save(tmp_path / "c")
    loaded = Detector.load(tmp_path / "c")
    np.testing.assert_array_equal(loaded.score(x).consistency_p, detector.score(x).consistency_p)


def test_few_recordings_of_constant_features_raise_no_false_alarms():
    """A whitening that has seen the left-out recording would find skill where there is none."""
    flags = []
    for seed in range(6):
        rng = np.random.default_rng(seed)

        def recording(rng=rng):
            ramp = np.linspace(-1, 1, 15)[:, None]  # both streams know the time of the recording
            return {
                "camera_1": ramp * np.ones(20) + rng.normal(size=(15, 20)),
                "emg": ramp * np.ones(10) + rng.normal(size=(15, 10)),
                "pressure": np.repeat(rng.normal(size=(1, 40)), 15, axis=0),
            }

        detector = Detector.fit([recording() for _ in range(12)])
        flags += [detector.score(recording()).flag.mean() for _ in range(5)]
    assert np.mean(flags) < 0.08
