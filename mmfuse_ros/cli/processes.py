"""Child processes of a command: started together, ended together, logs kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from mmfuse_ros.files import atomic_write

# A shared-memory segment of 512 KB, Fast DDS' default, loses most 720p images on a loaded machine,
# and no option of FASTDDS_BUILTIN_TRANSPORTS makes it larger. As config/fastdds.xml.
_FASTDDS_PROFILE = """<?xml version="1.0" encoding="UTF-8"?>
<dds><profiles xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles">
<transport_descriptors><transport_descriptor>
<transport_id>shm</transport_id><type>SHM</type>
<segment_size>67108864</segment_size><maxMessageSize>8388608</maxMessageSize>
</transport_descriptor></transport_descriptors>
<participant profile_name="mmfuse" is_default_profile="true"><rtps>
<userTransports><transport_id>shm</transport_id></userTransports>
<useBuiltinTransports>false</useBuiltinTransports>
</rtps></participant>
</profiles></dds>
"""
_PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")

# For environments that are set by hand; kinder than the default, not as good as the profile.
TRANSPORT = "SHM?max_msg_size=8MB&sockets_size=8MB"
_END_S = 5.0


def ros_environment() -> dict[str, str]:
    """Return this process' environment, made safe for a private run on one machine."""
    env = dict(os.environ)
    if not any(name in env for name in ("FASTDDS_BUILTIN_TRANSPORTS", *_PROFILE_VARIABLES)):
        env.update(dict.fromkeys(_PROFILE_VARIABLES, str(_fastdds_profile())))
    env.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    # The model shares the cores with DDS and Python: idle OpenMP threads must not spin.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return env


def _fastdds_profile() -> Path:
    """Write the profile where it stays for as long as processes may start; return its path."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(root) / "mmfuse" / "fastdds.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        draft.write_text(_FASTDDS_PROFILE)
    return path


class Processes:
    """Run Python modules as processes; leaving the context ends them all."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = dict(env)
        self._folder = tempfile.TemporaryDirectory(prefix="mmfuse_")
        self._running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}

    def start(self, name: str, module: str, arguments: Sequence[str]) -> None:
        log = (Path(self._folder.name) / f"{name}.log").open("w+b")
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=self._env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._running[name] = (process, log)

    def died(self) -> str:
        """Return the name of a process that has ended by itself with an error, or ""."""
        for name, (process, _) in self._running.items():
            if process.poll() not in (None, 0):
                return name
        return ""

    def pid(self, name: str) -> int:
        return self._running[name][0].pid

    def log(self, name: str, lines: int = 20) -> str:
        """Return the end of a process' output."""
        log = self._running[name][1]
        log.seek(0)
        return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def stop(self) -> dict[str, int]:
        """End every process, politely at first; return the exit codes."""
        for process, _ in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        codes = {}
        for name, (process, _) in self._running.items():
            try:
                codes[name] = process.wait(_END_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                codes[name] = process.wait()
        return codes

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        for _, log in self._running.values():
            log.close()
        self._folder.cleanup()
