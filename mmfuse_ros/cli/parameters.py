"""`mmfuse parameters`: every parameter as the YAML file that the node reads, or as a table."""

from __future__ import annotations

import argparse
from typing import Any

from mmfuse_ros.config import PRESETS, Config, Parameter, parameters
from mmfuse_ros.model.presets import get_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--preset", choices=PRESETS, default="balanced", help="model preset")


def run(args: argparse.Namespace) -> int:
    print(markdown() if args.markdown else yaml_text(preset_config(args.preset)))
    return 0


def preset_config(preset: str) -> Config:
    """Return the defaults with a preset's encoders and fusion."""
    return Config.from_flat(get_config(preset).to_flat())


def yaml_text(config: Config) -> str:
    """Return a ROS parameter file with every parameter, its help beside it."""
    lines = ["# Parameters of the node; `mmfuse parameters` prints this file.", "/**:"]
    lines.append("  ros__parameters:")
    section = ""
    for p in parameters():
        prefix, _, leaf = p.name.rpartition(".")
        if prefix != section:
            lines.append(f"    {prefix}:")
            section = prefix
        indent = "      " if prefix else "    "
        lines.append(f"{indent}# {p.help} {_bounds(p)}".rstrip())
        lines.append(f"{indent}{leaf}: {_yaml_value(config.get(p.name))}")
    return "\n".join(lines)


def markdown() -> str:
    """Return the table of parameters for the README."""
    lines = ["| parameter | default | meaning |", "|---|---|---|"]
    for p in parameters():
        live = " Tunable at run time." if p.live else ""
        text = f"{p.help} {_bounds(p)}".strip().replace("|", "\\|")
        lines.append(f"| `{p.name}` | `{_yaml_value(p.default)}` | {text}{live} |")
    return "\n".join(lines)


def _bounds(p: Parameter) -> str:
    if p.choices:
        return f"({', '.join(p.choices)})"
    if p.low is None:
        return ""
    return f"({p.low:g} to {p.high:g})"


def _yaml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{v}"' for v in value or ("",)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)
