import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfuse_ros.errors import InputError
from mmfuse_ros.stream.dejitter import AHEAD_NS, ArrivalStamps, HeaderStamps

MS = 1_000_000
S = 1_000_000_000
T0 = 1_700_000_000 * S


def play(arrivals, rate_hz=1000.0, count=1):
    """Return the first stamps, None where a message is refused."""
    stamps = ArrivalStamps(rate_hz, "emg.rate_hz")
    out = []
    for arrival in arrivals:
        try:
            out.append(stamps.first_ns(count, int(arrival)))
        except InputError:
            out.append(None)
    return out


def test_even_arrivals_are_kept_to_the_nanosecond():
    arrivals = T0 + np.arange(5000) * MS
    assert play(arrivals) == arrivals.tolist()


def test_the_last_sample_of_a_chunk_is_as_old_as_its_arrival():
    assert play([T0], rate_hz=16000.0, count=320) == [T0 - 319 * 62500]


def test_jitter_of_arrivals_is_smoothed():
    rng = np.random.default_rng(0)
    true = T0 + np.arange(4000) * MS
    arrivals = np.maximum.accumulate(true + rng.exponential(2 * MS, true.shape).astype(np.int64))
    stamps = np.array(play(arrivals))
    steps = np.diff(stamps)
    assert steps.min() > 0.55 * MS
    assert steps.max() < 1.45 * MS
    assert np.abs(stamps - true)[500:].max() < 6 * MS


def test_coarse_simulated_time_gives_no_duplicates():
    true = np.arange(4000) * MS
    arrivals = T0 + true // (10 * MS) * (10 * MS)  # /clock at 100 Hz
    stamps = np.array(play(arrivals))
    assert np.diff(stamps).min() > 0.55 * MS
    assert np.abs(stamps - T0 - true).max() < 12 * MS


@pytest.mark.parametrize(("count", "rate_hz"), [(1, 1000.0), (320, 16000.0)])
def test_a_stalled_receiver_loses_and_distorts_nothing(count, rate_hz):
    period = count / rate_hz * S
    true = T0 + (np.arange(int(4 * S / period)) * period).astype(np.int64)
    stall = (true > T0 + 2 * S) & (true < T0 + 2 * S + 300 * MS)
    arrivals = true.copy()
    arrivals[stall] = T0 + 2 * S + 300 * MS + np.arange(stall.sum()) * 20_000
    stamps = play(np.maximum.accumulate(arrivals), rate_hz, count)
    assert None not in stamps
    assert np.ptp(np.diff(stamps)) < 1.0 / rate_hz * S


def test_lost_messages_become_a_gap_within_a_tenth_of_a_second():
    true = T0 + np.arange(4000) * MS
    lost = (true > T0 + 2 * S) & (true < T0 + 2 * S + 200 * MS)
    arrivals = true[~lost]
    stamps = np.array(play(arrivals))
    error = np.abs(stamps - arrivals)
    wrong = arrivals[error > 10 * MS]
    assert len(wrong)
    assert wrong[-1] - wrong[0] <= 101 * MS
    assert np.diff(stamps).max() > 150 * MS


def test_a_pause_of_the_sensor_is_caught_up_at_once():
    arrivals = np.concatenate([T0 + np.arange(100) * MS, T0 + 10 * S + np.arange(100) * MS])
    assert play(arrivals) == arrivals.tolist()


def test_a_clock_that_goes_back_is_followed():
    arrivals = np.concatenate([T0 + np.arange(100) * MS, T0 - 60 * S + np.arange(100) * MS])
    assert play(arrivals) == arrivals.tolist()


@pytest.mark.parametrize("true_hz", [100.0, 200.0, 500.0, 990.0, 1010.0, 1500.0, 4000.0])
def test_a_wrong_rate_of_single_samples_is_learned(true_hz):
    arrivals = T0 + (np.arange(int(8 * true_hz)) * S / true_hz).astype(np.int64)
    stamps = play(arrivals)
    settled = int(5 * true_hz)
    error = np.array(stamps[settled:], np.float64) - arrivals[settled:]  # no None: none refused
    assert np.abs(error).max() < 20 * MS
    assert np.diff(stamps[settled:]).max() < 2 * S / true_hz


def test_a_chunked_stream_faster_than_its_rate_is_refused_in_part():
    arrivals = T0 + np.arange(500) * 320 * S // 48000  # 48 kHz, said to be 16 kHz
    stamps = play(arrivals, rate_hz=16000.0, count=320)
    taken = [s for s in stamps if s is not None]
    assert 0.3 < len(taken) / len(stamps) < 0.4
    clock = ArrivalStamps(16000.0, "audio.rate_hz")
    clock.first_ns(3200, T0)
    with pytest.raises(
        InputError, match=r"audio.rate_hz must be the sensor's rate, got 16000"
    ) as e:
        clock.first_ns(3200, T0 + MS)
    assert e.value.reason == "rate"


@settings(max_examples=200, deadline=None)
@given(
    rate_hz=st.sampled_from([50.0, 1000.0, 16000.0]),
    count=st.sampled_from([1, 3, 160]),
    waits=st.lists(st.integers(0, 400 * MS), min_size=1, max_size=200),
    scale=st.sampled_from([1, 20, 400]),
)
def test_stamps_increase_and_stay_near_arrivals(rate_hz, count, waits, scale):
    clock = ArrivalStamps(rate_hz, "emg.rate_hz")
    period = S / rate_hz
    arrival, end = T0, 0
    for wait in waits:
        arrival += wait // scale
        try:
            first = clock.first_ns(count, arrival)
        except InputError:
            continue
        assert first > end
        end = first + round((count - 1) * period)
        assert end - arrival <= AHEAD_NS + 2 * period
        assert arrival - end <= 500 * MS + 2 * period


def test_jittery_headers_of_chunks_become_unbroken():
    rng = np.random.default_rng(0)
    true = T0 + np.arange(500) * 20 * MS
    headers = true + rng.integers(-4 * MS, 4 * MS, true.shape)
    clock = HeaderStamps(16000.0)
    stamps = np.array([clock.first_ns(320, int(h)) for h in headers])
    steps = np.diff(stamps) - 20 * MS
    assert np.abs(steps).max() <= 0.5 * 62500
    assert np.abs(stamps - true).max() < 6 * MS


def test_exact_headers_are_kept_and_repeated_ones_recognised():
    clock = HeaderStamps(16000.0)
    headers = [T0, T0 + 20 * MS, T0 + 20 * MS, T0 + 40 * MS, T0 + 140 * MS, T0 - 5 * S]
    assert [clock.first_ns(320, h) for h in headers] == headers
