"""Real processes and real DDS for the node's tests; every process ends with its test."""

from __future__ import annotations

import array
import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Float32, Float32MultiArray, Int16MultiArray

from mmfuse_ros.cli.processes import (
    PROFILE_VARIABLES,
    end_with_parent,
    fastdds_profile,
    ros_environment,
)
from mmfuse_ros.ros.embedding import to_time
from mmfuse_ros.ros.topics import TOPICS
from mmfuse_ros.ros.watch import Watch
from mmfuse_ros.samples import Modality

RELIABLE = QoSProfile(depth=2000, reliability=ReliabilityPolicy.RELIABLE)


INTRAPROCESS_OFF = """
  <library_settings xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles">
    <intraprocess_delivery>OFF</intraprocess_delivery>
  </library_settings>
"""


def isolate(domain: int) -> None:
    """Give this process, its contexts and its children a DDS domain of their own.

    Participants of one process use the transport here, as those of several do. With the shortcut
    that Fast DDS has for them, one in some 200 pairs never finds the other's services.
    """
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    os.environ.update(ros_environment())
    os.environ["OMP_NUM_THREADS"] = "1"
    if all(os.environ.get(name) == str(fastdds_profile()) for name in PROFILE_VARIABLES):
        file = Path(tempfile.gettempdir()) / f"mmfuse_test_{os.getpid()}.xml"
        file.write_text(fastdds_profile().read_text().replace("<dds>", "<dds>" + INTRAPROCESS_OFF))
        atexit.register(file.unlink, missing_ok=True)
        os.environ.update(dict.fromkeys(PROFILE_VARIABLES, str(file)))


def end(context: Context) -> None:
    """Shut a context down, and its DDS participant now, not when it is collected."""
    rclpy.shutdown(context=context)
    context.destroy()
    gc.collect()


class NodeProcess:
    """The fusion node as `ros2 run` starts it, with parameters."""

    def __init__(self, parameters, *, log: Path, remappings=(), module="mmfuse_ros.ros.node"):
        arguments = ["--ros-args"]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}:={json.dumps(value)}"]
        for rule in remappings:
            arguments += ["-r", rule]
        self.log = log
        self._file = log.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=self._file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,  # a test run that is killed leaves no node behind
        )

    def stop(self, how=signal.SIGINT, timeout_s=10.0):
        """Send a signal; return the exit code and the seconds it took."""
        begun = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            code = None
        self._file.close()
        return code, time.monotonic() - begun

    def text(self):
        return self.log.read_text(errors="replace")


class Robot:
    """Publishes the five streams by hand or at their rates, and watches the node.

    `without` and the public senders let a test break one stream at a time.

    Args:
        emg_hz: rate of the EMG stream; a lower one leaves more of a small machine to the node.
    """

    def __init__(self, *, target="mmfuse", emg_channels=8, namespace="", emg_hz=1000):
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("robot", context=self.context, namespace=namespace)
        self.watch = Watch(target, context=self.context, namespace=namespace)
        kinds = (Image, Image, Int16MultiArray, Float32, Float32MultiArray)
        self.out = {
            m: self.node.create_publisher(kind, TOPICS[m], RELIABLE)
            for m, kind in zip(Modality, kinds, strict=True)
        }
        self.without: set[Modality] = set()
        self.sent = dict.fromkeys(Modality, 0)
        self._rng = np.random.default_rng(0)
        self._emg_shape = (emg_hz // 100, emg_channels)
        self._ticks = 0
        self._begun = None

    def picture(self, seed=0, size=(48, 64), encoding="rgb8"):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        message = Image(encoding=encoding, height=size[0], width=size[1], step=3 * size[1])
        message.data = array.array("B", pixels.tobytes())
        return message

    def send(self, modality, message):
        self.out[modality].publish(message)
        self.sent[modality] += 1

    def send_frame(self, modality, stamp_ns=None, message=None):
        message = message or self.picture(self._ticks % 7)
        now_ns = self.node.get_clock().now().nanoseconds
        message.header.stamp = to_time(now_ns if stamp_ns is None else stamp_ns)
        message.header.frame_id = modality.value
        self.send(modality, message)

    def tick(self):
        """Send what is due in 10 ms: audio, samples of the rest, and at 20 Hz a frame each."""
        self._ticks += 1
        t = (self._ticks * 160 + np.arange(160)) / 16000
        if Modality.AUDIO not in self.without:
            hum = 3000 * np.sin(2 * np.pi * 220 * t) + self._rng.normal(0, 200, 160)
            data = array.array("h", hum.astype(np.int16).tobytes())
            self.send(Modality.AUDIO, Int16MultiArray(data=data))
        if Modality.PRESSURE not in self.without:
            for value in self._rng.normal(2.0, 0.1, 10):
                self.send(Modality.PRESSURE, Float32(data=float(value)))
        if Modality.EMG not in self.without:
            for row in self._rng.normal(0, 1e-4, self._emg_shape).astype(np.float32):
                data = array.array("f", row.tobytes())
                self.send(Modality.EMG, Float32MultiArray(data=data))
        if self._ticks % 5 == 0:
            for camera in (Modality.CAMERA_1, Modality.CAMERA_2):
                if camera not in self.without:
                    self.send_frame(camera)

    def run(self, seconds, until=None):
        """Send in real time for so long, or until a condition holds; return whether it did."""
        end = time.monotonic() + seconds
        due = time.monotonic()
        while time.monotonic() < end:
            self.tick()
            due += 0.01
            self.watch.spin_for(max(0.0, due - time.monotonic()))
            if until is not None and until():
                return True
        return until is None

    def latest(self):
        return self.watch.embeddings[-1][1]

    def mask(self):
        return set(self.latest().modalities) if self.watch.embeddings else set()

    def row(self, name):
        """Return level, values and text of one diagnostic status."""
        return self.watch.diagnostics.get(name, (3, {}, ""))

    def close(self):
        self.watch.close()
        self.node.destroy_node()
        end(self.context)
