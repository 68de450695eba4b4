"""The node inside this process: transitions in every order, and doubles that fail on purpose."""

from __future__ import annotations

import gc
import statistics
import threading
import time

import pytest
import rclpy
import torch
from accounts import Fault, check_accounts
from harness import Robot, end
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import String

import mmfuse_ros.pipeline
from mmfuse_ros.memory import resident_mb
from mmfuse_ros.ros.node import FusionNode
from mmfuse_ros.ros.polling import take_all
from mmfuse_ros.samples import Modality

EVERYTHING = set(Modality)
CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE
SHUTDOWN = {
    State.PRIMARY_STATE_UNCONFIGURED: Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
    State.PRIMARY_STATE_INACTIVE: Transition.TRANSITION_INACTIVE_SHUTDOWN,
    State.PRIMARY_STATE_ACTIVE: Transition.TRANSITION_ACTIVE_SHUTDOWN,
}
UNCONFIGURED, INACTIVE, ACTIVE = SHUTDOWN


class Host:
    """Nodes in this process, each spun by an executor on a thread of its own."""

    def __init__(self, parameters):
        self.context = Context()
        rclpy.init(context=self.context)
        self._parameters = parameters
        self._running = []
        self._stop = threading.Event()

    def add(self, namespace="", **more):
        given = {**self._parameters, **{k.replace("__", "."): v for k, v in more.items()}}
        node = FusionNode(
            context=self.context,
            namespace=namespace,
            parameter_overrides=[Parameter(name, value=v) for name, v in given.items()],
        )
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(node)
        thread = threading.Thread(target=self._spin, args=(node, executor), daemon=True)
        thread.start()
        self._running.append((node, executor, thread))
        return node

    def _spin(self, node, executor):
        while not self._stop.is_set():
            try:
                executor.spin_once(timeout_sec=0.1)
            except Exception as error:  # as the node's own main does
                node.report(error)

    def close(self):
        self._stop.set()
        for node, executor, thread in self._running:
            thread.join(30)
            node.close()
            executor.shutdown(timeout_sec=1.0)
            node.destroy_node()
        end(self.context)


@pytest.fixture(scope="module")
def light(parameters):
    return {
        **parameters,
        "anomaly.method": "cosine",
        "emg.rate_hz": 200.0,
        "model.backend": "torch",
    }


@pytest.fixture
def host(domain, light):
    made = Host(light)
    yield made
    made.close()


@pytest.fixture
def robot(domain):
    made = Robot(emg_hz=200)
    yield made
    made.close()


@pytest.fixture
def live(host, robot):
    node = host.add()
    assert robot.run(60, until=lambda: robot.mask() == EVERYTHING), robot.watch.diagnostics
    return node


def change(robot, transition, name="mmfuse"):
    """Ask for a transition, as `ros2 lifecycle set` does; return whether it succeeded."""
    request = ChangeState.Request(transition=Transition(id=transition))
    return robot.watch.ask(ChangeState, f"{name}/change_state", request, 60).success


def state_of(node):
    return node._state_machine.current_state[0]


def test_transitions_in_every_order(host, robot):
    node = host.add(autostart=False)
    allowed = {
        UNCONFIGURED: {CONFIGURE: INACTIVE},
        INACTIVE: {ACTIVATE: ACTIVE, CLEANUP: UNCONFIGURED},
        ACTIVE: {DEACTIVATE: INACTIVE},
    }
    way = [CONFIGURE, ACTIVATE, DEACTIVATE, ACTIVATE, DEACTIVATE, CLEANUP, CONFIGURE]
    for step in way:
        here = state_of(node)
        for other in {CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE} - set(allowed[here]):
            assert not change(robot, other), (here, other)
            assert state_of(node) == here
        assert change(robot, step)
        assert state_of(node) == allowed[here][step]
        robot.run(0.1)  # data arrives in every state
    assert robot.run(10, until=lambda: robot.row("node")[2] == "inactive")
    assert change(robot, SHUTDOWN[INACTIVE])
    assert state_of(node) == State.PRIMARY_STATE_FINALIZED
    for step in (CONFIGURE, ACTIVATE, DEACTIVATE, CLEANUP):
        assert not change(robot, step)
    assert robot.run(10, until=lambda: robot.row("node")[2] == "finalized")
    assert node.engine is None


def cycles(robot, node, count):
    """Go round `count` times from unconfigured; return resident MiB and threads after each."""
    sizes = []
    for _ in range(count):
        for step in (CONFIGURE, ACTIVATE):
            assert change(robot, step)
        robot.watch.embeddings.clear()
        assert robot.run(30, until=lambda: bool(robot.watch.embeddings))
        for step in (DEACTIVATE, CLEANUP):
            assert change(robot, step)
        gc.collect()
        sizes.append((resident_mb(), threading.active_count()))
    return sizes


def test_cycles_leave_nothing_behind(host, robot):
    node = host.add(autostart=False)
    cycles(robot, node, 1)
    entities = len(node._managed_entities), len(list(node.subscriptions)), len(list(node.timers))
    publishers = len(list(node.publishers))
    sizes = cycles(robot, node, 4)
    assert len({threads for _, threads in sizes}) == 1
    assert entities == (
        len(node._managed_entities),
        len(list(node.subscriptions)),
        len(list(node.timers)),
    )
    assert publishers == len(list(node.publishers))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_cycles_with_flat_memory(host, robot):
    node = host.add(autostart=False)
    sizes = cycles(robot, node, 50)
    # One size varies by 15 MiB up and down, over 300 cycles too, in which the medians stay.
    first, last = (statistics.median(mb for mb, _ in part) for part in (sizes[10:20], sizes[40:]))
    growth_mb = last - first
    print(f"from cycles 10..20 to 40..50: {growth_mb:+.1f} MiB, threads {sizes[0][1]}")
    assert growth_mb < 20
    assert len({threads for _, threads in sizes}) == 1


def test_a_node_that_cannot_be_configured_is_put_right(host, robot, light, tmp_path):
    """Weights cut off midway: named, released, and the same node starts on whole ones."""
    import shutil

    whole = light["model.vision"]
    broken = tmp_path / "vision"
    shutil.copytree(whole, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    node = host.add(model__vision=str(broken))
    fault = Fault(robot, "unreadable weights", "safetensors cut off midway")
    fault.detected(lambda: "vision" in robot.row("node")[2] and robot.row("node")[0] == 2)
    assert state_of(node) == UNCONFIGURED
    assert node.engine is None
    (result,) = node.set_parameters([Parameter("model.vision", value=whole)])
    assert result.successful, result.reason
    assert change(robot, CONFIGURE)
    assert change(robot, ACTIVATE)
    fault.mended(lambda: robot.mask() == EVERYTHING and robot.row("node")[0] == 0)
    fault.write("stays up, unconfigured, ERROR with the cause", "nothing to lose")


def test_a_half_done_activation_is_undone(host, robot, monkeypatch):
    node = host.add(autostart=False)
    assert change(robot, CONFIGURE)
    threads = threading.active_count()
    monkeypatch.setattr("mmfuse_ros.ros.node.Input", _double_that_fails)
    assert not change(robot, ACTIVATE)
    assert state_of(node) == INACTIVE
    assert node.worker is None
    assert threading.active_count() == threads
    assert robot.run(10, until=lambda: "no such driver" in robot.row("node")[2])
    monkeypatch.undo()
    assert change(robot, ACTIVATE)
    assert robot.run(30, until=lambda: robot.mask() == EVERYTHING and robot.row("node")[0] == 0)


def test_a_window_that_does_not_end_keeps_the_model(live, robot, monkeypatch):
    """The streams stop, the model is not freed under it, and its late result is not published."""
    real, release = live.engine.window, threading.Event()
    blocked = threading.Event()

    def window(*arguments):
        blocked.set()
        release.wait(60)
        return real(*arguments)

    monkeypatch.setattr(live.engine, "window", window)
    try:
        assert robot.run(10, until=blocked.is_set)
        worker = live.worker
        assert not change(robot, DEACTIVATE)
        assert state_of(live) == ACTIVE
        assert live.worker is worker
        assert live.busy
        assert robot.run(10, until=lambda: "must end within 2 s" in robot.row("node")[2])
        assert robot.row("node")[0] == 2
        assert not live.close()
        assert live.engine is not None
        seen = len(robot.watch.embeddings)
    finally:
        release.set()
    assert robot.run(10, until=lambda: not worker._thread.is_alive())
    assert change(robot, DEACTIVATE)
    robot.run(0.5)
    assert len(robot.watch.embeddings) == seen
    assert not live.busy
    monkeypatch.undo()
    assert change(robot, ACTIVATE)
    assert robot.run(30, until=lambda: len(robot.watch.embeddings) > seen)
    assert robot.run(10, until=lambda: robot.row("node")[0] == 0)


def test_a_stream_that_does_not_end_well_does_not_keep_the_others(live, robot, monkeypatch):
    monkeypatch.setattr(live._inputs[Modality.CAMERA_1], "destroy", _double_that_fails)
    others = [s for m, s in live._inputs.items() if m is not Modality.CAMERA_1]
    assert change(robot, DEACTIVATE)
    assert state_of(live) == INACTIVE
    assert live.worker is None
    assert not any(s.subscription in list(live.subscriptions) for s in others)


def test_a_signals_fault_is_not_the_cameras(live, robot, monkeypatch):
    """A signal is read within a camera's callback; what it raises stays with the signal."""
    camera, emg = live._inputs[Modality.CAMERA_1], live._inputs[Modality.EMG]
    monkeypatch.setattr(emg, "_convert", _double_that_fails)
    assert robot.run(10, until=lambda: emg.rejected["error"] > 100)
    robot.watch.embeddings.clear()
    assert robot.run(10, until=lambda: robot.mask() == EVERYTHING - {Modality.EMG})
    assert camera.rejected.total() == 0
    assert robot.run(10, until=lambda: "no such driver" in robot.row("input emg")[2])
    assert robot.row("node")[0] == 0
    monkeypatch.undo()

    def no_message(subscription, limit):
        raise RuntimeError("failed to take message")  # as rclpy's RCLError
        yield

    monkeypatch.setattr("mmfuse_ros.ros.inputs.take_all", no_message)
    assert robot.run(10, until=lambda: emg.rejected["undecodable"] > 10)
    monkeypatch.undo()
    robot.watch.embeddings.clear()
    assert robot.run(10, until=lambda: robot.mask() == EVERYTHING)
    assert camera.rejected.total() == 0
    assert robot.run(10, until=lambda: robot.row("input emg")[0] == 0)
    check_accounts(robot.watch.diagnostics)


def test_qos_of_phase_and_diagnostics_can_be_overridden(host, robot):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    robot.node.create_publisher(String, "phase", latched).publish(String(data="pour"))
    overrides = {
        "qos_overrides./phase.subscription.durability": "transient_local",
        "qos_overrides./diagnostics.publisher.depth": 3,
    }
    node = host.add(**overrides)
    assert robot.run(30, until=lambda: node._phase == "pour"), robot.watch.diagnostics
    assert node.get_parameter("qos_overrides./diagnostics.publisher.depth").value == 3
    for step in (DEACTIVATE, ACTIVATE):
        assert change(robot, step)


def test_a_transport_without_sequence_numbers_is_said(live, robot, monkeypatch):
    assert robot.run(10, until=lambda: robot.row("input emg")[1].get("lost_by_transport") == "0")
    monkeypatch.setattr("mmfuse_ros.ros.inputs.take_all", _without_info)
    assert robot.run(10, until=lambda: robot.row("input emg")[1]["lost_by_transport"] == "unknown")
    assert robot.run(20, until=lambda: robot.row("input emg")[0] == 0)
    assert robot.row("input camera_1")[1]["lost_by_transport"] == "0"
    near = pytest.approx(200, rel=0.3)
    assert robot.run(20, until=lambda: float(robot.row("input emg")[1]["arrival_hz"]) == near)


def _without_info(subscription, limit):
    """As Humble's rclpy, which passes no info."""
    return ((message, {}) for message, _ in take_all(subscription, limit))


def _double_that_fails(*arguments):
    raise OSError("no such driver")


def test_parameters_before_configure_are_judged_together(host, robot):
    node = host.add(autostart=False, anomaly__debounce_k=5)  # above debounce_n: no valid start
    (result,) = node.set_parameters([Parameter("anomaly.debounce_n", value=9)])
    assert result.successful, result.reason
    (result,) = node.set_parameters([Parameter("anomaly.debounce_k", value=8)])
    assert result.successful, result.reason
    (result,) = node.set_parameters([Parameter("anomaly.debounce_k", value=10)])
    assert "must be at most anomaly.debounce_n (9), got 10" in result.reason
    assert change(robot, CONFIGURE)
    assert node.config.anomaly.debounce_k == 8


STAGES = ("decode", "model", "features", "anomaly", "publish")


class Broken:
    """A double in place of one stage of a node's worker: it raises while `failures` lasts."""

    def __init__(self, real, stage):
        self._real = real
        self._text = f"double of the stage {stage}"
        self.failures = 0

    def __call__(self, *arguments, **named):
        if self.failures:
            self.failures -= 1
            raise RuntimeError(self._text)
        return self._real(*arguments, **named)


def break_stage(node, stage, monkeypatch):
    place, name = {
        "decode": (mmfuse_ros.pipeline, "_decode"),
        "model": (node.engine, "window"),
        "features": (mmfuse_ros.pipeline, "plain_features"),
        "anomaly": (node.monitor, "observe"),
        "publish": (node._outputs, "publish"),
    }[stage]
    double = Broken(getattr(place, name), stage)
    monkeypatch.setattr(place, name, double)
    return double


def test_the_worker_fails_in_every_stage(live, robot, monkeypatch):
    for stage in STAGES:
        text = f"double of the stage {stage}"
        double = break_stage(live, stage, monkeypatch)
        failed = live.worker.dropped["failed"]
        double.failures = 1
        seen = len(robot.watch.embeddings)
        assert robot.run(20, until=lambda f=failed: live.worker.dropped["failed"] == f + 1)
        assert robot.run(20, until=lambda s=seen: len(robot.watch.embeddings) > s + 2)  # by itself
        assert not live.worker.failure

        fault = Fault(robot, f"worker fails in stage {stage}", "a double raises for ever")
        double.failures = 1_000_000
        fault.detected(lambda t=text: t in robot.row("worker")[2])
        assert robot.row("worker")[0] == 2
        assert robot.run(20, until=lambda: "call ~/reset" in robot.row("worker")[2])
        halted = len(robot.watch.embeddings)
        assert robot.run(20, until=lambda: live.worker.dropped["halted"] > 3)
        assert len(robot.watch.embeddings) == halted
        double.failures = 0
        lost = live.worker.dropped["failed"] + live.worker.dropped["halted"]
        robot.watch.call("reset")
        fault.mended(
            lambda h=halted: len(robot.watch.embeddings) > h and robot.row("worker")[0] == 0
        )
        fault.write("ERROR with the cause, halts after three; `~/reset`", f"{lost} windows so far")
        monkeypatch.undo()


def test_out_of_device_memory(live, robot, monkeypatch):
    """A double: this machine may have no such device."""

    def vision(pixels):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    fault = Fault(robot, "device out of memory", "a double raises torch's error")
    monkeypatch.setattr(live.engine._backend, "vision", vision)
    fault.detected(lambda: "out of memory" in robot.row("worker")[2])
    assert "end other programs" in robot.row("worker")[2]
    monkeypatch.undo()
    before = len(robot.watch.embeddings)
    robot.watch.call("reset")
    fault.mended(lambda: len(robot.watch.embeddings) > before and robot.row("worker")[0] == 0)
    fault.write("ERROR with the cause; its memory is given back; `~/reset`", "the failed windows")


def test_a_stalled_worker_and_late_results(live, robot, monkeypatch):
    real = live.engine.window
    pause_s = [0.0]

    def slow(*arguments):
        time.sleep(pause_s[0])
        return real(*arguments)

    monkeypatch.setattr(live.engine, "window", slow)
    live.set_parameters([Parameter("watchdog.latency_s", value=0.3)])
    fault = Fault(
        robot, "latency above its budget", "each window takes 0.4 s, the budget is 0.3 s"
    )
    pause_s[0] = 0.4
    fault.detected(lambda: "old at publication" in robot.row("sync")[2])
    pause_s[0] = 0.0
    live.set_parameters([Parameter("watchdog.latency_s", value=2.0)])
    fault.mended(lambda: robot.row("sync")[0] == 0)
    fault.write("WARN with age and budget", "windows that found the worker busy, `dropped_busy`")

    live.set_parameters([Parameter("watchdog.stall_s", value=0.3)])
    fault = Fault(robot, "worker stalls", "a window takes 3 s, the budget is 0.3 s")
    pause_s[0] = 3.0
    fault.detected(lambda: "a window has taken" in robot.row("worker")[2])
    pause_s[0] = 0.0
    fault.mended(lambda: robot.row("worker")[0] == 0)
    fault.write("ERROR with the seconds", "windows that found the worker busy, `dropped_busy`")


def test_an_alpha_that_the_calibration_cannot_support_is_refused(live, robot, monkeypatch):
    from mmfuse_ros.errors import CalibrationError

    def check(config):
        if config.alpha < 0.005:
            raise CalibrationError("alpha must be at least 0.005 (double)")

    monkeypatch.setattr(live.monitor, "check", check)
    before = live.get_parameter("anomaly.alpha").value
    (result,) = live.set_parameters([Parameter("anomaly.alpha", value=0.001)])
    assert "at least 0.005" in result.reason
    assert live.get_parameter("anomaly.alpha").value == before
    (result,) = live.set_parameters([Parameter("anomaly.alpha", value=0.02)])
    assert result.successful


def test_two_nodes_in_one_process_and_two_namespaces(host, domain):
    robots = {side: Robot(namespace=side, emg_hz=200) for side in ("left", "right")}
    try:
        for side in robots:
            host.add(namespace=side)
        for side in robots:
            robots[side].without = set(Modality) if side == "right" else set()
        left, right = robots.values()
        assert left.run(60, until=lambda: left.mask() == EVERYTHING)
        right.watch.spin_for(1.0)
        assert not right.watch.embeddings  # what the left one sees is not the right one's
        right.without = set()

        def both():
            right.tick()
            right.watch.spin_for(0.001)
            return right.mask() == EVERYTHING and len(left.watch.embeddings) > seen + 5

        seen = len(left.watch.embeddings)
        assert left.run(60, until=both)
        # One process, one `/diagnostics`, and each node's counters are its own.
        for robot in robots.values():
            check_accounts(robot.watch.diagnostics)
            assert int(robot.row("input pressure")[1]["messages"]) <= robot.sent[Modality.PRESSURE]
    finally:
        for robot in robots.values():
            robot.close()
