"""A standstill after which nothing arrives, told from silences of other causes."""

from __future__ import annotations

import pytest

from mmfuse_ros.ros import deafness
from mmfuse_ros.ros.deafness import LOOK_PERIOD_S, Deafness
from mmfuse_ros.samples import Modality


class Stream:
    def __init__(self):
        self.last_arrival_s = None
        self.publishers = 1

    def count_publishers(self):
        return self.publishers


class Scene:
    """Streams and a watch over them, on a clock that the test moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(deafness.time, "monotonic", lambda: self.now)
        self.streams = {m: Stream() for m in (Modality.CAMERA_1, Modality.AUDIO, Modality.EMG)}
        self.watch = Deafness(self.streams)

    def run(self, seconds, arriving):
        """Look for so long; return whether it was found deaf."""
        end = self.now + seconds
        while self.now < end:
            self.now += LOOK_PERIOD_S
            for modality in arriving:
                self.streams[modality].last_arrival_s = self.now
            if self.watch.look():
                return True
        return False


@pytest.fixture
def scene(monkeypatch):
    return Scene(monkeypatch)


def test_silence_of_all_since_a_standstill(scene):
    assert not scene.run(5, scene.streams)
    scene.now += 2.0
    assert not scene.run(0.5, [Modality.EMG])  # what the reader still held
    assert not scene.run(3, [])
    assert scene.run(4, [])


def test_no_standstill(scene):
    assert not scene.run(5, scene.streams)
    assert not scene.run(60, [])


def test_one_stream_that_goes_on(scene):
    assert not scene.run(5, scene.streams)
    scene.now += 2.0
    assert not scene.run(20, [Modality.AUDIO])
    assert not scene.run(20, [])  # that silence came later


def test_a_stream_that_was_silent_before_does_not_count(scene):
    assert not scene.run(5, scene.streams)
    assert not scene.run(5, [Modality.AUDIO])
    scene.now += 2.0
    assert scene.run(20, [])


def test_nothing_arrived_before(scene):
    assert not scene.run(5, [])
    scene.now += 2.0
    assert not scene.run(20, [])


def test_publishers_that_are_gone(scene):
    assert not scene.run(5, scene.streams)
    scene.now += 2.0
    scene.streams[Modality.EMG].publishers = 0
    assert not scene.run(20, [])
    scene.streams[Modality.EMG].publishers = 1
    assert scene.run(1, [])
