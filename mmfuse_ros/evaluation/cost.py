"""What the detector costs at the size of the balanced model: time, bytes, determinism."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from mmfuse_ros.anomaly import Detector

DIMS = {
    "camera_1": 512,
    "camera_2": 512,
    "audio": 768,
    "audio:log_mel": 128,
    "pressure:statistics": 10,
    "emg:statistics": 80,
}
RECORDINGS = 60
WINDOWS = 20  # a recording of 10 s at 2 Hz: ten minutes in all


def cost(repeats: int = 2000) -> dict[str, float | bool]:
    """Fit ten minutes of random features of every stream, save, and score window by window."""
    rng = np.random.default_rng(0)
    recordings = [
        {
            key: (rng.normal(size=(WINDOWS, dim)) + rng.normal(0, 0.5, dim)).astype(np.float32)
            for key, dim in DIMS.items()
        }
        for _ in range(RECORDINGS)
    ]
    begun = time.perf_counter()
    detector = Detector.fit(recordings, 0.01)
    fit_s = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "first"), Path(folder, "second")
        detector.save(first)
        Detector.fit(recordings, 0.01).save(second)
        size = first.stat().st_size
        same = first.read_bytes() == second.read_bytes()
    windows = [{k: v[i % WINDOWS][None] for k, v in recordings[i % 7].items()} for i in range(50)]
    for window in windows:
        detector.score(window)
    spent, worked = [], []
    for i in range(repeats):
        begun, own = time.perf_counter(), time.thread_time()
        detector.score(windows[i % len(windows)])
        worked.append(time.thread_time() - own)  # without the time that others held the core
        spent.append(time.perf_counter() - begun)
    return {
        "fit_s": round(fit_s, 2),
        "score_ms_p50": round(1e3 * float(np.percentile(spent, 50)), 3),
        "score_ms_p99": round(1e3 * float(np.percentile(spent, 99)), 3),
        "score_cpu_ms_p99": round(1e3 * float(np.percentile(worked, 99)), 3),
        "artefact_bytes": size,
        "refit_identical": same,
    }
