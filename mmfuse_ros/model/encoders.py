"""The encoders: CLIP for pictures, Wav2Vec2 or HuBERT for sound, statistics for sensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmfuse_ros.errors import CheckpointError
from mmfuse_ros.model.preprocess import AudioSpec, ImageSpec, normalize_audio, normalize_image

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Angular frequencies of a statistic, radians per unit; one unit is a factor of e in amplitude.
_FREQUENCIES = (1 / 16, 1 / 4, 1.0)
_AMPLITUDE_FLOOR = 1e-6  # in the sensor's unit
STATISTICS = ("mean", "std", "min", "max", "rms")


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Draw random numbers from a stream of this seed and name; the global generator stays as is.

    Each part has a stream of its own, so that one part's size does not change another's weights.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        # The CPU generator alone: manual_seed() would reseed the GPUs, which are not restored.
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield


def tensor_hash(module: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of all of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class VisionEncoder(nn.Module):
    """CLIP's image tower with its projection.

    Attributes:
        name: hub id, or the model type where the weights have none.
        random: whether the weights are seeded random numbers.
        spec: preprocessing constants.
        dim: length of the vector.
    """

    def __init__(self, model: PreTrainedModel, spec: ImageSpec, name: str, random: bool) -> None:
        super().__init__()
        self.model, self.spec, self.name, self.random = model, spec, name, random
        self.dim: int = model.config.projection_dim
        self.check_spec(spec)

    def check_spec(self, spec: ImageSpec) -> None:
        """Raise CheckpointError where preprocessing does not go with the model."""
        side = self.model.config.image_size
        if side != spec.crop:
            raise CheckpointError(
                f"the image processor of {self.name} must crop to the model's {side} pixels, "
                f"got {spec.crop}"
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode (N, 3, S, S) pixels in [0, 1], or uint8 -> (N, D)."""
        return self.encode(normalize_image(images, self.spec))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode (N, 3, S, S) normalised pixels -> (N, D) in the weights' precision."""
        return self.model(pixel_values=pixels.to(self.model.dtype)).image_embeds


class AudioEncoder(nn.Module):
    """Wav2Vec2, HuBERT or a relative, averaged over time; attributes as of VisionEncoder.

    All rows of a batch have the same length and none is padded, so no attention mask is needed:
    one of ones is what a layer-norm feature extractor would get.
    """

    def __init__(self, model: PreTrainedModel, spec: AudioSpec, name: str, random: bool) -> None:
        super().__init__()
        self.model, self.spec, self.name, self.random = model, spec, name, random
        self.dim: int = model.config.hidden_size
        # SpecAugment is a device of speech recognition; it would blank parts of a short window.
        model.config.apply_spec_augment = False
        steps = (*model.config.conv_kernel, *model.config.conv_stride)
        if not all(type(n) is int and n >= 1 for n in steps):
            raise CheckpointError(
                f"conv_kernel and conv_stride of {name} must be whole numbers of at least 1, "
                f"got {steps}; fetch the weights again"
            )
        samples = 1
        for kernel, stride in zip(
            reversed(model.config.conv_kernel), reversed(model.config.conv_stride), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        self.min_samples = samples

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """Encode (B, T) samples at `spec.rate_hz` -> (B, D)."""
        return self.encode(normalize_audio(wave, self.spec))

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Encode (B, T) normalised samples -> (B, D) in the weights' precision."""
        hidden = self.model(input_values=values.to(self.model.dtype)).last_hidden_state
        return hidden.mean(dim=1)  # (B, frames, D) -> (B, D)


class SensorEncoder(nn.Module):
    """Per-window statistics of each channel, laid on circles, then a small residual MLP.

    Each statistic becomes an angle at three frequencies (Fourier features, arXiv 2006.10739).
    The vector is therefore about `length` long at any amplitude, nothing saturates, and the
    distance of two windows depends on the ratio of their amplitudes and not on the unit.
    An isometric linear map takes the features to `dim`; the MLP's part is small at first.
    """

    frequencies: torch.Tensor

    def __init__(
        self, channels: int, dim: int = 256, hidden: int = 128, length: float = 16.0
    ) -> None:
        super().__init__()
        self.channels, self.dim, self.length = channels, dim, length
        width = self.features(channels)
        self.register_buffer("frequencies", torch.tensor(_FREQUENCIES), persistent=False)
        self.lift = nn.Linear(width, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), small_linear(hidden, dim))
        isometric_(self.lift.weight)

    @staticmethod
    def features(channels: int) -> int:
        """Return how many numbers describe a window of so many channels."""
        return channels * len(STATISTICS) * len(_FREQUENCIES) * 2

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """Encode (B, C, T) in the sensor's unit -> (B, D)."""
        angles = statistics(signal).unsqueeze(-1) * self.frequencies  # (B, C, 5, 3)
        circles = torch.cat((angles.cos(), angles.sin()), dim=-1).flatten(1)  # (B, C * 30)
        features = circles * (self.length * math.sqrt(2.0 / circles.shape[1]))
        return self.lift(features) + self.mlp(features)


def statistics(signal: torch.Tensor) -> torch.Tensor:
    """Return mean, std, min, max and RMS of each channel on scales without a unit.

    Shapes: (B, C, T) -> (B, C, 5): the mean over the RMS, ln std, the lowest and the highest
    excursion in standard deviations (asinh), ln RMS. A gain of g adds ln g to the two logarithms.
    """
    # In double precision: a pressure of 1e5 Pa that varies by 1 Pa leaves float32 few digits.
    signal = signal.double()
    mean = signal.mean(dim=2)
    centred = signal - mean.unsqueeze(2)
    std = centred.square().mean(dim=2).sqrt() + _AMPLITUDE_FLOOR
    rms = signal.square().mean(dim=2).sqrt() + _AMPLITUDE_FLOOR
    low, high = centred.amin(dim=2) / std, centred.amax(dim=2) / std
    columns = (mean / rms, std.log(), torch.asinh(low), torch.asinh(high), rms.log())
    return torch.stack(columns, dim=2).float()


def isometric_(weight: torch.Tensor) -> None:
    """Fill (out, in) with a random map that keeps lengths up to one factor.

    Exactly where out >= in (orthonormal columns). Else the rows are orthonormal and scaled by
    sqrt(in / out): lengths are kept within about 1 / sqrt(out) (Johnson-Lindenstrauss).
    """
    nn.init.orthogonal_(weight, gain=max(1.0, math.sqrt(weight.shape[1] / weight.shape[0])))


def small_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a residual branch's last layer: a gentle bend that still passes gradients."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain=0.1)
    nn.init.zeros_(layer.bias)
    return layer
