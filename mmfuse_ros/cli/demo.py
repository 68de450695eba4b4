"""`mmfuse demo`: the node and its sensors as two processes over DDS, watched live."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfuse_ros.cli.processes import Processes, ros_environment
from mmfuse_ros.config import PRESETS
from mmfuse_ros.samples import Level, Modality

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mmfuse_ros.ros.watch import Watch

_START_TIMEOUT_S = 120.0
_FAULT = Modality.AUDIO
_FAULT_S = 6.0
_AFTER_S = 3.0
_ALPHA = 0.05
_BASELINE_WINDOWS = 20
_LEVEL_STYLE = {Level.OK: "green", Level.WARN: "yellow", Level.ERROR: "red", Level.STALE: "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bag", type=Path, help="play this recording, not simulated sensors")
    parser.add_argument("--duration", type=float, default=46.0, help="seconds of embeddings")
    parser.add_argument("--json", type=Path, help="write the summary to this file")
    parser.add_argument("--preset", choices=PRESETS, default="balanced", help="model preset")
    parser.add_argument(
        "--weights",
        choices=("auto", "pretrained", "random"),
        default="auto",
        help="auto: pretrained where on disk or to be downloaded, else random under a banner",
    )


@dataclass
class Summary:
    """What the demo measured; times in seconds."""

    preset: str
    weights: str
    embeddings: int = 0
    dimension: int = 0
    embeddings_hz: float = 0.0
    first_embedding_s: float = float("nan")
    age_p50_s: float = float("nan")
    age_p95_s: float = float("nan")
    skew_p50_s: float = float("nan")
    input_hz: dict[str, float] = field(default_factory=dict)
    lost_by_transport: dict[str, str] = field(default_factory=dict)
    baseline: str = ""
    fault: str = ""
    fault_at_s: float = float("nan")
    detection_delay_s: float = float("nan")
    top_modality: str = ""
    calibrated_at_s: float = float("nan")
    false_alarms: int = 0


def run(args: argparse.Namespace) -> int:
    """Run the demo; return 0 when embeddings arrived, else 1."""
    from rich.console import Console

    console = Console()
    weights = _resolve_weights(args.weights, args.preset, console)
    env = ros_environment()
    # A domain of its own, so that a demo never meets a robot or another demo.
    env.setdefault("ROS_DOMAIN_ID", str(random.SystemRandom().randint(2, 99)))
    os.environ.update(env)
    summary = Summary(args.preset, weights)
    with Processes(env) as processes, _watch(use_sim_time=args.bag is not None) as watch:
        processes.start("node", "mmfuse_ros.ros.node", _node_arguments(args, weights))
        if args.bag is None:
            processes.start("sensors", "mmfuse_ros.ros.sensor_sim", [])
        else:
            bag = ["replay", str(args.bag), "--clock", "--loop"]
            processes.start("sensors", "mmfuse_ros.cli.main", bag)
        _Demo(args, watch, processes, summary, console).play()
    _print_summary(console, summary)
    if args.json is not None:
        args.json.write_text(json.dumps(asdict(summary), indent=2) + "\n")
    if not summary.embeddings:
        console.print("[red]no embedding arrived[/]")
    return 0 if summary.embeddings else 1


def _node_arguments(args: argparse.Namespace, weights: str) -> list[str]:
    parameters = {
        "model.preset": args.preset,
        "model.weights": weights,
        # OpenVINO is faster, but compiles for most of a minute when it meets a model first.
        "model.backend": "torch",
        "anomaly.alpha": _ALPHA,
        "anomaly.baseline_windows": _BASELINE_WINDOWS,
        "use_sim_time": args.bag is not None,
    }
    if args.bag is not None:
        from mmfuse_ros.ros.bag import Bag
        from mmfuse_ros.ros.topics import TOPICS

        with Bag(args.bag) as bag:
            for modality in (Modality.AUDIO, Modality.PRESSURE, Modality.EMG):
                kind = bag.topics.get("/" + TOPICS[modality])
                if kind:
                    parameters[f"{modality}.type"] = kind
    given = [
        word
        for name, value in parameters.items()
        for word in ("-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}")
    ]
    return ["--ros-args", *given]


def _resolve_weights(asked: str, preset: str, console: Any) -> str:
    """Return pretrained or random; say what random means."""
    from mmfuse_ros.model.weights import pretrained_available

    if asked == "auto":
        found = pretrained_available(preset, allow_download=True)
        asked = "pretrained" if found else "random"
    if asked == "random":
        console.rule("[yellow]random weights")
        console.print(
            "The pretrained encoders are not on this machine and cannot be downloaded (or\n"
            "random ones were asked for): the full-size model runs untrained, seeded.\n"
            "Speed and data flow are real; similarity of embeddings is that of random features.\n"
            "Alarms rest on features measured at the sensors as well, and still mean something."
        )
        console.rule()
    return asked


@contextmanager
def _watch(use_sim_time: bool) -> Iterator[Watch]:
    import rclpy
    from rclpy.parameter import Parameter

    from mmfuse_ros.ros.watch import Watch

    rclpy.init()
    sim_time = Parameter("use_sim_time", value=use_sim_time)
    watch = Watch(parameter_overrides=[sim_time])
    try:
        yield watch
    finally:
        watch.close()
        rclpy.try_shutdown()


class _Demo:
    """One run: wait for embeddings, gather a baseline, break a sensor, sum up."""

    def __init__(
        self,
        args: argparse.Namespace,
        watch: Watch,
        processes: Processes,
        summary: Summary,
        console: Any,
    ) -> None:
        self._args, self._watch, self._processes = args, watch, processes
        self._summary, self._console = summary, console
        self._headline = ""
        self._broken = False
        self._alarm = False

    def play(self) -> None:
        from rich.live import Live

        begun = time.monotonic()
        with self._console.status("loading the model and waiting for the first embedding"):
            while not self._watch.embeddings:
                self._watch.spin_for(0.2)
                if self._failed(begun):
                    return
        self._summary.first_embedding_s = time.monotonic() - begun
        with Live(console=self._console, refresh_per_second=4) as live:
            self._run_phases(live, time.monotonic())
        self._collect()

    def _failed(self, begun: float) -> bool:
        dead = self._processes.died()
        if not dead and time.monotonic() - begun < _START_TIMEOUT_S:
            return False
        who = dead or "node"
        self._console.print(f"[red]{who} gave up or took too long; its last words:[/]")
        self._console.print(self._processes.log(who), markup=False)
        return True

    def _run_phases(self, live: Any, begun: float) -> None:
        """Gather a baseline, break a simulated sensor, mend it, watch until the time is up."""
        duration_s = self._args.duration
        fault_at = duration_s - _FAULT_S - _AFTER_S if self._args.bag is None else math.inf
        self._headline = "gathering a baseline of normal operation"
        self._summary.baseline = self._watch.call("set_baseline")
        while (elapsed := time.monotonic() - begun) < duration_s and not self._processes.died():
            self._watch.spin_for(0.2)
            if elapsed >= fault_at:
                self._break(begun)
                mend_at, fault_at = elapsed + _FAULT_S, math.inf
            if self._broken and elapsed >= mend_at:
                self._mend()
            self._observe(begun)
            live.update(self._table())

    def _break(self, begun: float) -> None:
        self._watch.set_text("sensor_sim", "fault", _FAULT.value)
        self._broken = True
        self._summary.fault = _FAULT.value
        self._summary.fault_at_s = time.monotonic() - begun
        self._headline = f"fault injected: {_FAULT} (a knocking bearing)"

    def _mend(self) -> None:
        self._watch.set_text("sensor_sim", "fault", "")
        self._broken = False
        self._headline = "fault mended"

    def _observe(self, begun: float) -> None:
        """Follow the alarm: a false one before the fault, the first one after it."""
        level, values, _ = self._watch.anomaly.get("anomaly", (Level.STALE, {}, ""))
        if level != Level.STALE and self._headline.startswith("gathering"):
            self._headline = "watching; the baseline is " + values.get("calibration_id", "")
            self._summary.calibrated_at_s = time.monotonic() - begun
        alarm = level == Level.ERROR
        summary = self._summary
        if alarm and not summary.fault:
            summary.false_alarms += not self._alarm
        elif alarm and self._broken and math.isnan(summary.detection_delay_s):
            summary.detection_delay_s = time.monotonic() - begun - summary.fault_at_s
            summary.top_modality = values.get("top_modality", "")
        self._alarm = alarm

    def _collect(self) -> None:
        watch, summary = self._watch, self._summary
        summary.embeddings = len(watch.embeddings)
        summary.dimension = len(watch.embeddings[-1][1].vector)
        span = watch.embeddings[-1][0] - watch.embeddings[0][0]
        summary.embeddings_hz = (summary.embeddings - 1) / span if span else 0.0
        summary.age_p50_s, summary.age_p95_s = watch.age_s(0.5), watch.age_s(0.95)
        sync = watch.diagnostics.get("sync", (0, {}, ""))[1]
        summary.skew_p50_s = float(sync.get("skew_p50_s", "nan"))
        for modality in Modality:
            values = watch.diagnostics.get(f"input {modality}", (0, {}, ""))[1]
            summary.input_hz[modality.value] = float(values.get("rate_hz", "nan"))
            summary.lost_by_transport[modality.value] = values.get("lost_by_transport", "unknown")

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        watch = self._watch
        table = Table(title=f"mmfuse: {watch.embedding_rate_hz():.1f} embeddings/s", expand=False)
        for column in ("stream", "rate", "lost", "state", "anomaly", "p", "score"):
            table.add_column(column)
        for modality in Modality:
            level, values, text = watch.diagnostics.get(f"input {modality}", (3, {}, "waiting"))
            a_level, a_values, _ = watch.anomaly.get(f"anomaly {modality}", (3, {}, ""))
            table.add_row(
                modality.value,
                f"{float(values.get('rate_hz', 'nan')):.0f} Hz",
                values.get("lost_by_transport", ""),
                _styled(level, text),
                _styled(a_level, Level(a_level).name),
                a_values.get("p_value", ""),
                a_values.get("score", ""),
            )
        level, values, text = watch.anomaly.get("anomaly", (3, {}, "no verdict yet"))
        table.add_row("all", "", "", "", _styled(level, text), values.get("p_value", ""), "")
        sync = watch.diagnostics.get("sync", (3, {}, ""))[1]
        line = (
            f"age at arrival p50 {watch.age_s(0.5) * 1e3:.0f} ms, p95 "
            f"{watch.age_s(0.95) * 1e3:.0f} ms; sync skew "
            f"{float(sync.get('skew_p50_s', 'nan')) * 1e3:.0f} ms"
        )
        return Group(table, line, f"[bold]{self._headline}[/]")


def _styled(level: int, text: str) -> str:
    return f"[{_LEVEL_STYLE[Level(level)]}]{text}[/]"


def _print_summary(console: Any, summary: Summary) -> None:
    from rich.table import Table

    table = Table(title="summary", show_header=False)
    for name, value in asdict(summary).items():
        shown = f"{value:.3g}" if isinstance(value, float) else value
        if isinstance(value, dict):
            shown = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            )
        table.add_row(name, str(shown))
    console.print(table)


if __name__ == "__main__":
    sys.exit("run `mmfuse demo`")
