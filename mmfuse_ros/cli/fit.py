"""`mmfuse fit BAG...`: a calibration from recordings of normal operation."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.cli.configuration import (
    add_config_arguments,
    add_topic_arguments,
    load_config,
    load_topics,
)
from mmfuse_ros.config import DEFAULT_ALPHA, Config
from mmfuse_ros.errors import CalibrationError, InputError
from mmfuse_ros.files import atomic_write
from mmfuse_ros.samples import SIGNALS, Modality

Features = dict[str, npt.NDArray[np.float32]]

_PHASES = "phases"  # beside the feature blocks in a stored archive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG", help="rosbag2 folder")
    parser.add_argument("--out", type=Path, required=True, help="calibration file to write")
    parser.add_argument("--alpha", type=float, help="false-alarm probability of a window")
    parser.add_argument("--rate-hz", type=float, default=2.0, help="windows per second to fit on")
    parser.add_argument("--plot", type=Path, help="write a timeline of the fit (.html or .png)")
    parser.add_argument("--no-cache", action="store_true", help="encode again what was encoded")
    add_config_arguments(parser)
    add_topic_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Encode the recordings, fit, print what the calibration can promise, save."""
    from mmfuse_ros.anomaly.detector import Detector
    from mmfuse_ros.pipeline import calibration_context
    from mmfuse_ros.ros.bag import Bag
    from mmfuse_ros.ros.offline import adapt

    if args.rate_hz <= 0.0:
        raise CalibrationError(f"--rate-hz must be above 0, got {args.rate_hz:g}")
    topics = load_topics(args)
    with Bag(args.bags[0]) as bag:
        config = adapt(load_config(args), bag, topics)
    alpha = args.alpha or config.anomaly.alpha or DEFAULT_ALPHA
    print("streams: " + ", ".join(m.value for m in config.enabled))
    encoder = _Encoder(config, topics, args.rate_hz, cache=not args.no_cache)
    encoded = [encoder.encode(path) for path in args.bags]
    recordings = [features for features, _ in encoded]
    phases = [labels for _, labels in encoded]
    named = sorted({label for labels in phases for label in labels} - {""})
    if named:
        print("a calibration of its own for each phase: " + ", ".join(named))
    detector = Detector.fit(
        recordings,
        alpha,
        hop_s=1.0 / args.rate_hz,
        window_s=max([getattr(config, m.value).window_s for m in SIGNALS], default=0.0),
        phases=phases if named else None,
        context=calibration_context(config, encoder.info),
    )
    for line in detector.promises[""].lines():
        print(line)
    detector.save(args.out)
    print(f"calibration {detector.id} saved to {args.out}")
    if args.plot is not None:
        from mmfuse_ros.anomaly.plot import plot_fit

        plot_fit(detector, recordings, args.plot, hop_s=1.0 / args.rate_hz)
        print(f"timeline saved to {args.plot}")
    return 0


class _Encoder:
    """Encodes recordings with the node's windows and model, and remembers what it encoded."""

    def __init__(
        self, config: Config, topics: Mapping[Modality, str], rate_hz: float, *, cache: bool
    ) -> None:
        from mmfuse_ros.model.runtime import build_engine
        from mmfuse_ros.pipeline import Pipeline

        self._config, self._topics, self._rate_hz = config, topics, rate_hz
        self._cache = cache
        self._pipeline = Pipeline(build_engine(config))
        self.info = self._pipeline.engine.info

    def encode(self, path: Path) -> tuple[Features, list[str]]:
        """Return a recording's features, (n_windows, dim) by block, and each window's phase.

        A row of NaN is an absent stream; the phase is "" where none was recorded.
        """
        stored = self._stored(path)
        if self._cache and stored.is_file():
            with np.load(stored, allow_pickle=False) as archive:
                kept = {name.replace("|", ":"): archive[name] for name in archive.files}
            labels = kept.pop(_PHASES)
            return kept, [str(label) for label in labels]
        features, phases = self._encode(path)
        if self._cache:
            stored.parent.mkdir(parents=True, exist_ok=True)
            arrays: dict[str, Any] = {k.replace(":", "|"): v for k, v in features.items()}
            arrays[_PHASES] = np.array(phases)
            with atomic_write(stored) as draft, draft.open("wb") as file:
                np.savez(file, **arrays)
        return features, phases

    def _stored(self, path: Path) -> Path:
        """Return where a recording's features are kept: a name made of all they depend on."""
        files = sorted(p for p in path.iterdir() if p.is_file())
        identity = {
            "files": [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files],
            "config": {k: str(v) for k, v in self._config.to_flat().items()},
            "topics": {m.value: t for m, t in self._topics.items()},
            "info": {k: str(v) for k, v in self.info.items()},
            "rate_hz": self._rate_hz,
        }
        text = json.dumps(identity, sort_keys=True).encode()
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmfuse"
        return folder / f"{hashlib.sha256(text).hexdigest()[:32]}.npz"

    def _encode(self, path: Path) -> tuple[Features, list[str]]:
        from rich.progress import Progress

        from mmfuse_ros.ros.bag import Bag
        from mmfuse_ros.ros.offline import Replayed, windows

        rows: list[Mapping[str, Any]] = []
        phases: list[str] = []
        account = Replayed()
        with Bag(path) as bag, Progress() as bar:
            task = bar.add_task(path.name, total=1.0)
            for window in windows(
                bag,
                self._config,
                rate_hz=self._rate_hz,
                topics=self._topics,
                account=account,
                progress=lambda share: bar.update(task, completed=share),
            ):
                rows.append(self._pipeline.encode(window).features)
                phases.append(window.phase)
            bar.update(task, completed=1.0)
        for cause, count in account.rejected.most_common(5):
            print(f"{path.name}: {count} messages rejected: {cause}")
        # The fused vector is of all streams at once; the detector judges each by itself.
        names = sorted({name for row in rows for name in row} - {"embedding"})
        if not names:
            raise InputError(f"{path} must hold at least one complete window, it holds none")
        return {name: _stack([row.get(name) for row in rows]) for name in names}, phases


def _stack(rows: list[Any]) -> npt.NDArray[np.float32]:
    dim = next(len(row) for row in rows if row is not None)
    absent = np.full(dim, np.nan, np.float32)
    return np.stack([absent if row is None else row for row in rows]).astype(np.float32)
