"""Physically plain features: log-mel statistics of sound, amplitude statistics of sensors.

Both keep the absolute level of the signal, which a learned encoder that normalises its input
throws away. Both take NumPy or torch and return the same kind, on the same device.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, TypeVar

import numpy as np
import torch

from mmfuse_ros.errors import InputError

Array = TypeVar("Array", np.ndarray, torch.Tensor)

MEL_BANDS = 64
_FRAME_S = 0.064  # 1024 samples at 16 kHz, the usual frame of machine-sound work (DCASE task 2)
_POWER_FLOOR = 1e-10  # of a full scale of 1.0: -100 dB
_AMPLITUDE_FLOOR = 1e-6  # in the sensor's unit
# Band edges as fractions of half the rate. At 1 kHz: 10, 100 and 500 Hz. A sensor of 200 Hz that
# is held at 1 kHz has what it knows in the lower band, and its images in the upper.
_BAND_EDGES = (0.02, 0.2, 1.0)
_BINS = 3
STATISTICS_PER_CHANNEL = 5 + _BINS + len(_BAND_EDGES) - 1


def log_mel_statistics(wave: Array, rate_hz: float) -> Array:
    """Return the mean and the standard deviation over time of 64 log-mel bands.

    Shapes: (B, T) samples of a full scale of 1.0 -> (B, 128): 64 means, then 64 standard
    deviations, in natural logarithms of power. Loudness is kept: a gain of g moves every mean by
    2 ln g. Frames of 64 ms, half overlapping, Hann; a wave shorter than one frame is padded with
    zeros. Mel scale: O'Shaughnessy, as HTK has it, 2595 log10(1 + f / 700); triangles of unit
    area (Slaney's Auditory Toolbox).

    Raises:
        InputError: wave is not two-dimensional, is empty, or rate_hz is not positive.
    """
    tensor, numpy_in = _to_tensor(wave, 2, "wave", "(B, T)", rate_hz)
    if tensor.shape[0] == 0:  # torch.fft refuses an empty batch
        return _like(tensor.new_zeros((0, 2 * MEL_BANDS)), numpy_in)
    n_fft = max(64, 2 ** round(math.log2(_FRAME_S * rate_hz)))
    if tensor.shape[1] < n_fft:
        tensor = torch.nn.functional.pad(tensor, (0, n_fft - tensor.shape[1]))
    frames = tensor.unfold(1, n_fft, n_fft // 2)  # (B, F, n_fft)
    window = torch.hann_window(n_fft, dtype=tensor.dtype, device=tensor.device)
    spectrum = torch.fft.rfft(frames * window)
    power = (spectrum.real.square() + spectrum.imag.square()) / window.square().sum()
    bank = torch.from_numpy(_mel_bank(n_fft, float(rate_hz))).to(tensor.device)
    log_mel = torch.log(power @ bank + _POWER_FLOOR)  # (B, F, 64)
    spread = log_mel.std(dim=1, unbiased=False)
    return _like(torch.cat((log_mel.mean(dim=1), spread), dim=1), numpy_in)


def sensor_statistics(signal: Array, rate_hz: float) -> Array:
    """Return amplitude, rhythm and spectrum statistics of each channel of a window.

    Shapes: (B, C, T) in the sensor's unit -> (B, C * k) with k = 10, channel by channel:

    - offset: the mean, less two standard deviations towards zero. An alternating signal has none.
    - log-RMS and log of the standard deviation (natural logarithms; half a log variance).
    - zero crossings of the centred signal, in thousands per second, counted between excursions of
      more than a tenth of a standard deviation.
    - root of the RMS; root of the RMS of the centred signal in each third of the window; root of
      the RMS amplitude in two bands (edges at 2, 20 and 100 % of half the rate).

    Amplitude is absolute: a gain of g adds ln g to the logarithms and scales the roots by its
    root. The logarithms see a lost electrode, whose little is not nothing; the roots do not blow
    up the noise of a resting sensor. Crossings, RMS and variance are the set of Hudgins, Parker
    and Scott, "A new strategy for multifunction myoelectric control" (1993).

    A slow sensor held at a faster rate (200 Hz held at 1 kHz) is handled by construction:
    crossings are counted per second, so that a repeated sample adds none.

    Raises:
        InputError: signal is not three-dimensional, is empty, or rate_hz is not positive.
    """
    tensor, numpy_in = _to_tensor(signal, 3, "signal", "(B, C, T)", rate_hz)
    if tensor.shape[0] == 0:  # torch.fft refuses an empty batch
        width = tensor.shape[1] * STATISTICS_PER_CHANNEL
        return _like(tensor.new_zeros((0, width)), numpy_in)
    samples = tensor.shape[2]
    mean = tensor.mean(dim=2)
    centred = tensor - mean.unsqueeze(2)
    rms = tensor.square().mean(dim=2).sqrt()
    deviation = centred.square().mean(dim=2).sqrt()
    columns = [
        mean.sign() * (mean.abs() - 2.0 * deviation).clamp(min=0.0),
        torch.log(rms + _AMPLITUDE_FLOOR),
        torch.log(deviation + _AMPLITUDE_FLOOR),
        _crossings(centred, deviation) * (rate_hz / samples / 1000.0),
        rms.sqrt(),
    ]
    edges = [round(i * samples / _BINS) for i in range(_BINS + 1)]
    for begin, end in itertools.pairwise(edges):
        begin = min(begin, samples - 1)  # a window of one or two samples has no thirds
        part = centred[:, :, begin : max(end, begin + 1)]
        columns.append(part.square().mean(dim=2).sqrt().sqrt())
    columns += _band_amplitudes(centred)
    return _like(torch.stack(columns, dim=2).flatten(1), numpy_in)


def _band_amplitudes(centred: torch.Tensor) -> list[torch.Tensor]:
    samples = centred.shape[2]
    window = torch.hann_window(samples, periodic=False, dtype=centred.dtype).to(centred.device)
    if samples < 4:
        window = torch.ones_like(window)
    spectrum = torch.fft.rfft(centred * window)
    power = (spectrum.real.square() + spectrum.imag.square()) * (
        2.0 / (samples * window.square().sum())
    )
    fraction = torch.arange(power.shape[2], device=centred.device) / max(samples / 2.0, 1.0)
    bands = []
    for low, high in itertools.pairwise(_BAND_EDGES):
        inside = (fraction >= low) & ((fraction < high) | (high == 1.0))
        bands.append((power * inside).sum(dim=2).sqrt().sqrt())
    return bands


def _crossings(centred: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Count changes of sign between excursions of more than a tenth of a standard deviation."""
    dead = 0.1 * deviation.unsqueeze(2)
    sign = (centred > dead).to(torch.int8) - (centred < -dead).to(torch.int8)
    # Carry the last non-zero sign over the samples inside the dead band.
    index = torch.arange(sign.shape[2], device=sign.device).expand_as(sign)
    last = torch.where(sign != 0, index, 0).cummax(dim=2).values
    held = sign.gather(2, last)
    return ((held[:, :, 1:] * held[:, :, :-1]) < 0).sum(dim=2).to(centred.dtype)


@functools.lru_cache(maxsize=8)
def _mel_bank(n_fft: int, rate_hz: float) -> np.ndarray:
    """Return triangular filters (n_fft // 2 + 1, 64), float32, each of unit area."""
    top_hz = rate_hz / 2.0
    mel = np.linspace(0.0, 2595.0 * np.log10(1.0 + top_hz / 700.0), MEL_BANDS + 2)
    corner_hz = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    # Integrate each triangle over the bin instead of sampling it at the bin's centre: at the low
    # end a filter is narrower than a bin, and would otherwise see nothing.
    fine = 16
    bin_hz = rate_hz / n_fft
    offset = (np.arange(fine) + 0.5) / fine - 0.5
    grid_hz = (np.arange(n_fft // 2 + 1)[:, None] + offset) * bin_hz  # (bins, fine)
    low, centre, high = corner_hz[:-2], corner_hz[1:-1], corner_hz[2:]
    rising = (grid_hz[..., None] - low) / (centre - low)
    falling = (high - grid_hz[..., None]) / (high - centre)
    bank = np.clip(np.minimum(rising, falling), 0.0, None).mean(axis=1)  # (bins, 64)
    return (bank / np.maximum(bank.sum(axis=0), 1e-12)).astype(np.float32)


def _to_tensor(
    value: np.ndarray | torch.Tensor, ndim: int, name: str, shape: str, rate_hz: float
) -> tuple[torch.Tensor, bool]:
    if not rate_hz > 0 or not math.isfinite(rate_hz):
        raise InputError(f"rate_hz must be positive and finite, got {rate_hz}")
    numpy_in = not isinstance(value, torch.Tensor)
    tensor = torch.as_tensor(np.ascontiguousarray(value) if numpy_in else value)
    if tensor.ndim != ndim or (tensor.numel() == 0 and tensor.shape[0] > 0):
        raise InputError(f"{name} must be {shape} and not empty, got {tuple(tensor.shape)}")
    return tensor.to(torch.float32), numpy_in


def _like(tensor: torch.Tensor, numpy_out: bool) -> Any:
    return tensor.numpy() if numpy_out else tensor
