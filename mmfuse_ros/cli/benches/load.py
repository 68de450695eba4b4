"""The input of every measurement, the machine it ran on, and how times are summed up."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros import __version__
from mmfuse_ros.samples import Frame, Modality, Signal, Window

CAMERA_SIZE = (720, 1280)  # height, width
AUDIO_S = 3.0
AUDIO_HZ = 16000.0
SENSOR_S = 1.0
SENSOR_HZ = 1000.0
_PACKAGES = ("numpy", "torch", "transformers", "openvino")


def make_images(seed: int = 0) -> dict[str, npt.NDArray[np.uint8]]:
    """Return two 720p pictures, (H, W, 3) uint8: a smooth scene under sensor noise."""
    rng = np.random.default_rng(seed)
    height, width = CAMERA_SIZE
    images = {}
    for name in ("camera_1", "camera_2"):
        coarse = rng.uniform(40, 210, (height // 40, width // 40, 3))
        scene = np.kron(coarse, np.ones((40, 40, 1))) + rng.normal(0, 4, (height, width, 3))
        images[name] = scene.clip(0, 255).astype(np.uint8)
    return images


def make_signals(seed: int = 0) -> dict[str, Signal]:
    """Return 3 s of a motor's hum, and 1 s of pressure and EMG."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(AUDIO_S * AUDIO_HZ)) / AUDIO_HZ
    hum = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 8)) / 20
    wave = hum + rng.normal(0, 0.01, len(t))
    count = int(SENSOR_S * SENSOR_HZ)
    return {
        "audio": Signal(wave[None].astype(np.float32), AUDIO_HZ),
        "pressure": Signal(rng.normal(2, 0.05, (1, count)).astype(np.float32), SENSOR_HZ),
        "emg": Signal(rng.normal(0, 5e-5, (8, count)).astype(np.float32), SENSOR_HZ),
    }


def make_window(stamp_ns: int, images: Mapping[str, Any], signals: Mapping[str, Signal]) -> Window:
    """Return the same input as a window."""
    return Window(
        stamp_ns,
        "camera_1",
        {
            Modality(name): Frame(stamp_ns, name, partial(np.asarray, image))
            for name, image in images.items()
        },
        {Modality(name): signal for name, signal in signals.items()},
    )


def input_hash(images: Mapping[str, Any], signals: Mapping[str, Signal]) -> str:
    """Return the SHA-256 of an input: two results with the same hash saw the same bytes."""
    digest = hashlib.sha256()
    for array in (*images.values(), *(s.values for s in signals.values())):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def host() -> dict[str, Any]:
    """Return the machine and the versions that a result was measured with."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "bf16": [f for f in ("avx512_bf16", "amx_bf16") if f in _cpu_flags()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "mmfuse_ros": __version__,
        "packages": versions,
    }


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds, and the least, which other load disturbs least."""
    p50, p95, p99 = np.quantile(seconds, (0.5, 0.95, 0.99)) * 1e3
    low = min(seconds) * 1e3
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "min": float(low)}


def _cpuinfo(key: str) -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(key):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())
