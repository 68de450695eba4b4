"""`mmfuse fit` on recordings, and the node on what it made."""

from __future__ import annotations

import array

import numpy as np
import pytest
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from std_msgs.msg import Float32, Int16MultiArray, String

from mmfuse_ros.anomaly import Detector
from mmfuse_ros.cli.main import main

START_NS = 1_700_000_000_000_000_000


def record(folder, seed, seconds=8, phases=()):
    """Write a recording of sound and pressure: a hum and a grip that differ a little by seed."""
    rng = np.random.default_rng(seed)
    store = get_typestore(Stores.ROS2_JAZZY)
    loud = rng.uniform(900, 1100)
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        sound = writer.add_connection("/audio", "std_msgs/msg/Int16MultiArray", typestore=store)
        press = writer.add_connection("/pressure", "std_msgs/msg/Float32", typestore=store)
        if phases:
            label = writer.add_connection("/phase", "std_msgs/msg/String", typestore=store)
        for k in range(seconds * 100):
            now_ns = START_NS + k * 10_000_000
            if phases and k % (seconds * 100 // len(phases)) == 0:
                name = phases[k * len(phases) // (seconds * 100)]
                writer.write(label, now_ns, serialize_message(String(data=name)))
            t = (k * 160 + np.arange(160)) / 16000
            wave = loud * np.sin(2 * np.pi * 150 * t) + rng.normal(0, 100, 160)
            data = array.array("h", wave.astype(np.int16).tobytes())
            writer.write(sound, now_ns, serialize_message(Int16MultiArray(data=data)))
            value = Float32(data=float(2 + rng.normal(0, 0.1)))
            writer.write(press, now_ns, serialize_message(value))
    return folder


@pytest.fixture
def options(tiny_weights, tmp_path, monkeypatch):
    """The options of a fit on the tiny weights, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parameters = {
        "model.vision": tiny_weights / "vision",
        "model.audio": tiny_weights / "audio",
        "model.precision": "fp32",
        "model.backend": "torch",
        "audio.window_s": 0.5,
        "pressure.window_s": 0.5,
        "pressure.rate_hz": 100,
    }
    return [word for n, v in parameters.items() for word in ("-p", f"{n}:={v}")]


def test_fit_from_recordings(options, tmp_path, capsys):
    bags = [str(record(tmp_path / f"run{k}", k)) for k in range(4)]
    out, plot = tmp_path / "normal.mmfuse", tmp_path / "fit.html"
    assert main(["fit", *bags, "--out", str(out), "--plot", str(plot), *options]) == 0
    printed = capsys.readouterr().out
    assert "streams: audio, pressure" in printed
    assert "4 independent recordings" in printed
    detector = Detector.load(out)
    assert detector.modalities == ("audio", "pressure")
    assert detector.alpha == 0.05
    assert detector.context["modalities"] == ["audio", "pressure"]
    assert "<html" in plot.read_text().lower()
    first = out.read_bytes()
    assert main(["fit", *bags, "--out", str(out), *options]) == 0  # from the stored features
    assert out.read_bytes() == first


def test_too_few_recordings_for_an_alpha_are_refused(options, tmp_path, capsys):
    bags = [str(record(tmp_path / f"run{k}", k, seconds=3)) for k in range(3)]
    out = tmp_path / "normal.mmfuse"
    assert main(["fit", *bags, "--out", str(out), "--alpha", "0.001", *options]) == 2
    assert "alpha must be at least 0.0250 with 3 independent recordings" in capsys.readouterr().err
    assert not out.exists()


def test_each_recorded_phase_gets_its_calibration(options, tmp_path, capsys):
    bags = [
        str(record(tmp_path / f"run{k}", k, seconds=10, phases=("idle", "work"))) for k in range(4)
    ]
    out = tmp_path / "normal.mmfuse"
    assert main(["fit", *bags, "--out", str(out), *options]) == 0
    assert "idle, work" in capsys.readouterr().out
    assert set(Detector.load(out).phases) == {"idle", "work"}
