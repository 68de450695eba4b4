"""The vocabulary: what flows from a sensor to a result, as plain values.

Times are integer nanoseconds of one clock, the node's; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum

import numpy as np
import numpy.typing as npt

NS_PER_S = 1_000_000_000


class Modality(str, Enum):
    """One input stream. The order of definition is the order of bits and of vectors."""

    CAMERA_1 = "camera_1"
    CAMERA_2 = "camera_2"
    AUDIO = "audio"
    PRESSURE = "pressure"
    EMG = "emg"

    def __str__(self) -> str:
        return self.value

    @property
    def bit(self) -> int:
        """The stream's bit in the `modalities` mask (camera_1 = 1, ... emg = 16)."""
        return 1 << list(Modality).index(self)

    @property
    def is_camera(self) -> bool:
        return self in CAMERAS


CAMERAS = (Modality.CAMERA_1, Modality.CAMERA_2)
SIGNALS = (Modality.AUDIO, Modality.PRESSURE, Modality.EMG)


class Level(IntEnum):
    """Severity of a status, numbered as in diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class Frame:
    """One camera image, decoded only when a window needs it.

    Attributes:
        stamp_ns: time of exposure.
        frame_id: the camera's coordinate frame.
        decode: returns the picture, (H, W, 3) uint8 RGB; raises InputError.
        nbytes: memory that the undecoded image holds.
    """

    stamp_ns: int
    frame_id: str
    decode: Callable[[], npt.NDArray[np.uint8]]
    nbytes: int = 0


@dataclass(frozen=True)
class Chunk:
    """Consecutive samples of one signal, as one message brought them.

    Attributes:
        stamp_ns: time of the first sample.
        values: (samples, channels) float32; at least one sample, all finite.
        rate_hz: samples per second; 0 for a single sample of unknown rate.
        frame_id: the sensor's coordinate frame, empty where the message has none.
    """

    stamp_ns: int
    values: npt.NDArray[np.float32]
    rate_hz: float
    frame_id: str = ""


@dataclass(frozen=True)
class Signal:
    """The window's piece of one signal on an even grid that ends at the reference stamp.

    Attributes:
        values: (channels, samples) float32.
        rate_hz: samples per second of the grid.
    """

    values: npt.NDArray[np.float32]
    rate_hz: float


@dataclass(frozen=True)
class Window:
    """Everything the model sees at one reference stamp; what is missing is absent.

    Attributes:
        stamp_ns: the reference stamp.
        frame_id: coordinate frame of the trigger stream.
        frames: the cameras within tolerance.
        signals: the signals that cover their window.
        offset_ns: each present stream's stamp minus the reference (a signal: its newest sample).
        missing: why each absent stream is absent, such as "silent" or "gap".
        epoch: counts clock jumps; windows of two epochs do not belong together.
        phase: what the robot was doing, "" where nobody says.
    """

    stamp_ns: int
    frame_id: str
    frames: Mapping[Modality, Frame]
    signals: Mapping[Modality, Signal]
    offset_ns: Mapping[Modality, int] = field(default_factory=dict)
    missing: Mapping[Modality, str] = field(default_factory=dict)
    epoch: int = 0
    phase: str = ""

    @property
    def present(self) -> tuple[Modality, ...]:
        return tuple(m for m in Modality if m in self.frames or m in self.signals)


@dataclass(frozen=True)
class ModalityVerdict:
    """One modality's part of a verdict; `p` is NaN where the method gives none."""

    level: Level
    score: float
    threshold: float
    p: float = float("nan")


@dataclass(frozen=True)
class Verdict:
    """What the anomaly monitor says of one window.

    Attributes:
        level: OK, WARN (flagged, not yet confirmed), ERROR (alarm), STALE (uncalibrated).
        score: higher is stranger; NaN while uncalibrated.
        threshold: the score above which a window is flagged.
        p: probability of a score this high in normal operation; NaN where the method gives none.
        flag: the debounced alarm.
        severity: 0 (normal) to 1.
        top: the modality that contributes most, or "" while nothing stands out.
        modalities: the same by modality, live ones only.
        calibration_id: names the calibration or baseline, "" without one.
        message: one line for a person.
    """

    level: Level
    score: float
    threshold: float
    p: float
    flag: bool
    severity: float = 0.0
    top: str = ""
    modalities: Mapping[str, ModalityVerdict] = field(default_factory=dict)
    calibration_id: str = ""
    message: str = ""


@dataclass(frozen=True)
class Result:
    """What one window became.

    Attributes:
        stamp_ns, frame_id: the window's.
        embedding: (D,) float32, the fused vector.
        present: the modalities that entered the embedding.
        modality_embeddings: each present stream's own vector (cameras apart).
        verdict: the anomaly monitor's word.
        age_ns: how much older than the reference each modality's embedding is.
        skew_ns: newest minus oldest stamp of the present streams.
        failed: streams that were in the window and could not be decoded, with the cause.
        timings_s: seconds by stage.
    """

    stamp_ns: int
    frame_id: str
    embedding: npt.NDArray[np.float32]
    present: tuple[Modality, ...]
    modality_embeddings: Mapping[str, npt.NDArray[np.float32]]
    verdict: Verdict
    age_ns: Mapping[Modality, int] = field(default_factory=dict)
    skew_ns: int = 0
    failed: Mapping[Modality, str] = field(default_factory=dict)
    timings_s: Mapping[str, float] = field(default_factory=dict)


def modality_mask(present: tuple[Modality, ...]) -> int:
    """Return the UINT8 bit mask of the present modalities."""
    return sum(m.bit for m in set(present))


def mask_modalities(mask: int) -> tuple[Modality, ...]:
    """Return the modalities whose bits are set in `mask`."""
    return tuple(m for m in Modality if mask & m.bit)
