"""Even stamps for streams of known rate whose messages arrive, or are stamped, unevenly."""

from __future__ import annotations

from mmfuse_ros.errors import InputError
from mmfuse_ros.samples import NS_PER_S

# Messages arrive late, never early: a stamp may run this far ahead of arrival before samples
# count as coming faster than the rate says. Simulated clocks tick at 20 Hz and more.
AHEAD_NS = 50_000_000

# How far arrivals may lag before the lag is looked at. Behind a stalled receiver the queue drains
# within `_DRAIN_NS` and the lag goes; behind lost messages it stays, and time is caught up.
BEHIND_NS = 50_000_000
_DRAIN_NS = 100_000_000

# A longer lag is a pause of the sensor, caught up at once.
_PAUSE_NS = 500_000_000

# Slow drift between the sensor's clock and the node's is followed with this time constant, and
# by at most this share of a sample period a message, so that the stretch stays unbroken.
_FOLLOW_NS = 128_000_000.0
_FOLLOW_PERIODS = 0.4

# A single-sample stream whose rate differs by more than this from its nominal one, twice in a
# row over a second each, is followed at the measured rate.
_RATE_TOLERANCE = 0.05
_MEASURE_NS = NS_PER_S


class ArrivalStamps:
    """Stamp headerless messages: the last sample at its arrival, less the jitter.

    Each message continues the one before at the nominal rate and is corrected a little towards
    its arrival. Stamps stay strictly increasing, never more than 50 ms ahead of arrival, and
    behind it by no more than 50 ms for longer than 0.1 s, nor 0.5 s at all. A wrong nominal rate
    of a stream of single samples is measured and replaced; of a chunked stream it shows as gaps
    (too high) or as InputError (too low).

    Args:
        rate_hz: nominal samples per second.
        name: the parameter that states it, for messages.
    """

    def __init__(self, rate_hz: float, name: str) -> None:
        self._name = name
        self._nominal_ns = NS_PER_S / rate_hz
        self._period_ns = self._nominal_ns
        # Times are floats relative to this: at 1e18 ns a float64 is only exact to 128 ns.
        self._origin_ns = 0
        self._next_ns = 0.0
        self._last_ns = 0
        self._arrival_ns = 0
        self._lag_since_ns = 0
        self._block_start_ns = 0
        self._block_count = 0
        self._measured_ns = 0.0

    def first_ns(self, count: int, arrival_ns: int) -> int:
        """Return the stamp of the first of `count` samples that arrived at `arrival_ns`.

        Raises:
            InputError: samples come faster than the nominal rate, or the clock stands still.
        """
        period_ns = self._period_ns
        if arrival_ns < self._arrival_ns - AHEAD_NS or not self._arrival_ns:
            # The first message, or the clock went back.
            self._last_ns = 0
            return self._pause(count, arrival_ns)
        target_ns = arrival_ns - self._origin_ns - (count - 1) * period_ns
        self._arrival_ns = arrival_ns
        if count == 1:
            self._measure(arrival_ns)
        lag_ns = target_ns - self._next_ns
        if lag_ns > BEHIND_NS:
            if not self._lag_since_ns:
                self._lag_since_ns = arrival_ns
            if lag_ns > _PAUSE_NS:
                return self._pause(count, arrival_ns)
            if arrival_ns - self._lag_since_ns > _DRAIN_NS:
                return self._restart(count, arrival_ns)
            start_ns = self._next_ns
        elif lag_ns < -AHEAD_NS:
            raise InputError(
                f"{self._name} must be the sensor's rate, got {NS_PER_S / self._nominal_ns:g} and "
                "samples that arrive faster (or at once after a stall, or by a clock that stands "
                "still); correct the rate",
                "rate",
            )
        else:
            self._lag_since_ns = 0
            step_ns = lag_ns * min(0.5, count * period_ns / _FOLLOW_NS)
            limit_ns = _FOLLOW_PERIODS * period_ns
            start_ns = self._next_ns + max(-limit_ns, min(limit_ns, step_ns))
        return self._advance(start_ns, count)

    def _pause(self, count: int, arrival_ns: int) -> int:
        """Restart, and measure the rate anew: nothing came in between."""
        self._block_start_ns, self._block_count = arrival_ns, 0
        return self._restart(count, arrival_ns)

    def _restart(self, count: int, arrival_ns: int) -> int:
        """Stamp by this arrival, whatever came before."""
        self._arrival_ns = self._origin_ns = arrival_ns
        self._lag_since_ns = 0
        return self._advance((1 - count) * self._period_ns, count)

    def _advance(self, start_ns: float, count: int) -> int:
        # A microsecond keeps stamps apart at any rate that a message per sample can have.
        start_ns = max(start_ns, float(self._last_ns + 1000 - self._origin_ns))
        first_ns = self._origin_ns + round(start_ns)
        self._last_ns = first_ns + round((count - 1) * self._nominal_ns)
        self._next_ns = start_ns + count * self._period_ns
        return first_ns

    def _measure(self, arrival_ns: int) -> None:
        self._block_count += 1
        span_ns = arrival_ns - self._block_start_ns
        if span_ns < _MEASURE_NS:
            return
        measured_ns = span_ns / self._block_count
        before_ns, self._measured_ns = self._measured_ns, measured_ns
        self._block_start_ns, self._block_count = arrival_ns, 0
        if abs(measured_ns - before_ns) > _RATE_TOLERANCE * measured_ns:
            return
        close = abs(measured_ns - self._nominal_ns) <= _RATE_TOLERANCE * self._nominal_ns
        self._period_ns = self._nominal_ns if close else measured_ns


class HeaderStamps:
    """Even out the header stamps of chunks: drivers stamp when they are scheduled.

    A chunk whose stamp is within half its length (50 ms at most) of where the one before ended
    continues it, corrected a little towards its stamp; any other keeps the stamp it has.

    Args:
        rate_hz: samples per second.
    """

    def __init__(self, rate_hz: float) -> None:
        self._period_ns = NS_PER_S / rate_hz
        self._header_ns = 0
        self._first_ns = 0
        self._origin_ns = 0
        self._next_ns = 0.0

    def first_ns(self, count: int, header_ns: int) -> int:
        """Return the stamp of the first of `count` samples whose header says `header_ns`."""
        if header_ns == self._header_ns:
            # The same message twice: keep it recognisable.
            return self._first_ns
        self._header_ns = header_ns
        length_ns = count * self._period_ns
        start_ns = float(header_ns - self._origin_ns)
        lag_ns = start_ns - self._next_ns
        if abs(lag_ns) <= min(0.5 * length_ns, BEHIND_NS):
            limit_ns = _FOLLOW_PERIODS * self._period_ns
            step_ns = lag_ns * min(0.5, length_ns / _FOLLOW_NS)
            start_ns = self._next_ns + max(-limit_ns, min(limit_ns, step_ns))
        else:
            self._origin_ns, start_ns = header_ns, 0.0
        self._next_ns = start_ns + length_ns
        self._first_ns = self._origin_ns + round(start_ns)
        return self._first_ns
