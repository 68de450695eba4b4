"""Child processes of a command: started together, ended together, logs kept."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from mmfuse_ros.errors import ConfigError

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
# Makes rmw_fastrtps heed the profile's memory policies.
POLICY_VARIABLE = "RMW_FASTRTPS_USE_QOS_FROM_XML"
_END_S = 5.0
_PR_SET_PDEATHSIG = 1


def ros_environment() -> dict[str, str]:
    """Return this process' environment, made safe for a private run on one machine."""
    env = {**transport_environment(), **os.environ}
    env.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if env.get("ROS_DISTRO") == "humble":
        env.setdefault("ROS_LOCALHOST_ONLY", "1")  # the only one that Humble knows
    # The model shares the cores with DDS and Python: idle OpenMP threads must not spin.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return env


def transport_environment(profile: str = "") -> dict[str, str]:
    """Return the variables that name a Fast DDS profile; none where one is chosen already.

    Args:
        profile: its file; the one that is shipped where empty.

    Raises:
        ConfigError: as of fastdds_profile.
    """
    if any(name in os.environ for name in ("FASTDDS_BUILTIN_TRANSPORTS", *PROFILE_VARIABLES)):
        return {}
    named = dict.fromkeys(PROFILE_VARIABLES, profile or str(fastdds_profile()))
    return {**named, POLICY_VARIABLE: "1"}


def fastdds_profile() -> Path:
    """Return the transport profile that is shipped as `config/fastdds.xml`.

    Raises:
        ConfigError: the package was installed without its configuration files.
    """
    checkout = Path(__file__).resolve().parents[2]
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    places = [checkout, *(Path(p) / "share" / "mmfuse_ros" for p in prefixes if p)]
    for place in places:
        if (place / "config" / "fastdds.xml").is_file():
            return place / "config" / "fastdds.xml"
    raise ConfigError(
        f"config/fastdds.xml must be installed with the package, it is in none of "
        f"{', '.join(map(str, places))}; install the package again"
    )


def end_with_parent() -> None:
    """Ask Linux to end this process when its parent does, even if that is killed.

    For the `preexec_fn` of a child; elsewhere than on Linux it does nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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
            preexec_fn=end_with_parent,
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
