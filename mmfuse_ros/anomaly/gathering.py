"""A calibration that is gathered from the running robot, and fitted beside the windows."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mmfuse_ros.anomaly.cosine import FUSED
from mmfuse_ros.anomaly.detector import Detector
from mmfuse_ros.samples import NS_PER_S

FloatArray = npt.NDArray[np.floating]

_ROW_SPACING_NS = NS_PER_S // 5  # windows closer than this say nothing new to a calibration
_LONGEST_GAP_NS = 2 * NS_PER_S


class Gathering:
    """Feature rows of normal operation, gathered live."""

    def __init__(self, count: int, span_s: float) -> None:
        self._count, self._span_ns = count, span_s * NS_PER_S
        self._seen = 0
        self._elapsed_ns = 0
        self._last_ns: int | None = None
        self._kept_ns: list[int] = []
        self._rows: list[dict[str, FloatArray]] = []

    def add(self, stamp_ns: int, features: Mapping[str, FloatArray]) -> None:
        """Take a window in, unless it says nothing new."""
        step = 0 if self._last_ns is None else stamp_ns - self._last_ns
        # A clock that jumps, or a pause, is not time spent in normal operation.
        self._elapsed_ns += step if 0 <= step <= _LONGEST_GAP_NS else 0
        self._last_ns = stamp_ns
        self._seen += 1
        if not self._kept_ns or self._elapsed_ns - self._kept_ns[-1] >= _ROW_SPACING_NS:
            self._kept_ns.append(self._elapsed_ns)
            rows = {k: np.array(v, np.float32) for k, v in features.items() if k != FUSED}
            self._rows.append(rows)

    @property
    def enough(self) -> bool:
        """Whether windows and time suffice for a fit."""
        return self._seen >= self._count and self._elapsed_ns >= self._span_ns

    @property
    def progress(self) -> str:
        """How far it is, for a person."""
        return (
            f"gathering: {self._seen} of {self._count} windows, "
            f"{self._elapsed_ns / NS_PER_S:.0f} of {self._span_ns / NS_PER_S:.0f} s"
        )

    def fit(self, alpha: float, window_s: float, context: Mapping[str, object]) -> Detector:
        """Fit on blocks of 10 s; raises as `Detector.fit` does."""
        dims = {key: len(value) for row in self._rows for key, value in row.items()}
        recording = {
            key: np.stack([row.get(key, np.full(dim, np.nan, np.float32)) for row in self._rows])
            for key, dim in sorted(dims.items())
        }
        # The mean, so that blocks cover the time gathered however unevenly windows came.
        hop_s = float(np.mean(np.diff(self._kept_ns))) / NS_PER_S
        return Detector.fit(
            [recording], alpha, unit="block", hop_s=hop_s, window_s=window_s, context=context
        )


class LiveFit:
    """A fit on a thread of its own: seconds in which windows are still judged.

    Attributes:
        detector: the result, None where it failed.
        failure: why it failed, "" otherwise.
    """

    def __init__(
        self,
        gathering: Gathering,
        alpha: float,
        window_s: float,
        context: Mapping[str, object],
    ) -> None:
        self.detector: Detector | None = None
        self.failure = ""
        self._task = (gathering, alpha, window_s, context)
        # A daemon: nothing is lost with it, and a node that shuts down need not wait.
        self._thread = threading.Thread(target=self._run, name="calibration", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether `detector` or `failure` is final."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is done; return whether it is."""
        self._thread.join(timeout_s)
        return self.done

    def _run(self) -> None:
        gathering, alpha, window_s, context = self._task
        try:
            self.detector = gathering.fit(alpha, window_s, context)
        except Exception as error:  # nobody else would hear of it
            self.failure = str(error) or repr(error)
