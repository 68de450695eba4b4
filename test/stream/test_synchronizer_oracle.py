"""The synchroniser against a model of it in the plainest possible code, window by window."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmfuse_ros.config import Config
from mmfuse_ros.samples import Chunk, Frame, Modality
from mmfuse_ros.stream.synchronizer import Synchronizer

MS = 1_000_000
S = 1_000_000_000
AUDIO_HZ, SENSOR_HZ = 1000.0, 100.0
CAMERAS = ("camera_1", "camera_2")
SIGNALS = ("audio", "pressure", "emg")


def make_config(**overrides) -> Config:
    return Config.from_flat(
        {
            "audio.window_s": 0.3,
            "pressure.window_s": 0.3,
            "emg.window_s": 0.2,
            "pressure.rate_hz": SENSOR_HZ,
            "emg.rate_hz": SENSOR_HZ,
            "buffer.age_s": 1.0,
            "buffer.max_frames": 8,
            "sync.tolerance_s": 0.02,
            "sync.max_wait_s": 0.05,
            "sync.max_future_s": 0.5,
            **overrides,
        }
    )


class Oracle:
    """What DESIGN section 3 says, with lists that are searched from end to end."""

    def __init__(self, config: Config):
        self.config = config
        self.names = [str(m) for m in config.enabled]
        self.age = round(config.buffer.age_s * S)
        self.tolerance = round(config.sync.tolerance_s * S)
        self.kept = {name: [] for name in self.names}  # (stamp, value) by stream, this epoch
        self.rate = dict.fromkeys(self.names, 0.0)
        self.offences = {name: [] for name in self.names}
        self.references = []  # (stamp, created, floor)
        self.tick = None
        self.epoch = 0

    def newest_of_all(self):
        return max((items[-1][0] for items in self.kept.values() if items), default=None)

    def start_epoch(self):
        self.kept = {name: [] for name in self.names}
        self.rate = dict.fromkeys(self.names, 0.0)
        self.offences = {name: [] for name in self.names}
        self.references = []
        self.tick = None
        self.epoch += 1

    def offer(self, name, sample, now):
        if isinstance(sample, Frame):
            points = [(sample.stamp_ns, sample)]
        else:
            period = S / sample.rate_hz
            points = [
                (sample.stamp_ns + round(i * period), tuple(row))
                for i, row in enumerate(sample.values.tolist())
            ]
        first, last = points[0][0], points[-1][0]
        own = self.kept[name][-1][0] if self.kept[name] else None
        overall = self.newest_of_all()
        if first <= 0:
            return
        if now and last > now + round(self.config.sync.max_future_s * S):
            return
        if own is not None and last == own:
            return
        behind = own is not None and last < own
        ahead = overall is not None and first > overall + self.age
        if behind or ahead:
            if self.offences[name] and last <= self.offences[name][-1]:
                self.offences[name] = []
            self.offences[name].append(last)
            if len(self.offences[name]) < 3:
                return
            self.start_epoch()
        else:
            self.offences[name] = []
            if overall is not None and last < overall - self.age:
                return
        if isinstance(sample, Chunk):
            if self.kept[name] and (
                len(self.kept[name][-1][1]) != len(points[0][1])
                or self.rate[name] != sample.rate_hz
            ):
                self.kept[name] = []
            self.rate[name] = sample.rate_hz
            points = [p for p in points if own is None or behind or ahead or p[0] > own]
        self.kept[name] += points
        if name in CAMERAS:
            self.kept[name] = self.kept[name][-self.config.buffer.max_frames :]
        overall = self.newest_of_all()
        floor = overall - self.age
        if self.config.sync.rate_hz:
            period = round(S / self.config.sync.rate_hz)
            if self.tick is None:
                self.tick = overall if overall % period == 0 else (overall // period + 1) * period
            while self.tick <= overall:
                self.references.append((self.tick, now, floor))
                self.tick += period
        elif name == self.config.sync.trigger:
            self.references.append((last, now, floor))
        self.references = self.references[-64:]

    def take(self, now):
        windows = []
        while self.references and self.ready(self.references[0], now):
            window = self.window(self.references.pop(0))
            if window is not None:
                windows.append(window)
        return windows

    def ready(self, reference, now):
        stamp, created, _ = reference
        if now - created >= round(self.config.sync.max_wait_s * S):
            return True
        for name in self.names:
            if not self.kept[name] or self.kept[name][-1][0] < stamp - S:
                continue
            needed = stamp if name in CAMERAS else stamp - self.tolerance
            if self.kept[name][-1][0] < needed:
                return False
        return True

    def window(self, reference):
        stamp, _, floor = reference
        present, missing = {}, {}
        for name in self.names:
            newest = self.kept[name][-1][0] if self.kept[name] else None
            points = [p for p in self.kept[name] if p[0] >= floor]
            if newest is None or newest < stamp - S:
                missing[name] = "silent"
            elif name in CAMERAS:
                best = min(points, key=lambda p: (abs(p[0] - stamp), p[0]), default=None)
                if best is None or abs(best[0] - stamp) > self.tolerance:
                    missing[name] = "out of tolerance"
                else:
                    present[name] = best[1]
            elif newest < stamp - self.tolerance or not points:
                missing[name] = "out of tolerance"
            else:
                result = self.signal(name, points, stamp)
                (missing if isinstance(result, str) else present)[name] = result
        if any(name in missing for name in self.config.sync.required):
            return None
        if not present:
            return None
        return stamp, self.epoch, present, missing

    def signal(self, name, points, stamp):
        section = getattr(self.config, name)
        rate = self.rate[name] if name == "audio" else section.rate_hz
        period = S / rate
        count = round(section.window_s * rate)
        end = min(stamp, points[-1][0])
        past = [p for p in points if p[0] <= end]
        if not past:
            return "filling"
        tail = past[-count:]
        if len(tail) == count and end - tail[-1][0] <= period:
            if name == "audio":
                steps = [b[0] - a[0] for a, b in itertools.pairwise(tail)]
                fits = all(0.5 * period <= step <= 1.5 * period for step in steps)
            else:
                fits = all(
                    abs(tail[-1][0] - (count - 1 - i) * period - p[0]) <= 0.5 * period
                    for i, p in enumerate(tail)
                )
            if fits:
                return [p[1] for p in tail]
        start = end - round((count - 1) * period)
        if points[0][0] > start + self.tolerance:
            return "filling"
        uncovered = 0
        stretch = [(start, None), *points] if points[0][0] > start else points
        for (t0, _), (t1, _) in itertools.pairwise(stretch):
            if t1 - t0 > max(5 * period, 20 * MS):
                uncovered += max(0, min(t1, end) - max(t0, start))
        if 1 - uncovered / (end - start) < self.config.sync.min_coverage:
            return "gap"
        return [self.between(points, end - (count - 1 - i) * period) for i in range(count)]

    @staticmethod
    def between(points, time):
        before = [p for p in points if p[0] <= time]
        after = [p for p in points if p[0] > time]
        if not before or not after:
            return (before[-1] if before else after[0])[1]
        (t0, v0), (t1, v1) = before[-1], after[0]
        weight = (time - t0) / (t1 - t0)
        return tuple(a + (b - a) * weight for a, b in zip(v0, v1, strict=True))


@dataclass
class Step:
    """One thing that happens; `stream` indexes the modalities."""

    kind: str
    stream: int
    ms: int
    jitter_us: int


KINDS = ["flow", "flow", "flow", "one", "one", "late", "again", "back", "zero", "future"]
KINDS += ["jump", "format", "silence"]

steps = st.lists(
    st.builds(
        Step,
        kind=st.sampled_from(KINDS),
        stream=st.integers(0, 4),
        ms=st.integers(1, 400),
        jitter_us=st.integers(0, 8000),
    ),
    min_size=1,
    max_size=25,
)


class World:
    """Turns steps into samples; plays them to the synchroniser and to the oracle alike."""

    def __init__(self, config: Config):
        self.config = config
        self.names = [str(m) for m in config.enabled]
        self.real, self.oracle = Synchronizer(config), Oracle(config)
        self.now = 1_000_000 * S
        self.shift = 0  # of the sensors' clocks
        self.last = {}
        self.channels = dict.fromkeys(SIGNALS, 1)
        self.number = 0
        self.windows = 0
        self.signals = 0

    def sample(self, name, stamp):
        self.number += 1
        if name in CAMERAS:
            return Frame(stamp, f"{name}_{self.number}", lambda: np.zeros((1, 1, 3), np.uint8))
        count, rate = {"audio": (20, AUDIO_HZ), "pressure": (1, SENSOR_HZ)}.get(
            name, (3, SENSOR_HZ)
        )
        values = self.number + np.arange(count, dtype=np.float32)[:, None] / 32
        return Chunk(stamp, np.repeat(values, self.channels[name], axis=1), rate, name)

    def send(self, name, sample):
        self.last[name] = sample.stamp_ns
        self.real.offer(Modality(name), sample, self.now)
        self.oracle.offer(name, sample, self.now)
        self.look()

    def look(self):
        actual, expected = self.real.take(self.now), self.oracle.take(self.now)
        assert [w.stamp_ns for w in actual] == [w[0] for w in expected]
        for window, (_, epoch, present, missing) in zip(actual, expected, strict=True):
            assert window.epoch == epoch
            assert {str(m): why for m, why in window.missing.items()} == missing
            assert {str(m) for m in window.present} == set(present)
            for modality, frame in window.frames.items():
                assert frame is present[str(modality)]
                offset = frame.stamp_ns - window.stamp_ns
                assert window.offset_ns[modality] == offset
                assert abs(offset) <= self.oracle.tolerance
            for modality, signal in window.signals.items():
                expected_values = np.array(present[str(modality)], np.float32).T
                np.testing.assert_allclose(signal.values, expected_values, rtol=1e-5, atol=1e-5)
                assert -self.oracle.tolerance <= window.offset_ns[modality] <= 0 or (
                    window.offset_ns[modality] <= 0
                )
                self.signals += 1
            self.windows += 1
        waiting = self.real.counters()["waiting"]
        assert waiting == len(self.oracle.references)

    def play(self, step):
        name = self.names[step.stream % len(self.names)]
        stamp = self.now + self.shift - step.jitter_us * 1000
        if step.kind == "flow":
            self.flow(step)
        elif step.kind == "one":
            self.now += step.ms * MS // 10
            self.send(name, self.sample(name, stamp))
        elif step.kind == "late":
            self.send(name, self.sample(name, stamp - step.ms * MS))
        elif step.kind == "again":
            self.send(name, self.sample(name, self.last.get(name, stamp)))
        elif step.kind == "back":
            self.send(name, self.sample(name, self.last.get(name, stamp) - step.ms * MS // 4))
        elif step.kind == "zero":
            self.send(name, self.sample(name, 0))
        elif step.kind == "future":
            self.send(name, self.sample(name, self.now + 700 * MS))
        elif step.kind == "jump":
            self.shift = 0 if self.shift else -step.ms * 50 * MS
        elif step.kind == "format" and name in SIGNALS:
            self.channels[name] = 3 - self.channels[name]
        elif step.kind == "silence":
            self.now += step.ms * 8 * MS
            self.look()

    def flow(self, step):
        """All streams at their rates, but for one that is silent; arrival is a little late."""
        period = {"camera_1": 33, "camera_2": 40, "audio": 20, "pressure": 10, "emg": 30}
        for ms in range(step.ms):
            self.now += MS
            for index, name in enumerate(self.names):
                if index == step.stream or (self.now // MS + index) % period[name]:
                    continue
                wobble = (self.number * 7919 % 13) * step.jitter_us * 1000 // 13
                stamp = self.now + self.shift - (0 if name == "audio" else wobble)
                self.send(name, self.sample(name, stamp))
            if ms % 5 == 0:
                self.look()

    def check_ledger(self):
        for name, status in self.real.status(self.now).items():
            kept = status.used + status.pending + sum(status.dropped.values())
            assert status.received == kept, (name, status)
            assert min(status.used, status.pending, *status.dropped.values(), 0) == 0
        counters = self.real.counters()
        discarded = sum(n for key, n in counters.items() if key.startswith("discarded"))
        total = counters["windows"] + counters["waiting"] + discarded
        assert counters["references"] == total, counters
        assert counters["windows"] == self.windows
        assert self.real.epoch == self.oracle.epoch


configs = st.builds(
    make_config,
    **{
        "sync.trigger": st.sampled_from(["camera_1", "camera_2", "audio", "pressure"]),
        "sync.rate_hz": st.sampled_from([0.0, 0.0, 0.0, 25.0]),
        "sync.max_wait_s": st.sampled_from([0.0, 0.05, 0.2]),
        "sync.min_coverage": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        "sync.required": st.sampled_from([(), ("camera_2",), ("emg", "audio")]),
        "sync.tolerance_s": st.sampled_from([0.0, 0.005, 0.02, 0.5]),
    },
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs, steps=steps)
def test_agrees_with_the_oracle(config, steps):
    world = World(config)
    for step in steps:
        world.play(step)
        world.check_ledger()


@pytest.mark.parametrize("trigger", ["camera_1", "audio", "pressure"])
def test_the_streams_of_the_property_test_do_make_whole_windows(trigger):
    """Guards the test above against agreeing on nothing."""
    world = World(make_config(**{"sync.trigger": trigger}))
    for _ in range(5):
        world.play(Step("flow", 5, 400, 2000))
    world.check_ledger()
    assert world.windows > 40
    assert world.signals > 100


def test_a_jump_of_all_clocks_starts_one_epoch():
    world = World(make_config())
    for kind in ("flow", "flow", "jump", "flow", "flow", "jump", "flow"):
        world.play(Step(kind, 5, 400, 0))
    world.check_ledger()
    assert world.real.epoch == 2


def test_live_parameters_take_effect_without_losing_buffers():
    config = make_config()
    world = World(config)
    world.play(Step("flow", 5, 400, 0))
    stricter = dataclasses.replace(
        config, sync=dataclasses.replace(config.sync, required=("emg",), tolerance_s=0.5)
    )
    world.real.configure(stricter)
    world.oracle.config = stricter
    world.oracle.tolerance = 500 * MS
    before = world.windows
    world.play(Step("flow", 5, 100, 0))
    world.check_ledger()
    assert world.windows > before
