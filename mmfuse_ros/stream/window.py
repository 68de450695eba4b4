"""Cut a signal's window: the last seconds before the reference, on an even grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.samples import NS_PER_S, Signal

# Time between two samples that counts as a gap. Five periods let a 200 Hz sensor through where
# 1 kHz is asked for; 20 ms lets through the jitter of a loaded machine.
_GAP_PERIODS = 5.0
_GAP_NS = 20_000_000

FILLING = "filling"
GAP = "gap"


@dataclass(frozen=True)
class Piece:
    """A signal's part of a window, and which samples it was made of.

    Attributes:
        signal: values on the even grid.
        newest_ns: stamp of the newest sample that is not after the reference.
        first, last: the samples used, [first, last) of the stretch that was given.
    """

    signal: Signal
    newest_ns: int
    first: int
    last: int


def cut(
    stamps: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    reference_ns: int,
    window_s: float,
    rate_hz: float,
    tolerance_ns: int,
    min_coverage: float,
    *,
    native: bool,
) -> Piece | str:
    """Return the window of a signal, or why there is none: `filling` or `gap`.

    The grid has round(window_s * rate_hz) points, at least one, and ends at the reference, or at
    the newest sample where that is older. Samples that lie on such a grid already are copied
    bit by bit; others are interpolated linearly, with the oldest held over at most
    `tolerance_ns`.

    Args:
        stamps: (samples,) strictly increasing, not empty.
        values: (samples, channels) float32.
        native: `rate_hz` is the sensor's own rate and small deviations of its stamps from it are
            jitter: an unbroken stretch is copied. Otherwise only samples within half a period
            of the grid are.
    """
    end_ns = min(reference_ns, int(stamps[-1]))
    last = int(stamps.searchsorted(end_ns, "right"))
    count = max(1, round(window_s * rate_hz))
    period_ns = NS_PER_S / rate_hz
    if last == 0:
        return FILLING
    newest_ns = int(stamps[last - 1])
    if last >= count and end_ns - newest_ns <= period_ns:
        first = last - count
        piece = stamps[first:last]
        if _unbroken(piece, period_ns) if native else _even(piece, period_ns):
            copied = Signal(values[first:last].T.copy(), rate_hz)
            return Piece(copied, newest_ns, first, last)

    start_ns = end_ns - round((count - 1) * period_ns)
    if int(stamps[0]) > start_ns + tolerance_ns:
        return FILLING
    first = max(0, int(stamps.searchsorted(start_ns, "right")) - 1)
    last = min(len(stamps), last + 1)
    # Relative to the end a float64 is exact to far below a nanosecond.
    times = (stamps[first:last] - end_ns).astype(np.float64)
    if _coverage(times, start_ns - end_ns, period_ns) < min_coverage:
        return GAP
    grid = np.arange(1 - count, 1) * period_ns
    resampled = _interpolate(times, values[first:last], grid)  # (samples, channels)
    return Piece(Signal(resampled.T.copy(), rate_hz), newest_ns, first, last)


def _unbroken(stamps: npt.NDArray[np.int64], period_ns: float) -> bool:
    """Return whether no sample is missing or doubled between neighbours."""
    if len(stamps) < 2:
        return True
    steps = np.diff(stamps)
    return bool(steps.max() <= 1.5 * period_ns and steps.min() >= 0.5 * period_ns)


def _even(stamps: npt.NDArray[np.int64], period_ns: float) -> bool:
    """Return whether each sample lies within half a period of the grid that ends at the last."""
    grid = np.arange(1 - len(stamps), 1) * period_ns
    return bool(np.abs((stamps - stamps[-1]) - grid).max() <= 0.5 * period_ns)


def _coverage(times: npt.NDArray[np.float64], start: float, period_ns: float) -> float:
    """Return the share of [start, 0] that does not lie in gaps between samples."""
    if start >= 0.0:
        return 1.0
    longest = max(_GAP_PERIODS * period_ns, _GAP_NS)
    inside = np.clip(times, start, 0.0)
    missing = max(0.0, times[0] - start) if times[0] - start > longest else 0.0
    missing += float(np.diff(inside)[np.diff(times) > longest].sum())
    return 1.0 - missing / -start


def _interpolate(
    times: npt.NDArray[np.float64],
    values: npt.NDArray[np.float32],
    grid: npt.NDArray[np.floating[Any]],
) -> npt.NDArray[np.float32]:
    """Interpolate every channel linearly at `grid`; hold the first and last sample outside."""
    if len(times) == 1:
        return np.repeat(values, len(grid), axis=0)
    right = np.clip(np.searchsorted(times, grid, "right"), 1, len(times) - 1)
    left = right - 1
    weight = np.clip((grid - times[left]) / (times[right] - times[left]), 0.0, 1.0)[:, None]
    return (values[left] * (1.0 - weight) + values[right] * weight).astype(np.float32)
