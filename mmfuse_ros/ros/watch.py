"""Watch a running fusion node from outside: its embeddings, alarms and diagnostics."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameterTypes, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import String
from std_srvs.srv import Trigger

from mmfuse_ros.errors import MmfuseError
from mmfuse_ros.ros.embedding import Embedding, decode
from mmfuse_ros.samples import NS_PER_S

_GREETING_S = 0.5  # until it is sent again


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
        response = self.ask(Trigger, f"{self._target}/{service}", Trigger.Request(), timeout_s)
        if not response.success:
            raise MmfuseError(f"{service} was refused: {response.message}")
        return str(response.message)

    def set_text(self, node: str, name: str, value: str, timeout_s: float = 10.0) -> None:
        """Set a string parameter of any node.

        Raises:
            MmfuseError: it does not answer, or refuses.
        """
        typed = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)
        request = SetParameters.Request(parameters=[Parameter(name=name, value=typed)])
        response = self.ask(SetParameters, f"{node}/set_parameters", request, timeout_s)
        if not response.results[0].successful:
            raise MmfuseError(f"{name} was refused: {response.results[0].reason}")

    def ask(self, kind: Any, service: str, request: Any, timeout_s: float = 10.0) -> Any:
        """Send one request to a service of any node and return the response.

        Args:
            kind: the service's type.
            service: `<node>/<service>`.

        Raises:
            MmfuseError: the service is not there, or does not answer in time.
        """
        end = time.monotonic() + timeout_s
        client = self.create_client(kind, service)
        # rmw_fastrtps drops a response to a client that the server has not yet discovered whole,
        # and a request must not be sent twice. Discovery keeps the order: once the node answers
        # this client, created later, whose requests do no harm, it knows the first.
        node = service.rpartition("/")[0]
        greeter = self.create_client(GetParameterTypes, f"{node}/get_parameter_types")
        try:
            if not self._until(client.service_is_ready, end):
                raise MmfuseError(f"{service} is not there, after {timeout_s:g} s")
            greeting = greeter.call_async(GetParameterTypes.Request())
            while not self._until(greeting.done, min(end, time.monotonic() + _GREETING_S)):
                if time.monotonic() >= end:
                    raise MmfuseError(f"{node} did not answer within {timeout_s:g} s")
                greeting = greeter.call_async(GetParameterTypes.Request())
            future = client.call_async(request)
            if not self._until(future.done, end):
                raise MmfuseError(f"{service} did not answer within {timeout_s:g} s")
            return future.result()
        finally:
            self.destroy_client(client)
            self.destroy_client(greeter)

    def _until(self, condition: Callable[[], bool], end: float) -> bool:
        """Handle what arrives until a condition holds or that time has come; return whether."""
        while not condition():
            if time.monotonic() >= end:
                return False
            self.spin_for(0.02)
        return True

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
