"""Recordings: played byte for byte, looped under simulated time, read offline."""

from __future__ import annotations

import array
import signal
import subprocess
import sys

import numpy as np
import pytest
from harness import RELIABLE
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import Image
from std_msgs.msg import Float32, Float32MultiArray, Int16MultiArray

from mmfuse_ros.config import Config
from mmfuse_ros.errors import InputError
from mmfuse_ros.ros.bag import Bag
from mmfuse_ros.ros.embedding import to_time
from mmfuse_ros.ros.offline import Replayed, adapt, windows
from mmfuse_ros.samples import Modality

START_NS = 1_700_000_000_000_000_000
SECONDS = 3


def write(folder, plugin):
    """Write a recording of 3 s, five streams; return it and the first image's bytes."""
    rng = np.random.default_rng(0)
    kinds = {
        "/camera_1/image": "sensor_msgs/msg/Image",
        "/camera_2/image": "sensor_msgs/msg/Image",
        "/audio": "std_msgs/msg/Int16MultiArray",
        "/pressure": "std_msgs/msg/Float32",
        "/emg": "std_msgs/msg/Float32MultiArray",
    }
    store = get_typestore(Stores.ROS2_JAZZY)
    first = None
    with Writer(folder, version=9, storage_plugin=plugin) as writer:
        out = {t: writer.add_connection(t, k, typestore=store) for t, k in kinds.items()}
        for k in range(SECONDS * 1000):
            now_ns = START_NS + k * 1_000_000
            if k % 100 == 0:
                pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                picture = Image(encoding="rgb8", height=48, width=64, step=192)
                picture.data = array.array("B", pixels.tobytes())
                picture.header.stamp = to_time(now_ns)
                data = serialize_message(picture)
                first = first or data
                writer.write(out["/camera_1/image"], now_ns, data)
                writer.write(out["/camera_2/image"], now_ns, data)
            if k % 20 == 0:
                wave = (1000 * rng.standard_normal(320)).astype(np.int16)
                sound = Int16MultiArray(data=array.array("h", wave.tobytes()))
                writer.write(out["/audio"], now_ns, serialize_message(sound))
            press = Float32(data=float(rng.normal()))
            writer.write(out["/pressure"], now_ns, serialize_message(press))
            row = array.array("f", rng.normal(0, 1e-4, 8).astype(np.float32).tobytes())
            writer.write(out["/emg"], now_ns, serialize_message(Float32MultiArray(data=row)))
    return folder, first


@pytest.fixture(params=[StoragePlugin.MCAP, StoragePlugin.SQLITE3], ids=["mcap", "sqlite3"])
def recording(request, tmp_path):
    return write(tmp_path / "bag", request.param)


@pytest.fixture
def replay(domain):
    running = []

    def run(*arguments):
        command = [sys.executable, "-m", "mmfuse_ros.cli.main", "replay", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(10)


def test_bytes_are_sent_as_they_are(recording, replay, robot):
    folder, first = recording
    got = []
    robot.node.destroy_publisher(robot.out[Modality.CAMERA_1])
    robot.watch.create_subscription(Image, "camera_1/image", got.append, RELIABLE, raw=True)
    process = replay(folder, "--rate", 3)
    for _ in range(60):
        robot.watch.spin_for(0.5)
        if process.poll() is not None:
            break
    assert process.poll() == 0
    assert len(got) == SECONDS * 10
    assert bytes(got[0]) == bytes(first)
    printed = process.stdout.read()
    assert f"{SECONDS * 1000} /pressure" in printed


def test_a_looped_recording_under_simulated_time(replay, start, robot, tmp_path):
    folder, _ = write(tmp_path / "bag", StoragePlugin.MCAP)
    node = start(use_sim_time=True)
    process = replay(folder, "--clock", "--loop")
    stamps = []

    def looped_twice():
        robot.watch.spin_for(0.1)
        stamps[:] = [e.stamp_ns for _, e in robot.watch.embeddings if len(e.modalities) == 5]
        return np.sum(np.diff(stamps) < 0) >= 2 if len(stamps) > 2 else False

    for _ in range(600):
        if looped_twice():
            break
    else:
        pytest.fail(node.text())
    # What is published lies in the recording: no window mixes two rounds, none is from now.
    assert all(START_NS <= s <= START_NS + SECONDS * 10**9 for s in stamps)
    assert process.poll() is None
    for _ in range(100):  # diagnostics come once a second
        robot.watch.spin_for(0.1)
        if int(robot.row("sync")[1]["epoch"]) >= 2:
            break
    assert int(robot.row("sync")[1]["epoch"]) >= 2
    assert node.process.poll() is None


def test_offline_windows_are_the_nodes(recording):
    folder, _ = recording
    flat = {"audio.window_s": 0.5, "pressure.window_s": 0.25, "emg.window_s": 0.25}
    account = Replayed()
    with Bag(folder) as bag:
        config = adapt(Config.from_flat(flat), bag)
        made = list(windows(bag, config, account=account))
        thinned = list(windows(bag, config, rate_hz=2.0))
    assert account.messages[Modality.PRESSURE] == SECONDS * 1000
    assert not account.rejected
    stamps = [w.stamp_ns for w in made]
    assert stamps == sorted(stamps)
    full = [w for w in made if len(w.present) == 5]
    assert len(full) >= SECONDS * 10 - 8
    assert full[0].signals[Modality.AUDIO].values.shape == (1, 8000)
    assert full[0].signals[Modality.EMG].values.shape == (8, 250)
    assert SECONDS * 2 - 1 <= len(thinned) <= SECONDS * 2 + 1


def test_a_folder_that_is_no_recording(tmp_path):
    with pytest.raises(InputError, match=r"must be a rosbag2 folder with a metadata.yaml"):
        Bag(tmp_path)
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information: 7")
    with pytest.raises(InputError, match="is not a readable recording"):
        Bag(tmp_path)


def test_streams_that_were_not_recorded_are_left_out(tmp_path):
    folder, _ = write(tmp_path / "bag", StoragePlugin.MCAP)
    with Bag(folder) as bag:
        config = adapt(Config(), bag, {Modality.CAMERA_1: "/front/image_raw"})
    assert Modality.CAMERA_1 not in config.enabled
    assert config.sync.trigger == "camera_2"
