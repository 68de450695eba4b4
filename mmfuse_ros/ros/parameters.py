"""ROS parameters from the declarations in `config`, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from mmfuse_ros import config as declarations
from mmfuse_ros.config import Config
from mmfuse_ros.errors import ConfigError

_LIVE = {p.name for p in declarations.parameters() if p.live}
_KNOWN = {p.name for p in declarations.parameters()}


def declare(node: Node) -> None:
    """Declare every parameter on the node.

    Types are checked by `Config`, not by rclpy: it accepts `3` for a float, as people write it
    in YAML, and its errors name the remedy.
    """
    for p in declarations.parameters():
        descriptor = ParameterDescriptor(
            description=p.help,
            additional_constraints=_constraints(p),
            dynamic_typing=True,
        )
        # An empty list has no type in ROS parameters; a list of one empty string stands for it.
        default = (list(p.default) or [""]) if isinstance(p.default, tuple) else p.default
        node.declare_parameter(p.name, default, descriptor)


def read(node: Node) -> Config:
    """Return the node's parameters as a Config.

    Raises:
        ConfigError: a value breaks a rule, or a parameter that was given does not exist.
    """
    # rclpy drops overrides that nobody declares without a word; they are kept here only.
    given = getattr(node, "_parameter_overrides", {})
    unknown = {
        name: override.value
        for name, override in given.items()
        if not (name.startswith("qos_overrides.") or node.has_parameter(name))
    }
    return Config.from_flat({**values(node), **unknown})


def values(node: Node) -> dict[str, Any]:
    """Return the node's parameters by name, as they were given."""
    return {name: node.get_parameter(name).value for name in _KNOWN}


def known(name: str) -> bool:
    """Return whether a parameter is one of `config`."""
    return name in _KNOWN


def changed(
    current: Mapping[str, Any], changes: Sequence[RosParameter], configured: bool
) -> tuple[Config, SetParametersResult]:
    """Return the configuration after a change, or the default one and why it is refused.

    Before the node is configured, a change that leaves it as wrong as it was is accepted: wrong
    parameters are put right one at a time.
    """
    flat = dict(current)
    for change in changes:
        if change.name not in _KNOWN:
            continue
        if configured and change.name not in _LIVE and change.value != _plain(flat[change.name]):
            return Config(), SetParametersResult(
                successful=False,
                reason=f"{change.name} must be set before the node is configured, got "
                f"{change.value!r} now; deactivate and clean up first, or restart the node",
            )
        flat[change.name] = change.value
    try:
        return Config.from_flat(flat), SetParametersResult(successful=True)
    except ConfigError as error:
        accepted = not configured and not _valid(current)
        return Config(), SetParametersResult(successful=accepted, reason=str(error))


def _valid(flat: Mapping[str, Any]) -> bool:
    try:
        Config.from_flat(flat)
    except ConfigError:
        return False
    return True


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _constraints(p: declarations.Parameter) -> str:
    parts = []
    if p.choices:
        parts.append("one of: " + ", ".join(p.choices))
    if p.low is not None:
        parts.append(f"at least {p.low:g}")
    if p.high is not None:
        parts.append(f"at most {p.high:g}")
    if not p.live:
        parts.append("set before configure")
    return "; ".join(parts)
