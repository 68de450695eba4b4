"""`/diagnostics`: inputs, synchronisation, worker, latency and memory, on a steady clock.

A steady timer looks five times a second, publishes once a second, and at once when a level
changes, so that a silent camera is reported within a second even while simulated time stands.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode

from mmfuse_ros.config import Config
from mmfuse_ros.ros.inputs import Input
from mmfuse_ros.ros.publishers import status
from mmfuse_ros.samples import NS_PER_S, Level, Modality, Result
from mmfuse_ros.stream.synchronizer import Synchronizer
from mmfuse_ros.worker import Worker

_LOOK_PERIOD_S = 0.2
_PUBLISH_PERIOD_S = 1.0
_RESULTS_KEPT = 300
_RATE_WARN = 0.2
_HELD_WARN = 0.5


class Latency:
    """The last results' ages at publication, skews and rate."""

    def __init__(self) -> None:
        self._rows: deque[tuple[float, float, float]] = deque(maxlen=_RESULTS_KEPT)
        self.timings_s: Mapping[str, float] = {}
        self.failed: Mapping[Modality, str] = {}

    def add(self, result: Result, now_ns: int) -> None:
        age_s = (now_ns - result.stamp_ns) / NS_PER_S
        self._rows.append((time.monotonic(), age_s, result.skew_ns / NS_PER_S))
        self.timings_s = result.timings_s
        self.failed = result.failed

    def snapshot(self) -> dict[str, float]:
        rows = list(self._rows)
        if not rows:
            return {"embeddings_hz": 0.0}
        now = time.monotonic()
        recent = [row for row in rows if now - row[0] <= 5.0]
        ages = np.array([row[1] for row in rows])
        p50, p95, p99 = np.percentile(ages, (50, 95, 99))
        span = max(now - recent[0][0], 0.2) if recent else 1.0
        return {
            "embeddings_hz": len(recent) / span,
            "age_p50_s": float(p50),
            "age_p95_s": float(p95),
            "age_p99_s": float(p99),
            "skew_p50_s": float(np.median([row[2] for row in rows])),
        }


class Diagnostics:
    """The node's health, looked at and published from its own steady timer."""

    def __init__(self, node: LifecycleNode, config: Callable[[], Config]) -> None:
        self._node = node
        self._config = config
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = node.create_timer(
            _LOOK_PERIOD_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._levels: dict[str, bytes] = {}
        self._published_s = 0.0
        self.state = "unconfigured"
        self.fault = ""
        self.info: Mapping[str, Any] = {}
        self.latency = Latency()
        self.inputs: dict[Modality, Input] = {}
        self.synchronizer: Synchronizer | None = None
        self.worker: Worker | None = None
        self.memory: Callable[[], Mapping[str, float]] = dict

    def publish(self) -> None:
        """Publish the state of everything now."""
        self._send(self._statuses())

    def _look(self) -> None:
        statuses = self._statuses()
        levels = {s.name: s.level for s in statuses}
        due = time.monotonic() - self._published_s >= _PUBLISH_PERIOD_S
        if due or levels != self._levels:
            self._log_changes(statuses)
            self._send(statuses)

    def _send(self, statuses: list[DiagnosticStatus]) -> None:
        message = DiagnosticArray(status=statuses)
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)
        self._levels = {s.name: s.level for s in statuses}
        self._published_s = time.monotonic()

    def _log_changes(self, statuses: list[DiagnosticStatus]) -> None:
        log = self._node.get_logger()
        for s in statuses:
            before = self._levels.get(s.name)
            if before is None or before == s.level:
                continue
            if s.level == bytes([Level.OK]):
                log.info(f"{s.name}: {s.message}")
            else:
                log.warning(f"{s.name}: {s.message}")

    def _statuses(self) -> list[DiagnosticStatus]:
        name = self._node.get_name()
        rows = [(f"{name}: node", *self._node_row())]
        if self.synchronizer is not None:
            now_ns = self._node.get_clock().now().nanoseconds
            streams = self.synchronizer.status(now_ns)
            for modality, source in self.inputs.items():
                rows.append(
                    (f"{name}: input {modality}", *self._input_row(source, streams[modality]))
                )
            rows.append((f"{name}: sync", *self._sync_row()))
        if self.worker is not None:
            rows.append((f"{name}: worker", *self._worker_row(self.worker)))
        return [status(*row) for row in rows]

    def _node_row(self) -> tuple[Level, str, dict[str, Any]]:
        values = {"state": self.state, "resident_mb": _resident_mb(), **self.memory()}
        for key in ("model", "weights", "precision", "device", "backend"):
            if key in self.info:
                values[key] = self.info[key]
        if self.fault:
            return Level.ERROR, self.fault, values
        level = Level.OK if self.state == "active" else Level.WARN
        return level, self.state, values

    def _input_row(self, source: Input, stream: Any) -> tuple[Level, str, dict[str, Any]]:
        config = self._config()
        silent_s = (
            float("inf")
            if source.last_arrival_s is None
            else time.monotonic() - source.last_arrival_s
        )
        values: dict[str, Any] = {
            "topic": source.topic,
            "type": source.type_name,
            "messages": source.received,
            "lost_by_transport": source.lost,
            "rejected": sum(source.rejected.values()),
            **{f"rejected_{reason}": n for reason, n in source.rejected.items()},
            "rate_hz": stream.rate_hz,
            "age_s": stream.age_s,
            "silent_s": silent_s,
            "received": stream.received,
            "used": stream.used,
            "pending": stream.pending,
            **{f"dropped_{reason}": n for reason, n in stream.dropped.items()},
            "held_share": stream.held_share,
            "last_error": source.last_error,
        }
        mismatch = source.mismatch()
        if mismatch:
            return Level.ERROR, mismatch, values
        decode_error = self.latency.failed.get(source.modality)
        if decode_error:
            return Level.ERROR, f"cannot be decoded: {decode_error}", values
        if source.last_arrival_s is None:
            return Level.STALE, f"no message yet on {source.topic}", values
        if silent_s > config.watchdog.silence_s:
            return Level.ERROR, f"silent for {silent_s:.1f} s", values
        if source.last_error and stream.received == 0:
            return Level.ERROR, source.last_error, values
        if time.monotonic() - source.last_error_s < 2.0 * _PUBLISH_PERIOD_S:
            return Level.WARN, source.last_error, values
        nominal = _nominal_hz(config, source.modality)
        if nominal and stream.rate_hz and abs(stream.rate_hz / nominal - 1.0) > _RATE_WARN:
            text = (
                f"{stream.rate_hz:.0f} samples/s, expected {nominal:.0f}; "
                f"set {source.modality}.rate_hz"
            )
            return Level.WARN, text, values
        if stream.held_share > _HELD_WARN:
            text = f"{stream.held_share:.0%} of the samples repeat the one before"
            return Level.WARN, text, values
        return Level.OK, "receiving", values

    def _sync_row(self) -> tuple[Level, str, dict[str, Any]]:
        config = self._config()
        values = {**self.latency.snapshot(), **self.synchronizer.counters()}  # type: ignore[union-attr]
        values.update({f"stage_{k}_s": v for k, v in self.latency.timings_s.items()})
        age_s = values.get("age_p50_s", 0.0)
        if age_s > config.watchdog.latency_s:
            text = (
                f"embeddings are {age_s:.2f} s old at publication, watchdog.latency_s is "
                f"{config.watchdog.latency_s:g}"
            )
            return Level.WARN, text, values
        if not values["embeddings_hz"]:
            return Level.STALE, "no embedding in the last 5 s", values
        return Level.OK, f"{values['embeddings_hz']:.1f} embeddings/s", values

    def _worker_row(self, worker: Worker) -> tuple[Level, str, dict[str, Any]]:
        config = self._config()
        values = {
            "done": worker.done,
            "busy_s": worker.busy_s,
            **{f"dropped_{reason}": n for reason, n in worker.dropped.items()},
        }
        if worker.halted:
            return Level.ERROR, f"halted: {worker.failure}; call ~/reset", values
        if worker.failure:
            return Level.ERROR, worker.failure, values
        if worker.busy_s > config.watchdog.stall_s:
            text = f"a window has taken {worker.busy_s:.1f} s, watchdog.stall_s is "
            return Level.ERROR, text + f"{config.watchdog.stall_s:g}", values
        return Level.OK, "working", values


def _nominal_hz(config: Config, modality: Modality) -> float:
    return 0.0 if modality.is_camera else float(getattr(config, modality.value).rate_hz)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
