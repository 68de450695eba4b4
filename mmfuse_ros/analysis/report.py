"""A report on embeddings: JSON for programs, one self-contained HTML page for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfuse_ros.analysis.arrays import as_rows
from mmfuse_ros.analysis.contribution import FusionHead, contributions
from mmfuse_ros.analysis.embedding import EmbeddingAnalysis
from mmfuse_ros.analysis.recording import Recording, Timeline
from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.files import atomic_write
from mmfuse_ros.samples import NS_PER_S

if TYPE_CHECKING:
    from mmfuse_ros.analysis.arrays import Embedding

MAPS = ("pca", "tsne")


def create_embeddings_report(
    fused_embedding: Embedding,
    modality_embeddings: Mapping[str, Embedding],
    output_path: str | Path | None = None,
    *,
    fuse: FusionHead | None = None,
    stamps_ns: Sequence[int] | None = None,
    title: str = "Embeddings",
    method: str = "pca",
) -> dict[str, Any]:
    """Return statistics and contributions of one window or of N, and write them where asked.

    Returns `fused` and `modalities` (as `EmbeddingAnalysis.embedding_statistics`), `contribution`
    (as `modality_contribution`) and `contribution_method`, "shapley" or "squared_norm".

    Args:
        fused_embedding: (D,) or (N, D).
        modality_embeddings: (D_m,) or (N, D_m) by modality.
        output_path: `.html` or `.htm` gets a page with plots, anything else JSON.
        fuse: the fusion head; None takes the one that came with `modality_embeddings`.
        stamps_ns: time of each row, for the page.
        title, method: the page's heading, and its map, "pca" or "tsne".

    Raises:
        InputError: the vectors do not belong together.
        ConfigError: an unknown map.
    """
    rows = as_rows(fused_embedding, "fused_embedding")
    shares = contributions(modality_embeddings, rows, fuse)
    report = {
        "fused": EmbeddingAnalysis.embedding_statistics(rows, "fused"),
        "modalities": {
            str(name): EmbeddingAnalysis.embedding_statistics(value, str(name))
            for name, value in modality_embeddings.items()
        },
        "contribution": shares.mean,
        "contribution_method": shares.method,
    }
    seconds = None
    if stamps_ns is not None:
        if len(stamps_ns) != len(rows):
            raise InputError(f"stamps_ns must be {len(rows)}, one a row, got {len(stamps_ns)}")
        stamps = np.asarray(stamps_ns, dtype=np.int64)
        seconds = (stamps - stamps[0]) / NS_PER_S
    if output_path is not None:
        line = Timeline(seconds, rows, shares.rows)
        write_report(report, line, output_path, title=title, method=method)
    return report


def write_recording_report(
    recording: Recording,
    output_path: str | Path,
    *,
    title: str = "Recording",
    details: Mapping[str, str] | None = None,
    method: str = "pca",
) -> dict[str, Any]:
    """Write the report of a whole recording, JSON or a page by the suffix; return it.

    Args:
        details: what to say on the page about where the windows come from.

    Raises:
        InputError: the recording holds no window.
        ConfigError: an unknown map.
    """
    report = recording.report()
    write_report(
        report, recording.timeline(), output_path, title=title, details=details, method=method
    )
    return report


def write_report(
    report: Mapping[str, Any],
    line: Timeline,
    output_path: str | Path,
    *,
    title: str,
    details: Mapping[str, str] | None = None,
    method: str = "pca",
) -> None:
    """Write a report at once and whole: a page for `.html` and `.htm`, else JSON."""
    if method not in MAPS:
        raise ConfigError(f"a report's map must be one of {', '.join(MAPS)}, got {method!r}")
    path = Path(output_path)
    if path.suffix.lower() in (".html", ".htm"):
        from mmfuse_ros.analysis.page import render

        text = render(report, line, title=title, details=details or {}, method=method)
    else:
        text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")
