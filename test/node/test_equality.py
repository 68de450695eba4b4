"""The same windows, in process and through DDS, give the same embeddings."""

from __future__ import annotations

import array
import time

import numpy as np
import pytest
from geometry_msgs.msg import WrenchStamped
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Float32MultiArray, Int16MultiArray

from mmfuse_ros.config import Config
from mmfuse_ros.model.runtime import build_engine
from mmfuse_ros.pipeline import Pipeline
from mmfuse_ros.ros.adapters import make_adapter
from mmfuse_ros.ros.embedding import to_time
from mmfuse_ros.samples import Modality
from mmfuse_ros.stream.synchronizer import Synchronizer

START_NS = 1_700_000_000_000_000_000
STEP_NS = 20_000_000
STEPS = 90


@pytest.fixture
def settings(parameters):
    return {
        **parameters,
        "pressure.type": "geometry_msgs/msg/WrenchStamped",
        "emg.layout": "samples_channels",
    }


def messages(robot):
    """Yield (time, [(stream, message)]) in steps of 20 ms: recorded-like, stamped by its clock."""
    rng = np.random.default_rng(1)
    for k in range(STEPS):
        now_ns = START_NS + k * STEP_NS
        batch = []
        wave = (2000 * rng.standard_normal(320)).astype(np.int16)
        batch.append((Modality.AUDIO, Int16MultiArray(data=array.array("h", wave.tobytes()))))
        muscle = rng.normal(0, 1e-4, 160).astype(np.float32)
        batch.append((Modality.EMG, Float32MultiArray(data=array.array("f", muscle.tobytes()))))
        for i in range(20):
            press = WrenchStamped()
            press.header.stamp = to_time(now_ns + i * 1_000_000)
            press.wrench.force.z = float(rng.normal())
            batch.append((Modality.PRESSURE, press))
        if k % 5 == 0:
            for camera in (Modality.CAMERA_1, Modality.CAMERA_2):
                picture = robot.picture(seed=k + camera.bit)
                picture.header.stamp = to_time(now_ns)
                batch.append((camera, picture))
        yield now_ns, batch


def in_process(settings, stream):
    """Return the embeddings by stamp, without ROS communication."""
    config = Config.from_flat(settings)
    adapters = {m: make_adapter(m, config) for m in Modality}
    synchronizer = Synchronizer(config)
    pipeline = Pipeline(build_engine(config))
    found = {}
    for now_ns, batch in stream:
        for modality, message in batch:
            synchronizer.offer(modality, adapters[modality].convert(message, now_ns), now_ns)
            for window in synchronizer.take(now_ns):
                if len(window.present) == len(Modality):
                    found[window.stamp_ns] = pipeline.encode(window).vectors["embedding"]
    return found


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.9999), ("bf16", 0.999)])
def test_in_process_and_dds_agree(start, robot, settings, precision, least):
    """The node, in either precision, against fp32 in this process."""
    expected = in_process(settings, messages(robot))
    assert len(expected) >= 10
    node = start(use_sim_time=True, **{**settings, "model.precision": precision})
    robot.node.destroy_publisher(robot.out[Modality.PRESSURE])
    robot.out[Modality.PRESSURE] = robot.node.create_publisher(WrenchStamped, "pressure", 2000)
    clock = robot.node.create_publisher(Clock, "/clock", 10)
    end = time.monotonic() + 60
    while time.monotonic() < end and robot.row("node")[2] != "active":
        robot.watch.spin_for(0.1)
    assert robot.row("node")[2] == "active", node.text()
    robot.watch.spin_for(1.0)  # let every endpoint be discovered
    for now_ns, batch in messages(robot):
        clock.publish(Clock(clock=to_time(now_ns)))
        robot.watch.spin_for(0.03)  # the node's clock must tick before what it stamps arrives
        for modality, message in batch:
            if modality is Modality.CAMERA_1:
                # Topics have no order among each other: the rest must be there when the
                # trigger is, as it is in process.
                robot.watch.spin_for(0.03)
            robot.send(modality, message)
        robot.watch.spin_for(0.02)
    robot.watch.spin_for(2.0)
    got = {e.stamp_ns: e.vector for _, e in robot.watch.embeddings if len(e.modalities) == 5}
    common = sorted(set(expected) & set(got))
    assert len(common) >= 8, (len(expected), len(got), node.text())
    for stamp_ns in common:
        a, b = expected[stamp_ns], got[stamp_ns]
        cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert cosine > least, (stamp_ns, cosine)
