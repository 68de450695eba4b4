"""Each rule of the synchroniser pinned by one example."""

import dataclasses

import numpy as np
import pytest

from mmfuse_ros.config import Config
from mmfuse_ros.errors import InputError
from mmfuse_ros.samples import Chunk, Frame, Modality
from mmfuse_ros.stream.synchronizer import MAX_REFERENCES, Synchronizer

MS = 1_000_000
S = 1_000_000_000
T0 = 1_700_000_000 * S
CAM1, CAM2, AUDIO, PRESSURE, EMG = Modality


def frame(stamp_ns, frame_id="cam"):
    return Frame(stamp_ns, frame_id, lambda: np.zeros((1, 1, 3), np.uint8))


def chunk(stamp_ns, count=1, rate_hz=1000.0, channels=1, value=0.0):
    return Chunk(stamp_ns, np.full((count, channels), value, np.float32), rate_hz)


def make(**parameters):
    disabled = {f"{m}.enabled": False for m in parameters.pop("without", ())}
    return Synchronizer(Config.from_flat({**disabled, **parameters}))


def cameras(**parameters):
    return make(without=(AUDIO, PRESSURE, EMG), **parameters)


def dropped(sync, modality):
    status = sync.status(0)[modality]
    assert status.received == status.used + status.pending + sum(status.dropped.values())
    return dict(status.dropped)


def test_a_window_waits_until_the_nearest_frame_is_decided():
    sync = cameras()
    sync.offer(CAM2, frame(T0 - 10 * MS), T0)
    sync.offer(CAM1, frame(T0), T0)
    assert sync.take(T0) == []  # camera_2 may still bring one nearer to T0
    sync.offer(CAM2, frame(T0 + 4 * MS), T0 + 20 * MS)
    (window,) = sync.take(T0 + 20 * MS)
    assert window.stamp_ns == T0
    assert window.frames[CAM2].stamp_ns == T0 + 4 * MS
    assert window.offset_ns == {CAM1: 0, CAM2: 4 * MS}


def test_max_wait_ends_the_waiting():
    sync = cameras()
    sync.offer(CAM2, frame(T0 - 20 * MS), T0)
    sync.offer(CAM1, frame(T0), T0)
    assert sync.take(T0 + 49 * MS) == []
    (window,) = sync.take(T0 + 50 * MS)
    assert window.offset_ns[CAM2] == -20 * MS


def test_a_dead_stream_is_not_waited_for():
    sync = cameras()
    sync.offer(CAM2, frame(T0), T0)
    sync.offer(CAM1, frame(T0 + S), T0 + S)
    assert sync.take(T0 + S) == []
    sync = cameras()
    sync.offer(CAM2, frame(T0), T0)
    sync.offer(CAM1, frame(T0 + S + 1), T0 + S)
    (window,) = sync.take(T0 + S)
    assert window.missing == {CAM2: "silent"}
    assert window.present == (CAM1,)


def test_a_frame_out_of_tolerance_is_missing():
    sync = cameras()
    sync.offer(CAM2, frame(T0 - 51 * MS), T0)
    sync.offer(CAM1, frame(T0), T0)
    (window,) = sync.take(T0 + S)
    assert window.missing == {CAM2: "out of tolerance"}


def test_clocks_that_have_not_started_wait_only_for_data():
    sync = cameras()
    sync.offer(CAM2, frame(T0 - 10 * MS), 0)
    sync.offer(CAM1, frame(T0), 0)
    assert sync.take(0) == []
    sync.offer(CAM2, frame(T0 + 10 * MS), 0)
    assert len(sync.take(0)) == 1


def test_a_node_clock_that_goes_back_does_not_hold_windows_forever():
    sync = cameras()
    sync.offer(CAM2, frame(T0 - 10 * MS), T0)
    sync.offer(CAM1, frame(T0), T0)
    assert sync.take(T0 - 60 * S) == []
    assert len(sync.take(T0 - 60 * S + 50 * MS)) == 1


def test_stamps_of_zero_and_of_the_future_are_dropped():
    sync = cameras()
    sync.offer(CAM1, frame(0), T0)
    sync.offer(CAM1, frame(T0 + S + 1), T0)
    sync.offer(CAM1, frame(T0 + S), T0)
    assert dropped(sync, CAM1) == {"zero_stamp": 1, "future_stamp": 1}
    assert len(sync.take(T0)) == 1


def test_one_stray_stamp_is_dropped_and_three_are_a_jump():
    sync = cameras()
    for k in range(10):
        sync.offer(CAM1, frame(T0 + k * 33 * MS), 0)
    sync.offer(CAM1, frame(T0 - 9 * S), 0)
    sync.offer(CAM1, frame(T0 + 330 * MS), 0)
    assert sync.epoch == 0
    sync.take(0)
    for k in range(3):
        sync.offer(CAM1, frame(T0 - 60 * S + k * 33 * MS), 0)
    assert sync.epoch == 1
    assert dropped(sync, CAM1) == {"out_of_order": 3}
    (window,) = sync.take(0)
    assert (window.stamp_ns, window.epoch) == (T0 - 60 * S + 66 * MS, 1)


def test_a_jump_empties_every_stream_and_discards_waiting_references():
    sync = cameras()
    sync.offer(CAM2, frame(T0 - 10 * MS), T0)
    sync.offer(CAM1, frame(T0), T0)
    for k in range(3):
        sync.offer(CAM2, frame(T0 - 60 * S + k * 33 * MS), T0)
    assert dropped(sync, CAM1) == {"clock_jump": 1}
    assert dropped(sync, CAM2) == {"out_of_order": 2, "clock_jump": 1}
    assert sync.take(T0 + S) == []
    assert sync.counters()["discarded_clock_jump"] == 1


def test_late_samples_that_are_not_in_order_are_no_jump():
    sync = cameras()
    sync.offer(CAM1, frame(T0), 0)
    for late_ms in (10, 20, 30, 40, 50):  # each older than the one before
        sync.offer(CAM1, frame(T0 - late_ms * MS), 0)
    assert sync.epoch == 0


def test_a_repeated_message_never_counts_as_a_jump():
    sync = cameras()
    for _ in range(10):
        sync.offer(CAM1, frame(T0), 0)
    assert sync.epoch == 0
    assert dropped(sync, CAM1) == {"duplicate": 9}


def test_after_a_silence_of_all_streams_windows_go_on():
    sync = cameras()
    sync.offer(CAM1, frame(T0), T0)
    sync.take(T0)
    for k in range(4):
        stamp = T0 + 60 * S + k * 33 * MS
        sync.offer(CAM1, frame(stamp), stamp)
    assert [w.stamp_ns for w in sync.take(T0 + 61 * S)] == [
        T0 + 60 * S + 66 * MS,
        T0 + 60 * S + 99 * MS,
    ]


def test_a_stream_far_behind_the_others_is_stale():
    sync = cameras()
    sync.offer(CAM1, frame(T0), 0)
    for k in range(5):
        sync.offer(CAM2, frame(5 * S + k), 0)  # stamped since boot
    assert sync.epoch == 0
    assert dropped(sync, CAM2) == {"stale": 5}


def test_overlapping_chunks_are_trimmed():
    sync = make(without=(CAM2, PRESSURE, EMG))
    sync.offer(AUDIO, chunk(T0, 100), 0)
    sync.offer(AUDIO, chunk(T0 + 60 * MS, 100), 0)
    status = sync.status(0)[AUDIO]
    assert (status.received, status.pending) == (200, 160)
    assert status.dropped == {"duplicate": 40}
    assert status.newest_ns == T0 + 159 * MS


def test_another_format_empties_the_signal_and_goes_on():
    sync = make(**{"audio.window_s": 0.1})
    sync.offer(AUDIO, chunk(T0, 200, 1000.0), 0)
    sync.offer(AUDIO, chunk(T0 + 200 * MS, 2000, 8000.0), 0)
    sync.offer(CAM1, frame(T0 + 449 * MS), 0)
    (window,) = sync.take(0)
    assert window.signals[AUDIO].rate_hz == 8000.0
    assert window.signals[AUDIO].values.shape == (1, 800)
    assert dropped(sync, AUDIO) == {"format_change": 200}


def test_a_chunk_without_rate_or_samples_is_refused():
    sync = make()
    with pytest.raises(InputError, match="rate where it is audio or holds more, got 5 at 0 Hz"):
        sync.offer(EMG, chunk(T0, 5, 0.0), 0)
    with pytest.raises(InputError, match="at least one sample"):
        sync.offer(AUDIO, chunk(T0, 0), 0)
    assert sync.status(0)[EMG].received == 0


def test_required_streams_hold_windows_back():
    sync = cameras(**{"sync.required": ("camera_2",)})
    sync.offer(CAM1, frame(T0), 0)
    assert sync.take(0) == []
    assert sync.counters()["discarded_required_camera_2"] == 1
    assert sync.status(0)[CAM1].pending == 1  # it may still serve another window
    sync.offer(CAM2, frame(T0 + 33 * MS), 0)
    sync.offer(CAM1, frame(T0 + 33 * MS), 0)
    assert [w.present for w in sync.take(0)] == [(CAM1, CAM2)]


def test_only_so_many_references_wait():
    sync = cameras(**{"sync.max_wait_s": 5.0})
    sync.offer(CAM2, frame(T0 - 1), T0)
    for k in range(100):
        sync.offer(CAM1, frame(T0 + k), T0)
    assert sync.counters()["waiting"] == MAX_REFERENCES
    assert sync.counters()["discarded_superseded"] == 100 - MAX_REFERENCES


def test_a_fixed_rate_makes_references_on_an_even_grid_of_data_time():
    sync = cameras(**{"sync.rate_hz": 10.0})
    stamps = []
    for k in range(30):
        sync.offer(CAM1, frame(T0 + 5 * MS + k * 33 * MS), 0)
        windows = sync.take(0)
        stamps += [w.stamp_ns for w in windows]
        assert all(w.frame_id == "cam" for w in windows if CAM1 in w.frames)
    assert stamps == [T0 + k * 100 * MS for k in range(1, 10)]


def test_a_fixed_rate_after_a_long_step_makes_no_flood():
    sync = cameras(**{"sync.rate_hz": 1000.0})
    sync.offer(CAM1, frame(T0), 0)
    sync.offer(CAM1, frame(T0 + 4 * S), 0)
    made = sync.take(0)
    counters = sync.counters()
    # Nothing was sampled around the earlier of the ticks: no window is made of nothing.
    assert len(made) + counters["discarded_empty"] == MAX_REFERENCES
    assert all(window.present for window in made)
    assert counters["references"] == 4001
    assert counters["discarded_superseded"] == 4001 - MAX_REFERENCES


def test_reset_begins_an_epoch():
    sync = cameras()
    sync.offer(CAM1, frame(T0), 0)
    sync.reset()
    assert sync.take(T0 + S) == []
    assert dropped(sync, CAM1) == {"reset": 1}
    sync.offer(CAM1, frame(T0 - 50 * S), 0)
    (window,) = sync.take(0)
    assert window.epoch == 1


def test_status_measures_rates_age_and_repetition():
    sync = make(without=(CAM2, AUDIO))
    for k in range(3000):
        stamp = T0 + k * MS
        sync.offer(PRESSURE, chunk(stamp, value=k // 5), stamp)
        if k % 40 == 0:
            sync.offer(CAM1, frame(stamp), stamp)
            sync.take(stamp)
    status = sync.status(T0 + 3100 * MS)
    assert status[PRESSURE].rate_hz == pytest.approx(1000.0)
    assert status[PRESSURE].arrival_hz == pytest.approx(900.0, abs=2)
    assert status[PRESSURE].held_share == pytest.approx(0.8, abs=0.01)
    assert status[PRESSURE].age_s == pytest.approx(0.101)
    assert status[CAM1].rate_hz == pytest.approx(25.0)
    assert np.isnan(status[EMG].age_s)
    assert status[EMG].newest_ns is None


def test_frames_that_no_window_can_reach_are_not_kept():
    sync = cameras()
    for k in range(300):
        stamp = T0 + k * 10 * MS
        sync.offer(CAM2, frame(stamp), stamp)
        if k % 3 == 0:
            sync.offer(CAM1, frame(stamp), stamp)
            assert len(sync.take(stamp)) == 1
    status = sync.status(T0)
    assert status[CAM2].pending <= 7
    assert status[CAM2].rate_hz == pytest.approx(100.0)
    assert status[CAM1].pending == 0


def test_frames_of_a_camera_are_bounded_in_bytes():
    sync = cameras(**{"sync.trigger": "camera_2"})
    for k in range(40):
        sync.offer(CAM1, dataclasses.replace(frame(T0 + k * MS), nbytes=100 * 2**20), 0)
    assert sync.status(0)[CAM1].pending == 5
    assert dropped(sync, CAM1) == {"unused": 35}


def test_memory_is_bounded_when_nothing_triggers():
    sync = make(without=(CAM2, AUDIO, EMG))
    for k in range(20_000):
        sync.offer(PRESSURE, chunk(T0 + k * MS), 0)
    status = sync.status(0)[PRESSURE]
    assert status.pending == 5001
    assert status.dropped == {"unused": 20_000 - 5001}


def test_a_chunk_longer_than_the_buffer_is_not_ahead_of_it():
    sync = make(without=(CAM2, PRESSURE, EMG), **{"buffer.age_s": 3.0})
    for k in range(3):
        sync.offer(AUDIO, chunk(T0 + k * 4 * S, 4000), 0)
    assert dropped(sync, AUDIO) == {"unused": 3 * 4000 - 3001}


def test_a_trigger_that_lags_sees_no_more_than_the_buffer_keeps():
    sync = make(without=(CAM2, PRESSURE, EMG))  # buffer.age_s 5, audio.window_s 3
    sync.offer(AUDIO, chunk(T0 - 8 * S, 8001), 0)
    sync.offer(CAM1, frame(T0 - 3 * S), 0)
    sync.offer(CAM1, frame(T0 - 1900 * MS), 0)
    first, second = sync.take(0)
    assert first.missing == {AUDIO: "filling"}
    assert second.present == (CAM1, AUDIO)
