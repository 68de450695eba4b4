"""The main job, end to end over DDS: streams in, embeddings, alarms and diagnostics out."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from harness import NodeProcess, Robot
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Bool, Float32, Float32MultiArray
from std_srvs.srv import SetBool

from mmfuse_ros.config import Config
from mmfuse_ros.samples import NS_PER_S, Modality


@pytest.fixture(scope="module")
def live(domain, parameters, tmp_path_factory):
    """One node for all of these tests; each leaves it as it found it."""
    given = {**parameters, "anomaly.method": "cosine", "anomaly.baseline_windows": 5}
    node = NodeProcess(given, log=tmp_path_factory.mktemp("live") / "log")
    yield node
    code, _ = node.stop()
    assert code == 0, node.text()


@pytest.fixture
def robot(live):
    """A robot whose five streams have come out as an embedding."""
    made = Robot()
    assert made.run(60, until=lambda: made.mask() == set(Modality)), live.text()
    yield made
    made.close()


def test_every_output(live, robot):
    got = {}
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    for kind, topic, qos in (
        (Float32MultiArray, "mmfuse/embedding", 10),
        (Bool, "mmfuse/anomaly_flag", latched),
        (Float32, "mmfuse/anomaly_score", 10),
        (DiagnosticArray, "mmfuse/anomaly", 10),
    ):
        robot.watch.create_subscription(kind, topic, lambda m, t=topic: got.update({t: m}), qos)
    assert robot.run(15, until=lambda: len(got) == 4 and robot.watch.info)
    embedding = got["mmfuse/embedding"]
    (dim,) = embedding.layout.dim
    assert (dim.label, dim.size, dim.stride) == ("embedding", 512, 512)
    vector = robot.latest().vector
    assert vector.shape == (512,)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) > 0
    assert np.isnan(robot.latest().score)  # no baseline yet: no number is made up
    whole = got["mmfuse/anomaly"].status[0]
    assert whole.level == bytes([3])
    assert "uncalibrated" in whole.message
    parts = got["mmfuse/anomaly"].status[1:]
    assert [s.name for s in parts] == [f"mmfuse: anomaly {m}" for m in Modality]
    assert {(s.level, s.message) for s in parts} == {(bytes([3]), "uncalibrated")}
    info = json.loads(robot.watch.info)
    assert len(info["weights"]) == 64  # a hash, not a path
    assert info["modalities"] == [m.value for m in Modality]
    assert info["embedding_dim"] == 512
    assert "/" not in robot.watch.info.replace("mmfuse/", "")


def test_stamps_are_the_cameras_own(live, robot, monkeypatch):
    sent, send = set(), robot.send

    def note(modality, message):
        if modality is Modality.CAMERA_1:
            stamp = message.header.stamp
            sent.add(stamp.sec * NS_PER_S + stamp.nanosec)
        send(modality, message)

    monkeypatch.setattr(robot, "send", note)
    before = len(robot.watch.embeddings)
    assert robot.run(20, until=lambda: len(robot.watch.embeddings) > before + 10)
    stamps = [e.stamp_ns for _, e in list(robot.watch.embeddings)[before:]]
    assert stamps == sorted(set(stamps))
    # The first may be of a frame that was under way before.
    assert {s for s in stamps if s >= min(sent)} <= sent
    assert len(set(stamps) & sent) > 5
    assert all(0 <= age < 2 for age in list(robot.watch.ages_s)[-5:])


def test_a_baseline_is_gathered_and_cleared(live, robot):
    assert "5 windows" in robot.watch.call("set_baseline")
    assert robot.run(20, until=lambda: np.isfinite(robot.latest().score))
    assert not robot.latest().flag
    assert robot.run(10, until=lambda: robot.row("input audio")[0] == 0), robot.row("input audio")
    robot.watch.call("clear_baseline")
    assert robot.run(10, until=lambda: np.isnan(robot.latest().score))


def test_a_lost_camera_is_a_mask_bit_and_a_diagnostic(live, robot):
    robot.without = {Modality.CAMERA_2}
    begun = time.monotonic()
    assert robot.run(5, until=lambda: "silent" in robot.row("input camera_2")[2])
    took_s = time.monotonic() - begun
    print(f"silent after {took_s:.2f} s")
    assert took_s < Config().watchdog.silence_s + 0.5
    assert robot.run(5, until=lambda: Modality.CAMERA_2 not in robot.mask())
    assert robot.run(
        5, until=lambda: robot.watch.anomaly["anomaly camera_2"][::2] == (3, "not live")
    )
    before = len(robot.watch.embeddings)
    robot.run(2.0)
    assert len(robot.watch.embeddings) > before  # embeddings go on
    robot.without = set()
    assert robot.run(10, until=lambda: robot.mask() == set(Modality))
    assert robot.run(5, until=lambda: robot.row("input camera_2")[0] == 0)


def test_enable_stops_and_resumes(live, robot):
    robot.watch.ask(SetBool, "mmfuse/enable", SetBool.Request(data=False))
    robot.run(1.0)
    before = len(robot.watch.embeddings)
    robot.run(1.0)
    assert len(robot.watch.embeddings) == before
    robot.watch.ask(SetBool, "mmfuse/enable", SetBool.Request(data=True))
    assert robot.run(10, until=lambda: len(robot.watch.embeddings) > before)


def test_a_stream_that_turns_strange_raises_the_alarm(live, robot, monkeypatch):
    flags = []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    robot.watch.create_subscription(
        Bool, "mmfuse/anomaly_flag", lambda m: flags.append(m.data), latched
    )
    still = robot.picture(1)
    monkeypatch.setattr(robot, "picture", lambda *_: still)
    robot.run(1.0)
    robot.watch.call("set_baseline")
    assert robot.run(20, until=lambda: np.isfinite(robot.latest().score)), live.text()
    seen = len(robot.watch.embeddings)
    assert robot.run(20, until=lambda: len(robot.watch.embeddings) > seen + 15)
    whole = [e for _, e in list(robot.watch.embeddings)[seen:] if len(e.modalities) == 5]
    normal = max(e.score for e in whole)
    limit = 1.0 - 3.0 * normal
    value = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=limit)
    request = SetParameters.Request(parameters=[Parameter(name="anomaly.threshold", value=value)])
    assert robot.watch.ask(SetParameters, "mmfuse/set_parameters", request).results[0].successful
    del flags[:]

    def calm():
        return len(flags) > 10 and not any(flags[-10:]) and robot.watch.anomaly["anomaly"][0] == 0

    assert robot.run(20, until=calm), (normal, robot.watch.anomaly)

    robot.without = {Modality.PRESSURE}

    def pulled():
        for _ in range(10):
            robot.send(Modality.PRESSURE, Float32(data=-50.0))
        level, values, _ = robot.watch.anomaly["anomaly"]
        return level == 2 and flags[-1] and values["top_modality"] == "pressure"

    assert robot.run(20, until=pulled), (normal, robot.watch.anomaly)
    assert robot.latest().flag
    values = robot.watch.anomaly["anomaly"][1]
    assert float(values["score"]) > float(values["threshold"])
    assert robot.watch.anomaly["anomaly pressure"][0] != 0
    robot.without = set()
    assert robot.run(20, until=calm)
