"""The encoders: CLIP for pictures, Wav2Vec2 or HuBERT for sound, statistics and MLP for sensors.

The only file that imports `transformers`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from mmfuse_ros.errors import CheckpointError
from mmfuse_ros.model.preprocess import AudioSpec, ImageSpec, normalize_audio, normalize_image

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    Source: TypeAlias = str | Path | PretrainedConfig | PreTrainedModel

_LOG = logging.getLogger(__name__)

_VISION_TYPES = ("clip", "clip_vision_model")
_AUDIO_TYPES = ("wav2vec2", "hubert", "wavlm", "unispeech-sat", "data2vec-audio")
# Never used outside of masked pre-training, and left out of some checkpoints.
_OPTIONAL_KEYS = ("masked_spec_embed",)

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
        side = model.config.image_size
        if side != spec.crop:
            raise CheckpointError(
                f"the image processor of {name} must crop to the model's {side} pixels, "
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
        width = channels * len(STATISTICS) * len(_FREQUENCIES) * 2
        self.register_buffer("frequencies", torch.tensor(_FREQUENCIES), persistent=False)
        self.lift = nn.Linear(width, dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), small_linear(hidden, dim))
        isometric_(self.lift.weight)

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


def load_vision(
    source: Source, spec: ImageSpec, *, allow_download: bool = False, seed: int = 0
) -> VisionEncoder:
    """Return the image encoder of a hub id, a directory, a configuration or a ready model.

    Args:
        source: a configuration is built with random weights of `seed`.
        spec: preprocessing of configurations and ready models; loaded weights bring their own.

    Raises:
        CheckpointError: the weights are missing, unreadable, incomplete or of another kind.
    """
    from transformers import CLIPVisionModelWithProjection

    if isinstance(source, (str, Path)):
        model = _from_pretrained(
            CLIPVisionModelWithProjection, source, "vision", _VISION_TYPES, allow_download
        )
        processor = _processor(source, "image_processor", allow_download)
        name, random = _public_name(source, model), False
    else:
        model, random = _ready(CLIPVisionModelWithProjection, source, "vision", seed)
        processor, name = None, model.config.model_type
    if processor is not None:
        spec = ImageSpec.from_processor(processor, str(source))
    else:
        side = model.config.image_size
        spec = ImageSpec(side, side, spec.mean, spec.std)
    return VisionEncoder(model, spec, name, random)


def load_audio(
    source: Source, spec: AudioSpec, *, allow_download: bool = False, seed: int = 0
) -> AudioEncoder:
    """Return the audio encoder; arguments and errors as of load_vision."""
    from transformers import AutoModel

    if isinstance(source, (str, Path)):
        model = _from_pretrained(AutoModel, source, "audio", _AUDIO_TYPES, allow_download)
        processor = _processor(source, "feature_extractor", allow_download)
        if processor is not None:
            spec = AudioSpec.from_processor(processor, str(source))
        return AudioEncoder(model, spec, _public_name(source, model), random=False)
    model, random = _ready(AutoModel, source, "audio", seed)
    return AudioEncoder(model, spec, model.config.model_type, random)


def make_config(architecture: dict[str, Any]) -> PretrainedConfig:
    """Return the `transformers` configuration of a preset's architecture."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**architecture)


def _ready(factory: Any, source: Any, kind: str, seed: int) -> tuple[PreTrainedModel, bool]:
    if isinstance(source, nn.Module):
        return source.eval(), False  # type: ignore[return-value]
    with seeded(seed, kind):
        model = factory.from_config(source) if hasattr(factory, "from_config") else factory(source)
    return model.float().eval(), True


def _from_pretrained(
    factory: Any, source: str | Path, kind: str, types: tuple[str, ...], allow_download: bool
) -> PreTrainedModel:
    from transformers import AutoConfig

    where = str(source)
    if _is_path(where) and not Path(where).expanduser().is_dir():
        raise CheckpointError(
            f"{kind} weights must be a directory of `transformers` or a hub id, got {where!r}, "
            "which does not exist; correct the path"
        )
    if _is_path(where) and not (Path(where).expanduser() / "config.json").is_file():
        raise CheckpointError(
            f"{kind} weights directory {where!r} must hold config.json and model.safetensors, as "
            "`save_pretrained` writes them; there is no config.json"
        )
    where = str(Path(where).expanduser()) if _is_path(where) else where
    options = {"local_files_only": not allow_download}
    try:
        with _quiet():
            model_type = AutoConfig.from_pretrained(where, **options).model_type
            if model_type not in types:
                raise CheckpointError(
                    f"{kind} weights must be of type {', '.join(types)}, "
                    f"got {model_type!r} in {where!r}; choose other weights"
                )
            model, report = factory.from_pretrained(where, output_loading_info=True, **options)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(_missing(where, kind, allow_download, error)) from error
    except Exception as error:  # boundary: whatever a damaged file makes the loaders raise
        raise CheckpointError(
            f"{kind} weights in {where!r} must be readable by `transformers`, "
            f"got {type(error).__name__}: {error}; fetch them again"
        ) from error
    missing = [k for k in report["missing_keys"] if not k.endswith(_OPTIONAL_KEYS)]
    mismatched = [str(k) for k in report["mismatched_keys"]]
    if missing or mismatched:
        # `transformers` fills these with random numbers and goes on.
        raise CheckpointError(
            f"{kind} weights in {where!r} must hold every tensor of the model, missing "
            f"{len(missing)} ({', '.join(sorted(missing)[:5])}), of another shape "
            f"{len(mismatched)} ({', '.join(sorted(mismatched)[:5])}); fetch them again"
        )
    return model.float().eval()


def _missing(where: str, kind: str, allow_download: bool, error: OSError) -> str:
    if Path(where).is_dir():
        return (
            f"{kind} weights directory {where!r} must hold config.json and model.safetensors as "
            f"`save_pretrained` writes them: {error}"
        )
    looked = "the hub and the local cache" if allow_download else "the local cache (offline)"
    remedies = [
        f"give a local directory (model.{kind} in the node, {kind}= in Python)",
        "choose weights 'random' to run untrained",
    ]
    if not allow_download:
        remedies.insert(0, "allow the download (model.allow_download, allow_download=True)")
    return (
        f"{kind} weights {where!r} must be in {looked}, and were not found "
        f"({type(error).__name__}); {', or '.join(remedies)}"
    )


def _processor(source: str | Path, part: str, allow_download: bool) -> dict[str, Any] | None:
    """Return the processor configuration that lies beside the weights, if there is one."""
    from transformers.utils import cached_file

    where = str(Path(source).expanduser()) if _is_path(str(source)) else str(source)
    for file in ("preprocessor_config.json", "processor_config.json"):
        try:
            path = cached_file(
                where,
                file,
                local_files_only=not allow_download,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                _raise_exceptions_for_gated_repo=False,
            )
            if path is None:
                continue
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} of {where!r} must be readable: {error}") from error
        content = content.get(part, content if file.startswith("pre") else None)
        if content is not None:
            return content
    _LOG.warning(
        "%s has no preprocessor_config.json; taking the preset's constants. Save the processor "
        "beside the weights to be sure of them",
        where,
    )
    return None


def _is_path(where: str) -> bool:
    return where.startswith(("/", ".", "~")) or where.count("/") > 1 or Path(where).is_dir()


def _public_name(source: str | Path, model: PreTrainedModel) -> str:
    """Return the hub id, or the type of the model for a directory: a path tells of a machine."""
    return model.config.model_type if _is_path(str(source)) else str(source)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loaders' reports and progress bars out of the log; the checks here say more."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
