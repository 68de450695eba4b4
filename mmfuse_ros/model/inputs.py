"""Checks of what `RoboticFeedbackSystem` is called with: expected, got, remedy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from mmfuse_ros.errors import InputError

CAMERA_NAMES = {
    "camera1": "camera_1",
    "camera2": "camera_2",
    "camera_1": "camera_1",
    "camera_2": "camera_2",
}

# Standardised pixels reach 2.7, and a standard normal number passes 8 once in 10^15 draws.
# Bytes and int16 samples pass it at once: the two mistakes that matter fall apart here.
_WILD = 8.0


class InputChecks:
    """Check tensors of one system; a mild breach of a range warns once for each input."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def images(self, images: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Return the cameras under their canonical names."""
        if images is None:
            return {}
        if not isinstance(images, Mapping):
            raise InputError(
                "camera_images must be a dict with keys camera1 and camera2, "
                f"got {type(images).__name__}"
            )
        checked: dict[str, torch.Tensor] = {}
        for key, image in images.items():
            if key not in CAMERA_NAMES:
                raise InputError(
                    f"camera_images must have keys {', '.join(CAMERA_NAMES)}, got {key!r}"
                )
            name = CAMERA_NAMES[key]
            if name in checked:
                raise InputError(f"camera_images must name {name} once, got two spellings of it")
            if image is None:
                continue
            remedy = "; divide bytes by 255" if _is_uint8(image) else ""
            self._floating(key, image, "(B, 3, H, W) in [0, 1]", remedy)
            if image.ndim != 4 or image.shape[1] != 3 or min(image.shape) == 0:
                channels_last = image.ndim == 4 and image.shape[-1] == 3
                remedy = "; move the channels with permute(0, 3, 1, 2)" if channels_last else ""
                raise InputError(
                    f"{key} must be (B, 3, H, W) RGB, got {tuple(image.shape)}{remedy}"
                )
            self._range(key, image, 0.0, 1.0, "divide bytes by 255")
            checked[name] = image
        return checked

    def audio(self, audio: torch.Tensor, rate_hz: float, min_samples: int) -> torch.Tensor:
        self._floating("audio", audio, f"(B, samples) in [-1, 1] at {rate_hz:g} Hz")
        if audio.ndim != 2 or min(audio.shape) == 0:
            raise InputError(f"audio must be (B, samples), mono, got {tuple(audio.shape)}")
        if audio.shape[1] < min_samples:
            raise InputError(
                f"audio must have at least {min_samples} samples ({min_samples / rate_hz:g} s), "
                f"got {audio.shape[1]}"
            )
        self._range("audio", audio, -1.0, 1.0, "divide int16 samples by 32768")
        return audio

    def sensor(self, name: str, signal: torch.Tensor, channels: int) -> torch.Tensor:
        """Return (B, C, T); (B, T) stands for one channel."""
        shape = f"(B, {channels}, T)" if channels > 1 else "(B, T) or (B, 1, T)"
        self._floating(name, signal, shape)
        if signal.ndim == 2 and channels == 1:
            signal = signal.unsqueeze(1)
        if signal.ndim != 3 or signal.shape[1] != channels or min(signal.shape) == 0:
            raise InputError(
                f"{name} must be {shape}, got {tuple(signal.shape)}; other channel counts are "
                f"set with {name}_channels"
            )
        self._finite(name, signal)
        return signal

    @staticmethod
    def batch(rows: Mapping[str, int]) -> int:
        """Return the batch size that all inputs share."""
        if not rows:
            raise InputError("at least one of camera_images, audio, pressure, emg must be given")
        if len(set(rows.values())) > 1:
            got = ", ".join(f"{name} {count}" for name, count in rows.items())
            raise InputError(f"all inputs must have the same batch size, got {got}")
        return next(iter(rows.values()))

    @staticmethod
    def _floating(name: str, tensor: torch.Tensor, expected: str, remedy: str = "") -> None:
        if not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{name} must be a torch.Tensor {expected}, got {type(tensor).__name__}; "
                "torch.from_numpy makes one of an array"
            )
        if not tensor.is_floating_point():
            raise InputError(
                f"{name} must be a floating-point tensor {expected}, got {tensor.dtype}{remedy}"
            )

    @staticmethod
    def _finite(name: str, tensor: torch.Tensor) -> None:
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InputError(f"{name} must be finite, got {bad} NaN or infinite values")

    def _range(self, name: str, tensor: torch.Tensor, low: float, high: float, fix: str) -> None:
        self._finite(name, tensor)
        least, most = tensor.detach().amin().item(), tensor.detach().amax().item()
        rule = f"{name} must be in [{low:g}, {high:g}], got {least:.3g} to {most:.3g}; {fix}"
        if max(-least, most) > _WILD:
            raise InputError(rule)
        if (least < low or most > high) and name not in self._warned:
            self._warned.add(name)
            warnings.warn(rule, stacklevel=7)  # the line that calls the system


def _is_uint8(image: object) -> bool:
    return isinstance(image, torch.Tensor) and image.dtype == torch.uint8
