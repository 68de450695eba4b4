"""The recordings that the evaluation reads, as features by recording.

Layout of the folder: `bldc/*.wav` (16 kHz mono), `emg/*.txt` (time in ms, eight channels in volts,
class), `force_torque/lp1.data` (a label, then 15 rows of six), `fino/*.gif` (224 x 224).
"""

from __future__ import annotations

import itertools
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmfuse_ros.errors import InputError
from mmfuse_ros.model.statistics import log_mel_statistics, sensor_statistics

FloatArray = npt.NDArray[np.floating]

EMG_RATE_HZ = 1000.0
EMG_CHANNELS = 8
FORCE_RATE_HZ = 15 / 0.315  # 15 samples in 315 ms
REST = 0


@dataclass(frozen=True)
class Motor:
    """One motor recording.

    Attributes:
        name: file name without its suffix.
        healthy: False for the damaged propeller.
        samples: (T,) float32, full scale 1.0.
        rate_hz: samples per second.
    """

    name: str
    healthy: bool
    samples: FloatArray
    rate_hz: float


@dataclass(frozen=True)
class Gesture:
    """One gesture, from its first to its last marked sample.

    Attributes:
        label: the class, 1 to 6.
        series: 0 or 1.
        samples: (8, T) volts at 1 kHz.
    """

    label: int
    series: int
    samples: FloatArray


@dataclass(frozen=True)
class Recordings:
    """Everything the folder holds."""

    motors: list[Motor]
    gestures: list[Gesture]
    force_runs: FloatArray  # (runs, 6, 15)
    force_labels: list[str]
    films: dict[str, FloatArray]  # name -> (frames, 224, 224, 3) uint8

    @classmethod
    def read(cls, folder: Path) -> Recordings:
        """Read the folder; raises InputError where a part is missing."""
        for part in ("bldc", "emg", "force_torque/lp1.data", "fino"):
            if not (folder / part).exists():
                raise InputError(f"--data must name a folder with {part} in it, got {folder}")
        runs, labels = _read_force(folder / "force_torque" / "lp1.data")
        return cls(
            motors=[_read_motor(path) for path in sorted((folder / "bldc").glob("*.wav"))],
            gestures=[
                gesture
                for series, path in enumerate(sorted((folder / "emg").glob("*.txt")))
                for gesture in _read_gestures(path, series)
            ],
            force_runs=runs,
            force_labels=labels,
            films={
                path.stem: _read_film(path) for path in sorted((folder / "fino").glob("*.gif"))
            },
        )


def motor_features(samples: FloatArray, rate_hz: float, hop_s: float = 0.5) -> FloatArray:
    """Return log-mel statistics of 3 s windows: (T,) -> (n, 128)."""
    cut = slide(samples[None], round(3 * rate_hz), round(hop_s * rate_hz))[:, 0]
    return log_mel_statistics(np.ascontiguousarray(cut), rate_hz)


def gesture_windows(gesture: Gesture, window_s: float = 1.0, hop_s: float = 0.25) -> FloatArray:
    """Return windows of one gesture: (n, 8, T)."""
    return slide(gesture.samples, round(window_s * EMG_RATE_HZ), round(hop_s * EMG_RATE_HZ))


def emg_features(windows: FloatArray) -> FloatArray:
    """Return sensor statistics: (n, 8, T) -> (n, 80)."""
    return sensor_statistics(np.ascontiguousarray(windows), EMG_RATE_HZ)


def force_features(runs: FloatArray) -> FloatArray:
    """Return sensor statistics: (n, 6, 15) -> (n, 60)."""
    return sensor_statistics(np.ascontiguousarray(runs), FORCE_RATE_HZ)


def picture_features(frames: FloatArray) -> FloatArray:
    """Return colour and gradient of an 8 x 8 grid: (n, H, W, 3) of 0 to 255 -> (n, 256).

    A stand-in for the camera's embedding where no pretrained weights are at hand.
    """
    _, height, width, _ = frames.shape
    rows, columns = _cells(height), _cells(width)
    out = []
    for frame in frames:  # one at a time: a picture fits into the processor's cache, a film not
        x = np.asarray(frame, np.float32) / 255.0
        cell = rows @ x.reshape(height, -1)  # (8, W * 3)
        cell = columns @ cell.reshape(8, width, 3)  # (8, 8, 3)
        grey = x[: height // 8 * 8, : width // 8 * 8] @ np.full(3, 1.0 / 3.0, np.float32)
        edge = np.zeros((height, width), np.float32)
        inner = edge[: len(grey), : grey.shape[1]]
        inner[:-1] += np.abs(np.diff(grey, axis=0))
        inner[:, :-1] += np.abs(np.diff(grey, axis=1))
        out.append(np.concatenate((cell.ravel(), 4.0 * (rows @ edge @ columns.T).ravel())))
    return np.stack(out)


def _cells(size: int) -> FloatArray:
    """Return what averages over eight equal cells: (8, size)."""
    cell = size // 8
    return np.pad(
        np.kron(np.eye(8), np.full(cell, 1.0 / cell)), ((0, 0), (0, size - 8 * cell))
    ).astype(np.float32)


def slide(signal: FloatArray, size: int, hop: int) -> FloatArray:
    """Return windows of a signal, (C, T) -> (n, C, size), as many as fit."""
    if signal.shape[1] < size:
        return np.empty((0, signal.shape[0], size), np.float32)
    return np.lib.stride_tricks.sliding_window_view(signal, size, axis=1)[:, ::hop].swapaxes(0, 1)


def _read_motor(path: Path) -> Motor:
    with wave.open(str(path)) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        rate_hz = float(file.getframerate())
    healthy = path.stem.startswith("healthy")
    return Motor(path.stem, healthy, data.astype(np.float32) / 32768.0, rate_hz)


def _read_gestures(path: Path, series: int) -> list[Gesture]:
    table = np.loadtxt(path, skiprows=1)
    # Rows are about 1 ms apart: hold each value until the next, on an even grid of 1 ms.
    grid = np.arange(table[0, 0], table[-1, 0])
    held = np.searchsorted(table[:, 0], grid, side="right") - 1
    volts = table[held, 1 : 1 + EMG_CHANNELS].astype(np.float32)
    label = table[held, 1 + EMG_CHANNELS].astype(int)
    borders = [0, *(np.flatnonzero(np.diff(label)) + 1).tolist(), len(label)]
    return [
        Gesture(int(label[begin]), series, np.ascontiguousarray(volts[begin:end].T))
        for begin, end in itertools.pairwise(borders)
        if label[begin] != REST
    ]


def _read_force(path: Path) -> tuple[FloatArray, list[str]]:
    runs: list[list[list[float]]] = []
    labels: list[str] = []
    for line in path.read_text(encoding="ascii").splitlines():
        words = line.split()
        if len(words) == 1 and words[0][0].isalpha():
            labels.append(words[0])
            runs.append([])
        elif words:
            runs[-1].append([float(word) for word in words])
    return np.asarray(runs, np.float32).transpose(0, 2, 1), labels


def _read_film(path: Path) -> FloatArray:
    from PIL import Image, ImageSequence

    with Image.open(path) as film:
        return np.stack([np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(film)])
