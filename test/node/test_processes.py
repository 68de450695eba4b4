"""The node as a process: signals at any moment, crashes and what survives them, its clock."""

from __future__ import annotations

import json
import os
import resource
import signal
import time

import numpy as np
import pytest
import rclpy
from accounts import Fault, check_accounts
from harness import NodeProcess, Robot
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rosgraph_msgs.msg import Clock

from mmfuse_ros.cli.checks import transport
from mmfuse_ros.ros import sensor_sim
from mmfuse_ros.ros.embedding import to_time
from mmfuse_ros.ros.sensor_sim import SensorSim
from mmfuse_ros.samples import NS_PER_S, Modality

EVERYTHING = set(Modality)
CAMERAS = (Modality.CAMERA_1, Modality.CAMERA_2)


@pytest.fixture
def light(parameters):
    return {**parameters, "anomaly.method": "cosine", "emg.rate_hz": 200.0, "audio.period_s": 0.25}


@pytest.fixture
def robot(domain):
    made = Robot(emg_hz=200)
    yield made
    made.close()


def wait_for(condition, within_s):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def group_is_empty(process):
    """Return whether no process of a node's session is left."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_the_model_is_loaded(domain, tmp_path, how):
    """Full-size random weights take seconds to make; nothing waits for them."""
    given = {"model.weights": "random", "model.preset": "high_capacity"}
    node = NodeProcess(given, log=tmp_path / "log")
    try:
        assert wait_for(lambda: "loading the" in node.text(), 60), node.text()
        code, seconds = node.stop(how, timeout_s=30)
    finally:
        node.stop(signal.SIGKILL)
    assert code == 0, node.text()
    assert "model ready" not in node.text()
    assert "Traceback" not in node.text()
    assert group_is_empty(node.process)
    print(f"{how.name} while loading: {seconds:.2f} s")


def test_a_killed_node_leaves_no_process_and_its_memory_is_reported(domain, tmp_path):
    node = NodeProcess({"model.weights": "random"}, log=tmp_path / "log")
    assert wait_for(lambda: "loading the" in node.text(), 60), node.text()
    node.stop(signal.SIGKILL)
    assert group_is_empty(node.process)
    found = list(transport.shared_memory())
    assert any("of ended processes" in f.found and "shm clean" in f.remedy for f in found), found


def test_a_node_that_went_deaf_is_started_anew(domain, light, robot, tmp_path):
    """Silence is a double here: Fast DDS cuts a process off now and then only."""
    node = NodeProcess(light, log=tmp_path / "log")
    try:
        assert robot.run(60, until=lambda: robot.mask() == EVERYTHING), node.text()
        node.process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        node.process.send_signal(signal.SIGCONT)
        fault = Fault(robot, "node goes deaf", "stopped for 1.5 s, then no stream arrives")
        assert wait_for(lambda: "must be started anew" in node.text(), 20), node.text()
        fault.detected(lambda: True)
        robot.watch.spin_for(1.0)  # what the first process published
        robot.watch.embeddings.clear()
        fault.mended(lambda: robot.mask() == EVERYTHING)
        assert robot.run(10, until=lambda: robot.row("node")[0] == 0)
        fault.write("starts anew in the same process, as after a crash", "what was sent meanwhile")
        assert node.text().count("must be started anew") == 1
        assert node.stop()[0] == 0
    finally:
        node.stop()


def test_a_crash_keeps_the_baseline(domain, light, robot, tmp_path):
    """Gathered, saved, killed, started again by the same parameters, as a respawn does."""
    path = tmp_path / "baseline"
    given = {**light, "anomaly.calibration": str(path), "anomaly.baseline_windows": 5}
    first = NodeProcess(given, log=tmp_path / "first.log")
    second = None
    try:
        assert robot.run(60, until=lambda: robot.mask() == EVERYTHING), first.text()
        assert "does not exist yet" in first.text()
        assert np.isnan(robot.latest().score)
        assert "will replace the file" in robot.watch.call("set_baseline")
        assert robot.run(30, until=lambda: np.isfinite(robot.latest().score)), first.text()
        assert robot.run(10, until=lambda: calibration_id(robot) != "")
        kept, was = path.read_bytes(), calibration_id(robot)

        fault = Fault(robot, "full disk while a baseline is saved", "RLIMIT_FSIZE of 100 bytes")
        limit = resource.prlimit(first.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(first.process.pid, resource.RLIMIT_FSIZE, (100, limit[1]))
        robot.watch.call("set_baseline")
        fault.detected(lambda: "could not be saved" in robot.row("node")[2])
        resource.prlimit(first.process.pid, resource.RLIMIT_FSIZE, limit)
        assert robot.row("node")[0] == 1
        assert path.read_bytes() == kept
        assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []
        robot.watch.call("set_baseline")
        fault.mended(lambda: robot.row("node")[0] == 0 and path.read_bytes() != kept)
        fault.write("WARN with the cause; the new baseline is used, the old file whole", "nothing")
        assert robot.run(20, until=lambda: calibration_id(robot) not in ("", was))
        was = calibration_id(robot)

        fault = Fault(robot, "node killed", "SIGKILL, then started again as by respawn")
        first.stop(signal.SIGKILL)
        assert group_is_empty(first.process)
        robot.watch.embeddings.clear()
        robot.watch.info = ""
        second = NodeProcess(given, log=tmp_path / "second.log")
        fault.mended(
            lambda: bool(robot.watch.embeddings) and np.isfinite(robot.latest().score), 60
        )
        assert robot.run(20, until=lambda: bool(robot.watch.info))
        assert calibration_id(robot) == was
        fault.write("the new process loads the baseline", "what was sent meanwhile")
        code, seconds = second.stop(signal.SIGTERM)
        assert code == 0, second.text()
        print(f"SIGTERM while active: {seconds:.2f} s")
    finally:
        for node in (first, second):
            if node is not None:
                node.stop()


def calibration_id(robot):
    return json.loads(robot.watch.info)["calibration_id"] if robot.watch.info else ""


class SimulatedTime:
    """Drives a robot by a clock that a test moves; `run` ticks it 100 times a second."""

    def __init__(self, robot):
        self._robot = robot
        self.watch = robot.watch
        self._clock = robot.node.create_publisher(Clock, "/clock", 10)
        self.now_ns = 1_000_000 * NS_PER_S
        self.runs = True
        self.sensors = True
        self._ticks = 0

    def fresh(self):
        """Return whether the newest windows are of the simulated time and whole."""
        stamps = [e.stamp_ns for _, e in list(self.watch.embeddings)[-3:]]
        near = all(abs(self.now_ns - s) < 5 * NS_PER_S for s in stamps)
        return len(stamps) == 3 and near and self._robot.mask() == EVERYTHING

    def run(self, seconds, until):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            due = time.monotonic() + 0.01
            self._ticks += 1
            self.now_ns += 10_000_000 if self.runs else 0
            self._clock.publish(Clock(clock=to_time(self.now_ns)))
            if self.sensors:
                self._robot.without = set(CAMERAS)
                self._robot.tick()
                for camera in CAMERAS if self._ticks % 5 == 0 else ():
                    self._robot.send_frame(camera, self.now_ns)
            self._robot.watch.spin_for(max(0.001, due - time.monotonic()))
            if until():
                return True
        return False


def test_simulated_time_jumps_and_stands(domain, light, robot, tmp_path):
    node = NodeProcess({**light, "use_sim_time": True}, log=tmp_path / "log")
    simulated = SimulatedTime(robot)
    fresh = simulated.fresh
    try:
        assert simulated.run(60, fresh), node.text()
        for name, jump_s in (("an hour ahead", 3600), ("two hours back", -7200)):
            fault = Fault(simulated, f"the clock jumps {name}", "/clock, and the stamps with it")
            epoch = int(robot.row("sync")[1]["epoch"])
            simulated.now_ns += jump_s * NS_PER_S
            fault.mended(fresh, 30)
            assert simulated.run(10, lambda e=epoch: int(robot.row("sync")[1]["epoch"]) > e)
            fault.write("empties the buffers, a new epoch; no window mixes two", "`dropped_reset`")

        fault = Fault(simulated, "/clock and all sensors stand", "nothing is published")
        simulated.runs = simulated.sensors = False
        fault.detected(lambda: all("silent" in robot.row(f"input {m}")[2] for m in Modality))
        simulated.runs = simulated.sensors = True
        fault.mended(lambda: robot.row("input camera_1")[0] == 0 and fresh(), 30)
        fault.write("ERROR by the steady clock", "nothing to lose")

        simulated.runs = False  # the sensors go on: their stamps stand, too
        assert simulated.run(20, lambda: "stamps repeat" in robot.row("input camera_1")[2])
        assert simulated.run(20, lambda: "a clock that stands still" in robot.row("input emg")[2])
        simulated.runs = True
        assert simulated.run(30, lambda: robot.row("input camera_1")[0] == 0 and fresh())
        check_accounts(robot.watch.diagnostics)
    finally:
        node.stop()


def test_simulated_time_can_be_switched_on_while_active(domain, light, robot, tmp_path):
    node = NodeProcess(light, log=tmp_path / "log")
    simulated = SimulatedTime(robot)
    value = ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=True)
    request = SetParameters.Request(parameters=[Parameter(name="use_sim_time", value=value)])
    try:
        assert robot.run(60, until=lambda: robot.mask() == EVERYTHING), node.text()
        (result,) = robot.watch.ask(SetParameters, "mmfuse/set_parameters", request, 20).results
        assert result.successful, result.reason
        assert simulated.run(30, simulated.fresh), (robot.watch.diagnostics, node.text())
    finally:
        node.stop()


STUCK = """
import sys, time
from mmfuse_ros.pipeline import Pipeline
from mmfuse_ros.ros import node

def run(self, window):
    print("a window begins", flush=True)
    time.sleep(60)

Pipeline.run = run
sys.exit(node.main())
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_a_window_hangs(domain, light, robot, tmp_path, monkeypatch, how):
    (tmp_path / "stuck_node.py").write_text(STUCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    node = NodeProcess(light, log=tmp_path / "log", module="stuck_node")
    try:
        assert robot.run(60, until=lambda: "a window begins" in node.text()), node.text()
        code, seconds = node.stop(how)
    finally:
        node.stop(signal.SIGKILL)
    assert code == 0, node.text()
    assert seconds < 3.0
    assert "Traceback" not in node.text()
    print(f"{how.name} while a window hangs: {seconds:.2f} s")


def test_sensors_that_are_told_to_stop_while_they_publish(domain, monkeypatch):
    """The signal's handler ends the context between two messages; the next publish raises."""
    send = SensorSim._send_audio

    def told_to_stop(self, count):
        rclpy.shutdown()
        send(self, count)
        pytest.fail("nothing can be published any more")

    monkeypatch.setattr(SensorSim, "_send_audio", told_to_stop)
    assert sensor_sim.main([]) == 0
