"""Multimodal perception for ROS 2: five sensor streams in, one embedding and alarms out.

Importing this package loads nothing heavy; the names below import their module when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Config": "mmfuse_ros.config",
    "RoboticFeedbackSystem": "mmfuse_ros.model.system",
    "get_config": "mmfuse_ros.model.presets",
    "EmbeddingAnalysis": "mmfuse_ros.analysis.embedding",
    "EmbeddingRetrieval": "mmfuse_ros.analysis.retrieval",
    "create_embeddings_report": "mmfuse_ros.analysis.report",
    "Detector": "mmfuse_ros.anomaly.detector",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
