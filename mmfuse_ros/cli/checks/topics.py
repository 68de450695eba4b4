"""The configured topics against the publishers that are there now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfuse_ros.cli.checks.finding import FAIL, OK, WARN, Finding
from mmfuse_ros.config import Config
from mmfuse_ros.samples import Modality

if TYPE_CHECKING:
    from mmfuse_ros.ros.survey import Stream

_RATE_OFF = 0.2
_LEAST_S = 1.0
# A stamp is older than its arrival by exposure, transfer and driver, hardly by more than this.
_OLD_S = 0.5
_EARLY_S = 0.005


def topics(
    config: Config,
    *,
    wait_s: float,
    namespace: str,
    names: Mapping[Modality, str],
    qos_overrides: Mapping[str, Mapping[str, Any]],
) -> Iterator[Finding]:
    """Watch the live topics for a while and judge each."""
    from mmfuse_ros.ros.survey import survey

    seen = survey(
        config, wait_s=wait_s, namespace=namespace, topics=names, qos_overrides=qos_overrides
    )
    if len(set(seen.nodes)) < len(seen.nodes):
        found = f"two nodes have the same name: {', '.join(seen.nodes)}"
        yield Finding("nodes", WARN, found, "start one of them in a namespace")
    for modality, stream in seen.streams.items():
        name = f"topic {modality}"
        yield from _publishers(name, modality, stream, config, wait_s)
        if stream.messages:
            yield from _content(name, modality, stream, config)
            yield from _stamps(name, modality, stream, config, seen.sim_time)


def _publishers(
    name: str, modality: Modality, stream: Stream, config: Config, wait_s: float
) -> Iterator[Finding]:
    if stream.config_error:
        yield Finding(name, FAIL, stream.config_error, f"correct {modality}.type")
        return
    if not stream.publishers:
        found = f"{stream.topic} ({stream.expected}) has no publisher within {wait_s:g} s"
        remedy = f"start the driver, remap the topic, or set {modality}.enabled to false"
        if stream.similar:
            found += f"; of this type there are {', '.join(stream.similar)}"
        yield Finding(name, WARN, found, remedy)
        return
    wrong = [(node, kind) for node, kind in stream.publishers if kind != stream.expected]
    for node, kind in wrong:
        yield Finding(
            name,
            FAIL,
            f"{stream.topic} must carry {stream.expected}, {node} publishes {kind}",
            f"set {modality}.type"
            + ("" if modality.is_camera else f" to {kind} (and {modality}.field where needed)"),
        )
    for text in stream.refused:
        yield Finding(
            name, FAIL, text, f"set qos_overrides.{stream.topic}.subscription to what is offered"
        )
    for text in stream.doubtful if not stream.messages else ():
        yield Finding(name, WARN, text, "the middleware does not say whether they fit")
    if len(wrong) == len(stream.publishers) or stream.refused:
        return
    nodes = ", ".join(sorted({node for node, _ in stream.publishers}))
    if not stream.messages:
        found = f"{stream.topic}: {nodes} publishes, nothing arrived within {wait_s:g} s"
        remedy = "is the sensor running? Then see transport and loop-back"
        yield Finding(name, WARN, found, remedy)
        return
    rate = ""
    if stream.listened_s >= _LEAST_S:
        rate = f", {(stream.messages - 1) / stream.listened_s:.1f} messages/s"
    yield Finding(name, OK, f"{stream.topic} ({stream.expected}) from {nodes}{rate}")
    if len(stream.publishers) > 1:
        found = f"{stream.topic} has {len(stream.publishers)} publishers; their data is mixed"
        yield Finding(name, WARN, found, "remap all but one")


def _content(name: str, modality: Modality, stream: Stream, config: Config) -> Iterator[Finding]:
    if stream.content_error:
        yield Finding(name, FAIL, stream.content_error, f"see the parameters {modality}.*")
        return
    if modality.is_camera or stream.listened_s < _LEAST_S or stream.messages < 3:
        return
    rate_hz = stream.samples * (1.0 - 1.0 / stream.messages) / stream.listened_s
    nominal_hz = getattr(config, modality.value).rate_hz
    if abs(rate_hz - nominal_hz) > _RATE_OFF * nominal_hz:
        yield Finding(
            name,
            WARN,
            f"{rate_hz:.0f} samples/s, {modality}.rate_hz is {nominal_hz:g}",
            f"set {modality}.rate_hz, or look for loss",
        )


def _stamps(
    name: str, modality: Modality, stream: Stream, config: Config, sim_time: bool
) -> Iterator[Finding]:
    section = getattr(config, modality.value)
    if section.stamps == "arrival" or not (stream.ages_s or stream.unstamped):
        return
    if stream.unstamped:
        yield Finding(
            name,
            FAIL if not stream.ages_s else WARN,
            f"{stream.unstamped} of {stream.messages} messages have a stamp of zero",
            f"mend the driver, or set {modality}.stamps to arrival",
        )
    if not stream.ages_s:
        return
    if sim_time:
        found = "stamps are not compared with the clock: somebody publishes /clock"
        yield Finding(name, WARN, found, "start the node with use_sim_time:=true")
        return
    least, middle = float(np.min(stream.ages_s)), float(np.median(stream.ages_s))
    found = f"stamps are {middle * 1e3:.1f} ms old on arrival (least {least * 1e3:.1f} ms)"
    remedy = f"synchronise the clocks (chrony, PTP), set {modality}.offset_s, or {modality}.stamps"
    if least < -_EARLY_S:
        far = config.sync.max_future_s
        level = FAIL if -least > far else WARN
        yield Finding(name, level, f"{found}: that clock is ahead of this one", remedy)
    elif least > _OLD_S:
        yield Finding(name, WARN, f"{found}: a clock behind this one, or a slow driver", remedy)
    else:
        yield Finding(name, OK, found)
