import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse_ros.samples import Frame
from mmfuse_ros.stream.buffer import FrameBuffer, SignalBuffer


def frame(stamp_ns):
    return Frame(stamp_ns, "", lambda: np.zeros((1, 1, 3), np.uint8))


def frames_at(*stamps):
    buffer = FrameBuffer(64)
    for stamp in stamps:
        buffer.append(frame(stamp))
    return buffer


def test_of_two_equally_near_frames_the_earlier_is_taken():
    buffer = frames_at(100, 200)
    assert buffer.nearest(150, 0) == 0
    assert buffer.nearest(151, 0) == 1
    assert buffer.nearest(10**6, 0) == 1
    assert buffer.nearest(0, 0) == 0


def test_frames_before_the_floor_are_not_seen():
    buffer = frames_at(100, 200, 300)
    assert buffer.nearest(100, 150) == 1
    assert buffer.nearest(100, 301) is None
    assert FrameBuffer(2).nearest(100, 0) is None


def test_the_oldest_frame_gives_way_and_is_counted_once():
    buffer = FrameBuffer(2)
    assert buffer.append(frame(1)) == 0
    assert buffer.append(frame(2)) == 0
    assert buffer.use(0, 1) == 1
    assert buffer.use(0, 1) == 0
    assert buffer.append(frame(3)) == 0  # 1 was used
    assert buffer.append(frame(4)) == 1  # 2 was not
    assert len(buffer) == buffer.pending == 2


operations = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "evict", "use", "clear"]),
        st.integers(0, 300),
        st.integers(0, 100),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(operations=operations)
def test_signal_buffer_equals_plain_lists(operations):
    limit = 700
    buffer = SignalBuffer(limit)
    buffer.set_format(2, 100.0)
    plain: list[tuple[int, float, bool]] = []
    number = 0
    for kind, size, share in operations:
        if kind == "append":
            points = [(number + i, (number + i) / 7, False) for i in range(size)]
            number += size
            values = np.array([[p[1], -p[1]] for p in points], np.float32).reshape(-1, 2)
            # Nothing is evicted by age here: only the limit forgets.
            lost = buffer.append(np.array([p[0] for p in points], np.int64), values, -1)
            plain += points
            kept = plain[-max(len(buffer), 0) :] if len(buffer) else []
            assert lost == sum(not p[2] for p in plain[: len(plain) - len(kept)])
            assert len(kept) == min(len(plain), len(buffer))
            plain = kept
        elif kind == "evict":
            before = plain[len(plain) * share // 101][0] if plain else 0
            gone = [p for p in plain if p[0] < before]
            assert buffer.evict(before) == sum(not p[2] for p in gone)
            plain = [p for p in plain if p[0] >= before]
        elif kind == "use":
            first = len(plain) * share // 101
            last = min(len(plain), first + size)
            fresh = sum(not p[2] for p in plain[first:last])
            assert buffer.use(first, last) == fresh
            plain[first:last] = [(s, v, True) for s, v, _ in plain[first:last]]
        else:
            assert buffer.clear() == sum(not p[2] for p in plain)
            plain = []
        assert len(buffer) <= limit
        assert buffer.stamps.tolist() == [p[0] for p in plain]
        np.testing.assert_array_equal(
            buffer.values[:, 0], np.array([p[1] for p in plain], np.float32)
        )
        assert buffer.pending == sum(not p[2] for p in plain)


def test_memory_stays_bounded_and_a_window_is_one_slice():
    buffer = SignalBuffer(5000)
    buffer.set_format(8, 1000.0)
    row = np.ones((1, 8), np.float32)
    for i in range(60_000):
        buffer.append(i, row, i - 3000)
    assert 3000 <= len(buffer) <= 5000
    assert buffer.values.flags.c_contiguous
    assert buffer.values.base.nbytes <= 3 * 5001 * 8 * 4


def test_a_chunk_larger_than_the_buffer_keeps_its_newest_samples():
    buffer = SignalBuffer(100)
    buffer.set_format(1, 1000.0)
    values = np.arange(5000, dtype=np.float32)[:, None]
    assert buffer.append(np.arange(5000), values, -1) == 4900
    assert buffer.stamps[0] == 4900
    assert buffer.values[-1, 0] == 4999


def test_held_share_and_rate_are_measured():
    buffer = SignalBuffer(5000)
    buffer.set_format(2, 1000.0)
    values = np.repeat(np.arange(200, dtype=np.float32), 5)[:, None]  # 200 Hz held to 1 kHz
    stamps = np.arange(1000) * 1_000_000
    buffer.append(stamps, np.repeat(values, 2, axis=1), -1)
    assert abs(buffer.held_share() - 0.8) < 0.01
    assert abs(buffer.recent_rate_hz() - 1000.0) < 1e-6
    assert SignalBuffer(10).held_share() == SignalBuffer(10).recent_rate_hz() == 0.0
