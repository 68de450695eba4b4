"""What a report needs of many windows, gathered result by result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.analysis.arrays import Array
from mmfuse_ros.analysis.contribution import (
    SHAPLEY,
    SQUARED_NORM,
    FusionHead,
    shapley_values,
    squared_norm_shares,
)
from mmfuse_ros.analysis.moments import Moments
from mmfuse_ros.errors import InputError
from mmfuse_ros.samples import NS_PER_S, Modality, Result

# Windows that go through the fusion head together, each with up to 32 subsets.
_BATCH = 128


@dataclass(frozen=True)
class Timeline:
    """N windows as the plots take them.

    Attributes:
        seconds: (N,) since the first; None where the windows have no time.
        embeddings: (N, D) fused vectors.
        shares: (N,) by modality, the contribution; 0 where it is absent.
        present: (N,) bool by modality.
        score, threshold: (N,) of the anomaly monitor, NaN where it gave none.
        flag: (N,) bool, the alarm.
        named: (N,) bool by modality, where an alarm names it as what stands out most.
    """

    seconds: npt.NDArray[np.float64] | None
    embeddings: Array
    shares: Mapping[str, npt.NDArray[np.float64]]
    present: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    score: npt.NDArray[np.float64] | None = None
    threshold: npt.NDArray[np.float64] | None = None
    flag: npt.NDArray[np.bool_] | None = None
    named: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)


class Recording:
    """Gathers results in the order of the recording; keeps one fused vector of each window.

    Args:
        fuse: the fusion head, for contributions; None takes shares of squared length.
    """

    def __init__(self, fuse: FusionHead | None = None) -> None:
        self._fuse = fuse
        self._fused, self._moments = Moments(), {m.value: Moments() for m in Modality}
        self._embeddings: list[Array] = []
        self._stamps_ns: list[int] = []
        self._present: list[tuple[Modality, ...]] = []
        self._verdicts: list[tuple[float, float, bool]] = []
        self._named: list[str] = []
        self._shares: list[dict[str, float]] = []
        # Windows of one set of modalities go through the head in one batch.
        self._waiting: dict[tuple[str, ...], list[tuple[int, list[Array]]]] = {}

    def __len__(self) -> int:
        return len(self._stamps_ns)

    def add(self, result: Result) -> None:
        """Add one window.

        Raises:
            InputError: its vector has another dimension than those before.
        """
        fused = np.array(result.embedding, dtype=np.float32)
        if self._embeddings and fused.shape != self._embeddings[0].shape:
            raise InputError(
                f"all windows must have one dimension, got {fused.shape} after "
                f"{self._embeddings[0].shape}; report one model's results at a time"
            )
        vectors = {str(n): np.asarray(v) for n, v in result.modality_embeddings.items()}
        self._fused.add(fused[None])
        for name, vector in vectors.items():
            self._moments[name].add(vector[None])
        waiting = self._waiting.setdefault(tuple(vectors), [])
        waiting.append((len(self), list(vectors.values())))
        self._embeddings.append(fused)
        self._stamps_ns.append(result.stamp_ns)
        self._present.append(result.present)
        verdict = result.verdict
        self._verdicts.append((verdict.score, verdict.threshold, verdict.flag))
        self._named.append(verdict.top if verdict.flag else "")
        self._shares.append({})
        if len(waiting) == _BATCH:
            self._share(tuple(vectors))

    def timeline(self) -> Timeline:
        """Return all windows so far.

        Raises:
            InputError: there are none.
        """
        if not self._embeddings:
            raise InputError("a report needs at least one window, got none")
        for names in list(self._waiting):
            self._share(names)
        present = {m: np.array([m in there for there in self._present]) for m in Modality}
        seen = [m for m in Modality if present[m].any()]
        score, threshold, flag = np.array(self._verdicts, dtype=np.float64).T
        stamps_ns = np.array(self._stamps_ns, dtype=np.int64)
        return Timeline(
            seconds=(stamps_ns - stamps_ns[0]) / NS_PER_S,
            embeddings=np.array(self._embeddings),
            shares={
                m.value: np.array([row.get(m.value, 0.0) for row in self._shares]) for m in seen
            },
            present={m.value: present[m] for m in seen},
            score=score,
            threshold=threshold,
            flag=flag > 0.0,
            named={m.value: np.array([top == m.value for top in self._named]) for m in seen},
        )

    def report(self) -> dict[str, Any]:
        """Return the report of `create_embeddings_report`, and `recording` about the whole.

        Raises:
            InputError: there are no windows.
        """
        line = self.timeline()
        assert line.seconds is not None
        assert line.flag is not None
        return {
            "fused": self._fused.report("fused"),
            "modalities": {n: m.report(n) for n, m in self._moments.items() if m.rows},
            "contribution": {n: float(values.mean()) for n, values in line.shares.items()},
            "contribution_method": SQUARED_NORM if self._fuse is None else SHAPLEY,
            "recording": {
                "windows": len(self),
                "start_ns": self._stamps_ns[0],
                "duration_s": float(np.ptp(line.seconds)),
                "flagged": int(line.flag.sum()),
                "named": {n: int(rows.sum()) for n, rows in line.named.items()},
                "present": {n: float(there.mean()) for n, there in line.present.items()},
            },
        }

    def _share(self, names: tuple[str, ...]) -> None:
        """Compute the shares of the windows that wait with these modalities."""
        waiting = self._waiting.pop(names)
        columns = zip(*(vectors for _, vectors in waiting), strict=True)
        batch = {name: np.array(rows) for name, rows in zip(names, columns, strict=True)}
        if self._fuse is None:
            shares = squared_norm_shares(batch).rows
        else:
            shares = shapley_values(batch, self._fuse)
        for place, (index, _) in enumerate(waiting):
            self._shares[index] = {n: float(values[place]) for n, values in shares.items()}
