"""The stamp of a signal's message: from its header or its arrival, evened out."""

from __future__ import annotations

from typing import Any

from mmfuse_ros.ros.adapters.messages import header_ns, stamp_field
from mmfuse_ros.samples import NS_PER_S
from mmfuse_ros.stream.dejitter import ArrivalStamps, HeaderStamps


class SignalStamps:
    """Stamp the first sample of each message of one signal.

    A header's stamp is the time of the message's first sample. Without one, the last sample is
    taken to have been recorded when the message arrived. A stamp of zero stays zero, whatever
    the offset, so that it is recognised as unset.

    Args:
        message_type: the message class.
        source: `header` or `arrival`; `header` is arrival where the type has none.
        offset_s: added to every stamp.
        rate_hz: nominal samples per second.
        parameter: the parameter that states the rate.
    """

    def __init__(
        self, message_type: type, source: str, offset_s: float, rate_hz: float, parameter: str
    ) -> None:
        self._field = stamp_field(message_type) if source == "header" else ""
        self._offset_ns = round(offset_s * NS_PER_S)
        self._parameter = parameter
        self._set_rate(rate_hz)

    def _set_rate(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._arrivals = ArrivalStamps(rate_hz, self._parameter)
        self._headers = HeaderStamps(rate_hz)

    def first_ns(self, message: Any, count: int, rate_hz: float, arrival_ns: int) -> int:
        """Return the stamp of the first of a message's `count` samples.

        Raises:
            InputError: samples arrive faster than the rate says.
        """
        if rate_hz != self._rate_hz:
            self._set_rate(rate_hz)
        if not self._field:
            stamp_ns = arrival_ns and self._arrivals.first_ns(count, arrival_ns)
        else:
            if self._field == "header":
                stamp_ns = header_ns(message.header)
            else:
                time = message.timestamp
                stamp_ns = int(time.sec) * NS_PER_S + int(time.nanosec)
            if count > 1 and stamp_ns > 0:
                stamp_ns = self._headers.first_ns(count, stamp_ns)
        return stamp_ns + self._offset_ns if stamp_ns else 0

    def frame_id(self, message: Any) -> str:
        """Return the sensor's coordinate frame, "" where the message has none."""
        return str(message.header.frame_id) if self._field == "header" else ""
