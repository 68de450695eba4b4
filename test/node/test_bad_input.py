"""Bad input over DDS: the node stays up, goes on, and names the cause in diagnostics."""

from __future__ import annotations

import array

import pytest
from harness import RELIABLE
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Float32, Float32MultiArray, Int16MultiArray, String, UInt8MultiArray

from mmfuse_ros.samples import Modality


@pytest.fixture
def live(start, robot):
    node = start()
    assert robot.run(60, until=lambda: robot.mask() == set(Modality)), node.text()
    return node


def rejected(robot, modality):
    return int(robot.row(f"input {modality}")[1].get("rejected", 0))


def recovers(robot):
    return robot.run(15, until=lambda: robot.mask() == set(Modality))


def test_garbage_in_every_stream(live, robot):
    short = robot.picture()
    short.data = short.data[:100]
    five = robot.picture(encoding="5C99")
    empty = Image(encoding="rgb8")
    cases = {
        Modality.CAMERA_1: [short, five, empty],
        Modality.AUDIO: [Int16MultiArray()],
        Modality.EMG: [
            Float32MultiArray(data=array.array("f", [float("nan")] * 8)),
            Float32MultiArray(data=array.array("f", [1.0] * 5)),
            Float32MultiArray(),
        ],
    }
    for modality, messages in cases.items():
        for message in messages:
            if modality.is_camera:
                robot.send_frame(modality, message=message)
            else:
                robot.send(modality, message)
        want = len(messages)
        assert robot.run(10, until=lambda m=modality, n=want: rejected(robot, m) >= n)
        assert rejected(robot, modality) == want
        assert robot.row(f"input {modality}")[1]["last_error"]
    assert recovers(robot)
    assert live.process.poll() is None


def test_wrong_type_is_named(live, robot):
    robot.without = {Modality.EMG}
    robot.node.destroy_publisher(robot.out[Modality.EMG])
    wrong = robot.node.create_publisher(String, "emg", 10)
    wrong.publish(String(data="hello"))
    assert robot.run(10, until=lambda: "std_msgs/msg/String" in robot.row("input emg")[2])
    assert robot.row("input emg")[0] == 2
    assert "emg.type" in robot.row("input emg")[2]


def test_wrong_qos_is_named_with_both_sides(start, robot):
    override = {"qos_overrides./pressure.subscription.reliability": "reliable"}
    node = start(**override)
    robot.node.destroy_publisher(robot.out[Modality.PRESSURE])
    poor = QoSProfile(
        depth=10,
        reliability=ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )
    robot.out[Modality.PRESSURE] = robot.node.create_publisher(
        Float32,
        "pressure",
        poor,
    )
    assert robot.run(60, until=lambda: "RELIABILITY" in robot.row("input pressure")[2].upper())
    text = robot.row("input pressure")[2]
    assert "reliable" in text
    assert "best_effort" in text
    assert robot.run(20, until=lambda: Modality.CAMERA_1 in robot.mask()), node.text()
    # A driver that fits joins, and the one that does not goes: nothing is wrong any more.
    refused = robot.out[Modality.PRESSURE]
    robot.out[Modality.PRESSURE] = robot.node.create_publisher(Float32, "pressure", RELIABLE)
    assert robot.run(20, until=lambda: Modality.PRESSURE in robot.mask())
    assert robot.row("input pressure")[0] == 2
    robot.node.destroy_publisher(refused)
    assert robot.run(20, until=lambda: robot.row("input pressure")[0] == 0)


def test_encoded_audio_is_refused_with_a_remedy(start, robot):
    node = start(audio__type="std_msgs/msg/UInt8MultiArray")
    robot.without = {Modality.AUDIO}
    robot.node.destroy_publisher(robot.out[Modality.AUDIO])
    mp3 = robot.node.create_publisher(UInt8MultiArray, "audio", 10)
    assert robot.run(60, until=lambda: bool(robot.watch.embeddings)), node.text()
    mp3.publish(UInt8MultiArray(data=array.array("B", b"ID3\x04" + bytes(60))))
    assert robot.run(10, until=lambda: rejected(robot, Modality.AUDIO) == 1)
    text = robot.row("input audio")[1]["last_error"]
    assert "PCM" in text
