"""Simulated sensors: two cameras, a microphone, pressure and EMG, with a fault on demand.

Set the parameter `fault` to a stream's name to break that stream, and to "" to mend it. What is
made is plausible noise and motion, not a recording; it exists to see the node run.
"""

from __future__ import annotations

import array
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Float32, Float32MultiArray, Int16MultiArray

from mmfuse_ros.ros.topics import TOPICS
from mmfuse_ros.samples import CAMERAS, Modality

_AUDIO_HZ = 16000
_AUDIO_CHUNK = 320
_SIGNAL_HZ = 1000
_LOOP_S = 10
_CAMERA_LOOP = 30
_SERVE_S = 0.05


class SensorSim(Node):
    """Publishes the five streams at their rates."""

    def __init__(self) -> None:
        super().__init__("sensor_sim")
        self.declare_parameter("width", 640)
        self.declare_parameter("height", 480)
        self.declare_parameter("camera_hz", 30.0)
        self.declare_parameter("emg_channels", 8)
        self.declare_parameter("seed", 0)
        self.declare_parameter("fault", "")
        rng = np.random.default_rng(self._value("seed"))
        size = (self._value("height"), self._value("width"))
        camera_hz = self._value("camera_hz")
        self._cameras = {
            m: _camera_loop(rng, size, shift) for m, shift in zip(CAMERAS, (0, 40), strict=True)
        }
        self._audio = _audio_loop(rng)
        self._audio_fault = _audio_fault_loop(rng, self._audio)
        self._pressure = _pressure_loop(rng)
        self._emg = _emg_loop(rng, self._value("emg_channels"))
        kinds = (Image, Image, Int16MultiArray, Float32, Float32MultiArray)
        self._out = {
            m: self.create_publisher(kind, TOPICS[m], qos_profile_sensor_data)
            for m, kind in zip(Modality, kinds, strict=True)
        }
        self._schedule: list[tuple[float, Callable[[int], None]]] = [
            (camera_hz, self._send_frames),
            (_AUDIO_HZ / _AUDIO_CHUNK, self._send_audio),
            (_SIGNAL_HZ, self._send_pressure),
            (_SIGNAL_HZ, self._send_emg),
        ]

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _broken(self, modality: Modality) -> bool:
        return bool(self._value("fault") == modality.value)

    def spin(self) -> None:
        """Publish what is due, and serve parameters in between, until shutdown."""
        begun = time.monotonic()
        sent = [0] * len(self._schedule)
        served = 0.0
        while rclpy.ok():
            elapsed = time.monotonic() - begun
            for row, (rate_hz, send) in enumerate(self._schedule):
                while sent[row] < elapsed * rate_hz:
                    send(sent[row])
                    sent[row] += 1
            if elapsed >= served + _SERVE_S:  # a turn of the executor costs as much as 20 messages
                rclpy.spin_once(self, timeout_sec=0.0)
                served = elapsed
            time.sleep(0.0005)

    def _send_frames(self, count: int) -> None:
        # Both cameras are exposed at once, as on a rig with a common trigger.
        stamp = self.get_clock().now().to_msg()
        for modality, loop in self._cameras.items():
            message = loop[len(loop) - 1 if self._broken(modality) else count % (len(loop) - 1)]
            message.header.stamp = stamp
            message.header.frame_id = modality.value
            self._out[modality].publish(message)

    def _send_audio(self, count: int) -> None:
        loop = self._audio_fault if self._broken(Modality.AUDIO) else self._audio
        begin = count * _AUDIO_CHUNK % len(loop)
        message = Int16MultiArray()
        message.data = array.array("h", loop[begin : begin + _AUDIO_CHUNK].tobytes())
        self._out[Modality.AUDIO].publish(message)

    def _send_pressure(self, count: int) -> None:
        value = float(self._pressure[count % len(self._pressure)])
        if self._broken(Modality.PRESSURE):
            value = 4.0 * value + 5.0
        self._out[Modality.PRESSURE].publish(Float32(data=value))

    def _send_emg(self, count: int) -> None:
        row = self._emg[count % len(self._emg)]
        if self._broken(Modality.EMG):
            row = np.zeros_like(row)  # electrodes off: the amplifier's rest
        message = Float32MultiArray()
        message.data = array.array("f", row.tobytes())
        self._out[Modality.EMG].publish(message)


def _camera_loop(rng: np.random.Generator, size: tuple[int, int], shift: int) -> list[Image]:
    """Return one second of a bench scene with a moving arm; the last image is the blocked lens."""
    height, width = size
    coarse = rng.uniform(60, 200, (height // 40 + 1, width // 40 + 1, 3))
    scene = np.kron(coarse, np.ones((40, 40, 1)))[:height, :width]
    rows, columns = np.mgrid[:height, :width]
    messages = []
    for k in range(_CAMERA_LOOP):
        angle = 2 * np.pi * k / _CAMERA_LOOP
        x = width / 2 + shift + width / 4 * np.cos(angle)
        y = height / 2 + height / 4 * np.sin(angle)
        arm = (rows - y) ** 2 + (columns - x) ** 2 < (height / 8) ** 2
        picture = np.where(arm[..., None], (230, 120, 30), scene)
        messages.append(_image(picture + rng.normal(0, 4, picture.shape)))
    messages.append(_image(rng.normal(12, 4, (height, width, 3))))
    return messages


def _image(picture: npt.NDArray[np.float64]) -> Image:
    pixels = picture.clip(0, 255).astype(np.uint8)
    message = Image(encoding="rgb8", height=pixels.shape[0], width=pixels.shape[1])
    message.step = 3 * pixels.shape[1]
    message.data = array.array("B", pixels.tobytes())
    return message


def _audio_loop(rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Return a motor's hum: harmonics of 120 Hz with slow load changes, and broadband noise."""
    t = np.arange(_LOOP_S * _AUDIO_HZ) / _AUDIO_HZ
    load = 1.0 + 0.2 * np.sin(2 * np.pi * t / _LOOP_S)
    hum = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 8))
    wave = 1500 * load * hum + rng.normal(0, 400, len(t))
    return wave.clip(-32768, 32767).astype(np.int16)


def _audio_fault_loop(
    rng: np.random.Generator, normal: npt.NDArray[np.int16]
) -> npt.NDArray[np.int16]:
    """Return the same motor with a chipped bearing: a ringing knock, 37 times a second."""
    t = np.arange(len(normal)) / _AUDIO_HZ
    since = t % (1 / 37)
    knock = 9000 * np.exp(-since * 400) * np.sin(2 * np.pi * 3200 * since)
    return (normal + knock).clip(-32768, 32767).astype(np.int16)


def _pressure_loop(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a grip that closes and opens, newton."""
    t = np.arange(_LOOP_S * _SIGNAL_HZ) / _SIGNAL_HZ
    grip = 2.0 + np.sin(2 * np.pi * t / 2.5)
    return (grip + rng.normal(0, 0.05, len(t))).astype(np.float32)


def _emg_loop(rng: np.random.Generator, channels: int) -> npt.NDArray[np.float32]:
    """Return muscle noise whose strength follows the grip, volt: (samples, channels)."""
    t = np.arange(_LOOP_S * _SIGNAL_HZ) / _SIGNAL_HZ
    effort = 1.2 + np.sin(2 * np.pi * t / 2.5)
    gain = rng.uniform(2e-5, 8e-5, channels)
    noise = rng.normal(0, 1, (len(t), channels))
    return (noise * effort[:, None] * gain).astype(np.float32)


def main(args: list[str] | None = None) -> int:
    """Run the simulated sensors until told to stop."""
    rclpy.init(args=args)
    node: SensorSim | None = None
    try:
        node = SensorSim()
        node.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:  # rclpy's RCLError: a signal has ended the context between two messages
        if rclpy.ok():
            raise
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
