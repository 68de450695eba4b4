"""Streams become windows: order, clock jumps, reference stamps, waiting, tolerance."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from mmfuse_ros.config import Config
from mmfuse_ros.samples import NS_PER_S, Chunk, Frame, Modality, Signal, Window
from mmfuse_ros.stream.intake import BEFORE_ALL, Intake, span_ns
from mmfuse_ros.stream.ledger import StreamStatus
from mmfuse_ros.stream.window import cut

# A stream whose newest stamp is further behind the reference than this is not waited for: it
# would delay every window by `sync.max_wait_s`. Slow cameras and lidars run at 1 Hz and more.
LIVE_NS = NS_PER_S

# One stray stamp is a driver's fault; so many in a row, in order among themselves, are a clock
# that jumped (a looped bag, a time server, a restarted simulator).
JUMP_SAMPLES = 3

# References that may wait at once; windows are for the newest, so a longer queue serves nobody.
MAX_REFERENCES = 64


@dataclass
class _Reference:
    """A moment that a window is wanted for.

    `floor_ns` is the oldest stamp a window may hold, fixed when the reference is made so that
    what a window sees does not depend on when memory is freed.
    """

    stamp_ns: int
    created_ns: int
    floor_ns: int
    frame_id: str


class Synchronizer:
    """Collect samples of all streams and hand out windows at reference stamps.

    Not thread-safe: one thread offers and takes. It reads no clock; the node's time comes in
    with each call.

    Args:
        config: the enabled streams, their windows, `buffer.*` and `sync.*`.
    """

    def __init__(self, config: Config) -> None:
        self._streams = {m: Intake(m, config) for m in config.enabled}
        self._age_ns = _ns(config.buffer.age_s)
        self._max_future_ns = _ns(config.sync.max_future_s)
        self._trigger = Modality(config.sync.trigger)
        self._tick_ns = _ns(1.0 / config.sync.rate_hz) if config.sync.rate_hz else 0
        self._references: deque[_Reference] = deque()
        self._newest_ns = BEFORE_ALL
        self._next_tick_ns = BEFORE_ALL
        self.epoch = 0
        self._windows = 0
        self._references_made = 0
        self._discarded: dict[str, int] = {}
        self._missing: dict[str, int] = {}
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Take over the parameters that may change at run time; the buffers stay."""
        self._tolerance_ns = _ns(config.sync.tolerance_s)
        self._max_wait_ns = _ns(config.sync.max_wait_s)
        self._min_coverage = config.sync.min_coverage
        self._required = tuple(Modality(name) for name in config.sync.required)

    def offer(self, modality: Modality, sample: Frame | Chunk, now_ns: int) -> None:
        """Take in one sample of an enabled stream; keep it, or drop and count it.

        Args:
            now_ns: the node's time at its arrival; 0 while the clock has not started.

        Raises:
            InputError: a chunk without a sample, or audio or several samples without a rate.
        """
        stream = self._streams[modality]
        first_ns = last_ns = sample.stamp_ns
        count = 1
        if isinstance(sample, Chunk):
            count = len(sample.values)
            if count != 1 or not stream.grid_hz:
                last_ns += span_ns(sample)
        ledger = stream.ledger
        ledger.received += count
        ledger.arrivals.append(now_ns)
        reason = self._refuse(stream, first_ns, last_ns, now_ns)
        if reason:
            ledger.drop(reason, count)
            return
        stream.keep(sample, last_ns, self._horizon_ns())
        if last_ns > self._newest_ns:
            self._newest_ns = last_ns
        if self._tick_ns:
            self._tick(now_ns)
        elif modality is self._trigger:
            self._refer(last_ns, now_ns, sample.frame_id)

    def take(self, now_ns: int) -> list[Window]:
        """Return the windows that are ready, in order of their reference stamps."""
        if not self._references:
            return []
        windows = []
        waiting = len(self._references)
        while self._references and self._settled(self._references[0], now_ns):
            window = self._cut(self._references.popleft())
            if window is not None:
                windows.append(window)
        if len(self._references) < waiting:
            self._evict()
        return windows

    def reset(self) -> None:
        """Empty all buffers and begin a new epoch."""
        self._begin_epoch("reset")

    def status(self, now_ns: int) -> dict[Modality, StreamStatus]:
        """Return each enabled stream's account at the node's time `now_ns` (0: no clock)."""
        self._evict()
        return {modality: stream.status(now_ns) for modality, stream in self._streams.items()}

    def counters(self) -> dict[str, int]:
        """Return what became of the references, by name.

        `references` is the sum of `windows`, `waiting` and every `discarded_...`.
        `missing_<stream>_<reason>` counts windows that were made without that stream.
        """
        return {
            "windows": self._windows,
            "references": self._references_made,
            "waiting": len(self._references),
            "epoch": self.epoch,
            **{f"discarded_{reason}": n for reason, n in self._discarded.items()},
            **{f"missing_{reason}": n for reason, n in self._missing.items()},
        }

    # In order, or not

    def _refuse(self, stream: Intake, first_ns: int, last_ns: int, now_ns: int) -> str:
        """Return why a sample is dropped, or "" where it is taken in."""
        if first_ns <= 0:
            return "zero_stamp"
        if now_ns and last_ns > now_ns + self._max_future_ns:
            return "future_stamp"
        if last_ns == stream.newest_ns:
            return "duplicate"
        empty = self._newest_ns == BEFORE_ALL
        if last_ns < stream.newest_ns:
            reason = "out_of_order"
        elif not empty and first_ns > self._newest_ns + self._age_ns:
            reason = "ahead"
        else:
            stream.violations = 0
            stale = not empty and last_ns < self._newest_ns - self._age_ns
            return "stale" if stale else ""
        stream.violations = stream.violations + 1 if last_ns > stream.last_violation_ns else 1
        stream.last_violation_ns = last_ns
        if stream.violations < JUMP_SAMPLES:
            return reason
        self._begin_epoch("clock_jump")
        return ""

    def _begin_epoch(self, reason: str) -> None:
        for stream in self._streams.values():
            stream.forget(reason)
        self._discard(reason, len(self._references))
        self._references.clear()
        self._newest_ns = self._next_tick_ns = BEFORE_ALL
        self.epoch += 1

    # References

    def _tick(self, now_ns: int) -> None:
        """Make a reference for each tick of data time that the newest stamp has reached."""
        tick, period = self._next_tick_ns, self._tick_ns
        if tick == BEFORE_ALL:
            tick = -(-self._newest_ns // period) * period
        elif self._newest_ns - tick >= MAX_REFERENCES * period:
            skipped = (self._newest_ns - tick) // period - MAX_REFERENCES + 1
            self._references_made += skipped
            self._discard("superseded", skipped)
            tick += skipped * period
        while tick <= self._newest_ns:
            self._refer(tick, now_ns, "")
            tick += period
        self._next_tick_ns = tick

    def _refer(self, stamp_ns: int, now_ns: int, frame_id: str) -> None:
        self._references_made += 1
        if len(self._references) == MAX_REFERENCES:
            self._references.popleft()
            self._discard("superseded", 1)
        floor_ns = self._newest_ns - self._age_ns
        self._references.append(_Reference(stamp_ns, now_ns, floor_ns, frame_id))

    def _discard(self, reason: str, count: int) -> None:
        if count:
            self._discarded[reason] = self._discarded.get(reason, 0) + count

    def _settled(self, reference: _Reference, now_ns: int) -> bool:
        """Return whether nothing that may still come can change the window."""
        if now_ns < reference.created_ns:
            # The node's clock went back while the data's did not.
            reference.created_ns = now_ns
        if now_ns - reference.created_ns >= self._max_wait_ns:
            return True
        stamp_ns = reference.stamp_ns
        for stream in self._streams.values():
            newest_ns = stream.newest_ns
            if newest_ns >= stamp_ns or newest_ns < stamp_ns - LIVE_NS:
                continue
            if stream.is_camera or newest_ns < stamp_ns - self._tolerance_ns:
                return False
        return True

    # Windows

    def _cut(self, reference: _Reference) -> Window | None:
        frames: dict[Modality, Frame] = {}
        signals: dict[Modality, Signal] = {}
        offset_ns: dict[Modality, int] = {}
        missing: dict[Modality, str] = {}
        spans: list[tuple[Intake, int, int]] = []
        for modality, stream in self._streams.items():
            if stream.newest_ns < reference.stamp_ns - max(LIVE_NS, self._tolerance_ns):
                missing[modality] = "silent"
            elif stream.is_camera:
                index = stream.frames.nearest(reference.stamp_ns, reference.floor_ns)
                frame = None if index is None else stream.frames[index]
                distance_ns = 0 if frame is None else frame.stamp_ns - reference.stamp_ns
                if index is None or frame is None or abs(distance_ns) > self._tolerance_ns:
                    missing[modality] = "out of tolerance"
                    continue
                frames[modality] = frame
                offset_ns[modality] = distance_ns
                spans.append((stream, index, index + 1))
            elif stream.newest_ns < reference.stamp_ns - self._tolerance_ns:
                missing[modality] = "out of tolerance"
            else:
                self._cut_signal(stream, reference, signals, offset_ns, missing, spans)
        for modality in self._required:
            if modality in missing:
                self._discard(f"required_{modality}", 1)
                return None
        if not spans:
            self._discard("empty", 1)
            return None
        for stream, first, last in spans:
            stream.use(first, last)
        for modality, reason in missing.items():
            key = f"{modality}_{reason.replace(' ', '_')}"
            self._missing[key] = self._missing.get(key, 0) + 1
        self._windows += 1
        return Window(
            stamp_ns=reference.stamp_ns,
            frame_id=reference.frame_id or self._frame_id(frames, signals),
            frames=frames,
            signals=signals,
            offset_ns=offset_ns,
            missing=missing,
            epoch=self.epoch,
        )

    def _cut_signal(
        self,
        stream: Intake,
        reference: _Reference,
        signals: dict[Modality, Signal],
        offset_ns: dict[Modality, int],
        missing: dict[Modality, str],
        spans: list[tuple[Intake, int, int]],
    ) -> None:
        buffer = stream.samples
        stamps = buffer.stamps
        skip = int(stamps.searchsorted(reference.floor_ns))
        if skip == len(stamps):
            missing[stream.modality] = "out of tolerance"
            return
        piece = cut(
            stamps[skip:],
            buffer.values[skip:],
            reference.stamp_ns,
            stream.window_s,
            stream.grid_hz or buffer.rate_hz,
            self._tolerance_ns,
            self._min_coverage,
            native=not stream.grid_hz,
        )
        if isinstance(piece, str):
            missing[stream.modality] = piece
            return
        signals[stream.modality] = piece.signal
        offset_ns[stream.modality] = piece.newest_ns - reference.stamp_ns
        spans.append((stream, skip + piece.first, skip + piece.last))

    def _frame_id(
        self, frames: Mapping[Modality, Frame], signals: Mapping[Modality, Signal]
    ) -> str:
        """Return the frame of the trigger stream, or of the first present one that has any."""
        for modality in (self._trigger, *frames, *signals):
            if modality in frames and frames[modality].frame_id:
                return frames[modality].frame_id
            if modality in signals and self._streams[modality].frame_id:
                return self._streams[modality].frame_id
        return ""

    def _horizon_ns(self) -> int:
        """Return the oldest stamp that a window, waiting or to come, may hold."""
        horizon_ns = self._newest_ns - self._age_ns
        if self._references:
            return min(horizon_ns, self._references[0].floor_ns)
        return horizon_ns

    def _evict(self) -> None:
        horizon_ns = self._horizon_ns()
        # Images are large: those that no window, waiting or to come, can reach go at once.
        if self._references:
            next_ns = self._references[0].stamp_ns
        elif self._tick_ns:
            next_ns = self._next_tick_ns
        else:
            next_ns = self._streams[self._trigger].newest_ns
        reach_ns = max(horizon_ns, next_ns - self._tolerance_ns)
        for stream in self._streams.values():
            stream.evict(reach_ns if stream.is_camera else horizon_ns)


def _ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)
