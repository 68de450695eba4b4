"""Pixels and samples to what the encoders were trained on, with torch, on the device.

The constants come from the processor configuration that travels with the weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mmfuse_ros.errors import CheckpointError, InputError
from mmfuse_ros.model.presets import CLIP_MEAN, CLIP_STD

_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, as processor configurations write it


@dataclass(frozen=True)
class ImageSpec:
    """How an image encoder wants its picture.

    Attributes:
        size: length of the shorter side after the resize, pixels.
        crop: side of the centre square that is cut out, pixels.
        mean, std: of each channel, for pixels in [0, 1].

    Raises:
        CheckpointError: a value that no picture can be made with.
    """

    size: int = 224
    crop: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        sides = (self.size, self.crop)
        # The picture between resize and crop takes memory by `size`.
        if (
            not all(type(n) is int for n in sides)
            or not 1 <= self.crop <= self.size <= 4 * self.crop
        ):
            raise CheckpointError(
                "an image must be resized to a whole number of pixels from the crop's to four "
                f"times as many, got size {self.size!r} and crop {self.crop!r}; correct the image "
                "processor's configuration"
            )
        if not _is_triple(self.mean, -1e3, 1e3) or not _is_triple(self.std, 1e-6, 1e3):
            raise CheckpointError(
                "image_mean and image_std must be three numbers each, within 1000 and std at "
                f"least 1e-6, got {self.mean!r} and {self.std!r}; correct the image processor's "
                "configuration"
            )

    @classmethod
    def from_processor(cls, processor: Mapping[str, Any], source: str) -> ImageSpec:
        """Read a CLIP image processor's configuration, of old and new `transformers`.

        Raises:
            CheckpointError: it asks for something other than CLIP's processing.
        """
        size, crop = processor.get("size", 224), processor.get("crop_size", 224)
        shortest: Any = size
        if isinstance(size, dict):
            shortest = size.get("shortest_edge", size.get("height"))
        side: Any = crop.get("height") if isinstance(crop, dict) else crop
        wrong = [
            f"{name} is {processor[name]!r}"
            for name, expected in {
                "resample": _BICUBIC,
                "do_resize": True,
                "do_center_crop": True,
                "do_normalize": True,
                "do_rescale": True,
            }.items()
            if processor.get(name, expected) != expected
        ]
        if isinstance(crop, dict) and crop.get("width") != side:
            wrong.append(f"crop_size is {crop!r}, not a square")
        if isinstance(size, dict) and size.get("width", shortest) != shortest:
            wrong.append(f"size is {size!r}, which distorts the picture")
        if not isinstance(shortest, int) or not isinstance(side, int) or shortest < side:
            wrong.append(f"size {size!r} is smaller than crop_size {crop!r}")
        if wrong:
            raise CheckpointError(
                f"the image processor of {source} must be CLIP's (bicubic resize of the shorter "
                f"side, centre crop, normalisation), got one where {', '.join(wrong)}"
            )
        constants = (processor.get("image_mean", CLIP_MEAN), processor.get("image_std", CLIP_STD))
        mean, std = (tuple(c) if isinstance(c, list) else c for c in constants)
        return cls(shortest, side, mean, std)


@dataclass(frozen=True)
class AudioSpec:
    """How an audio encoder wants its samples: rate, and whether each row is standardised.

    Raises:
        CheckpointError: a value of another type, or a rate that no microphone has.
    """

    rate_hz: int = 16000
    do_normalize: bool = True

    def __post_init__(self) -> None:
        rate, normalize = self.rate_hz, self.do_normalize
        if type(rate) is not int or not 1000 <= rate <= 384000 or type(normalize) is not bool:
            raise CheckpointError(
                "sampling_rate must be a whole number from 1000 to 384000 and do_normalize true "
                f"or false, got {rate!r} and {normalize!r}; correct the feature extractor's "
                "configuration"
            )

    @classmethod
    def from_processor(cls, processor: Mapping[str, Any], source: str) -> AudioSpec:
        """Read a Wav2Vec2FeatureExtractor's configuration."""
        if processor.get("feature_size", 1) != 1:
            raise CheckpointError(
                f"the feature extractor of {source} must take raw mono samples (feature_size 1), "
                f"got feature_size {processor['feature_size']}"
            )
        rate = processor.get("sampling_rate", 16000)
        rate = int(rate) if isinstance(rate, float) and rate.is_integer() else rate
        return cls(rate, processor.get("do_normalize", True))


def _is_triple(values: Any, low: float, high: float) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == 3
        and all(type(v) in (int, float) and low <= v <= high for v in values)
    )


def resize_and_crop(images: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """Resize the shorter side to `spec.size` (bicubic, antialiased) and cut the centre square.

    Shapes: (N, 3, H, W) uint8 or float -> (N, 3, crop, crop) of the same type. A uint8 picture
    on the CPU takes torch's integer kernel, which is Pillow's algorithm; elsewhere the float
    result is rounded to the same steps. Float pictures overshoot at edges, as bicubic does, and
    keep it only where they went beyond [0, 1] before.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    if short != spec.size:
        # The longer side is truncated, as CLIPImageProcessor has it.
        size = [spec.size * side // short for side in (height, width)]
        if images.dtype == torch.uint8 and images.device.type != "cpu":
            smooth = _bicubic(images.float(), size)
            images = smooth.round().clamp(0.0, 255.0).to(torch.uint8)
        elif images.dtype == torch.uint8:
            images = _bicubic(images, size)
        else:
            low, high = images.amin(dim=(1, 2, 3)), images.amax(dim=(1, 2, 3))
            low, high = low.clamp(max=0.0), high.clamp(min=1.0)
            bounds = [x.view(-1, 1, 1, 1) for x in (low, high)]
            images = _bicubic(images, size).clamp(bounds[0], bounds[1])
    top = (images.shape[-2] - spec.crop) // 2
    left = (images.shape[-1] - spec.crop) // 2
    return images[..., top : top + spec.crop, left : left + spec.crop]


def _bicubic(images: torch.Tensor, size: list[int]) -> torch.Tensor:
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def normalize_image(images: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """Return (N, 3, S, S) float32 pixels in CLIP's units, from [0, 1] or from uint8."""
    if images.dtype == torch.uint8:
        images = images.float() / 255.0
    mean, std = _channel_constants(spec, images.device)
    return (images.float() - mean) / std


@functools.lru_cache(maxsize=16)
def _channel_constants(spec: ImageSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and std as (1, C, 1, 1), made once: an upload would break a CUDA recording."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(v, device=device) for v in (spec.mean, spec.std))
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def normalize_audio(wave: torch.Tensor, spec: AudioSpec) -> torch.Tensor:
    """Return (B, T) float32 rows as Wav2Vec2FeatureExtractor gives them."""
    wave = wave.float()
    if not spec.do_normalize:
        return wave
    centred = wave - wave.mean(dim=1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(dim=1, keepdim=True) + 1e-7)


def resample_audio(
    wave: npt.NDArray[np.float32], rate_hz: float, target_hz: int
) -> npt.NDArray[np.float32]:
    """Return (..., T) samples at another rate, through a polyphase low-pass filter.

    Rates are met as a ratio of whole numbers below 1000, which is exact for every usual one.

    Raises:
        InputError: rate_hz is not positive, or too far from the target.
    """
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise InputError(f"audio rate must be positive and finite, got {rate_hz} Hz")
    if rate_hz == target_hz:
        return wave
    ratio = Fraction(target_hz / rate_hz).limit_denominator(1000)
    if not 1 / 64 <= ratio <= 64:
        raise InputError(
            f"audio rate must be within a factor of 64 of {target_hz} Hz, got {rate_hz:g} Hz"
        )
    from scipy.signal import resample_poly  # a quarter of a second that most windows never need

    resampled = resample_poly(wave, ratio.numerator, ratio.denominator, axis=-1)
    return np.ascontiguousarray(resampled, dtype=np.float32)
