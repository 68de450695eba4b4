"""`mmfuse COMMAND`: each command is a module of this package, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from mmfuse_ros import __version__
from mmfuse_ros.errors import MmfuseError

# Module attributes of a command: add_arguments(parser) and run(args) -> exit code.
COMMANDS = {
    "demo": "run the node on simulated sensors or a recording, with a live table",
    "fit": "fit a calibration on recordings of normal operation",
    "replay": "play a rosbag2 recording into DDS, its bytes untouched",
    "report": "make a report of a recording's embeddings",
    "evaluate": "measure the anomaly detector on labelled recordings",
    "bench": "measure speed and memory against a reference and the hardware's floor",
    "doctor": "check this machine, the weights, the transport and the topics",
    "parameters": "print the node's parameters as YAML or as a table",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (2: bad usage or a stated error)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="mmfuse", description=__doc__.split(":")[0])
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    named = next((word for word in argv if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:])
        if name == named:
            module = importlib.import_module(f"mmfuse_ros.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except MmfuseError as error:
        print(f"mmfuse {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
