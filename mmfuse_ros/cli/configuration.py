"""Options that several commands share: a parameter file, single parameters, recorded topics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from mmfuse_ros.config import MODALITIES, Config
from mmfuse_ros.errors import ConfigError
from mmfuse_ros.files import read_bounded
from mmfuse_ros.samples import Modality

_QOS = "qos_overrides."
_MAX_BYTES = 1 << 18  # the package's own files have 8 KB; YAML is read at some 100 KB per second
_MAX_DEPTH = 32


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--params-file", type=Path, help="the node's YAML parameter file")
    parser.add_argument(
        "-p",
        "--param",
        action="append",
        default=[],
        metavar="NAME:=VALUE",
        help="one parameter, as with ros2 run; may be repeated",
    )


def add_topic_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topic",
        action="append",
        default=[],
        metavar="STREAM=TOPIC",
        help="recorded topic of a stream, such as camera_1=/front/image_raw; may be repeated",
    )


def load_config(args: argparse.Namespace) -> Config:
    """Return the configuration that the options ask for.

    Raises:
        ConfigError: an unreadable file, an unknown parameter or a value against its rule.
    """
    flat: dict[str, Any] = {}
    if args.params_file is not None:
        flat.update(read_parameter_file(args.params_file))
    for text in args.param:
        name, separator, value = text.partition(":=")
        if not separator:
            raise ConfigError(f"--param must be NAME:=VALUE, got {text!r}")
        flat[name] = _read_yaml(value, f"--param {name}")
    return Config.from_flat(flat)


def read_parameter_file(path: Path) -> dict[str, Any]:
    """Return a ROS parameter file's values for the node `mmfuse`, by dotted name.

    Raises:
        ConfigError: the file cannot be read, or is no ROS parameter file.
    """
    flat = _read_flat(path)
    return {k: v for k, v in flat.items() if not k.startswith((_QOS, "use_sim_time"))}


def read_qos_overrides(path: Path) -> dict[str, dict[str, Any]]:
    """Return the subscriptions' QoS policies that a ROS parameter file sets, by topic.

    Raises:
        ConfigError: as of read_parameter_file.
    """
    policies: dict[str, dict[str, Any]] = {}
    for name, value in _read_flat(path).items():
        topic, separator, policy = name.removeprefix(_QOS).partition(".subscription.")
        if name.startswith(_QOS) and separator:
            policies.setdefault(topic, {})[policy] = value
    return policies


def _read_flat(path: Path) -> dict[str, Any]:
    try:
        text = read_bounded(path, _MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a parameter file: {error}") from error
    tree = _read_yaml(text, str(path))
    flat: dict[str, Any] = {}
    for key, section in tree.items() if isinstance(tree, dict) else ():
        if key in ("/**", "mmfuse", "/mmfuse") and isinstance(section, dict):
            parameters = section.get("ros__parameters")
            flat.update(_flatten(parameters) if isinstance(parameters, dict) else {})
    if not flat:
        raise ConfigError(
            f"{path} must hold `/**: ros__parameters:` or `mmfuse: ros__parameters:`, it does "
            "not; `mmfuse parameters` prints an example"
        )
    return flat


def _read_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text without aliases, which ROS does not read either.

    With aliases a few lines can stand for a tree without end, or for a billion values.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:  # the time to read it grows with the square
                raise ConfigError(
                    f"{source} must be nested at most {_MAX_DEPTH} deep, got more in line "
                    f"{event.start_mark.line + 1}; correct it"
                )
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"{source} must be without aliases, got *{event.anchor} in line "
                    f"{event.start_mark.line + 1}; write the value out"
                )
        return yaml.safe_load(text)
    except ConfigError:
        raise
    except Exception as error:  # boundary: an odd tag, number or depth raises anything
        raise ConfigError(f"{source} cannot be read as YAML parameters: {error}") from error


def load_topics(args: argparse.Namespace) -> dict[Modality, str]:
    """Return the recorded topic of each stream that the options name.

    Raises:
        ConfigError: an option is not STREAM=TOPIC.
    """
    topics = {}
    for text in args.topic:
        stream, separator, topic = text.partition("=")
        if not separator or stream not in MODALITIES or not topic.startswith("/"):
            raise ConfigError(
                f"--topic must be STREAM=/TOPIC with a stream of {', '.join(MODALITIES)}, "
                f"got {text!r}"
            )
        topics[Modality(stream)] = topic
    return topics


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
