"""A picture that stands and sound that clips, told from those that only look so."""

from __future__ import annotations

import array

import numpy as np
import pytest

from mmfuse_ros.ros.content import Clipping, Picture


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("mmfuse_ros.ros.content.time.monotonic", lambda: now[0])
    return now


def pixels(seed, size=30_000):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


def feed(picture, clock, *data):
    for one in data:
        picture.add(array.array("B", one))
        clock[0] += 0.1


def test_a_picture_that_repeats_stands_since_it_was_first_seen(clock):
    picture = Picture()
    feed(picture, clock, pixels(0), pixels(1), pixels(1))
    assert picture.frozen_s == 0.0  # one repeat is a stutter
    feed(picture, clock, pixels(1))
    assert picture.frozen_s == pytest.approx(0.3)
    feed(picture, clock, pixels(2))
    assert picture.frozen_s == 0.0


def test_a_change_of_one_bit_anywhere_is_a_change(clock):
    picture = Picture()
    base = bytearray(pixels(0))
    for place in (0, 4095, 4096, 29_999):
        base[place] ^= 1
        feed(picture, clock, bytes(base))
    assert picture.frozen_s == 0.0


def test_pictures_of_other_sizes_differ_and_empty_ones_say_nothing(clock):
    picture = Picture()
    feed(picture, clock, bytes(100), bytes(99), bytes(100), b"", b"", b"")
    assert picture.frozen_s == 0.0


def test_clipping_follows_the_recent_share_whatever_the_chunk():
    for chunk in (37, 160, 8000):
        clipping = Clipping()
        wave = np.clip(np.sin(np.arange(32_000) * 0.1) * 10, -1, 1).astype(np.float32)[:, None]
        for start in range(0, len(wave), chunk):
            clipping.add(wave[start : start + chunk], 16_000.0)
        assert clipping.share == pytest.approx(0.93, abs=0.03)
        for _ in range(48_000 // chunk):
            clipping.add(np.full((chunk, 1), 0.5, np.float32), 16_000.0)
        assert clipping.share < 0.01


def test_the_lower_end_counts_and_loud_sound_does_not():
    clipping = Clipping()
    clipping.add(np.full((8000, 1), -1.0, np.float32), 16_000.0)
    assert clipping.share == 1.0
    clipping.add(np.full((8000, 1), 0.99, np.float32), 16_000.0)
    assert clipping.share == 0.0
