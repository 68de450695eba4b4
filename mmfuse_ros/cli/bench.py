"""`mmfuse bench`: the model and the node, against a plain reference and the hardware's floor."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmfuse_ros.cli.benches.load import host, input_hash, make_images, make_signals
from mmfuse_ros.cli.benches.model import Case
from mmfuse_ros.config import PRESETS
from mmfuse_ros.errors import ConfigError, MmfuseError

_PARTS = ("model", "node")
_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_QUICK_ROUNDS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["balanced"])
    parser.add_argument(
        "--precisions", nargs="+", choices=_PRECISIONS, default=["auto"], help="of the encoders"
    )
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1], help="windows at once; 1 is the node's way"
    )
    parser.add_argument("--backend", choices=("auto", "torch", "openvino"), default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--weights", choices=("random", "pretrained"), default="random")
    parser.add_argument("--threads", type=int, default=0, help="of the model; 0 takes all cores")
    parser.add_argument("--rounds", type=int, default=30, help="windows measured of each case")
    parser.add_argument("--seconds", type=float, default=30.0, help="of the node under load")
    parser.add_argument("--minutes", type=float, help="the same in minutes: does memory grow?")
    parser.add_argument("--quick", action="store_true", help="the smallest preset, few rounds")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--compare", type=Path, help="an earlier result to compare with")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, write the JSON; 0 unless nothing could be measured."""
    from rich.console import Console

    from mmfuse_ros.cli.benches import table

    old = _read(args.compare) if args.compare else None
    if args.quick:
        args.presets, args.precisions, args.batches = ["lightweight"], ["fp32"], [1]
        args.rounds = _QUICK_ROUNDS
    if min(args.batches) < 1 or args.rounds < 1:
        raise ConfigError(
            f"--batches and --rounds must be at least 1, got {min(args.batches)}, {args.rounds}"
        )
    console = Console()
    before = os.getloadavg()[0]
    result: dict[str, Any] = {
        "host": host(),
        "input": input_hash(make_images(), make_signals()),
        "model": [],
        "node": None,
    }
    if "model" in args.parts:
        for case in _cases(args):
            console.print(f"model: {case.preset} {case.precision} x{case.batch}")
            result["model"].append(_in_process(case))
    if "node" in args.parts:
        result["node"] = _node(args, console)
    result["load_average"] = {"before": before, "after": os.getloadavg()[0]}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    table.show(result, console)
    if old is not None:
        table.compare(old, result, console)
    return 0


def _cases(args: argparse.Namespace) -> list[Case]:
    """Return the configurations; one window of each preset is paired with its reference."""
    return [
        Case(
            preset,
            precision,
            args.backend,
            args.device,
            batch,
            args.threads,
            args.rounds,
            paired=batch == 1,
            weights=args.weights,
        )
        for preset in args.presets
        for precision in args.precisions
        for batch in args.batches
    ]


def _in_process(case: Case) -> dict[str, Any]:
    """Measure one configuration in a process of its own.

    Raises:
        MmfuseError: it failed; its last words are in the message.
    """
    module = "mmfuse_ros.cli.benches.model"
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(asdict(case))],
        capture_output=True,
        text=True,
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        check=False,
    )
    if done.returncode:
        words = "\n".join(done.stderr.splitlines()[-5:])
        raise MmfuseError(f"the bench of {case} failed with {done.returncode}:\n{words}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _node(args: argparse.Namespace, console: Any) -> dict[str, Any]:
    from mmfuse_ros.cli.benches.node import NodeCase, measure_node

    seconds = args.minutes * 60.0 if args.minutes else args.seconds
    parameters = {
        "model.preset": args.presets[0],
        "model.weights": args.weights,
        "model.precision": args.precisions[0],
        "model.backend": args.backend,
        "model.device": args.device,
        "model.threads": args.threads,
    }
    console.print(f"node: {args.presets[0]} under full load for {seconds:g} s")
    return measure_node(NodeCase(seconds, min(10.0, seconds), parameters))


def _read(path: Path) -> dict[str, Any]:
    try:
        old: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(old["model"], list):
            raise TypeError("model is no list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--compare must be a file that --json wrote, got {path}: {error}"
        ) from error
    return old


if __name__ == "__main__":
    sys.exit("run `mmfuse bench`")
