"""Watch a running fusion node from outside: its embeddings, alarms and diagnostics."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String
from std_srvs.srv import Trigger

from mmfuse_ros.errors import MmfuseError
from mmfuse_ros.ros.embedding import Embedding, decode
from mmfuse_ros.samples import NS_PER_S


class Watch(Node):
    """Subscribes to a node's outputs and calls its services.

    Args:
        target: the fusion node's name.
    """

    def __init__(self, target: str = "mmfuse", **node_options: Any) -> None:
        super().__init__("mmfuse_watch", **node_options)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self)
        self._target = target
        own = self.get_namespace()
        self._prefix = (target if target.startswith("/") else f"{own}/{target}").strip("/") + ": "
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(
            PointCloud2, f"{target}/embedding_stamped", self._on_embedding, 50
        )
        self.create_subscription(DiagnosticArray, f"{target}/anomaly", self._on_anomaly, 10)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.create_subscription(String, f"{target}/info", self._on_info, latched)
        self.embeddings: deque[tuple[float, Embedding]] = deque(maxlen=100_000)
        self.ages_s: deque[float] = deque(maxlen=100_000)
        self.anomaly: dict[str, tuple[int, dict[str, str], str]] = {}
        self.diagnostics: dict[str, tuple[int, dict[str, str], str]] = {}
        self.diagnostics_at = float("-inf")  # time.monotonic() of the newest
        self.info = ""

    def spin_for(self, seconds: float) -> None:
        """Handle what arrives for this long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def embedding_rate_hz(self, over_s: float = 3.0) -> float:
        now = time.monotonic()
        return sum(1 for at, _ in self.embeddings if now - at <= over_s) / over_s

    def age_s(self, quantile: float) -> float:
        """Return a quantile of the reference stamp's age on arrival; NaN before the first."""
        return float(np.quantile(self.ages_s, quantile)) if self.ages_s else float("nan")

    def call(self, service: str, timeout_s: float = 10.0) -> str:
        """Call a Trigger service of the node and return its message.

        Raises:
            MmfuseError: it does not answer, or refuses.
        """
        client = self.create_client(Trigger, f"{self._target}/{service}")
        try:
            response = self._ask(client, Trigger.Request(), service, timeout_s)
        finally:
            self.destroy_client(client)
        if not response.success:
            raise MmfuseError(f"{service} was refused: {response.message}")
        return str(response.message)

    def set_text(self, node: str, name: str, value: str, timeout_s: float = 10.0) -> None:
        """Set a string parameter of any node.

        Raises:
            MmfuseError: it does not answer, or refuses.
        """
        client = self.create_client(SetParameters, f"{node}/set_parameters")
        request = SetParameters.Request()
        typed = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)
        request.parameters = [Parameter(name=name, value=typed)]
        try:
            response = self._ask(client, request, f"{node} {name}", timeout_s)
        finally:
            self.destroy_client(client)
        if not response.results[0].successful:
            raise MmfuseError(f"{name} was refused: {response.results[0].reason}")

    def _ask(self, client: Any, request: Any, what: str, timeout_s: float) -> Any:
        end = time.monotonic() + timeout_s
        while not client.service_is_ready() and time.monotonic() < end:
            self.spin_for(0.05)
        future = client.call_async(request)
        while not future.done() and time.monotonic() < end:
            self.spin_for(0.02)
        if not future.done():
            raise MmfuseError(f"{what} did not answer within {timeout_s:g} s")
        return future.result()

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=1.0)
        self.destroy_node()

    def _on_embedding(self, message: PointCloud2) -> None:
        embedding = decode(message)
        self.embeddings.append((time.monotonic(), embedding))
        now_ns = self.get_clock().now().nanoseconds
        self.ages_s.append((now_ns - embedding.stamp_ns) / NS_PER_S)

    def _on_anomaly(self, message: DiagnosticArray) -> None:
        self.anomaly = _rows(message, self._prefix)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        rows = _rows(message, self._prefix)
        if rows:
            self.diagnostics.update(rows)
            self.diagnostics_at = time.monotonic()

    def _on_info(self, message: String) -> None:
        self.info = message.data


def _rows(message: DiagnosticArray, prefix: str) -> dict[str, tuple[int, dict[str, str], str]]:
    """Return level, values and text of a node's statuses, by their names without its own."""
    return {
        s.name.removeprefix(prefix): (
            int.from_bytes(s.level, "little"),
            {v.key: v.value for v in s.values},
            s.message,
        )
        for s in message.status
        if s.name.startswith(prefix)
    }
