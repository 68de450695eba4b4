"""What embeddings say: statistics, contributions, retrieval, reports."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "EmbeddingAnalysis": "mmfuse_ros.analysis.embedding",
    "EmbeddingRetrieval": "mmfuse_ros.analysis.retrieval",
    "Match": "mmfuse_ros.analysis.retrieval",
    "create_embeddings_report": "mmfuse_ros.analysis.report",
    "Recording": "mmfuse_ros.analysis.recording",
    "shapley_values": "mmfuse_ros.analysis.contribution",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
