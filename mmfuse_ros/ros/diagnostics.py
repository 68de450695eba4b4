"""`/diagnostics`: inputs, synchronisation, worker, latency and memory, on a steady clock.

A steady timer looks five times a second, publishes once a second, and at once when a level
changes, so that a silent camera is reported within a second even while simulated time stands.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions

from mmfuse_ros.config import Config
from mmfuse_ros.memory import resident_mb
from mmfuse_ros.ros.health import DropWatch, Row, input_row, sync_row, worker_row
from mmfuse_ros.ros.inputs import Input
from mmfuse_ros.ros.publishers import full_name, status
from mmfuse_ros.samples import NS_PER_S, Level, Modality, Result
from mmfuse_ros.stream.synchronizer import Synchronizer
from mmfuse_ros.worker import Worker

_LOOK_PERIOD_S = 0.2
_PUBLISH_PERIOD_S = 1.0
_RESULTS_KEPT = 300


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
        newest = [row for row in recent if now - row[0] <= 0.5] or recent[-1:]
        ages = np.array([row[1] for row in rows])
        p50, p95, p99 = np.percentile(ages, (50, 95, 99))
        span = max(now - recent[0][0], 0.2) if recent else 1.0
        return {
            "embeddings_hz": len(recent) / span,
            "age_recent_s": float(np.median([row[1] for row in newest])) if newest else 0.0,
            "age_p50_s": float(p50),
            "age_p95_s": float(p95),
            "age_p99_s": float(p99),
            "skew_p50_s": float(np.median([row[2] for row in rows])),
            **{f"stage_{name}_s": seconds for name, seconds in self.timings_s.items()},
        }


class Diagnostics:
    """The node's health, looked at and published from its own steady timer."""

    def __init__(self, node: LifecycleNode, config: Callable[[], Config]) -> None:
        self._node = node
        self._config = config
        self._publisher = node.create_publisher(
            DiagnosticArray,
            "/diagnostics",
            10,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._timer = node.create_timer(
            _LOOK_PERIOD_S, self.look, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._levels: dict[str, bytes] = {}
        self._published_s = 0.0
        self._drops = DropWatch()
        self.state = "unconfigured"
        self.fault = ""
        self.info: Mapping[str, Any] = {}
        self.latency = Latency()
        self.inputs: dict[Modality, Input] = {}
        self.synchronizer: Synchronizer | None = None
        self.worker: Worker | None = None
        self.memory: Callable[[], Mapping[str, float]] = dict
        self.anomaly_fault: Callable[[], str] = str

    def look(self) -> None:
        """Publish where a level has changed, or the last publication is a second ago."""
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
        name, config = full_name(self._node), self._config()
        rows = [(f"{name}: node", *self._node_row())]
        if self.synchronizer is not None:
            streams = self.synchronizer.status(self._node.get_clock().now().nanoseconds)
            for modality, source in self.inputs.items():
                stream = streams[modality]
                undecodable = self.latency.failed.get(modality, "")
                dropping = self._drops.recent(modality, stream.dropped)
                row = input_row(source, stream, config, undecodable, dropping)
                rows.append((f"{name}: input {modality}", *row))
            latency = self.latency.snapshot()
            rows.append(
                (f"{name}: sync", *sync_row(latency, self.synchronizer.counters(), config))
            )
        if self.worker is not None:
            rows.append((f"{name}: worker", *worker_row(self.worker, config)))
        return [status(*row) for row in rows]

    def _node_row(self) -> Row:
        values = {"state": self.state, "resident_mb": resident_mb(), **self.memory()}
        for key in ("model", "weights", "precision", "device", "backend"):
            if key in self.info:
                values[key] = self.info[key]
        if self.fault:
            return Level.ERROR, self.fault, values
        if self.anomaly_fault():
            return Level.WARN, self.anomaly_fault(), values
        level = Level.OK if self.state == "active" else Level.WARN
        return level, self.state, values
