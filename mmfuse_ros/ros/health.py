"""What the state of an input, of synchronisation and of the worker means, for a person.

Each function returns a level, one line that names the cause and the remedy, and the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from mmfuse_ros.config import Config
from mmfuse_ros.ros.inputs import Input
from mmfuse_ros.samples import Level, Modality
from mmfuse_ros.stream.ledger import StreamStatus
from mmfuse_ros.worker import Worker

Row = tuple[Level, str, dict[str, Any]]

# A rejected or dropped message is shown for this long, two publications at least.
_RECENT_S = 2.0
_RATE_WARN = 0.2
_HELD_WARN = 0.5
_CLIP_WARN = 0.01

_DROP_REMEDY = {
    "zero_stamp": "the driver does not stamp; set {m}.stamps to arrival",
    "future_stamp": "stamps run ahead of the node's clock; synchronise the clocks, set "
    "use_sim_time for a recording, or set {m}.stamps to arrival",
    "stale": "stamps are far behind the other streams'; synchronise the clocks, set use_sim_time "
    "for a recording, or set {m}.stamps to arrival",
    "ahead": "stamps are far ahead of the other streams'; synchronise the clocks or set "
    "{m}.stamps to arrival",
    "out_of_order": "stamps go backwards; two publishers on one topic?",
    "duplicate": "stamps repeat; two publishers on one topic?",
    "format_change": "the rate or the channels changed midway",
}


class DropWatch:
    """Notices which drops grow between two looks at a stream's ledger."""

    def __init__(self) -> None:
        self._counts: dict[Modality, dict[str, int]] = {}
        self._recent: dict[Modality, dict[str, float]] = {}

    def recent(self, modality: Modality, dropped: Mapping[str, int]) -> list[str]:
        """Return the reasons for which samples were dropped in the last seconds."""
        now = time.monotonic()
        before = self._counts.get(modality, {})
        recent = self._recent.setdefault(modality, {})
        for reason, count in dropped.items():
            if reason in _DROP_REMEDY and count > before.get(reason, 0):
                recent[reason] = now
        self._counts[modality] = dict(dropped)
        return [reason for reason, at in recent.items() if now - at < _RECENT_S]


def input_row(
    source: Input, stream: StreamStatus, config: Config, undecodable: str, dropping: list[str]
) -> Row:
    """Judge one input: what it receives, rejects and drops, and whether it is silent."""
    now = time.monotonic()
    silent_s = float("inf") if source.last_arrival_s is None else now - source.last_arrival_s
    values: dict[str, Any] = {
        "topic": source.topic,
        "type": source.type_name,
        "messages": source.received,
        "accepted": source.accepted,
        "lost_by_transport": "unknown" if source.lost is None else source.lost,
        "rejected": sum(source.rejected.values()),
        **{f"rejected_{reason}": n for reason, n in source.rejected.items()},
        "rate_hz": stream.rate_hz,
        "arrival_hz": stream.arrival_hz,
        "age_s": stream.age_s,
        "silent_s": silent_s,
        "received": stream.received,
        "used": stream.used,
        "pending": stream.pending,
        **{f"dropped_{reason}": n for reason, n in stream.dropped.items()},
        **_content(source, stream),
        "last_error": source.last_error,
    }
    level, text = _judge_input(source, stream, config, silent_s, undecodable, dropping)
    return level, text, values


def _content(source: Input, stream: StreamStatus) -> dict[str, Any]:
    if source.modality.is_camera:
        return {"frozen_s": source.picture.frozen_s}
    content = {"held_share": stream.held_share}
    if source.modality is Modality.AUDIO:
        content["clipped_share"] = source.clipping.share
    return content


def _judge_input(
    source: Input,
    stream: StreamStatus,
    config: Config,
    silent_s: float,
    undecodable: str,
    dropping: list[str],
) -> tuple[Level, str]:
    """Return the first thing that is wrong, the gravest first."""
    modality = source.modality
    mismatch = source.mismatch()
    if mismatch:
        return Level.ERROR, mismatch
    if undecodable:
        return Level.ERROR, f"cannot be decoded: {undecodable}"
    if source.last_arrival_s is None:
        return Level.STALE, f"no message yet on {source.topic}"
    if silent_s > config.watchdog.silence_s:
        return Level.ERROR, f"silent for {silent_s:.1f} s"
    if time.monotonic() - source.last_error_s < _RECENT_S:
        nothing = stream.received == 0
        return (Level.ERROR if nothing else Level.WARN), source.last_error
    if dropping:
        reasons = "; ".join(f"{r}: {_DROP_REMEDY[r].format(m=modality)}" for r in dropping)
        return Level.WARN, f"samples are dropped ({reasons})"
    freeze_s = config.watchdog.freeze_s
    if freeze_s and source.picture.frozen_s > freeze_s:
        text = f"the picture has not changed for {source.picture.frozen_s:.1f} s while frames"
        return Level.WARN, f"{text} arrive; restart the camera's driver"
    if source.clipping.share > _CLIP_WARN:
        share = f"{source.clipping.share:.0%} of the samples are at full scale"
        return Level.WARN, f"{share}: the sound is clipped; lower the microphone's gain"
    nominal = 0.0 if modality.is_camera else getattr(config, modality.value).rate_hz
    if nominal and stream.rate_hz and abs(stream.rate_hz / nominal - 1.0) > _RATE_WARN:
        rate = f"{stream.rate_hz:.0f} samples/s, expected {nominal:.0f}"
        return Level.WARN, f"{rate}; set {modality}.rate_hz"
    if stream.held_share > _HELD_WARN:
        return Level.WARN, f"{stream.held_share:.0%} of the samples repeat the one before"
    return Level.OK, "receiving"


def sync_row(latency: Mapping[str, float], counters: Mapping[str, int], config: Config) -> Row:
    """Judge the rate and the age of what is published."""
    values = {**latency, **counters}
    age_s = latency.get("age_recent_s", 0.0)
    rate_hz = latency["embeddings_hz"]
    if age_s > config.watchdog.latency_s:
        text = f"embeddings are {age_s:.2f} s old at publication, watchdog.latency_s is "
        return Level.WARN, text + f"{config.watchdog.latency_s:g}", values
    if not rate_hz:
        return Level.STALE, "no embedding in the last 5 s", values
    return Level.OK, f"{rate_hz:.1f} embeddings/s", values


def worker_row(worker: Worker, config: Config) -> Row:
    """Judge the thread that runs the model."""
    values = {
        **worker.counters(),
        "busy_s": worker.busy_s,
    }
    if worker.halted:
        return Level.ERROR, f"halted: {worker.failure}; call ~/reset", values
    if worker.failure:
        return Level.ERROR, worker.failure, values
    if worker.busy_s > config.watchdog.stall_s:
        text = f"a window has taken {worker.busy_s:.1f} s, watchdog.stall_s is "
        return Level.ERROR, text + f"{config.watchdog.stall_s:g}", values
    if time.monotonic() - worker.input_error_s < _RECENT_S:
        return Level.WARN, f"windows are passed over: {worker.input_error}", values
    if worker.refused:
        return Level.WARN, f"a request failed: {worker.refused}; call ~/reset", values
    return Level.OK, "working", values
