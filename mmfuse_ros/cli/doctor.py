"""`mmfuse doctor`: is this machine fit for the node, and are its topics what they should be?"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from functools import partial

from mmfuse_ros.cli.checks import loopback, machine, topics, transport, weights
from mmfuse_ros.cli.checks.finding import (
    FAIL,
    OK,
    Check,
    Finding,
    as_json,
    as_text,
    examine,
    exit_code,
)
from mmfuse_ros.cli.configuration import (
    add_config_arguments,
    load_config,
    load_topics,
    read_qos_overrides,
)
from mmfuse_ros.config import Config
from mmfuse_ros.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--topic",
        action="append",
        default=[],
        metavar="STREAM=TOPIC",
        help="remapped topic of a stream, such as camera_1=/front/image_raw; may be repeated",
    )
    parser.add_argument("--namespace", default="", help="the node's namespace")
    parser.add_argument(
        "--wait",
        type=float,
        default=5.0,
        metavar="S",
        help="longest look at the live topics; 0 leaves them out",
    )
    parser.add_argument(
        "--no-probe", action="store_true", help="send no images between two processes"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Run every check, print what was found; 1 where something failed."""
    names = load_topics(args)
    findings: list[Finding] = []
    overrides = {}
    try:
        config = load_config(args)
        if args.params_file is not None:
            overrides = read_qos_overrides(args.params_file)
        findings.append(Finding("parameters", OK, str(args.params_file or "defaults")))
    except ConfigError as error:
        # The rest is checked as for the defaults: one wrong value must not hide the others.
        config = Config()
        remedy = "correct it; what follows is checked for the defaults"
        findings.append(Finding("parameters", FAIL, str(error), remedy))
    env = dict(os.environ)
    checks: dict[str, Check] = {
        "python": machine.python,
        "packages": machine.packages,
        "torch": partial(machine.torch, config),
        "weights": partial(weights.encoders, config),
        "calibration": partial(weights.calibration, config),
        "disk": partial(machine.disk, config),
        "clock": machine.clock,
        "ros": _ros,
        "transport": partial(transport.rmw, env),
        "shared memory": transport.shared_memory,
        "discovery": partial(transport.discovery, env),
        "security": partial(transport.security, env),
    }
    if not args.no_probe:
        checks["loop-back"] = partial(loopback.loopback, env)
    if args.wait > 0.0:
        checks["topics"] = partial(
            topics.topics,
            config,
            wait_s=args.wait,
            namespace=args.namespace,
            names=names,
            qos_overrides=overrides,
        )
    for name, check in checks.items():
        if name in ("loop-back", "topics") and not args.json:
            print(f"... {name}", file=sys.stderr, flush=True)
        findings += examine(name, check)
    print(json.dumps(as_json(findings), indent=2) if args.json else as_text(findings))
    return exit_code(findings)


def _ros() -> Iterator[Finding]:
    """Check that rclpy imports: everything below it needs it."""
    try:
        import rclpy
    except ImportError as error:
        yield Finding(
            "ros",
            FAIL,
            f"rclpy does not import in {sys.executable}: {error}",
            "source /opt/ros/$ROS_DISTRO/setup.bash and use that distro's Python, or "
            "pip install 'mmfuse_ros[jazzy]'",
        )
        return
    yield Finding("ros", OK, f"rclpy from {os.path.dirname(rclpy.__file__)}")
