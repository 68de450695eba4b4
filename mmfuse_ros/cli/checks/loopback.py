"""The loop-back probe: large best-effort images between two real processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

from mmfuse_ros.cli.checks.finding import FAIL, OK, WARN, Finding
from mmfuse_ros.cli.processes import Processes

COUNT = 60
_LOST_FAIL = 0.05


def loopback(env: Mapping[str, str]) -> Iterator[Finding]:
    """Send 2 s of 720p at 30 Hz with this environment; take at most about 25 s."""
    from mmfuse_ros.ros.probe import HEIGHT, MATCH_S, RATE_HZ, WIDTH

    # It measures the transport: it has no enclave, and needs none.
    env = {**env, "ROS_SECURITY_ENABLE": "false"}
    topic = f"/mmfuse_doctor_{os.getpid()}/image"
    with Processes(env) as processes:
        processes.start("receive", "mmfuse_ros.ros.probe", ["receive", topic, str(COUNT)])
        processes.start("send", "mmfuse_ros.ros.probe", ["send", topic, str(COUNT)])
        end = time.monotonic() + 10.0 + MATCH_S + COUNT / RATE_HZ
        counts: dict[str, int] = {}
        while len(counts) < 2 and time.monotonic() < end and not processes.died():
            time.sleep(0.1)
            counts = {**_counts(processes.log("send")), **_counts(processes.log("receive"))}
        dead = processes.died()
        if dead:
            remedy = "see what it says: the node will meet the same"
            yield Finding("loop-back", FAIL, f"{dead}: {processes.log(dead, 3)}", remedy)
            return
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    size = f"{COUNT} images of {WIDTH} x {HEIGHT} at {RATE_HZ:g} Hz"
    yield judge(counts.get("sent", 0), counts.get("received", 0), size, load)


def judge(sent: int, received: int, size: str, load: float) -> Finding:
    """Return what the counts mean.

    Args:
        size: what was sent, in words.
        load: processes that want a core, for each core; above 1 both halves had to wait.
    """
    if not sent:
        found = "two processes on this machine did not find each other"
        return Finding("loop-back", FAIL, found, "check discovery, and /dev/shm or the firewall")
    found = f"{received} of {size} arrived"
    if received >= sent:
        return Finding("loop-back", OK, found)
    remedy = "set the transport as above (docs/transport.md)"
    if load > 1.0:
        found += f"; the machine was busy, with {load:.1f} processes for each core"
        return Finding("loop-back", WARN, found, f"run it again on an idle machine, or {remedy}")
    return Finding(
        "loop-back", FAIL if sent - received > _LOST_FAIL * sent else WARN, found, remedy
    )


def _counts(log: str) -> dict[str, int]:
    """Return the JSON of a log's last line, {} while there is none."""
    for line in reversed(log.splitlines()):
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                return value
    return {}
