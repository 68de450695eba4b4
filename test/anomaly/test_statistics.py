"""Physically plain features: what they keep, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from mmfuse_ros.errors import InputError  # noqa: E402
from mmfuse_ros.model import log_mel_statistics, sensor_statistics  # noqa: E402

PER_CHANNEL = 10


def tone(hz, seconds=1.0, rate=16000, gain=0.1):
    return gain * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)[None]


def test_log_mel_shape_kind_and_device():
    wave = np.random.default_rng(0).normal(size=(3, 16000)).astype(np.float32)
    out = log_mel_statistics(wave, 16000)
    assert isinstance(out, np.ndarray)
    assert out.shape == (3, 128)
    assert out.dtype == np.float32
    same = log_mel_statistics(torch.from_numpy(wave), 16000)
    assert isinstance(same, torch.Tensor)
    np.testing.assert_array_equal(out, same.numpy())


def test_log_mel_keeps_loudness():
    quiet = log_mel_statistics(tone(1000, gain=0.01), 16000)[0]
    loud = log_mel_statistics(tone(1000, gain=0.1), 16000)[0]
    peak = quiet[:64].argmax()
    assert loud[peak] - quiet[peak] == pytest.approx(2 * np.log(10), rel=1e-3)


def test_log_mel_puts_a_tone_into_its_band():
    peaks = [log_mel_statistics(tone(hz), 16000)[0, :64].argmax() for hz in (200, 1000, 4000)]
    top_mel = 2595 * np.log10(1 + 8000 / 700)
    wanted = [2595 * np.log10(1 + hz / 700) / top_mel * 65 - 1 for hz in (200, 1000, 4000)]
    np.testing.assert_allclose(peaks, wanted, atol=1.0)


def test_log_mel_spread_sees_what_comes_and_goes():
    steady = tone(1000, 2.0)
    gated = steady * (np.arange(32000) % 16000 < 8000)
    peak = log_mel_statistics(steady, 16000)[0, :64].argmax()
    assert log_mel_statistics(steady, 16000)[0, 64 + peak] < 0.1
    assert log_mel_statistics(gated, 16000)[0, 64 + peak] > 1.0


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_log_mel_no_band_is_deaf_at_any_rate(rate):
    noise = np.random.default_rng(0).normal(size=(1, rate))
    assert (log_mel_statistics(noise, rate)[0, :64] > -10).all()


@pytest.mark.parametrize("samples", [1, 10, 1023])
def test_log_mel_of_little_or_nothing_is_finite(samples):
    assert np.isfinite(log_mel_statistics(np.zeros((2, samples)), 16000)).all()
    assert log_mel_statistics(np.zeros((0, samples)), 16000).shape == (0, 128)


def test_sensor_shape_kind_and_channel_order():
    x = np.random.default_rng(0).normal(size=(2, 3, 500))
    out = sensor_statistics(x, 1000.0)
    assert out.shape == (2, 3 * PER_CHANNEL)
    alone = sensor_statistics(x[:, 1:2], 1000.0)
    np.testing.assert_allclose(out[:, PER_CHANNEL : 2 * PER_CHANNEL], alone, rtol=1e-5)
    assert isinstance(sensor_statistics(torch.from_numpy(x), 1000.0), torch.Tensor)


def test_sensor_keeps_absolute_amplitude():
    x = np.random.default_rng(0).normal(size=(1, 1, 1000))
    small, large = (sensor_statistics(x * g, 1000.0)[0] for g in (1.0, 3.0))
    assert large[1] - small[1] == pytest.approx(np.log(3), rel=1e-3)
    assert large[2] - small[2] == pytest.approx(np.log(3), rel=1e-3)
    assert large[3] == pytest.approx(small[3])  # crossings do not know the amplitude
    np.testing.assert_allclose(large[4:] / small[4:], np.sqrt(3), rtol=1e-3)


def test_sensor_offset_is_that_of_a_steady_signal_only():
    noise = np.random.default_rng(0).normal(size=(1, 1, 1000))
    assert sensor_statistics(noise, 1000.0)[0, 0] == 0.0
    assert sensor_statistics(noise * 0.01 - 5.0, 1000.0)[0, 0] == pytest.approx(-4.98, abs=0.01)


def test_sensor_counts_crossings_per_second():
    t = np.arange(2000) / 1000.0
    x = np.sin(2 * np.pi * 10 * t + 0.1)[None, None]
    assert sensor_statistics(x, 1000.0)[0, 3] == pytest.approx(0.020, abs=0.001)
    assert sensor_statistics(x + 100.0, 1000.0)[0, 3] == pytest.approx(0.020, abs=0.001)
    jitter = x + 0.02 * np.random.default_rng(0).normal(size=x.shape)
    assert sensor_statistics(jitter, 1000.0)[0, 3] == pytest.approx(0.020, abs=0.001)


def test_sensor_held_samples_look_like_the_sensor_itself():
    slow = np.random.default_rng(0).normal(size=(1, 1, 400))
    held = np.repeat(slow, 5, axis=2)  # 200 Hz held at 1 kHz
    at_200, at_1000 = (
        sensor_statistics(x, rate)[0] for x, rate in ((slow, 200.0), (held, 1000.0))
    )
    np.testing.assert_allclose(at_1000[:8], at_200[:8], rtol=0.05, atol=0.01)


def test_sensor_bands_tell_slow_from_fast():
    t = np.arange(1000) / 1000.0
    slow, fast = (
        sensor_statistics(np.sin(2 * np.pi * hz * t)[None, None], 1000.0)[0, -2:]
        for hz in (40, 300)
    )
    assert slow[0] > 10 * slow[1]
    assert fast[1] > 10 * fast[0]


@pytest.mark.parametrize("samples", [1, 2, 3, 15])
def test_sensor_short_and_still_windows_are_finite(samples):
    for value in (0.0, 7.0):
        assert np.isfinite(sensor_statistics(np.full((1, 2, samples), value), 50.0)).all()
    assert sensor_statistics(np.zeros((0, 2, samples)), 50.0).shape == (0, 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_mel_statistics(np.zeros(5), 16000), r"wave must be \(B, T\) and not empty"),
        (lambda: log_mel_statistics(np.zeros((2, 0)), 16000), "not empty"),
        (lambda: log_mel_statistics(np.zeros((1, 5)), 0), "rate_hz must be positive"),
        (lambda: sensor_statistics(np.zeros((2, 5)), 100.0), r"signal must be \(B, C, T\)"),
        (lambda: sensor_statistics(np.zeros((1, 1, 5)), float("nan")), "rate_hz must be positive"),
    ],
)
def test_malformed_signals_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
