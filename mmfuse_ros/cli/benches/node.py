"""The node as a process of its own under full sensor load through DDS, seen from outside."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfuse_ros.cli.benches.load import CAMERA_SIZE
from mmfuse_ros.cli.processes import Processes, ros_environment
from mmfuse_ros.errors import MmfuseError
from mmfuse_ros.memory import resident_mb
from mmfuse_ros.samples import Modality

if TYPE_CHECKING:
    from mmfuse_ros.ros.watch import Watch

# Messages per second of each stream that sensor_sim publishes.
EXPECTED_HZ = {"camera_1": 30.0, "camera_2": 30.0, "audio": 50.0, "pressure": 1e3, "emg": 1e3}
_START_TIMEOUT_S = 180.0
_MEMORY_PERIOD_S = 1.0


@dataclass(frozen=True)
class NodeCase:
    """One run of the node.

    Attributes:
        seconds: measured, after `settle_s` of the same load.
        parameters: of the node, by dotted name.
    """

    seconds: float
    settle_s: float
    parameters: dict[str, Any]
    camera_hz: float = 30.0


def measure_node(case: NodeCase) -> dict[str, Any]:
    """Return rates, losses, ages, processor time by thread and the course of memory.

    Raises:
        MmfuseError: no embedding came in time; the node's last words are in it.
    """
    import rclpy

    from mmfuse_ros.ros.watch import Watch

    env = ros_environment()
    env["ROS_DOMAIN_ID"] = str(random.SystemRandom().randint(2, 99))
    os.environ.update(env)
    rclpy.init()
    watch = Watch()
    try:
        with Processes(env) as processes:
            return _measure(case, processes, watch)
    finally:
        watch.close()
        rclpy.try_shutdown()


def _measure(case: NodeCase, processes: Processes, watch: Watch) -> dict[str, Any]:
    height, width = CAMERA_SIZE
    sim = {"width": width, "height": height, "camera_hz": case.camera_hz}
    begun = time.monotonic()
    processes.start("node", "mmfuse_ros.ros.node", _arguments(case.parameters))
    processes.start("sensors", "mmfuse_ros.ros.sensor_sim", _arguments(sim))
    while not watch.embeddings:
        watch.spin_for(0.1)
        if processes.died() or time.monotonic() - begun > _START_TIMEOUT_S:
            raise MmfuseError(
                f"{processes.died() or 'node'} must publish an embedding within "
                f"{_START_TIMEOUT_S:g} s; its last words:\n{processes.log('node')}"
            )
    start_s = time.monotonic() - begun
    watch.spin_for(case.settle_s)
    pid = processes.pid("node")
    first = _Look(watch, pid)
    memory = [(0.0, resident_mb(pid))]
    while (elapsed := time.monotonic() - first.at) < case.seconds:
        watch.spin_for(min(_MEMORY_PERIOD_S, case.seconds - elapsed))
        memory.append((time.monotonic() - first.at, resident_mb(pid)))
    second = _Look(watch, pid)
    return {
        "parameters": case.parameters,
        "seconds": second.at - first.at,
        "first_embedding_s": start_s,
        "info": json.loads(watch.info) if watch.info else {},
        "load_average": os.getloadavg()[0],
        **_compare(first, second, watch),
        "memory": slope(memory),
    }


class _Look:
    """What is known of the node at one moment."""

    def __init__(self, watch: Watch, pid: int) -> None:
        self.at = time.monotonic()
        self.cpu_s = thread_seconds(pid)
        self.embeddings = len(watch.embeddings)
        self.ages = len(watch.ages_s)
        self.inputs = {
            m.value: watch.diagnostics.get(f"input {m}", (0, {}, ""))[1] for m in Modality
        }
        self.input_at = watch.diagnostics_at
        self.worker = watch.diagnostics.get("worker", (0, {}, ""))[1]


def _compare(first: _Look, second: _Look, watch: Watch) -> dict[str, Any]:
    span = second.at - first.at
    ages_ms = np.array(list(watch.ages_s)[first.ages : second.ages]) * 1e3
    # Diagnostics are published once a second: their own interval is the one that counts.
    input_span = second.input_at - first.input_at
    received, lost, short = {}, {}, {}
    for name, expected_hz in EXPECTED_HZ.items():
        before, after = first.inputs[name], second.inputs[name]
        count = int(after.get("messages", 0)) - int(before.get("messages", 0))
        received[name] = count / input_span if input_span > 0 else float("nan")
        gone = _lost(after) - _lost(before)
        lost[name] = gone / max(1.0, count + gone)
        short[name] = 1.0 - received[name] / expected_hz
    cpu = {
        name: (seconds - first.cpu_s.get(name, 0.0)) / span
        for name, seconds in second.cpu_s.items()
    }
    return {
        "embeddings_hz": (second.embeddings - first.embeddings) / span,
        "age_ms": {
            f"p{q}": float(np.percentile(ages_ms, q)) if len(ages_ms) else float("nan")
            for q in (50, 95, 99)
        },
        "received_hz": received,
        "lost_share": lost,
        "short_share": short,
        "worst_loss": float(np.max(list(lost.values()))),
        "cpu_cores": {n: c for n, c in sorted(cpu.items(), key=lambda x: -x[1]) if c >= 0.001},
        "ros_cpu_cores": sum(c for n, c in cpu.items() if n == "ros" or n.startswith("dds")),
        "worker": second.worker,
    }


def _lost(values: dict[str, str]) -> float:
    """Return the messages that never came, NaN where the transport cannot tell."""
    text = values.get("lost_by_transport", "0")
    return float("nan") if text == "unknown" else float(text)


def thread_seconds(pid: int) -> dict[str, float]:
    """Return the processor seconds of a process' threads by name; "ros" is its first thread."""
    tick = os.sysconf("SC_CLK_TCK")
    seconds: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (task / "stat").read_text()
        except OSError:  # the thread has ended
            continue
        # The name stands in parentheses and may hold anything, also parentheses.
        name, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()
        name = "ros" if task.name == str(pid) else name.rstrip("0123456789.")
        spent = (int(fields[11]) + int(fields[12])) / tick
        seconds[name] = seconds.get(name, 0.0) + spent
    return seconds


def slope(memory: list[tuple[float, float]]) -> dict[str, float]:
    """Return first, last and greatest of (seconds, MiB) rows, and their slope in MiB a minute."""
    rows = np.array(memory)
    steep = float(np.polyfit(rows[:, 0], rows[:, 1], 1)[0]) * 60.0 if len(rows) > 2 else 0.0
    return {
        "first_mb": float(rows[0, 1]),
        "last_mb": float(rows[-1, 1]),
        "peak_mb": float(rows[:, 1].max()),
        "slope_mb_per_min": steep,
    }


def _arguments(parameters: dict[str, Any]) -> list[str]:
    words = ["--ros-args"]
    for name, value in parameters.items():
        words += ["-p", f"{name}:={json.dumps(value)}"]
    return words
