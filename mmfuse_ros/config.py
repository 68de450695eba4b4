"""The node's configuration: frozen dataclasses in which each parameter is declared once.

Name, type, default, unit, bounds, choices and help stand in one field; the ROS declaration, the
check of a YAML file and the table in the README derive from it. A parameter's ROS name is its
dotted path, such as `sync.tolerance_s`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmfuse_ros.errors import ConfigError
from mmfuse_ros.samples import CAMERAS, SIGNALS, Modality

MODALITIES = tuple(m.value for m in Modality)
PRESETS = ("lightweight", "balanced", "high_capacity")
# What a calibration is fitted for where nobody says; a few recordings support it.
DEFAULT_ALPHA = 0.05
FUSIONS = ("concat_project", "weighted_sum", "attention")


def param(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
) -> Any:
    """Declare one parameter: default, help, inclusive bounds, choices, tunable at run time."""
    return field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "choices": choices, "live": live},
    )


@dataclass(frozen=True)
class Parameter:
    """One declared parameter, as the ROS declaration and the docs need it."""

    name: str
    default: Any
    help: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    live: bool


def _check_value(name: str, spec: dataclasses.Field[Any], value: Any) -> Any:
    default, meta = spec.default, spec.metadata
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{name} must be a list of strings, got {value!r}")
        value = tuple(v for v in value if v)
        unknown = [v for v in value if meta["choices"] and v not in meta["choices"]]
        if unknown:
            raise ConfigError(
                f"{name} must hold only {', '.join(meta['choices'])}, got {unknown[0]!r}"
            )
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        raise ConfigError(f"{name} must be of type {type(default).__name__}, got {value!r}")
    if meta["choices"] and value not in meta["choices"]:
        raise ConfigError(f"{name} must be one of {', '.join(meta['choices'])}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value!r}")
    if meta["low"] is not None and value < meta["low"]:
        raise ConfigError(f"{name} must be at least {meta['low']:g}, got {value:g}")
    if meta["high"] is not None and value > meta["high"]:
        raise ConfigError(f"{name} must be at most {meta['high']:g}, got {value:g}")
    return value


@dataclass(frozen=True)
class _Section:
    """A group of parameters; `section` is its dotted prefix, used in error messages."""

    def __post_init__(self) -> None:
        prefix = type(self).__name__.removesuffix("Config").lower()
        for spec in dataclasses.fields(self):
            if "help" in spec.metadata:
                value = _check_value(f"{prefix}.{spec.name}", spec, getattr(self, spec.name))
                object.__setattr__(self, spec.name, value)


_STAMPS = ("header", "arrival")


@dataclass(frozen=True)
class CameraConfig(_Section):
    """One camera's input."""

    enabled: bool = param(True, "Subscribe to this camera.")
    type: str = param(
        "raw",
        "sensor_msgs/Image, or CompressedImage on `<topic>/compressed`.",
        choices=("raw", "compressed"),
    )
    stamps: str = param(
        "header", "Time of a sample: the message's header, or its arrival.", choices=_STAMPS
    )
    offset_s: float = param(
        0.0, "Added to each stamp, seconds (a known latency is negative).", low=-10.0, high=10.0
    )


@dataclass(frozen=True)
class AudioConfig(_Section):
    """The microphone's input."""

    enabled: bool = param(True, "Subscribe to the audio topic.")
    type: str = param(
        "std_msgs/msg/Int16MultiArray",
        "Message type: std_msgs Int16, Float32 or UInt8MultiArray, "
        "audio_common_msgs AudioData, AudioDataStamped or AudioStamped, foxglove_msgs "
        "RawAudio, or any importable type with `audio.field`.",
    )
    field: str = param("", "Path of the samples in a message of another type, e.g. `chunk.data`.")
    encoding: str = param(
        "s16le",
        "Sample format of byte arrays.",
        choices=("s16le", "s16be", "s24le", "s32le", "f32le", "u8"),
    )
    rate_hz: float = param(
        16000.0,
        "Sampling rate of the microphone, where the message has none.",
        low=1000.0,
        high=384000.0,
    )
    channels: int = param(
        1, "Interleaved channels, where the message does not say; mixed down.", low=1, high=64
    )
    stamps: str = param(
        "header",
        "Time of a sample: the message's header where it has one, or its arrival.",
        choices=_STAMPS,
    )
    offset_s: float = param(0.0, "Added to each stamp, seconds.", low=-10.0, high=10.0)
    window_s: float = param(3.0, "Seconds of audio in a window.", low=0.1, high=30.0)
    period_s: float = param(
        -1.0,
        "Shortest time between two runs of the audio encoder; 0 runs it "
        "for every window, -1 (auto) as often as the machine keeps up with.",
        low=-1.0,
        high=60.0,
    )


@dataclass(frozen=True)
class VisionConfig(_Section):
    """The vision encoder's schedule."""

    period_s: float = param(
        -1.0,
        "Shortest time between two runs of the vision encoder; 0 runs it "
        "for every window, -1 (auto) as often as the machine keeps up with.",
        low=-1.0,
        high=60.0,
    )


@dataclass(frozen=True)
class PressureConfig(_Section):
    """The pressure sensor's input."""

    enabled: bool = param(True, "Subscribe to the pressure topic.")
    type: str = param(
        "std_msgs/msg/Float32",
        "Message type: std_msgs Float32, Float64 or Float32MultiArray, geometry_msgs "
        "WrenchStamped (force z), sensor_msgs FluidPressure, or any importable type "
        "with `pressure.field`.",
    )
    field: str = param("", "Path of the value or array in the message, such as `wrench.force.z`.")
    channels: int = param(1, "Values of one sample.", low=1, high=64)
    layout: str = param(
        "channels",
        "An array holds one sample (`channels`) or several (`samples_channels`).",
        choices=("channels", "samples_channels"),
    )
    rate_hz: float = param(
        1000.0,
        "Samples per second of the sensor, and of the window's grid.",
        low=1.0,
        high=20000.0,
    )
    stamps: str = param(
        "header",
        "Time of a sample: the message's header where it has one, or its arrival.",
        choices=_STAMPS,
    )
    offset_s: float = param(0.0, "Added to each stamp, seconds.", low=-10.0, high=10.0)
    window_s: float = param(1.0, "Seconds of pressure in a window.", low=0.01, high=30.0)


@dataclass(frozen=True)
class EmgConfig(_Section):
    """The EMG sensor's input."""

    enabled: bool = param(True, "Subscribe to the EMG topic.")
    type: str = param(
        "std_msgs/msg/Float32MultiArray",
        "Message type: std_msgs Float32 or Int16MultiArray, or any importable type "
        "with `emg.field`.",
    )
    field: str = param("", "Path of the array in the message, such as `effort`.")
    channels: int = param(8, "Electrodes.", low=1, high=256)
    layout: str = param(
        "channels",
        "An array holds one sample (`channels`) or several (`samples_channels`).",
        choices=("channels", "samples_channels"),
    )
    rate_hz: float = param(
        1000.0,
        "Samples per second of the sensor, and of the window's grid.",
        low=1.0,
        high=20000.0,
    )
    stamps: str = param(
        "header",
        "Time of a sample: the message's header where it has one, or its arrival.",
        choices=_STAMPS,
    )
    offset_s: float = param(0.0, "Added to each stamp, seconds.", low=-10.0, high=10.0)
    window_s: float = param(1.0, "Seconds of EMG in a window.", low=0.01, high=30.0)


@dataclass(frozen=True)
class BufferConfig(_Section):
    """What is kept of the streams."""

    age_s: float = param(5.0, "Seconds of each stream that are kept.", low=0.1, high=60.0)
    max_frames: int = param(64, "Undecoded images kept by camera.", low=2, high=1000)


@dataclass(frozen=True)
class SyncConfig(_Section):
    """How streams become windows."""

    trigger: str = param(
        "camera_1", "A window is made for each sample of this stream.", choices=MODALITIES
    )
    rate_hz: float = param(
        0.0,
        "Windows per second on an even grid instead of a trigger; 0 uses the trigger.",
        low=0.0,
        high=1000.0,
    )
    tolerance_s: float = param(
        0.05,
        "Largest distance of a camera's frame from the reference, and "
        "of a signal's end before it.",
        low=0.0,
        high=10.0,
        live=True,
    )
    max_wait_s: float = param(
        0.05, "Longest wait for streams that run late.", low=0.0, high=5.0, live=True
    )
    max_future_s: float = param(
        1.0, "A stamp this far ahead of the node's clock is dropped.", low=0.0, high=3600.0
    )
    min_coverage: float = param(
        0.9, "Share of a signal's window that must hold samples.", low=0.0, high=1.0, live=True
    )
    required: tuple[str, ...] = param(
        (), "Streams without which no window is made.", choices=MODALITIES, live=True
    )


@dataclass(frozen=True)
class ModelConfig(_Section):
    """The model, its weights and where it runs."""

    preset: str = param("balanced", "Encoders and sizes.", choices=PRESETS)
    fusion: str = param("concat_project", "Fusion method.", choices=FUSIONS)
    weights: str = param(
        "pretrained",
        "`pretrained`, or `random`: seeded, untrained encoders.",
        choices=("pretrained", "random"),
    )
    vision: str = param("", "CLIP weights: hub id or directory; empty takes the preset's.")
    audio: str = param("", "Wav2Vec2 weights: hub id or directory; empty takes the preset's.")
    checkpoint: str = param(
        "", "Directory of a fine-tuned checkpoint; empty starts from `model.weights`."
    )
    allow_download: bool = param(
        False, "Let `transformers` download weights that are not on disk."
    )
    seed: int = param(0, "Seed of everything that is not loaded.", low=0, high=2**31 - 1)
    device: str = param(
        "auto", "`auto`, `cpu`, `cuda` or `cuda:N`; auto is cuda where there is one."
    )
    precision: str = param(
        "auto",
        "Arithmetic; auto takes bf16 where the device has it.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    backend: str = param(
        "auto",
        "Runtime of the encoders; auto picks the faster installed one.",
        choices=("auto", "torch", "openvino"),
    )
    threads: int = param(
        0, "CPU threads of the model; 0 leaves the choice to the runtime.", low=0, high=1024
    )


@dataclass(frozen=True)
class AnomalyConfig(_Section):
    """How alarms are raised."""

    method: str = param(
        "calibrated",
        "`calibrated` (from `mmfuse fit`) or `cosine` (similarity to a baseline).",
        choices=("calibrated", "cosine"),
    )
    calibration: str = param(
        "",
        "Calibration file, made by `mmfuse fit`; `~/set_baseline` saves to it, and it "
        "need not exist before.",
    )
    alpha: float = param(
        0.0,
        "False-alarm probability of a window in normal operation; 0 takes the calibration's own, "
        "and 0.05 for one gathered live.",
        low=0.0,
        high=0.5,
        live=True,
    )
    threshold: float = param(
        0.85,
        "Cosine similarity below which a window is flagged (method `cosine`).",
        low=-1.0,
        high=1.0,
        live=True,
    )
    debounce_k: int = param(
        2,
        "Flagged windows among the last `anomaly.debounce_n` that raise the alarm.",
        low=1,
        high=1000,
        live=True,
    )
    debounce_n: int = param(
        3, "Windows that the alarm looks back on.", low=1, high=1000, live=True
    )
    baseline_windows: int = param(
        100, "Windows that `~/set_baseline` gathers.", low=2, high=100000, live=True
    )
    modalities: tuple[str, ...] = param(
        MODALITIES, "Modalities that may raise an alarm.", choices=MODALITIES, live=True
    )


@dataclass(frozen=True)
class WatchdogConfig(_Section):
    """When diagnostics speak up."""

    silence_s: float = param(
        0.5, "An input silent for longer is reported.", low=0.01, high=3600.0, live=True
    )
    latency_s: float = param(
        2.0,
        "Age of the reference stamp at publication that is reported.",
        low=0.001,
        high=3600.0,
        live=True,
    )
    freeze_s: float = param(
        0.5,
        "A camera whose picture stays the same, to the last bit, for longer is reported; 0 never.",
        low=0.0,
        high=3600.0,
        live=True,
    )
    stall_s: float = param(
        5.0, "A window that takes the worker longer is reported.", low=0.01, high=3600.0, live=True
    )


@dataclass(frozen=True)
class Config:
    """All parameters of the node.

    Raises:
        ConfigError: a value breaks its own rule or a rule between parameters.
    """

    autostart: bool = param(True, "Configure and activate the node by itself.")
    camera_1: CameraConfig = field(default_factory=CameraConfig)
    camera_2: CameraConfig = field(default_factory=CameraConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    pressure: PressureConfig = field(default_factory=PressureConfig)
    emg: EmgConfig = field(default_factory=EmgConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    anomaly: AnomalyConfig = field(default_factory=AnomalyConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)

    def __post_init__(self) -> None:
        for signal in SIGNALS:
            window_s = getattr(self, signal.value).window_s
            if window_s > self.buffer.age_s:
                raise ConfigError(
                    f"{signal.value}.window_s must be at most buffer.age_s "
                    f"({self.buffer.age_s:g} s), got {window_s:g}; shorten it or raise "
                    "buffer.age_s"
                )
        enabled = self.enabled
        if not enabled:
            raise ConfigError("at least one stream must be enabled, got none")
        if self.sync.rate_hz == 0.0 and self.sync.trigger not in enabled:
            raise ConfigError(
                f"sync.trigger must be an enabled stream, got {self.sync.trigger!r}; enable it, "
                "choose another, or set sync.rate_hz"
            )
        for name in self.sync.required:
            if name not in enabled:
                raise ConfigError(
                    f"sync.required must hold only enabled streams, got {name!r}; enable it or "
                    "drop it from sync.required"
                )
        if self.anomaly.debounce_k > self.anomaly.debounce_n:
            raise ConfigError(
                f"anomaly.debounce_k must be at most anomaly.debounce_n "
                f"({self.anomaly.debounce_n}), got {self.anomaly.debounce_k}"
            )

    @property
    def enabled(self) -> tuple[Modality, ...]:
        """The streams that are subscribed to."""
        return tuple(m for m in (*CAMERAS, *SIGNALS) if getattr(self, m.value).enabled)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Config:
        """Build a Config from dotted names; what is not named keeps its default.

        Raises:
            ConfigError: an unknown name, or a value that breaks a rule.
        """
        sections: dict[str, dict[str, Any]] = {}
        top: dict[str, Any] = {}
        known = {p.name for p in parameters()}
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                remedy = f"did you mean {near[0]}?" if near else "`mmfuse parameters` lists all"
                raise ConfigError(f"unknown parameter {name!r}; {remedy}")
            section, _, leaf = name.rpartition(".")
            (sections.setdefault(section, {}) if section else top)[leaf] = value
        for section, leaves in sections.items():
            kind = type(getattr(_DEFAULT, section))
            try:
                top[section] = kind(**leaves)
            except ConfigError as error:
                # The two cameras share one class: name the one that is meant.
                raise ConfigError(str(error).replace("camera.", f"{section}.", 1)) from None
        return cls(**top)

    def to_flat(self) -> dict[str, Any]:
        """Return every parameter by its dotted name."""
        return {p.name: self.get(p.name) for p in parameters()}

    def get(self, name: str) -> Any:
        """Return one parameter by its dotted name."""
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value


_DEFAULT = Config()


def parameters() -> Iterator[Parameter]:
    """Yield every declared parameter, in the order of definition."""
    for spec in dataclasses.fields(Config):
        value = getattr(_DEFAULT, spec.name)
        inner = dataclasses.fields(value) if dataclasses.is_dataclass(value) else (spec,)
        for leaf in inner:
            name = leaf.name if leaf is spec else f"{spec.name}.{leaf.name}"
            meta = leaf.metadata
            yield Parameter(
                name,
                leaf.default,
                meta["help"],
                meta["low"],
                meta["high"],
                meta["choices"],
                meta["live"],
            )
