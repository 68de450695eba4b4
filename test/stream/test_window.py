import numpy as np
import pytest

from mmfuse_ros.stream.window import FILLING, GAP, Piece, cut

MS = 1_000_000
BASE = 1_700_000_000_000_000_000


def stretch(count, rate_hz, end_ns=BASE, channels=1):
    """Samples on an even grid; the value of each is its time in seconds before the end."""
    times = (np.arange(1 - count, 1) * (1e9 / rate_hz)).round().astype(np.int64)
    values = np.repeat((times / 1e9).astype(np.float32)[:, None], channels, axis=1)
    return times + end_ns, values


def window(stamps, values, reference_ns=BASE, window_s=1.0, rate_hz=1000.0, **options):
    options = {"tolerance_ns": 50 * MS, "min_coverage": 0.9, "native": False, **options}
    return cut(stamps, values, reference_ns, window_s, rate_hz, **options)


@pytest.mark.parametrize("rate_hz", [16000.0, 44100.0, 48000.0])
def test_unbroken_audio_is_copied_bit_by_bit(rate_hz):
    stamps, values = stretch(int(3.5 * rate_hz), rate_hz)
    values = np.random.default_rng(0).standard_normal(values.shape).astype(np.float32)
    piece = window(stamps, values, window_s=3.0, rate_hz=rate_hz, native=True)
    count = round(3.0 * rate_hz)
    assert piece.signal.values.shape == (1, count)
    assert piece.signal.values.tobytes() == values[-count:].tobytes()
    assert piece.newest_ns == BASE


def test_a_window_is_a_copy_of_the_buffer():
    stamps, values = stretch(1200, 1000.0)
    piece = window(stamps, values)
    values[:] = -1.0
    assert piece.signal.values.min() != -1.0
    assert piece.signal.values.flags.c_contiguous


def test_a_slow_clock_of_the_microphone_does_not_break_the_copy():
    stamps, values = stretch(40000, 16000.0 * (1 - 200e-6))
    piece = window(stamps, values, window_s=2.0, rate_hz=16000.0, native=True)
    np.testing.assert_array_equal(piece.signal.values[0], values[-32000:, 0])


def test_the_window_ends_at_the_reference_not_at_the_newest_sample():
    stamps, values = stretch(2000, 1000.0, channels=8)
    piece = window(stamps, values, reference_ns=BASE - 300 * MS)
    assert piece.signal.values.shape == (8, 1000)
    assert piece.newest_ns == BASE - 300 * MS
    assert piece.signal.values[0, -1] == np.float32(-0.3)
    assert piece.signal.values[7, 0] == np.float32(-1.299)


def test_samples_off_the_grid_are_interpolated_onto_it():
    stamps, values = stretch(300, 200.0)  # a 200 Hz sensor, asked for at 1 kHz
    piece = window(stamps, values, reference_ns=BASE - 2 * MS)
    expected = np.arange(-999, 1) / 1000 - 0.002
    np.testing.assert_allclose(piece.signal.values[0], expected, atol=1e-6)


def test_jitter_below_half_a_period_is_not_resampled():
    stamps, values = stretch(1500, 1000.0)
    jitter = np.random.default_rng(1).integers(-200_000, 200_000, stamps.shape)
    jitter[-1] = 0
    piece = window(stamps + jitter, values)
    np.testing.assert_array_equal(piece.signal.values[0], values[-1000:, 0])


@pytest.mark.parametrize("native", [True, False])
def test_a_gap_is_bridged_where_coverage_allows_and_named_where_not(native):
    stamps, values = stretch(3000, 1000.0)
    keep = (stamps < BASE - 300 * MS) | (stamps > BASE - 220 * MS)  # 80 ms of 1 s
    options = {"native": native, "min_coverage": 0.9}
    piece = window(stamps[keep], values[keep], **options)
    assert isinstance(piece, Piece)
    np.testing.assert_allclose(piece.signal.values[0], values[-1000:, 0], atol=1e-6)
    assert window(stamps[keep], values[keep], **{**options, "min_coverage": 0.95}) == GAP


def test_a_gap_at_the_reference_counts():
    stamps, values = stretch(3000, 1000.0)
    keep = (stamps < BASE - 600 * MS) | (stamps > BASE - 10 * MS)
    # Newer samples exist; the window itself ends within the gap.
    assert window(stamps[keep], values[keep], reference_ns=BASE - 200 * MS) == GAP


def test_a_window_that_is_not_full_yet_is_filling():
    stamps, values = stretch(900, 1000.0)
    assert window(stamps, values, min_coverage=0.0) == FILLING
    # The oldest sample may stand in for at most the tolerance.
    stamps, values = stretch(970, 1000.0)
    piece = window(stamps, values)
    assert (piece.signal.values[0, :30] == values[0, 0]).all()
    assert window(stamps, values, tolerance_ns=20 * MS) == FILLING


def test_samples_that_all_follow_the_reference_are_none():
    stamps, values = stretch(100, 1000.0)
    assert window(stamps, values, reference_ns=BASE - 5000 * MS, min_coverage=0.0) == FILLING


def test_a_late_stream_ends_at_its_newest_sample():
    stamps, values = stretch(2000, 1000.0, end_ns=BASE - 40 * MS)
    piece = window(stamps, values)
    assert piece.newest_ns == BASE - 40 * MS
    np.testing.assert_array_equal(piece.signal.values[0], values[-1000:, 0])


def test_a_slow_sensor_has_at_least_one_point():
    stamps, values = stretch(3, 1.0)
    piece = window(stamps, values, window_s=0.01, rate_hz=1.0)
    assert piece.signal.values.shape == (1, 1)
    piece = window(stamps[:1], values[:1], reference_ns=BASE, window_s=0.01, rate_hz=1.0)
    assert piece.signal.values.shape == (1, 1)
