"""Four streams at once. They were not recorded together: the pairing is made here.

For faults, every recording pairs sources of its own: one motor recording, one gesture, one force
run, and the film of a task, seen again with a jitter of brightness and position, because there
is only one film of it. So a held-out recording has a motor, a gesture and a force run that the
fit has not seen.

For the pairing, recordings follow a common schedule: a sequence of states in random order, each
with its own motor speed, gesture and scene. Nothing else makes streams that were not recorded
together depend on each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly import Detector
from mmfuse_ros.evaluation.baselines import METHODS, Features
from mmfuse_ros.evaluation.data import (
    Gesture,
    Recordings,
    emg_features,
    force_features,
    motor_features,
    picture_features,
    slide,
)
from mmfuse_ros.evaluation.metrics import auprc, auroc
from mmfuse_ros.evaluation.protocols import Row, compare

FloatArray = npt.NDArray[np.floating]

WINDOWS = 15  # 3 s windows every 0.5 s of a recording of 10 s
TRAIN = 12
STREAMS = ("audio", "camera_1", "emg", "pressure")
KEYS = {
    "audio": "audio:log_mel",
    "camera_1": "camera_1",
    "emg": "emg:statistics",
    "pressure": "pressure:statistics",
}
FILM_RATE_HZ = 10.0


def faults(data: Recordings, seed: int, alpha: float) -> dict[str, dict[str, Row]]:
    """Fit on 12 composites; on 4 others, put a fault into one stream at a time.

    Returns figures by fault ("any" pools them) and method, and "removed <stream>" rows of the
    detector with that stream absent: AUROC of the other streams' faults and its change.
    """
    rng = np.random.default_rng(seed)
    normal = _normal_sources(data, rng)
    odd = _faulty_sources(data, rng)
    recordings = [{KEYS[s]: normal[s][i] for s in STREAMS} for i in range(TRAIN + 4)]
    fit, held = recordings[:TRAIN], recordings[TRAIN:]
    broken = {
        stream: [
            {**base, KEYS[stream]: odd[stream][(i * 5 + seed) % len(odd[stream])]}
            for i, base in enumerate(held)
        ]
        for stream in STREAMS
    }
    rows: dict[str, dict[str, Row]] = {name: {} for name in (*STREAMS, "any")}
    for name, make in METHODS.items():
        method = make(fit, alpha)
        hits = []
        for stream in STREAMS:
            row = compare(method, held, broken[stream])
            top = [t.split(":")[0] for f in broken[stream] for t in method.judge(f)[2]]
            row["top1"] = float(np.mean([t == stream for t in top]))
            hits.append(row["top1"])
            rows[stream][name] = row
        pooled = compare(method, held, [f for stream in STREAMS for f in broken[stream]])
        rows["any"][name] = {**pooled, "top1": float(np.mean(hits))}
    rows.update(_removed(Detector.fit(fit, alpha), held, broken))
    return rows


def pairing(data: Recordings, seed: int, alpha: float) -> dict[str, Row]:
    """Fit on 12 scheduled composites; on 6 others, shift the muscle signal by 3 s or more."""
    rng = np.random.default_rng(seed)
    sources = _Schedule(data, rng)
    fit = [sources.recording(rng, held=False) for _ in range(TRAIN)]
    held = [sources.recording(rng, held=True) for _ in range(6)]
    shifted = [_shift(recording, rng) for recording in held]
    detector = Detector.fit(fit, alpha)
    calm = [detector.score(r) for r in held]
    loud = [detector.score(r) for r in shifted]
    row = {
        "auroc": auroc(_all(calm, "score"), _all(loud, "score")),
        "auprc": auprc(_all(calm, "score"), _all(loud, "score")),
        "fpr": float(_all(calm, "flag").mean()),
        "tpr": float(_all(loud, "flag").mean()),
    }
    low, high = _all(calm, "consistency_p"), _all(loud, "consistency_p")
    row["auroc_consistency_alone"] = auroc(-low, -high) if np.isfinite(low).all() else 0.5
    return {"calibrated": row}


def _normal_sources(data: Recordings, rng: np.random.Generator) -> dict[str, list[FloatArray]]:
    """Return by stream 16 recordings of `WINDOWS` rows, in the order the seed gives."""
    healthy = [m for m in data.motors if m.healthy]
    calm = [g for g in data.gestures if g.label <= 4]
    runs = data.force_runs[np.asarray(data.force_labels) == "normal"]
    count = TRAIN + 4

    def order(items: int) -> npt.NDArray[np.intp]:
        return rng.permutation(items)[:count]

    return {
        "audio": [_motor(healthy[i]) for i in order(len(healthy))],
        "emg": [_gesture(calm[i]) for i in order(len(calm))],
        "pressure": [_held(runs[i]) for i in order(len(runs))],
        "camera_1": [_film(data.films["place_s"], rng) for _ in range(count)],
    }


def _faulty_sources(data: Recordings, rng: np.random.Generator) -> dict[str, list[FloatArray]]:
    runs = data.force_runs[np.asarray(data.force_labels) != "normal"]
    return {
        "audio": [_motor(m) for m in data.motors if not m.healthy],
        "emg": [_gesture(g) for g in data.gestures if g.label > 4],
        "pressure": [_held(run) for run in runs],
        "camera_1": [_film(data.films["place_f"], rng) for _ in range(4)],
    }


def _motor(motor) -> FloatArray:  # type: ignore[no-untyped-def]
    return motor_features(motor.samples, motor.rate_hz)[:WINDOWS]


def _gesture(gesture: Gesture) -> FloatArray:
    """Return `WINDOWS` windows of 1 s, evenly spaced over one gesture of about 1.8 s."""
    spare = gesture.samples.shape[1] - 1000
    starts = np.linspace(0, spare, WINDOWS).round().astype(int)
    return emg_features(np.stack([gesture.samples[:, s : s + 1000] for s in starts]))


def _held(run: FloatArray) -> FloatArray:
    """Return one run's statistics, held for the whole recording."""
    return np.repeat(force_features(run[None]), WINDOWS, axis=0)


def _film(
    frames: FloatArray, rng: np.random.Generator, begin_s: float | None = None
) -> FloatArray:
    """Return features of a film seen again: other brightness, camera a few pixels off, noise."""
    span = (WINDOWS - 1) * 0.5
    latest = (len(frames) - 1) / FILM_RATE_HZ - span
    begin = rng.uniform(0.0, max(latest, 0.0)) if begin_s is None else begin_s
    times = begin + 0.5 * np.arange(WINDOWS)
    index = np.minimum((times * FILM_RATE_HZ).round().astype(int), len(frames) - 1)
    return picture_features(_jitter(frames[index], rng))


def _jitter(frames: FloatArray, rng: np.random.Generator) -> FloatArray:
    down, right = rng.integers(-3, 4, 2)
    moved = np.roll(frames, (down, right), axis=(1, 2)).astype(np.float32)
    moved *= np.float32(rng.normal(1.0, 0.03))
    moved += rng.normal(0.0, 2.0, moved.shape)
    return np.clip(moved, 0.0, 255.0, out=moved)


def _removed(
    detector: Detector, held: Sequence[Features], broken: Mapping[str, Sequence[Features]]
) -> dict[str, dict[str, Row]]:
    full = {s: _auroc(detector, held, broken[s]) for s in STREAMS}
    base = float(np.concatenate([detector.score(f).flag for f in held]).mean())
    rows: dict[str, dict[str, Row]] = {}
    for gone in STREAMS:
        less = [_drop(f, gone) for f in held]
        others = [s for s in STREAMS if s != gone]
        now = [_auroc(detector, less, [_drop(f, gone) for f in broken[s]]) for s in others]
        fpr = float(np.concatenate([detector.score(f).flag for f in less]).mean())
        before = float(np.mean([full[s] for s in others]))
        rows[f"removed {gone}"] = {
            "calibrated": {
                "auroc_others": float(np.mean(now)),
                "auroc_fall": before - float(np.mean(now)),
                "fpr": fpr,
                "fpr_rise": fpr - base,
            }
        }
    return rows


def _drop(features: Features, stream: str) -> Features:
    return {k: v for k, v in features.items() if k != KEYS[stream]}


def _auroc(detector: Detector, normal: Sequence[Features], odd: Sequence[Features]) -> float:
    low = np.concatenate([detector.score(f).score for f in normal])
    return auroc(low, np.concatenate([detector.score(f).score for f in odd]))


class _Schedule:
    """Sources by state, split once between the fit and the held-out recordings."""

    SPEEDS = (("1400", "1450"), ("1550", "1650"), ("1750", "1850"), ("1950", "2000"))
    STATE_S = 6.0
    HOP_S = 0.5

    def __init__(self, data: Recordings, rng: np.random.Generator) -> None:
        self._motors, self._gestures, self._scenes = [], [], []
        place, pour = data.films["place_s"], data.films["pour_s"]
        scenes = (place[:60], place[69:], pour[:35], pour[35:])
        for state, speeds in enumerate(self.SPEEDS):
            motors = [
                m for m in data.motors if m.healthy and any(f"_{s}_" in m.name for s in speeds)
            ]
            gestures = [g for g in data.gestures if g.label == state + 1]
            self._motors.append([motors[i] for i in rng.permutation(len(motors))])
            self._gestures.append([gestures[i] for i in rng.permutation(len(gestures))])
            self._scenes.append(scenes[state])

    def recording(self, rng: np.random.Generator, held: bool) -> Features:
        """Return 24 s: the four states in random order, 6 s each, windows every 0.5 s."""
        order = rng.permutation(len(self.SPEEDS))
        sound, muscle, frames = [], [], []
        for state in order:
            motor = self._draw(self._motors[state], rng, held)
            size = round(self.STATE_S * motor.rate_hz)
            begin = int(rng.integers(0, len(motor.samples) - size))
            sound.append(motor.samples[begin : begin + size])
            gesture = self._draw(self._gestures[state], rng, held).samples
            start = int(rng.integers(gesture.shape[1]))
            index = (start + np.arange(round(self.STATE_S * 1000))) % gesture.shape[1]
            muscle.append(gesture[:, index])
            scene = self._scenes[state]
            step = np.arange(round(self.STATE_S / self.HOP_S)) * self.HOP_S * FILM_RATE_HZ
            at = (rng.uniform(0, len(scene)) + step) % len(scene)
            frames.append(scene[at.astype(int)])
        audio = motor_features(np.concatenate(sound), motor.rate_hz, self.HOP_S)
        windows = slide(np.concatenate(muscle, axis=1), 1000, round(self.HOP_S * 1000))
        pictures = picture_features(_jitter(np.concatenate(frames), rng))
        count = len(audio)
        # Window i ends at 3 s + i hop: the muscle window and the picture end there too.
        first = round(3.0 / self.HOP_S)
        return {
            KEYS["audio"]: audio,
            KEYS["emg"]: emg_features(windows[first - 2 : first - 2 + count]),
            KEYS["camera_1"]: pictures[np.minimum(first + np.arange(count), len(pictures) - 1)],
        }

    @staticmethod
    def _draw(items: list, rng: np.random.Generator, held: bool):  # type: ignore[no-untyped-def,type-arg]
        part = items[-1:] if held else items[:-1]
        return part[int(rng.integers(len(part)))]


def _shift(recording: Features, rng: np.random.Generator) -> Features:
    """Return the recording with the muscle signal rolled by 3 s to its length less 3 s."""
    rows = recording[KEYS["emg"]]
    least = round(3.0 / _Schedule.HOP_S)
    by = int(rng.integers(least, len(rows) - least + 1))
    return {**recording, KEYS["emg"]: np.roll(rows, by, axis=0)}


def _all(results: list, name: str) -> FloatArray:  # type: ignore[type-arg]
    return np.concatenate([getattr(result, name) for result in results])
