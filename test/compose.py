"""Compose one rosbag2 recording (MCAP) from `../shared/data`.

The streams were recorded by real sensors, but not together: the recording pairs them
artificially, and its folder says so (`composite` in the name, README.txt inside). Faults, at known
times, are listed in `faults.json` beside the recording.

    python test/compose.py OUT_DIR [--seconds 60] [--no-faults] [--seed 0]
"""

from __future__ import annotations

import argparse
import array
import json
import sys
import wave
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import WrenchStamped
from PIL import Image as Picture
from PIL import ImageSequence
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from sensor_msgs.msg import Image
from std_msgs.msg import Float32MultiArray, Int16MultiArray

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
START_NS = 1_700_000_000_000_000_000
AUDIO_HZ, CHUNK = 16000, 320
FAULT_S = 4.0

NOTE = """A composite: its streams come from real sensors but were recorded apart and paired
artificially. Cameras: FINO-Net clips (MIT). Audio: Mendeley Data j4yr5fmhv4 (CC BY 4.0). Pressure:
force z of UCI Robot Execution Failures LP1 (CC BY 4.0), 15-sample runs joined and interpolated to
1 kHz. EMG: UCI EMG data for gestures (CC BY 4.0), 200 Hz held to 1 kHz by its recorder.
"""


def frames(name: str, size: tuple[int, int]) -> list[np.ndarray]:
    """Return a clip's frames, (H, W, 3) uint8 RGB."""
    clip = Picture.open(DATA / "fino" / name)
    return [
        cv2.resize(np.asarray(frame.convert("RGB")), size, interpolation=cv2.INTER_CUBIC)
        for frame in ImageSequence.Iterator(clip)
    ]


def audio(names: list[str], seconds: float) -> np.ndarray:
    """Return recordings joined and repeated to a length, int16."""
    parts = []
    for name in names:
        with wave.open(str(DATA / "bldc" / name)) as file:
            assert file.getframerate() == AUDIO_HZ
            parts.append(np.frombuffer(file.readframes(file.getnframes()), "<i2"))
    joined = np.concatenate(parts)
    return np.resize(joined, int(seconds * AUDIO_HZ))


def force(label: str, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Return force z of one kind of run, interpolated to 1 kHz."""
    runs, current = [], None
    for line in (DATA / "force_torque" / "lp1.data").read_text().splitlines():
        words = line.split()
        if len(words) == 1:
            current = [] if (words[0] == "normal") == (label == "normal") else None
            if current is not None:
                runs.append(current)
        elif words and current is not None:
            current.append(float(words[2]))
    order = rng.permutation(len(runs))
    coarse = np.resize(np.concatenate([runs[i] for i in order]), int(seconds * 48) + 2)
    grid = np.arange(int(seconds * 1000)) / 1000
    return np.interp(grid, np.arange(len(coarse)) / 48, coarse).astype(np.float32)


def emg(name: str, seconds: float) -> np.ndarray:
    """Return 8 channels by recorded row, volt, (samples, 8)."""
    rows = np.loadtxt(DATA / "emg" / name, skiprows=1, usecols=range(1, 9))
    return np.resize(rows, (int(seconds * 1000), 8)).astype(np.float32)


def compose(
    out: Path,
    seconds: float = 60.0,
    *,
    faults: bool = True,
    seed: int = 0,
    size: tuple[int, int] = (640, 480),
) -> Path:
    """Write the recording to the new folder `out` and return it."""
    rng = np.random.default_rng(seed)
    clips = [frames("place_s.gif", size), frames("pour_s.gif", size)]
    fault_clip = frames("place_f.gif", size)
    healthy = sorted(p.name for p in (DATA / "bldc").glob("healthy_M1_*"))
    broken = sorted(p.name for p in (DATA / "bldc").glob("propeller_M1_*"))
    sound = audio([healthy[i] for i in rng.permutation(len(healthy))], seconds)
    press = force("normal", seconds, rng)
    muscle = emg("01_1_raw_data_13-12_22.03.16.txt", seconds)
    plan: list[dict[str, Any]] = []
    if faults:
        begins = seconds * np.array([0.3, 0.45, 0.6, 0.75, 0.9])
        streams = ("camera_1", "camera_2", "audio", "pressure", "emg")
        for name, begin in zip(streams, begins, strict=True):
            plan.append({"stream": name, "begin_s": float(begin), "end_s": float(begin) + FAULT_S})
        for fault in plan:
            hz = {"audio": AUDIO_HZ}.get(fault["stream"], 1000)
            part = slice(int(fault["begin_s"] * hz), int(fault["end_s"] * hz))
            if fault["stream"] == "audio":
                sound[part] = audio(broken, seconds)[part]
            elif fault["stream"] == "pressure":
                press[part] = force("failure", seconds, rng)[part]
            elif fault["stream"] == "emg":
                muscle[part, :4] = 0.0  # four electrodes off
    down = {f["stream"]: (f["begin_s"], f["end_s"]) for f in plan}

    def header(message: Any, stamp_ns: int, frame_id: str) -> Any:
        message.header.stamp = Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        message.header.frame_id = frame_id
        return message

    def picture(index: int, at_s: float) -> Image:
        name = f"camera_{index + 1}"
        begin, end = down.get(name, (1e9, 1e9))
        clip = clips[index]
        pixels = clip[int(at_s * 10) % len(clip)]
        if begin <= at_s < end:
            pixels = fault_clip[int(at_s * 10) % len(fault_clip)] if index == 0 else pixels // 8
        height, width = pixels.shape[:2]
        return Image(
            encoding="rgb8",
            height=height,
            width=width,
            step=3 * width,
            data=array.array("B", pixels.tobytes()),
        )

    events: list[tuple[float, int, int]] = []  # time, stream, index
    for stream, hz in enumerate((30, 30, AUDIO_HZ / CHUNK, 1000, 1000)):
        # A chunk of sound is complete, and so recorded, when its last sample is taken.
        late = 1 / hz if stream == 2 else 0.0
        events += [(k / hz + late, stream, k) for k in range(int(seconds * hz))]
    events.sort()
    with Writer(out, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        kinds = {
            "camera_1/image": "sensor_msgs/msg/Image",
            "camera_2/image": "sensor_msgs/msg/Image",
            "audio": "std_msgs/msg/Int16MultiArray",
            "pressure": "geometry_msgs/msg/WrenchStamped",
            "emg": "std_msgs/msg/Float32MultiArray",
        }
        connections = [_connect(writer, "/" + topic, kind) for topic, kind in kinds.items()]
        for at_s, stream, k in events:
            stamp_ns = START_NS + round(at_s * 1e9)
            if stream < 2:
                message = header(picture(stream, at_s), stamp_ns, f"camera_{stream + 1}_optical")
            elif stream == 2:
                chunk = sound[k * CHUNK : (k + 1) * CHUNK].astype("<i2")
                message = Int16MultiArray(data=array.array("h", chunk.tobytes()))
            elif stream == 3:
                message = header(WrenchStamped(), stamp_ns, "wrist")
                message.wrench.force.z = float(press[k])
            else:
                message = Float32MultiArray(data=array.array("f", muscle[k].tobytes()))
            writer.write(connections[stream], stamp_ns, serialize_message(message))
    (out / "faults.json").write_text(json.dumps(plan, indent=2))
    (out / "README.txt").write_text(NOTE)
    return out


def _connect(writer: Writer, topic: str, kind: str) -> Any:
    from rosbags.typesys import Stores, get_typestore

    return writer.add_connection(topic, kind, typestore=get_typestore(Stores.ROS2_JAZZY))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-faults", action="store_true")
    args = parser.parse_args()
    print(compose(args.out, args.seconds, faults=not args.no_faults, seed=args.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
