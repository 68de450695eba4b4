"""`~/embedding_stamped`: one embedding as a PointCloud2 of one point, and back.

The point's bytes, little-endian: FLOAT32 embedding[D] | FLOAT32 anomaly_score | UINT8 anomaly |
UINT8 modalities | two bytes of padding. The fields describe the layout to any reader.
"""

from __future__ import annotations

import array
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Time
from sensor_msgs.msg import PointCloud2, PointField

from mmfuse_ros.errors import InputError
from mmfuse_ros.samples import NS_PER_S, Modality, Result, mask_modalities, modality_mask


class Embedding(NamedTuple):
    """What a subscriber gets.

    Attributes:
        stamp_ns: the window's reference stamp.
        vector: (D,) float32.
        score: anomaly score; NaN while uncalibrated.
        flag: the alarm.
        modalities: the streams that entered the vector.
    """

    stamp_ns: int
    vector: npt.NDArray[np.float32]
    score: float
    flag: bool
    modalities: tuple[Modality, ...]


def to_time(stamp_ns: int) -> Time:
    """Return a ROS time."""
    sec, nanosec = divmod(stamp_ns, NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


def encode(result: Result) -> PointCloud2:
    """Return the result as one self-describing point."""
    dim = len(result.embedding)
    point = np.zeros(1, _layout(dim))
    point["embedding"] = result.embedding
    point["anomaly_score"] = result.verdict.score
    point["anomaly"] = result.verdict.flag
    point["modalities"] = modality_mask(result.present)
    step = point.dtype.itemsize
    message = PointCloud2()
    message.header.stamp = to_time(result.stamp_ns)
    message.header.frame_id = result.frame_id
    message.height = message.width = 1
    message.fields = [
        PointField(name="embedding", offset=0, datatype=PointField.FLOAT32, count=dim),
        PointField(name="anomaly_score", offset=4 * dim, datatype=PointField.FLOAT32, count=1),
        PointField(name="anomaly", offset=4 * dim + 4, datatype=PointField.UINT8, count=1),
        PointField(name="modalities", offset=4 * dim + 5, datatype=PointField.UINT8, count=1),
    ]
    message.is_bigendian = False
    message.point_step = message.row_step = step
    message.data = array.array("B", point.tobytes())
    message.is_dense = bool(np.isfinite(result.verdict.score))
    return message


def decode(message: Any) -> Embedding:
    """Return the embedding of one `~/embedding_stamped` message.

    Raises:
        InputError: the message has another layout.
    """
    fields = {f.name: f for f in message.fields}
    if "embedding" not in fields:
        raise InputError(
            f"an embedding message must have a field 'embedding', got {sorted(fields)}; "
            "subscribe to ~/embedding_stamped"
        )
    layout = _layout(fields["embedding"].count)
    raw = np.frombuffer(message.data, np.uint8)
    if message.point_step != layout.itemsize or raw.nbytes != layout.itemsize:
        raise InputError(
            f"an embedding of {fields['embedding'].count} must take {layout.itemsize} bytes, "
            f"got {raw.nbytes} in steps of {message.point_step}"
        )
    point = raw.view(layout)[0]
    stamp = message.header.stamp
    return Embedding(
        stamp_ns=stamp.sec * NS_PER_S + stamp.nanosec,
        vector=point["embedding"].astype(np.float32),
        score=float(point["anomaly_score"]),
        flag=bool(point["anomaly"]),
        modalities=mask_modalities(int(point["modalities"])),
    )


def _layout(dim: int) -> np.dtype[np.void]:
    return np.dtype(
        {
            "names": ["embedding", "anomaly_score", "anomaly", "modalities"],
            "formats": [("<f4", (dim,)), "<f4", "u1", "u1"],
            "offsets": [0, 4 * dim, 4 * dim + 4, 4 * dim + 5],
            "itemsize": 4 * dim + 8,
        }
    )
