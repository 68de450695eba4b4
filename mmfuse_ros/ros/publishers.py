"""Everything that the node says of its results."""

from __future__ import annotations

import array
import json
from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Bool, Float32, Float32MultiArray, MultiArrayDimension, String

from mmfuse_ros.ros.embedding import encode, to_time
from mmfuse_ros.samples import Level, Modality, ModalityVerdict, Result

_RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
_LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)

_NO_VERDICT = ModalityVerdict(Level.STALE, float("nan"), float("nan"))


class Publishers:
    """The node's result topics, from configure to clean-up.

    Args:
        node: owns the publishers.
        modalities: the enabled ones.
    """

    def __init__(self, node: LifecycleNode, modalities: tuple[Modality, ...]) -> None:
        self._node = node
        self._modalities = modalities

        def create(kind: Any, topic: str, qos: QoSProfile) -> Any:
            return node.create_lifecycle_publisher(
                kind,
                topic,
                qos,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )

        self._embedding = create(Float32MultiArray, "~/embedding", _RELIABLE)
        self._stamped = create(PointCloud2, "~/embedding_stamped", _RELIABLE)
        self._anomaly = create(DiagnosticArray, "~/anomaly", _RELIABLE)
        self._flag = create(Bool, "~/anomaly_flag", _LATCHED)
        self._score = create(Float32, "~/anomaly_score", _RELIABLE)
        self._info = create(String, "~/info", _LATCHED)
        self._all = [
            self._embedding,
            self._stamped,
            self._anomaly,
            self._flag,
            self._score,
            self._info,
        ]

    def publish(self, result: Result) -> None:
        """Publish one result on every topic."""
        self._stamped.publish(encode(result))
        self._embedding.publish(_plain(result))
        name = full_name(self._node)
        self._anomaly.publish(anomaly_message(name, result, self._modalities))
        self._flag.publish(Bool(data=result.verdict.flag))
        self._score.publish(Float32(data=float(result.verdict.score)))

    def publish_info(self, info: Mapping[str, Any]) -> None:
        """Publish what the node is made of, as JSON."""
        self._info.publish(String(data=json.dumps(info, sort_keys=True)))

    def destroy(self) -> None:
        for publisher in self._all:
            self._node.destroy_lifecycle_publisher(publisher)
        self._all.clear()


def full_name(node: LifecycleNode) -> str:
    """Return a node's name with its namespace: two robots share one `/diagnostics`."""
    return str(node.get_fully_qualified_name()).lstrip("/")


def _plain(result: Result) -> Float32MultiArray:
    message = Float32MultiArray()
    dim = len(result.embedding)
    message.layout.dim = [MultiArrayDimension(label="embedding", size=dim, stride=dim)]
    message.data = array.array("f", result.embedding.tobytes())
    return message


def anomaly_message(
    node_name: str, result: Result, modalities: tuple[Modality, ...]
) -> DiagnosticArray:
    """Return the verdict: one status for the whole, one for each of `modalities`."""
    verdict = result.verdict
    message = DiagnosticArray()
    message.header.stamp = to_time(result.stamp_ns)
    message.header.frame_id = result.frame_id
    message.status.append(
        status(
            f"{node_name}: anomaly",
            verdict.level,
            verdict.message or verdict.level.name,
            {
                "score": verdict.score,
                "threshold": verdict.threshold,
                "p_value": verdict.p,
                "severity": verdict.severity,
                "top_modality": verdict.top,
                "live_modalities": ",".join(m.value for m in result.present),
                "calibration_id": verdict.calibration_id,
            },
        )
    )
    for modality in modalities:
        part = verdict.modalities.get(modality.value, _NO_VERDICT)
        text = part.level.name
        if part is _NO_VERDICT:
            text = "uncalibrated" if modality in result.present else "not live"
        message.status.append(
            status(
                f"{node_name}: anomaly {modality}",
                part.level,
                text,
                {"score": part.score, "threshold": part.threshold, "p_value": part.p},
            )
        )
    return message


def status(name: str, level: Level, text: str, values: Mapping[str, Any]) -> DiagnosticStatus:
    """Return one diagnostic status."""
    return DiagnosticStatus(
        # `level` is of ROS type byte, which Python holds as bytes of length one.
        level=bytes([level]),
        name=name,
        message=text,
        hardware_id="mmfuse",
        values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()],
    )


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
