"""The real node and the simulated sensors at full rate, for long, with faults at random.

`make soak`. MMFUSE_SOAK_MINUTES (60), MMFUSE_SOAK_SEED (0), MMFUSE_SOAK_WEIGHTS (`random`:
full-size untrained encoders; `tiny`: for a machine that cannot run those beside the sensors), and
MMFUSE_SOAK_REPORT, a file for the numbers as JSON.
"""

from __future__ import annotations

import array
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from accounts import check_accounts
from harness import NodeProcess, Robot, isolate
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from sensor_msgs.msg import Image
from std_msgs.msg import Float32, Float32MultiArray, Int16MultiArray
from std_srvs.srv import SetBool
from tiny import save_tiny_weights

from mmfuse_ros.errors import MmfuseError
from mmfuse_ros.samples import Modality

MINUTES = float(os.environ.get("MMFUSE_SOAK_MINUTES", "60"))
SEED = int(os.environ.get("MMFUSE_SOAK_SEED", "0"))
RECOVERY_S = 90.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(MINUTES * 60 + 600)]


class Soak:
    """Breaks things one at a time, and watches the node meanwhile."""

    def __init__(self, node, folder):
        self.node = node
        self._folder = folder
        self._random = random.Random(SEED)
        self._robot = Robot()
        self._robot.without = set(Modality)  # it publishes by hand only
        self._watch = self._robot.watch
        self._sims = 0
        self.sims_replaced = 0
        self.sim = None
        self.start_sim()
        self.faults = Counter()
        self.recoveries_s = {}
        self.memory = []
        self.begun = time.monotonic()
        self.checked = 0
        self._seen = float("-inf")

    def start_sim(self):
        self._sims += 1
        self._stalled = False
        log = self._folder / f"sim_{self._sims}.log"
        self.sim = NodeProcess({}, log=log, module="mmfuse_ros.ros.sensor_sim")

    def _replace_sim(self):
        """Sensors that stood still may have gone deaf (see ros/deafness.py); the node is not."""
        self.sims_replaced += 1
        self.sim.stop(signal.SIGKILL)
        self.start_sim()

    def run(self, seconds, until=lambda: False):
        """Watch for so long; every publication of diagnostics has to add up."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._watch.spin_for(0.1)
            assert self.node.process.poll() is None, self.node.text()[-5000:]
            rows = self._watch.diagnostics
            if self._watch.diagnostics_at != self._seen and "worker" in rows:
                self._seen = self._watch.diagnostics_at
                check_accounts(rows)
                self.checked += 1
                state, megabytes = rows["node"][1]["state"], rows["node"][1]["resident_mb"]
                if state == "active":
                    self.memory.append((time.monotonic() - self.begun, float(megabytes)))
            if until():
                return True
        return False

    def recover(self, fault):
        """Wait until embeddings of all streams, and of frames taken from now on, come again."""
        begun = time.monotonic()
        now_ns = self._robot.node.get_clock().now().nanoseconds

        def well():
            newest = self._watch.embeddings[-1][1] if self._watch.embeddings else None
            return (
                newest is not None
                and newest.stamp_ns > now_ns
                and set(newest.modalities) == set(Modality)
            )

        if not self.run(RECOVERY_S, well) and self._stalled:
            self._replace_sim()
        assert well() or self.run(RECOVERY_S, well), (
            fault,
            self._watch.diagnostics,
            self.node.text()[-5000:],
        )
        self.recoveries_s.setdefault(fault, []).append(time.monotonic() - begun)

    def inject(self):
        """Bring about one fault and mend it."""
        choices = [name for name in dir(self) if name.startswith("fault_")]
        name = self._random.choice(choices)
        self.faults[name[6:]] += 1
        getattr(self, name)()
        self.recover(name[6:])

    def _pause(self, low, high):
        self.run(self._random.uniform(low, high))

    def fault_sensors_killed(self):
        self.sim.stop(signal.SIGKILL)
        self._pause(0.5, 4.0)
        self.start_sim()

    def fault_sensors_stall(self):
        self._stalled = True
        self.sim.process.send_signal(signal.SIGSTOP)
        self._pause(0.2, 3.0)
        self.sim.process.send_signal(signal.SIGCONT)

    def fault_node_stalls(self):
        self.node.process.send_signal(signal.SIGSTOP)
        time.sleep(self._random.uniform(0.1, 3.0))
        self.node.process.send_signal(signal.SIGCONT)

    def fault_sensor_breaks(self):
        stream = self._random.choice([m.value for m in Modality])
        for fault in (stream, ""):
            try:
                self._watch.set_text("sensor_sim", "fault", fault, timeout_s=30)
            except MmfuseError:
                assert self._stalled, self.sim.text()
                self._replace_sim()
                return
            self._pause(0.5, 4.0)

    def fault_garbage(self):
        nan = array.array("f", [float("nan")] * 8)
        cases = [
            (Modality.CAMERA_1, Image(encoding="rgb8", height=10, width=10, step=1)),
            (Modality.CAMERA_2, Image(encoding="32FC9")),
            (Modality.AUDIO, Int16MultiArray()),
            (Modality.PRESSURE, Float32(data=float("inf"))),
            (Modality.EMG, Float32MultiArray(data=nan)),
            (Modality.EMG, Float32MultiArray(data=array.array("f", [1.0] * 3))),
        ]
        for modality, message in self._random.choices(cases, k=20):
            self._robot.send(modality, message)
        self._pause(0.1, 1.0)

    def fault_wrong_stamps(self):
        now_ns = self._robot.node.get_clock().now().nanoseconds
        for offset_s in self._random.choices((-3600, -4, -0.5, 0, 0.5, 10, 3600), k=10):
            camera = self._random.choice((Modality.CAMERA_1, Modality.CAMERA_2))
            stamp_ns = max(0, now_ns + round(offset_s * 1e9))
            self._robot.send_frame(camera, self._random.choice((0, stamp_ns)))
            self._pause(0.0, 0.1)

    def fault_huge_message(self):
        data = array.array("f", bytes(100_000_000))
        self._robot.send(Modality.EMG, Float32MultiArray(data=data))

    def fault_services(self):
        for service in self._random.choices(("reset", "set_baseline", "clear_baseline"), k=5):
            self._ask(lambda s=service: self._watch.call(s))

    def fault_disabled(self):
        for data in (False, True):
            request = SetBool.Request(data=data)
            self._ask(lambda r=request: self._watch.ask(SetBool, "mmfuse/enable", r, 30))
            self._pause(0.2, 2.0)

    def fault_transitions(self):
        steps = [Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE]
        if self._random.random() < 0.25:
            steps[1:1] = [Transition.TRANSITION_CLEANUP, Transition.TRANSITION_CONFIGURE]
        for step in steps:
            request = ChangeState.Request(transition=Transition(id=step))
            answer = self._ask(
                lambda r=request: self._watch.ask(ChangeState, "mmfuse/change_state", r, 180)
            )
            assert answer.success, (step, self.node.text()[-3000:])

    def _ask(self, request):
        try:
            return request()
        except MmfuseError as error:
            raise AssertionError((str(error), self.node.text()[-3000:])) from error

    def report(self):
        """Return the numbers of the run."""
        times, sizes = np.array(self.memory).T
        late = times > 0.2 * times[-1]  # allocators and caches fill at first
        slope = np.polyfit(times[late], sizes[late], 1)[0] * 3600
        thirds = np.array_split(sizes[late], 3)
        rows = self._watch.diagnostics
        return {
            "minutes": round((time.monotonic() - self.begun) / 60, 1),
            "weights": os.environ.get("MMFUSE_SOAK_WEIGHTS", "random"),
            "seed": SEED,
            "faults": dict(self.faults),
            "embeddings": len(self._watch.embeddings),
            "sensors_replaced": self.sims_replaced,
            "started_anew": self.node.text().count("must be started anew"),
            "publications_checked": self.checked,
            "recovery_s": {
                k: {"median": round(float(np.median(v)), 2), "max": round(max(v), 2)}
                for k, v in self.recoveries_s.items()
            },
            "resident_mb": {
                "first": float(np.median(thirds[0])),
                "last": float(np.median(thirds[2])),
                "spread": float(np.percentile(sizes[late], 95) - np.percentile(sizes[late], 5)),
                "slope_per_hour": round(float(slope), 1),
                "by_minute": self._by_minute(times, sizes),
            },
            "threads": threads_of(self.node),
            "files": len(os.listdir(f"/proc/{self.node.process.pid}/fd")),
            "input_hz": {m: rows[f"input {m}"][1]["rate_hz"] for m in Modality},
            "since_activation": {
                name: {
                    key: int(value)
                    for key, value in rows[name][1].items()
                    if key.startswith(("dropped", "rejected", "discarded", "missing", "lost"))
                    or key
                    in ("messages", "accepted", "received", "used", "windows", "submitted", "done")
                }
                for name in (*(f"input {m}" for m in Modality), "sync", "worker")
            },
        }

    def _by_minute(self, times, sizes):
        minutes = (times // 60).astype(int)
        return [round(float(np.median(sizes[minutes == m]))) for m in np.unique(minutes)]

    def close(self):
        self.sim.process.send_signal(signal.SIGCONT)
        self.sim.stop()
        self._robot.close()


def test_soak(tmp_path):
    isolate(199)
    given = {"anomaly.method": "cosine", "anomaly.baseline_windows": 20}
    if os.environ.get("MMFUSE_SOAK_WEIGHTS", "random") == "tiny":
        vision, audio = save_tiny_weights(tmp_path)
        given |= {"model.vision": str(vision), "model.audio": str(audio)}
    else:
        given["model.weights"] = "random"
    node = NodeProcess(given, log=tmp_path / "node.log")
    soak = Soak(node, tmp_path)
    try:
        soak.recover("start")
        threads = threads_of(node)
        while time.monotonic() - soak.begun < MINUTES * 60:
            soak.run(soak._random.uniform(2.0, 10.0))
            soak.inject()
        soak.run(5.0)
        report = soak.report()
        text = json.dumps(report, indent=1)
        print(text)
        if os.environ.get("MMFUSE_SOAK_REPORT"):
            Path(os.environ["MMFUSE_SOAK_REPORT"]).write_text(text)
        assert soak.checked > MINUTES * 30
        memory = report["resident_mb"]
        assert memory["last"] - memory["first"] < max(30.0, 2 * memory["spread"]), memory
        assert threads_of(node) <= threads + 2
    finally:
        node.process.send_signal(signal.SIGCONT)
        soak.close()
        code, _ = node.stop(timeout_s=30)
    assert code == 0, node.text()[-5000:]


def threads_of(node):
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    return int(status.partition("Threads:")[2].split()[0])
