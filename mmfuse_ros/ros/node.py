"""The fusion node: subscriptions in, embeddings and anomaly flags out, as a lifecycle node.

Threads: the executor's owns inputs, synchroniser, timers, services and diagnostics, and runs the
transitions. The worker's owns the model and the monitor from activation to deactivation, and
publishes results; windows and tasks reach it through its mailbox only. A third loads the model
while `on_configure` waits for it. What belongs to the worker is released once it has ended.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

import rclpy
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSPolicyKind
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from mmfuse_ros.anomaly.monitor import Monitor, make_monitor
from mmfuse_ros.config import Config
from mmfuse_ros.errors import MmfuseError, ModelError
from mmfuse_ros.model.runtime import Engine, build_engine
from mmfuse_ros.model.schedule import Schedule
from mmfuse_ros.pipeline import Pipeline, calibration_context, warm_up
from mmfuse_ros.ros import parameters
from mmfuse_ros.ros.deafness import LOOK_PERIOD_S, Deafness
from mmfuse_ros.ros.diagnostics import Diagnostics, Latency
from mmfuse_ros.ros.inputs import Input
from mmfuse_ros.ros.logging import forward_logging, traceback_of
from mmfuse_ros.ros.polling import DUE_PERIOD_S, calm_events
from mmfuse_ros.ros.publishers import Publishers
from mmfuse_ros.ros.transitions import guarded, refusing
from mmfuse_ros.samples import Chunk, Frame, Modality, Result
from mmfuse_ros.stream.synchronizer import Synchronizer
from mmfuse_ros.worker import Worker

_STOP_TIMEOUT_S = 2.0  # within the 3 s after which a signal must have ended the process
_LOOK_S = 0.2
# A phase may be latched: its durability can be overridden, too.
_PHASE_OVERRIDES = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)


class FusionNode(LifecycleNode):
    """The node `mmfuse`; its topics, services and parameters stand in the README."""

    def __init__(self, **node_options: Any) -> None:
        super().__init__("mmfuse", **node_options)
        parameters.declare(self)
        self.config = Config()
        self.engine: Engine | None = None
        self.monitor: Monitor | None = None
        self.worker: Worker | None = None
        self.synchronizer: Synchronizer | None = None
        self._outputs: Publishers | None = None
        self._inputs: dict[Modality, Input] = {}
        self._active_entities: list[Callable[[], Any]] = []
        self._enabled = True
        self._phase = ""
        self._published_id = ""
        self.deaf = False  # only a new process hears again
        self._loading: threading.Thread | None = None
        self._diagnostics = Diagnostics(self, lambda: self.config)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/set_baseline", self._on_set_baseline)
        self.create_service(Trigger, "~/clear_baseline", self._on_clear_baseline)
        self.create_service(Trigger, "~/reset", self._on_reset)
        for service in self.services:
            if service.srv_type is ChangeState:
                service.callback = refusing(service.callback, self)
        if self.get_parameter("autostart").value:
            # From a timer, not from here: the constructor must return before transitions run.
            self._autostart = self.create_timer(
                0.0, self._start, clock=Clock(clock_type=ClockType.STEADY_TIME)
            )

    def _start(self) -> None:
        self.destroy_timer(self._autostart)
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # Transitions

    @guarded
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._diagnostics.fault = ""
        self._diagnostics.state = "configuring"
        self.config = parameters.read(self)
        log = self.get_logger()
        self.engine = self._wait_for(lambda: _load(self.config, log))
        if self.engine.info["weights"] == "random":
            log.warning("model.weights is random: embeddings are those of an untrained model")
        context = calibration_context(self.config, self.engine.info)
        self.monitor = monitor = make_monitor(self.config.anomaly, context)
        if self.config.anomaly.calibration and not monitor.calibration_id:
            log.warning(
                "the file of anomaly.calibration does not exist yet: uncalibrated until "
                "`mmfuse fit` or ~/set_baseline makes it"
            )
        self._diagnostics.anomaly_fault = lambda: monitor.fault
        self._outputs = Publishers(self, self.config.enabled)
        self._diagnostics.info = self.engine.info
        self._diagnostics.memory = self.engine.memory
        self._diagnostics.state = "inactive"
        return TransitionCallbackReturn.SUCCESS

    @guarded
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self.engine is not None
        assert self.monitor is not None
        assert self._outputs is not None
        self._end_streams()  # a worker that outlived its activation must not share the engine
        super().on_activate(state)
        self._diagnostics.fault = ""
        self._diagnostics.latency = Latency()
        self.synchronizer = Synchronizer(self.config)
        schedule = Schedule(self.config.vision.period_s, self.config.audio.period_s)
        pipeline = Pipeline(self.engine, self.monitor, schedule)
        self.worker = worker = Worker(pipeline.run, self._on_result)
        worker.enabled = self._enabled
        pipeline.dropped = lambda: worker.dropped["busy"]
        self.worker.start()
        for modality in self.config.enabled:
            self._inputs[modality] = Input(self, modality, self.config, self._on_sample)
        calm_events(self)
        ends = self._active_entities
        due = self.create_timer(
            DUE_PERIOD_S, self._submit_due, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        ends.append(lambda: self.destroy_timer(due))
        deafness = Deafness(self._inputs)
        look = self.create_timer(
            LOOK_PERIOD_S,
            lambda: self._heed(deafness),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        ends.append(lambda: self.destroy_timer(look))
        phase = self.create_subscription(
            String,
            "phase",
            self._on_phase,
            10,
            qos_overriding_options=QoSOverridingOptions(_PHASE_OVERRIDES),
        )
        ends.append(lambda: self.destroy_subscription(phase))
        threshold = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
        )
        jump = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)
        ends.append(jump.unregister)
        self._diagnostics.synchronizer = self.synchronizer
        self._diagnostics.worker = self.worker
        self._diagnostics.inputs = self._inputs
        self._diagnostics.state = "active"
        self._publish_info()
        return TransitionCallbackReturn.SUCCESS

    @guarded
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end_streams()
        self._diagnostics.fault = ""
        super().on_deactivate(state)
        self._diagnostics.state = "inactive"
        return TransitionCallbackReturn.SUCCESS

    @guarded
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end_streams()
        self._diagnostics.fault = ""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    @guarded
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.close()
        self._diagnostics.state = "finalized"
        return TransitionCallbackReturn.SUCCESS

    @guarded
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        ended = self.close()
        return TransitionCallbackReturn.SUCCESS if ended else TransitionCallbackReturn.FAILURE

    def show_fault(self, text: str) -> None:
        """Show an error in diagnostics, until a transition or `~/reset`."""
        self._diagnostics.fault = text

    def undo(self, transition: str, state: LifecycleState) -> None:
        """Take back what a transition that failed had done."""
        if transition == "on_activate":
            self._stop_streams()
            super().on_deactivate(state)
        if transition == "on_configure":
            self._release()

    def _stop_streams(self) -> bool:
        """End inputs, timers and worker; return whether the worker has ended.

        May be called again: where the worker was still busy, it is asked and waited for again.
        """
        ends = [*(source.destroy for source in self._inputs.values()), *self._active_entities]
        self._inputs = {}
        self._active_entities = []
        self.synchronizer = None
        self._diagnostics.inputs = {}
        self._diagnostics.synchronizer = None
        for end in ends:
            try:
                end()
            except Exception as error:  # transition boundary: the others must end all the same
                self.get_logger().error(f"a stream did not end well\n{traceback_of(error)}")
        if self.worker is not None and not self.worker.stop(_STOP_TIMEOUT_S):
            return False
        self.worker = self._diagnostics.worker = None
        return True

    def _end_streams(self) -> None:
        """Do the same for a transition, which must not go on while the worker is busy.

        Raises:
            ModelError: the worker did not end in time.
        """
        if not self._stop_streams():
            assert self.worker is not None
            raise ModelError(
                f"the window at hand must end within {_STOP_TIMEOUT_S:g} s, it has taken "
                f"{self.worker.busy_s:.1f} s so far; try again later, or end the process"
            )

    def _release(self) -> None:
        if self._outputs is not None:
            self._outputs.destroy()
        if self.engine is not None:
            self.engine.close()
        self._diagnostics.memory = dict
        self._diagnostics.anomaly_fault = str
        self._diagnostics.state = "unconfigured"
        self._diagnostics.info = {}
        self._outputs = self.engine = self.monitor = None

    def report(self, error: Exception) -> None:
        """Log what a callback raised, and show it in diagnostics until `~/reset`."""
        text = f"a callback failed\n{traceback_of(error)}"
        self.get_logger().error(text, throttle_duration_sec=1.0)
        self.show_fault(f"{type(error).__name__}: {error}")

    def close(self) -> bool:
        """Stop the worker and release the model, from whatever state.

        Return whether that was possible: the model is not freed under a worker that is busy.
        """
        ended = self._stop_streams()
        if ended:
            self._release()
        return ended

    @property
    def busy(self) -> bool:
        """Whether a thread that nobody waits for any more still loads or runs the model."""
        loading = self._loading is not None and self._loading.is_alive()
        return loading or self.worker is not None

    def _wait_for(self, task: Callable[[], Engine]) -> Engine:
        """Run a long task on a thread of its own, publish diagnostics and heed signals meanwhile.

        Raises:
            ExternalShutdownException: the process was told to stop; the task goes on unheeded.
        """
        outcome: Future[Engine] = Future()

        def run() -> None:
            try:
                outcome.set_result(task())
            except BaseException as error:  # thread boundary: raised again by who waits
                outcome.set_exception(error)

        self._loading = threading.Thread(target=run, name="mmfuse_load", daemon=True)
        self._loading.start()
        while not outcome.done():
            wait([outcome], timeout=_LOOK_S)
            if not self.context.ok():
                raise ExternalShutdownException
            self._diagnostics.look()
        self._loading.join()
        self._loading = None
        return outcome.result()

    # The flow: sample -> synchroniser -> window -> worker -> result -> topics

    def _on_sample(self, modality: Modality, sample: Frame | Chunk, now_ns: int) -> None:
        assert self.synchronizer is not None
        if modality.is_camera:
            self._drain()  # a window that this frame settles holds the signals' newest samples
        self.synchronizer.offer(modality, sample, now_ns)
        self._submit(now_ns)

    def _drain(self) -> None:
        for source in self._inputs.values():
            source.drain()

    def _submit_due(self) -> None:
        self._drain()
        self._submit(self.get_clock().now().nanoseconds)

    def _submit(self, now_ns: int) -> None:
        assert self.synchronizer is not None
        assert self.worker is not None
        for window in self.synchronizer.take(now_ns):
            self.worker.submit(dataclasses.replace(window, phase=self._phase))

    def _on_result(self, result: Result) -> None:
        """Publish; runs on the worker's thread, which saves a hop through the executor."""
        publishers = self._outputs
        if publishers is None:
            return
        try:
            publishers.publish(result)
            self._diagnostics.latency.add(result, self.get_clock().now().nanoseconds)
            if self.monitor is not None and self.monitor.calibration_id != self._published_id:
                self._publish_info()  # a baseline has been gathered
        except RuntimeError:  # rclpy's RCLError: a signal has ended the context meanwhile
            if rclpy.ok(context=self.context):
                raise

    def _on_phase(self, message: String) -> None:
        self._phase = message.data

    def _heed(self, deafness: Deafness) -> None:
        if not self.deaf and deafness.look():
            self.deaf = True
            text = (
                "nothing arrives from publishers that are there, since this process stood still; "
                "it must be started anew"
            )
            self.get_logger().error(text)
            self.show_fault(text)

    def _on_clock_jump(self, jump: Any) -> None:
        if self.synchronizer is not None:
            self.get_logger().info("the clock jumped; buffers are emptied")
            self.synchronizer.reset()

    def _publish_info(self) -> None:
        if self.engine is None or self.monitor is None or self._outputs is None:
            return
        self._published_id = self.monitor.calibration_id
        info = {**self.engine.info, "calibration_id": self._published_id}
        self._outputs.publish_info(info)

    # Parameters and services

    def _on_parameters(self, changes: Sequence[Parameter]) -> SetParametersResult:
        if not any(parameters.known(change.name) for change in changes):
            return SetParametersResult(successful=True)  # rclpy's own, such as qos_overrides
        configured = self.engine is not None
        now = self.config.to_flat() if configured else parameters.values(self)
        config, verdict = parameters.changed(now, changes, configured)
        if self.monitor is not None and verdict.successful:
            try:
                self.monitor.check(config.anomaly)
            except MmfuseError as error:
                verdict = SetParametersResult(successful=False, reason=str(error))
        if verdict.successful and configured:
            self.config = config
            if self.synchronizer is not None:
                self.synchronizer.configure(config)
            self._on_worker(lambda monitor: monitor.configure(config.anomaly))
        return verdict

    def _on_worker(self, task: Callable[[Monitor], Any]) -> bool:
        """Run a task on the monitor's thread; return whether there is one."""
        monitor, worker = self.monitor, self.worker
        if monitor is None or worker is None or worker.stopping:
            return False
        worker.post(lambda: task(monitor))
        worker.post(self._publish_info)
        return True

    def _answer(self, response: Any, done: bool, text: str) -> Any:
        response.success = done
        response.message = text if done else "the node must be active, it is not; activate it"
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        if self.worker is not None:
            self.worker.enabled = request.data
        response.success = True
        response.message = "enabled" if request.data else "disabled: windows are not processed"
        return response

    def _on_set_baseline(self, request: Any, response: Any) -> Any:
        count = self.config.anomaly.baseline_windows
        done = self._on_worker(lambda monitor: monitor.begin_baseline(count))
        text = f"gathering a baseline over {count} windows"
        if self.config.anomaly.calibration:
            text += "; it will replace the file of anomaly.calibration"
        return self._answer(response, done, text)

    def _on_clear_baseline(self, request: Any, response: Any) -> Any:
        done = self._on_worker(lambda monitor: monitor.clear_baseline())
        text = "baseline cleared"
        if self.config.anomaly.calibration:
            text += "; the file of anomaly.calibration stays and is loaded at the next start"
        return self._answer(response, done, text)

    def _on_reset(self, request: Any, response: Any) -> Any:
        done = self._on_worker(lambda monitor: monitor.reset())
        if self.worker is not None and self.synchronizer is not None:
            self.worker.resume()
            self.synchronizer.reset()
            self._diagnostics.fault = ""
        return self._answer(response, done, "buffers, alarm and failures are reset")


def _load(config: Config, log: Any) -> Engine:
    log.info(f"loading the {config.model.preset} model")
    begun = time.monotonic()
    engine = build_engine(config)
    log.info(f"model loaded after {time.monotonic() - begun:.1f} s; warming up")
    warm_up(engine, config)
    log.info(f"model ready after {time.monotonic() - begun:.1f} s")
    return engine


def _spin(node: FusionNode, executor: SingleThreadedExecutor) -> None:
    while rclpy.ok() and not node.deaf:
        try:
            executor.spin_once()
        except ExternalShutdownException:
            return
        except Exception as error:  # thread boundary: one bad callback must not end the node
            if rclpy.ok():
                node.report(error)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to stop; return the exit code.

    A node that went deaf is started anew in the same process, as `respawn` would.
    """
    rclpy.init(args=args)
    node: FusionNode | None = None
    executor = SingleThreadedExecutor()
    try:
        node = FusionNode()
        forward_logging(node)
        executor.add_node(node)
        _spin(node, executor)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:  # rclpy's RCLError: a signal has ended the context meanwhile
        if rclpy.ok():
            raise
    finally:
        deaf = node is not None and node.deaf and rclpy.ok()
        if not deaf:
            _ignore_signals()  # Ctrl-C in a terminal reaches a launched node twice
        # What is left goes with the process: to search a model's objects for it takes seconds.
        gc.freeze()
        if node is not None:
            node.close()
        executor.shutdown(timeout_sec=1.0)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        if deaf:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the old participant's sockets and locks
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        _ignore_signals()  # the shutdown has put back what was there before
        if node is not None and node.busy:
            # Native code that compiles or runs a model cannot be interrupted, and the
            # interpreter must not be torn down under it.
            os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
