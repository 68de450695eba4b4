"""What runs the two large encoders, and in which arithmetic."""

from __future__ import annotations

import functools
import time
from typing import Protocol

import torch

from mmfuse_ros.model.system import RoboticFeedbackSystem

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# bf16 must be worth its rounding. Measured: 4 x faster than fp32 with AMX, 2 x on AMD's
# AVX512-BF16, but 0.55 x on an Intel CPU whose AMX the hypervisor hides.
_WORTH = 0.8
_PROBE = (128, 1024, 1024)
_PROBE_RUNS = 8


class EncoderBackend(Protocol):
    """What runs the two large encoders: normalised tensors in, vectors out."""

    name: str

    def vision(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode (N, 3, S, S) float32 -> (N, D) float32, both on the engine's device."""

    def audio(self, values: torch.Tensor) -> torch.Tensor:
        """Encode (B, T) float32 -> (B, D) float32, both on the engine's device."""

    def close(self) -> None:
        """Free what the backend holds."""


class TorchBackend:
    """The encoders of a system as they are, in one precision; casts them in place."""

    name = "torch"

    def __init__(self, system: RoboticFeedbackSystem, precision: str) -> None:
        self._vision, self._audio = system.vision, system.audio
        for encoder in (self._vision, self._audio):
            fold_weight_norm(encoder)
            encoder.to(DTYPES[precision])

    def vision(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._vision.encode(pixels).float()

    def audio(self, values: torch.Tensor) -> torch.Tensor:
        return self._audio.encode(values).float()

    def close(self) -> None:
        del self._vision, self._audio


def auto_precision(device: torch.device) -> str:
    """Return the fastest precision of a device that keeps the vectors: bf16, fp16 or fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_has_bf16() and _bf16_is_faster() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself (AVX512-BF16, AMX, Arm BF16); emulation is slower."""
    for query in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        if getattr(torch.cpu, query, bool)():
            return True
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            words = set(file.read().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


@functools.cache
def _bf16_is_faster() -> bool:
    """Time one product in both types, in turns: the best runs count, other load does not."""
    rows, inner, columns = _PROBE
    best = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner).to(dtype)
            torch.nn.functional.linear(x, weight)  # the first run compiles the kernel
            best[dtype] = (float("inf"), x, weight)
        for _ in range(_PROBE_RUNS):
            for dtype, (least_s, x, weight) in best.items():
                begun = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                best[dtype] = (min(least_s, time.perf_counter() - begun), x, weight)
    return best[torch.bfloat16][0] < _WORTH * best[torch.float32][0]


def fold_weight_norm(module: torch.nn.Module) -> None:
    """Multiply weight normalisation out: exact in inference, and once instead of at each run."""
    from torch.nn.utils import parametrize

    for part in module.modules():
        if parametrize.is_parametrized(part):
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
