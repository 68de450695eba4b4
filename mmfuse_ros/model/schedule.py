"""Which of the two large encoders run for a window, and which reuse their newest vectors.

Every window has a fused vector. An encoder that costs more than the machine can spend on each
window runs less often, and the windows in between take its newest vectors, whose age is told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import numpy.typing as npt

from mmfuse_ros.samples import CAMERAS, NS_PER_S, Modality, Window

Array = npt.NDArray[np.float32]

ENCODERS = ("vision", "audio")

AUTO = -1.0

# Auto mode keeps this share of the time for the model; the rest is for spikes.
_BUDGET = 0.8
# What an encoder may take of that, and how often it should run where it can.
_AUDIO_PERIOD_S = 0.5
_AUDIO_SHARE = 0.5  # of the budget; a slower encoder runs less often instead
_REST_HZ = 15.0  # windows per second whose cheap part the budget allows for
# Full windows come back only when they would leave this much of the interval free.
_KEEPS_UP = 0.75
_HISTORY = 15  # windows that costs and intervals are the medians of
_OVERDUE = 2.0  # periods after which an encoder runs, whatever else does


@dataclass(frozen=True)
class Plan:
    """What is done for one window.

    Attributes:
        run: the large encoders that run.
        held: vectors of earlier windows that stand in, by stream.
        failed: why a stream has no vector to stand in, as the encoder's last run found.
        age_ns: how much older than the reference the data behind each vector is.
    """

    run: frozenset[str]
    held: Mapping[Modality, Array]
    failed: Mapping[Modality, str]
    age_ns: Mapping[Modality, int]


@dataclass
class _Cache:
    """The newest vectors of one encoder, all of one window."""

    stamp_ns: int
    epoch: int
    vectors: dict[Modality, Array] = field(default_factory=dict)
    data_ns: dict[Modality, int] = field(default_factory=dict)
    failed: dict[Modality, str] = field(default_factory=dict)


class Schedule:
    """Decide, window by window, from what earlier ones took. It reads no clock.

    Args:
        vision_period_s, audio_period_s: shortest time between two runs; 0 runs the encoder for
            every window, -1 (auto) for every window while the machine keeps up with that, else
            as often as it can: audio about twice a second, vision with what is left.

    A vector is reused only while its stream is in the window, within one clock epoch, and for at
    most two periods.
    """

    def __init__(self, vision_period_s: float = AUTO, audio_period_s: float = AUTO) -> None:
        self._asked = {"vision": vision_period_s, "audio": audio_period_s}
        self._costs: dict[str, deque[float]] = {
            name: deque(maxlen=_HISTORY) for name in (*ENCODERS, "rest")
        }
        self._intervals: deque[float] = deque(maxlen=_HISTORY)
        self._caches: dict[str, _Cache] = {}
        self._last: tuple[int, int, int] | None = None  # stamp, epoch, dropped
        self._decoupled = False

    @property
    def periods_s(self) -> dict[str, float]:
        """The time between two runs of each encoder as it is now; 0 is every window."""
        chosen = self._auto() if AUTO in self._asked.values() else {}
        return {n: chosen[n] if p == AUTO else p for n, p in self._asked.items()}

    def plan(self, window: Window, dropped: int = 0) -> Plan:
        """Return what to do for the next window.

        Args:
            dropped: windows so far that found the worker busy; with their number the distance
                of two stamps tells how often windows are wanted.
        """
        self._note_interval(window, dropped)
        periods_s = self.periods_s
        now_ns = window.stamp_ns
        due: dict[str, float] = {}
        forced: set[str] = set()
        for name in ENCODERS:
            streams = _streams(window, name)
            if not streams:
                self._caches.pop(name, None)
                continue
            cache, period_s = self._caches.get(name), periods_s[name]
            since_s = (now_ns - cache.stamp_ns) / NS_PER_S if cache else 0.0
            usable = (
                cache is not None
                and cache.epoch == window.epoch
                and since_s >= 0.0
                and all(m in cache.vectors or m in cache.failed for m in streams)
            )
            if not usable or period_s == 0.0 or since_s >= _OVERDUE * period_s:
                forced.add(name)
            elif since_s >= period_s:
                due[name] = since_s / period_s
        run = set(forced)
        if self._decoupled and due:
            # One large encoder a window: their costs would add up in one embedding's age.
            if not forced:
                run.add(max(due, key=lambda name: due[name]))
        else:
            run |= set(due)
        return self._carried_out(window, frozenset(run))

    def done(
        self,
        window: Window,
        plan: Plan,
        vectors: Mapping[str, Array],
        failed: Mapping[Modality, str],
        costs_s: Mapping[str, float],
    ) -> None:
        """Take in what became of a window.

        Args:
            vectors: (D_m,) by stream.
            failed: why a stream that was in the window has none.
            costs_s: seconds that each encoder took, and the "rest".
        """
        for name in plan.run:
            streams = _streams(window, name)
            fresh = [m for m in streams if m.value in vectors]
            self._caches[name] = _Cache(
                window.stamp_ns,
                window.epoch,
                {m: vectors[m.value] for m in fresh},
                {m: window.stamp_ns + window.offset_ns.get(m, 0) for m in fresh},
                {m: failed[m] for m in streams if m in failed},
            )
            if name in costs_s:
                self._costs[name].append(costs_s[name])
        if "rest" in costs_s:
            self._costs["rest"].append(costs_s["rest"])

    def _carried_out(self, window: Window, run: frozenset[str]) -> Plan:
        held: dict[Modality, Array] = {}
        failed: dict[Modality, str] = {}
        age_ns = {m: -window.offset_ns.get(m, 0) for m in window.present}
        for name in ENCODERS:
            if name in run:
                continue
            for modality in _streams(window, name):
                cache = self._caches[name]
                if modality in cache.failed:
                    failed[modality] = cache.failed[modality]
                else:
                    held[modality] = cache.vectors[modality]
                    age_ns[modality] = window.stamp_ns - cache.data_ns[modality]
        return Plan(run, held, failed, age_ns)

    def _note_interval(self, window: Window, dropped: int) -> None:
        if self._last is not None:
            stamp_ns, epoch, before = self._last
            gap_s = (window.stamp_ns - stamp_ns) / NS_PER_S
            if epoch == window.epoch and gap_s > 0.0:
                self._intervals.append(gap_s / (1 + max(0, dropped - before)))
        self._last = (window.stamp_ns, window.epoch, dropped)

    def _auto(self) -> dict[str, float]:
        """Return the periods that the measured costs allow."""
        costs = {n: median(c) if c else 0.0 for n, c in self._costs.items()}
        free = dict.fromkeys(ENCODERS, 0.0)
        if not self._intervals:
            return free
        interval_s = median(self._intervals)
        load = sum(costs.values()) / interval_s
        # Between the two bounds the state stays, so that it does not flicker.
        self._decoupled = load > (_KEEPS_UP if self._decoupled else 1.0)
        if not self._decoupled:
            return free
        rest = costs["rest"] * min(1.0 / interval_s, _REST_HZ)
        budget = max(_BUDGET - rest, 0.1)
        fixed = {n: p for n, p in self._asked.items() if p > 0.0}
        budget = max(budget - sum(costs[n] / p for n, p in fixed.items()), 0.05)
        audio = max(_AUDIO_PERIOD_S, costs["audio"] / (_AUDIO_SHARE * budget))
        if "audio" not in fixed:
            budget -= costs["audio"] / audio
        vision = costs["vision"] / budget
        return {"vision": vision if vision > interval_s else 0.0, "audio": audio}


def _streams(window: Window, encoder: str) -> list[Modality]:
    """Return the streams of a window that an encoder serves."""
    candidates: Iterable[Modality] = CAMERAS if encoder == "vision" else (Modality.AUDIO,)
    return [m for m in candidates if m in window.frames or m in window.signals]
