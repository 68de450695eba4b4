"""`mmfuse report BAG --out report.html`: what the embeddings of a whole recording look like."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmfuse_ros.analysis.report import MAPS, write_recording_report
from mmfuse_ros.cli.configuration import (
    add_config_arguments,
    add_topic_arguments,
    load_config,
    load_topics,
)
from mmfuse_ros.errors import ConfigError, InputError

if TYPE_CHECKING:
    from mmfuse_ros.analysis.recording import Recording
    from mmfuse_ros.config import Config
    from mmfuse_ros.model.runtime import Engine
    from mmfuse_ros.ros.bag import Bag
    from mmfuse_ros.samples import Modality, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, metavar="BAG", help="rosbag2 folder")
    parser.add_argument(
        "--out", type=Path, required=True, help="file to write: a page for .html, else JSON"
    )
    parser.add_argument(
        "--rate-hz", type=float, default=2.0, help="windows per second; 0 takes every one"
    )
    parser.add_argument("--map", choices=MAPS, default="pca", help="method of the map")
    add_config_arguments(parser)
    add_topic_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Encode the recording with the node's windows and model, and write its report."""
    from mmfuse_ros.model.runtime import build_engine
    from mmfuse_ros.ros.bag import Bag
    from mmfuse_ros.ros.offline import adapt

    if args.rate_hz < 0.0:
        raise ConfigError(f"--rate-hz must be at least 0, got {args.rate_hz:g}")
    if not args.out.parent.is_dir():
        raise ConfigError(f"--out must be in a folder that exists, got {args.out}")
    topics = load_topics(args)
    with Bag(args.bag) as bag:
        config = adapt(load_config(args), bag, topics)
        engine = build_engine(config)
        recording, skipped = _gather(bag, config, engine, topics, args.rate_hz)
    if not len(recording):
        raise InputError(f"{args.bag} must hold at least one complete window, it holds none")
    report = write_recording_report(
        recording,
        args.out,
        title=args.bag.resolve().name,
        details=_details(engine, config, args.bag, skipped),
        method=args.map,
    )
    for name, share in report["contribution"].items():
        print(f"{name:>10} {100.0 * share:6.1f} %")
    print(f"report of {len(recording)} windows saved to {args.out}")
    return 0


def _gather(
    bag: Bag, config: Config, engine: Engine, topics: Mapping[Modality, str], rate_hz: float
) -> tuple[Recording, int]:
    """Return the recording's results, and how many windows could not be used."""
    from rich.progress import Progress

    from mmfuse_ros.analysis.recording import Recording

    recording, skipped = Recording(engine.head), 0
    with Progress() as bar:
        task = bar.add_task(bag.path.name, total=1.0)

        def progress(share: float) -> None:
            bar.update(task, completed=share)

        for result in _results(bag, config, engine, topics, rate_hz, progress):
            if result is None:
                skipped += 1
            else:
                recording.add(result)
        bar.update(task, completed=1.0)
    return recording, skipped


def _results(
    bag: Bag,
    config: Config,
    engine: Engine,
    topics: Mapping[Modality, str],
    rate_hz: float,
    progress: Callable[[float], None],
) -> Iterator[Result | None]:
    """Yield the node's result of each window, None for a window that it would pass over."""
    from mmfuse_ros.anomaly.monitor import make_monitor
    from mmfuse_ros.pipeline import Pipeline, calibration_context
    from mmfuse_ros.ros.offline import windows

    monitor = make_monitor(config.anomaly, calibration_context(config, engine.info))
    pipeline = Pipeline(engine, monitor)
    for window in windows(bag, config, rate_hz=rate_hz, topics=topics, progress=progress):
        try:
            yield pipeline.run(window)
        except InputError:
            yield None


def _details(engine: Engine, config: Config, path: Path, skipped: int) -> dict[str, str]:
    info = engine.info
    details = {
        "recording": str(path),
        "model": f"{info['preset']}, {info['fusion']}, {info['precision']} on {info['device']}",
        "weights": str(info["weights"])[:12],  # "random", or enough of the hash
        "calibration": config.anomaly.calibration or "none",
    }
    if skipped:
        details["windows passed over"] = f"{skipped}, nothing in them could be decoded"
    return details
