"""The three presets: encoders, sizes and preprocessing constants, as plain data.

`get_config` hands a preset out as a configuration that builds the system and writes a node's
YAML. The architectures stand here so that `weights="random"` works offline; loaded weights bring
their own.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

from mmfuse_ros.config import FUSIONS, PRESETS, Config
from mmfuse_ros.errors import ConfigError

# CLIP's own channel statistics (arXiv 2103.00020, and its preprocessor_config.json).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ENCODERS = ("vision", "audio")


@dataclass
class VisionConfig:
    """The image encoder: hub id, the architecture behind it, the side of its input in pixels."""

    model_name: str
    architecture: dict[str, Any]
    image_size: int = 224
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    frozen: bool = True


@dataclass
class AudioConfig:
    """The audio encoder: hub id, the architecture behind it, and how it wants its samples."""

    model_name: str
    architecture: dict[str, Any]
    sampling_rate: int = 16000
    do_normalize: bool = True
    duration: float = 3.0
    frozen: bool = True


@dataclass
class SensorConfig:
    """A sensor encoder: channels in, vector out."""

    num_channels: int
    output_dim: int = 256


@dataclass
class FusionConfig:
    """The fusion head."""

    fusion_dim: int = 512
    fusion_method: str = "concat_project"
    num_attention_heads: int = 8
    dropout: float = 0.1

    @property
    def use_attention(self) -> bool:
        return self.fusion_method == "attention"


@dataclass
class SystemConfig:
    """One preset, open to changes before a system is built from it."""

    preset: str
    vision: VisionConfig
    audio: AudioConfig
    fusion: FusionConfig
    pressure: SensorConfig = field(default_factory=lambda: SensorConfig(1))
    emg: SensorConfig = field(default_factory=lambda: SensorConfig(8))
    device: str = "auto"
    batch_size: int = 8

    def to_flat(self) -> dict[str, Any]:
        """Return the node's parameters that say the same, by dotted name.

        Raises:
            ConfigError: a value that the node takes from its preset was changed.
        """
        default = get_config(self.preset)
        fixed = {
            "fusion.fusion_dim": (self.fusion.fusion_dim, default.fusion.fusion_dim),
            "pressure.output_dim": (self.pressure.output_dim, default.pressure.output_dim),
            "emg.output_dim": (self.emg.output_dim, default.emg.output_dim),
            "vision.architecture": (self.vision.architecture, default.vision.architecture),
            "audio.architecture": (self.audio.architecture, default.audio.architecture),
        }
        for name, (value, expected) in fixed.items():
            if value != expected:
                raise ConfigError(
                    f"{name} must be the preset's ({expected}) in a node, got {value}; change "
                    "the preset, or save a checkpoint and set model.checkpoint"
                )
        vision, audio = self.vision.model_name, self.audio.model_name
        return {
            "model.preset": self.preset,
            "model.fusion": self.fusion.fusion_method,
            "model.device": self.device,
            "model.vision": "" if vision == default.vision.model_name else vision,
            "model.audio": "" if audio == default.audio.model_name else audio,
            "audio.window_s": float(self.audio.duration),
            "pressure.channels": self.pressure.num_channels,
            "emg.channels": self.emg.num_channels,
        }

    def to_yaml(self, node: str = "/**") -> str:
        """Return a ROS 2 parameter file for the node; what it does not name keeps its default."""
        flat = self.to_flat()
        Config.from_flat(flat)  # an invalid value shows here and not at the node's start
        sections: dict[str, list[str]] = {}
        for name, value in flat.items():
            section, _, leaf = name.partition(".")
            sections.setdefault(section, []).append(f"      {leaf}: {json.dumps(value)}\n")
        body = "".join(f"    {name}:\n{''.join(lines)}" for name, lines in sections.items())
        return f"{json.dumps(node)}:\n  ros__parameters:\n{body}"


def _clip(hidden: int, layers: int, heads: int, patch: int, projection: int) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": 224,
        "projection_dim": projection,
    }


_BASE_AUDIO = {"model_type": "wav2vec2"}  # Wav2Vec2Config's defaults are wav2vec2-base

_PRESETS = {
    # TinyCLIP (arXiv 2309.12314) and DistilHuBERT (arXiv 2110.01900): 8 M and 23 M parameters.
    "lightweight": SystemConfig(
        "lightweight",
        VisionConfig("wkcn/TinyCLIP-ViT-8M-16-Text-3M-YFCC15M", _clip(256, 10, 4, 16, 512)),
        AudioConfig(
            "ntu-spml/distilhubert",
            {"model_type": "hubert", "num_hidden_layers": 2, "feat_proj_layer_norm": False},
            do_normalize=False,
        ),
        FusionConfig(256, "weighted_sum"),
        batch_size=4,
    ),
    "balanced": SystemConfig(
        "balanced",
        VisionConfig("openai/clip-vit-base-patch32", _clip(768, 12, 12, 32, 512)),
        AudioConfig("facebook/wav2vec2-base", _BASE_AUDIO),
        FusionConfig(512, "concat_project"),
        batch_size=8,
    ),
    "high_capacity": SystemConfig(
        "high_capacity",
        VisionConfig("openai/clip-vit-large-patch14", _clip(1024, 24, 16, 14, 768)),
        AudioConfig(
            "facebook/wav2vec2-large",
            {
                "model_type": "wav2vec2",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
            },
        ),
        FusionConfig(768, "attention"),
        batch_size=16,
    ),
}


def get_config(preset: str = "balanced") -> SystemConfig:
    """Return a preset's configuration, a copy of its own.

    Raises:
        ConfigError: no preset of that name.
    """
    if preset not in _PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    return copy.deepcopy(_PRESETS[preset])


def check_fusion(method: str) -> str:
    """Return the fusion method, or raise ConfigError for one that does not exist."""
    if method not in FUSIONS:
        raise ConfigError(f"fusion_method must be one of {', '.join(FUSIONS)}, got {method!r}")
    return method
