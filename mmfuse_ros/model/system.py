"""The whole model as one nn.Module: sensors in, one vector out. The node runs this same module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.model.encoders import AudioEncoder, SensorEncoder, VisionEncoder, seeded
from mmfuse_ros.model.fusion import MODALITIES, make_fusion
from mmfuse_ros.model.inputs import InputChecks
from mmfuse_ros.model.loading import choose_sources, load_audio, load_vision
from mmfuse_ros.model.preprocess import AudioSpec, ImageSpec, resize_and_crop
from mmfuse_ros.model.presets import ENCODERS, SystemConfig, check_fusion, get_config

if TYPE_CHECKING:
    from mmfuse_ros.model.loading import Source

CAMERAS = ("camera_1", "camera_2")


class ModalityEmbeddings(dict[str, torch.Tensor]):
    """Vectors by modality, with the fusion that made one of them.

    `vision`, `audio`, `pressure`, `emg`, and `camera_1`, `camera_2` apart; the absent have no key.
    `fuse` is the system's: contributions are computed with it.
    """

    def __init__(self, vectors: Mapping[str, torch.Tensor], system: RoboticFeedbackSystem) -> None:
        super().__init__(vectors)
        self.fuse = system.fuse


class RoboticFeedbackSystem(nn.Module):
    """Encode two cameras, audio, pressure and EMG, and fuse them into one vector.

    Args:
        fusion_dim: length of the fused vector; None takes the preset's (256, 512 or 768).
        fusion_method: concat_project, weighted_sum or attention; None takes the preset's.
        use_attention: True is another way to ask for fusion_method="attention".
        device: "auto" (cuda where there is one), "cpu", "cuda" or "cuda:N".
        preset: "lightweight", "balanced" or "high_capacity".
        weights: "pretrained", "random" (seeded), or a directory with `vision` and `audio` in it;
            None takes the environment variable MMFUSE_WEIGHTS, and "pretrained" without one.
        vision, audio: for one encoder, in place of `weights`: a hub id, a local directory, a
            `transformers` configuration (random weights) or a ready `transformers` model.
        pressure_channels, emg_channels: channels of the sensors.
        allow_download: let `transformers` fetch what is not on disk.
        seed: of everything that is not loaded. The global random generator is neither read nor
            changed, so one seed gives the same weights in every process and on every device.

    CLIP and Wav2Vec2 are frozen until `unfreeze_encoders`.

    Raises:
        ConfigError: an argument breaks its rule.
        CheckpointError: weights are missing or unreadable. Nothing is replaced in silence.
    """

    pressure: SensorEncoder
    emg: SensorEncoder

    def __init__(
        self,
        fusion_dim: int | None = None,
        fusion_method: str | None = None,
        use_attention: bool = False,
        device: str | torch.device = "auto",
        preset: str = "balanced",
        weights: str | Path | None = None,
        *,
        vision: Source | None = None,
        audio: Source | None = None,
        pressure_channels: int | None = None,
        emg_channels: int | None = None,
        allow_download: bool = False,
        seed: int = 0,
        config: SystemConfig | None = None,
    ) -> None:
        super().__init__()
        config = config or get_config(preset)
        target = resolve_device(device)
        method = "attention" if use_attention else fusion_method or config.fusion.fusion_method
        dim = config.fusion.fusion_dim if fusion_dim is None else fusion_dim
        _check_sizes(dim, check_fusion(method), config.fusion.num_attention_heads)
        if use_attention and fusion_method not in (None, "concat_project", "attention"):
            raise ConfigError(
                f"use_attention=True must not go with fusion_method={fusion_method!r}; "
                "drop one of them"
            )
        self.preset, self.seed, self.fusion_method, self.fusion_dim = (
            config.preset,
            seed,
            method,
            dim,
        )
        sources = choose_sources(config, weights, {"vision": vision, "audio": audio})
        self.vision: VisionEncoder = load_vision(
            sources["vision"],
            ImageSpec(
                config.vision.image_size,
                config.vision.image_size,
                config.vision.image_mean,
                config.vision.image_std,
            ),
            allow_download=allow_download,
            seed=seed,
        )
        self.audio: AudioEncoder = load_audio(
            sources["audio"],
            AudioSpec(config.audio.sampling_rate, config.audio.do_normalize),
            allow_download=allow_download,
            seed=seed,
        )
        channels = {
            "pressure": pressure_channels or config.pressure.num_channels,
            "emg": emg_channels or config.emg.num_channels,
        }
        # As long as a vision vector with elements of unit RMS: a plain concatenation of the
        # modality vectors is then balanced too.
        length = math.sqrt(self.vision.dim)
        sensors = (("pressure", config.pressure), ("emg", config.emg))
        for name, sensor in sensors:
            with seeded(seed, name):
                encoder = SensorEncoder(channels[name], sensor.output_dim, length=length)
                self.add_module(name, encoder)
        dims = {name: getattr(self, name).dim for name in MODALITIES}
        with seeded(seed, f"fusion/{method}"):
            self.fusion = make_fusion(
                method,
                dims,
                dim,
                heads=config.fusion.num_attention_heads,
                dropout=config.fusion.dropout,
            )
        self._checks = InputChecks()
        self._frozen: set[str] = set()
        self.trained: set[str] = set()  # encoders that were ever open to training
        self.checkpoint = ""  # hash of the checkpoint that was loaded
        self.freeze_encoders(
            *(n for n, c in (("vision", config.vision), ("audio", config.audio)) if c.frozen)
        )
        self.to(target)

    @classmethod
    def from_config(cls, config: SystemConfig, **options: Any) -> RoboticFeedbackSystem:
        """Build the system of a `get_config` configuration; options as of the constructor.

        An encoder whose `model_name` was changed is loaded from that hub id or directory.
        """
        default = get_config(config.preset)
        for name in ENCODERS:
            chosen = getattr(config, name).model_name
            if chosen != getattr(default, name).model_name:
                options.setdefault(name, chosen)
        options.setdefault("device", config.device)
        return cls(config=config, **options)

    def forward(
        self,
        camera_images: Mapping[str, torch.Tensor] | None = None,
        audio: torch.Tensor | None = None,
        pressure: torch.Tensor | None = None,
        emg: torch.Tensor | None = None,
        return_modality_embeddings: bool = False,
        *,
        audio_rate_hz: float | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModalityEmbeddings]:
        """Return the fused vectors, (B, D), and on request each modality's own.

        Args:
            camera_images: camera1, camera2 (or camera_1, camera_2): (B, 3, H, W) RGB in [0, 1].
            audio: (B, samples) mono in [-1, 1] at the encoder's rate, 16 kHz.
            pressure: (B, T) or (B, C, T), raw readings.
            emg: (B, C, T), raw readings.
            audio_rate_hz: rate of `audio`, to have it checked.

        Any of them may be absent: its learned token stands in. Rows do not depend on the batch.

        Raises:
            InputError: nothing given, or a wrong type, shape, range, rate, batch size or NaN.
        """
        vectors = self.encode(camera_images, audio, pressure, emg, audio_rate_hz=audio_rate_hz)
        fused = self.fuse(vectors)
        return (fused, vectors) if return_modality_embeddings else fused

    def encode(
        self,
        camera_images: Mapping[str, torch.Tensor] | None = None,
        audio: torch.Tensor | None = None,
        pressure: torch.Tensor | None = None,
        emg: torch.Tensor | None = None,
        *,
        audio_rate_hz: float | None = None,
    ) -> ModalityEmbeddings:
        """Return (B, D_m) of each modality that is given; arguments and errors as of forward."""
        images = self._checks.images(camera_images)
        signals: dict[str, torch.Tensor] = {}
        if audio is not None:
            rate_hz = self.audio.spec.rate_hz
            if audio_rate_hz is not None and audio_rate_hz != rate_hz:
                raise InputError(
                    f"audio must be at {rate_hz} Hz, got {audio_rate_hz:g} Hz; resample it with "
                    "mmfuse_ros.model.preprocess.resample_audio"
                )
            signals["audio"] = self._checks.audio(audio, rate_hz, self.audio.min_samples)
        for name, signal in (("pressure", pressure), ("emg", emg)):
            if signal is not None:
                channels = getattr(self, name).channels
                signals[name] = self._checks.sensor(name, signal, channels)
        rows = self._checks.batch({n: len(t) for n, t in (*images.items(), *signals.items())})
        vectors: dict[str, torch.Tensor] = {}
        cameras: dict[str, torch.Tensor] = {}
        if images:
            square = [
                resize_and_crop(x.to(self.device, torch.float32), self.vision.spec)
                for x in images.values()
            ]
            encoded = self.vision(torch.cat(square)).split(rows)  # both cameras in one batch
            cameras = dict(zip(images, encoded, strict=True))
            vectors["vision"] = torch.stack(encoded).mean(dim=0)
        for name, signal in signals.items():
            vectors[name] = getattr(self, name)(signal.to(self.device, torch.float32))
        return ModalityEmbeddings({**vectors, **cameras}, self)

    def fuse(
        self,
        embeddings: Mapping[str, torch.Tensor],
        present: Mapping[str, torch.Tensor | bool] | None = None,
    ) -> torch.Tensor:
        """Fuse vectors of `encode` -> (B, D).

        Args:
            embeddings: by name: `vision` or its cameras, `audio`, `pressure`, `emg`; (B, D_m),
                or one row that serves every row of `present`.
            present: by name, which rows have the modality: (B,) bool or one bool; what is not
                named is present where it has a vector. Naming a camera takes the cameras, where
                the vision vector is the mean of those present; else `vision` goes first.

        Raises:
            InputError: an unknown name, a wrong length or batch size, or nothing at all.
        """
        present = present or {}
        known = (*MODALITIES, *CAMERAS)
        unknown = [n for n in (*embeddings, *present) if n not in known]
        if unknown or not embeddings:
            raise InputError(
                f"embeddings must be named {', '.join(known)}, got {unknown or 'none'}"
            )
        by_camera = [n for n in CAMERAS if n in embeddings]
        if "vision" in embeddings and not any(n in present for n in CAMERAS):
            by_camera = []
        names = [n for n in (*MODALITIES, *CAMERAS) if n in embeddings]
        names = [n for n in names if n not in (("vision",) if by_camera else CAMERAS)]
        vectors = {n: self._rows(n, embeddings[n]) for n in names}
        masks = {
            n: torch.as_tensor(present.get(n, True), dtype=torch.bool, device=self.device)
            for n in names
        }
        rows = max([len(v) for v in vectors.values()] + [m.numel() for m in masks.values()])
        for name in names:
            if len(vectors[name]) not in (1, rows) or masks[name].numel() not in (1, rows):
                raise InputError(
                    f"{name} must have {rows} rows or one, got {len(vectors[name])} with a mask "
                    f"of {masks[name].numel()}"
                )
            masks[name] = masks[name].reshape(-1).expand(rows)
        if by_camera:
            mask = torch.stack([masks.pop(n) for n in by_camera])  # (cameras, B)
            stacked = torch.stack([vectors.pop(n).expand(rows, -1) for n in by_camera])
            total = torch.where(mask.unsqueeze(2), stacked, 0.0).sum(dim=0)
            vectors["vision"] = total / mask.sum(dim=0).clamp(min=1).unsqueeze(1)
            masks["vision"] = mask.any(dim=0)
        return self.fusion(vectors, masks)

    def _rows(self, name: str, vector: torch.Tensor) -> torch.Tensor:
        dim = self.vision.dim if name in CAMERAS else getattr(self, name).dim
        if vector.ndim == 1:
            vector = vector.unsqueeze(0)
        if vector.ndim != 2 or vector.shape[1] != dim:
            raise InputError(f"{name} must be (B, {dim}), got {tuple(vector.shape)}")
        return vector.to(self.device, torch.float32)

    def get_modality_dimensions(self) -> dict[str, int]:
        """Return the length of each modality's vector, and of the fused one."""
        return {**self.fusion.dims, "fused": self.fusion_dim}

    @property
    def device(self) -> torch.device:
        return next(self.fusion.parameters()).device

    @property
    def frozen(self) -> frozenset[str]:
        """The encoders that training leaves alone."""
        return frozenset(self._frozen)

    def freeze_encoders(self, *names: str) -> None:
        """Exclude encoders from training and keep them in eval mode; without names both."""
        self._set_frozen(names or ENCODERS, True)

    def unfreeze_encoders(self, *names: str) -> None:
        """Open encoders ("vision", "audio") to training; without names both."""
        self._set_frozen(names or ENCODERS, False)

    def _set_frozen(self, names: Iterable[str], frozen: bool) -> None:
        for name in names:
            if name not in ENCODERS:
                raise ConfigError(
                    f"an encoder to freeze must be one of {', '.join(ENCODERS)}, got {name!r}"
                )
            if frozen:
                self._frozen.add(name)
            else:
                self._frozen.discard(name)
                self.trained.add(name)
            getattr(self, name).requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> RoboticFeedbackSystem:
        """Set training mode; frozen encoders stay in eval mode, without dropout."""
        super().train(mode)
        for name in getattr(self, "_frozen", ()):
            getattr(self, name).eval()
        return self

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations of unfrozen encoders in the backward pass, to save memory."""
        self._checkpoint_gradients("enable", {"use_reentrant": False})

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass again."""
        self._checkpoint_gradients("disable")

    def _checkpoint_gradients(self, verb: str, *options: dict[str, bool]) -> None:
        for name in ENCODERS:
            model = getattr(self, name).model
            old = f"gradient_checkpointing_{verb}"  # deprecated in transformers 5.23
            getattr(model, f"activation_checkpointing_{verb}", getattr(model, old))(*options)


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of a name; "auto" is cuda where there is one.

    Raises:
        ConfigError: the device does not exist here. There is no fallback.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {str(device)!r}")
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if (found.index or 0) >= count:
        raise ConfigError(
            f"device must be one that torch can use, got {str(device)!r} with {count} CUDA "
            "devices; install a CUDA build of torch and its driver, or set the device to cpu"
        )
    return found


def _check_sizes(dim: int, method: str, heads: int) -> None:
    if dim < 1:
        raise ConfigError(f"fusion_dim must be at least 1, got {dim}")
    if method == "attention" and dim % heads:
        raise ConfigError(
            f"fusion_dim must be a multiple of the {heads} attention heads, got {dim}"
        )
