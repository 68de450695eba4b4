"""The model: preprocessing, encoders, fusion, the whole system and its runtime."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "RoboticFeedbackSystem": "mmfuse_ros.model.system",
    "get_config": "mmfuse_ros.model.presets",
    "Engine": "mmfuse_ros.model.runtime",
    "build_engine": "mmfuse_ros.model.runtime",
    "load_checkpoint": "mmfuse_ros.model.checkpoint",
    "open_checkpoint": "mmfuse_ros.model.checkpoint",
    "save_checkpoint": "mmfuse_ros.model.checkpoint",
    "train_classifier": "mmfuse_ros.model.training",
    "log_mel_statistics": "mmfuse_ros.model.statistics",
    "sensor_statistics": "mmfuse_ros.model.statistics",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
