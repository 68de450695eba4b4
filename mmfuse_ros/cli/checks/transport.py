"""RMW, its transport settings, shared memory, socket buffers, discovery and security."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmfuse_ros.cli.checks.finding import FAIL, OK, WARN, Finding
from mmfuse_ros.cli.processes import POLICY_VARIABLE, PROFILE_VARIABLES, fastdds_profile

Environment = Mapping[str, str]

UDP_TRANSPORT = "UDPv4?max_msg_size=64KB&sockets_size=4MB"
_UDP_BYTES = 4 << 20
_CYCLONE_BYTES = 10 << 20
_SHM_BYTES = 256 << 20
_TRANSPORTS = "FASTDDS_BUILTIN_TRANSPORTS"

_ENCLAVE_FILES = (
    "key.pem",
    "cert.pem",
    "identity_ca.cert.pem",
    "permissions_ca.cert.pem",
    "governance.p7s",
    "permissions.p7s",
)
_JOIN_S = 60.0
# The node's own name: the policy allows no other.
_JOIN = (
    "import rclpy\n"
    "rclpy.init(args=['--ros-args', '--enclave', '/mmfuse'])\n"
    "rclpy.create_node('mmfuse')\n"
)
_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def rmw(env: Environment) -> Iterator[Finding]:
    """Check that the middleware loads, and its settings for large best-effort images."""
    from rclpy.utilities import get_rmw_implementation_identifier

    name = get_rmw_implementation_identifier()
    asked = env.get("RMW_IMPLEMENTATION", "")
    how = "RMW_IMPLEMENTATION" if asked else "the default"
    distro = env.get("ROS_DISTRO", "")
    yield Finding("rmw", OK, f"{name} ({how})" + (f", ROS 2 {distro}" if distro else ""))
    if "fastrtps" in name:
        yield from _fast_dds(env, distro)
    elif "cyclonedds" in name:
        yield from _cyclone(env)
    elif "zenoh" in name:
        yield Finding(
            "transport", OK, "Zenoh sends over TCP: no buffer to set", "keep rmw_zenohd running"
        )
    else:
        yield Finding("transport", WARN, f"no advice for {name}", "judge by the probe below")


def _fast_dds(env: Environment, distro: str) -> Iterator[Finding]:
    exports = "\n".join(
        [f"export {name}={fastdds_profile()}" for name in PROFILE_VARIABLES]
        + [f"export {POLICY_VARIABLE}=1"]
    )
    remedy = (
        f"in every process that sends or receives images, on one machine:\n{exports}\n"
        f"on several: export {_TRANSPORTS}='{UDP_TRANSPORT}'\n"
        "and sysctl -w net.core.rmem_max=4194304 (docs/transport.md)"
    )
    profile = next((env[p] for p in PROFILE_VARIABLES if env.get(p)), "")
    if profile:
        level = OK if Path(profile).is_file() else FAIL
        found = f"the XML profile {profile} decides" + ("" if level == OK else ", it is missing")
        yield Finding("transport", level, found, "judge by the probe below")
        if env.get(POLICY_VARIABLE) != "1":
            found = f"{POLICY_VARIABLE} is not 1: readers keep the memory of huge messages"
            yield Finding("transport", WARN, found, f"export {POLICY_VARIABLE}=1")
        return
    if distro == "humble":
        found = f"the sizes in {_TRANSPORTS} need Fast DDS 2.14 (Jazzy), Humble has 2.6"
        yield Finding("transport", WARN, found, exports)
        return
    value = env.get(_TRANSPORTS, "")
    kind, _, options = value.partition("?")
    if kind in ("", "DEFAULT"):
        found = f"{_TRANSPORTS} is not set: the default lost 90 % and more of 720p images"
        yield Finding("transport", WARN, found, remedy)
    elif kind == "SHM":
        found = f"{_TRANSPORTS}={value}: its segment stays at 512 KB and loses images under load"
        yield Finding("transport", WARN, found, remedy)
    elif kind in ("UDPv4", "UDPv6"):
        yield from _sized(value, options, remedy)
    else:
        found = f"{_TRANSPORTS}={value}: not one of those measured without loss"
        yield Finding("transport", WARN, found, remedy)


def _sized(value: str, options: str, remedy: str) -> Iterator[Finding]:
    sizes = dict(part.partition("=")[::2] for part in options.split("&") if part)
    asked = sizes.get("sockets_size", "unset")
    found = f"{_TRANSPORTS}={value}"
    if _bytes(asked) < _UDP_BYTES * 0.95:
        yield Finding("transport", WARN, f"{found}: too small: sockets_size {asked}", remedy)
        return
    yield Finding("transport", OK, found)
    yield from socket_buffers(_bytes(asked))


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMG]?I?B?)", text.strip().upper())
    if match is None or match[2] not in _UNITS:
        return 0
    return int(match[1]) * _UNITS[match[2]]


def _cyclone(env: Environment) -> Iterator[Finding]:
    uri = env.get("CYCLONEDDS_URI", "")
    found = f"CYCLONEDDS_URI={uri}" if uri else "CYCLONEDDS_URI is not set"
    remedy = (
        'name an XML with <Internal><SocketReceiveBufferSize min="10MB"/></Internal> there, and '
        "sysctl -w net.core.rmem_max=2147483647 (docs/transport.md)"
    )
    level = OK if uri else WARN
    yield Finding("transport", level, found, "" if uri else remedy)
    yield from socket_buffers(_CYCLONE_BYTES)


def socket_buffers(
    needed: int, path: Path = Path("/proc/sys/net/core/rmem_max")
) -> Iterator[Finding]:
    """Compare net.core.rmem_max with the buffer that the transport asks for; bytes."""
    limit = int(path.read_text())
    # MB and MiB are told apart by nobody who sets this: 4 MB asks for 4000000.
    if limit < min(needed, _UDP_BYTES) or limit < needed * 0.95:
        yield Finding(
            "socket buffers",
            WARN,
            f"net.core.rmem_max is {limit}, the transport asks for {needed}: images are lost",
            f"sysctl -w net.core.rmem_max={needed}, and the same in /etc/sysctl.d/",
        )
    else:
        yield Finding("socket buffers", OK, f"net.core.rmem_max is {limit}")


def shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Check the room in /dev/shm, and what killed processes left there."""
    if not folder.is_dir():
        yield Finding("shared memory", WARN, f"{folder} is missing", f"use {UDP_TRANSPORT}")
        return
    status = os.statvfs(folder)
    total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    found = f"{folder}: {free >> 20} of {total >> 20} MiB free"
    if free < _SHM_BYTES:
        yield Finding(
            "shared memory",
            WARN,
            found,
            "give it 256 MiB or more (docker run --shm-size=512m), or take the UDP transport",
        )
    else:
        yield Finding("shared memory", OK, found)
    stale, live, unknown = _segments(folder)
    found = f"{live} locks held by running processes"
    if unknown:
        found += f", {unknown} of other users not looked at"
    if stale:
        sizes = sum(p.stat().st_size for p in _with_payload(stale) if p.exists())
        yield Finding(
            "shared memory",
            WARN,
            f"{len(stale)} segments or ports of ended processes, {sizes >> 20} MiB; {found}",
            "fastdds shm clean",
        )
    else:
        yield Finding("shared memory", OK, f"nothing left by ended processes; {found}")


def _segments(folder: Path) -> tuple[list[Path], int, int]:
    """Return the lock files without an owner, and how many have one or are not readable.

    Fast DDS holds a lock on `NAME_el` (exclusive) or `NAME_sl` (shared) as long as it lives; a
    lock that can be taken has no owner. Taking it shared, for an instant, disturbs nobody.
    """
    stale, live, unknown = [], 0, 0
    for path in sorted(folder.glob("fast*_[es]l")):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except PermissionError:
            unknown += 1
            continue
        mode = fcntl.LOCK_SH if path.name.endswith("_el") else fcntl.LOCK_EX
        try:
            fcntl.flock(handle, mode | fcntl.LOCK_NB)
            stale.append(path)
        except BlockingIOError:
            live += 1
        finally:
            os.close(handle)
    return stale, live, unknown


def _with_payload(locks: list[Path]) -> list[Path]:
    return [*locks, *(p.with_name(p.name[:-3]) for p in locks)]


def discovery(env: Environment) -> Iterator[Finding]:
    """Check the domain and who may find this machine's nodes."""
    text = env.get("ROS_DOMAIN_ID", "") or "0"
    if not text.isdigit() or int(text) > 232:
        yield Finding(
            "discovery", FAIL, f"ROS_DOMAIN_ID must be 0 to 232, got {text!r}", "correct it"
        )
        return
    domain = int(text)
    if 102 <= domain <= 214:
        yield Finding(
            "discovery",
            WARN,
            f"ROS_DOMAIN_ID {domain}: its ports overlap those that Linux hands out to programs",
            "take 0 to 101 or 215 to 232",
        )
    local = env.get("ROS_LOCALHOST_ONLY") == "1" or env.get(
        "ROS_AUTOMATIC_DISCOVERY_RANGE", ""
    ).upper() in ("LOCALHOST", "OFF")
    secured = env.get("ROS_SECURITY_ENABLE", "").lower() == "true"
    found = f"domain {domain}, " + ("this machine only" if local else "the whole network")
    for name in ("ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER"):
        if env.get(name):
            found += f", {name}={env[name]}"
    if local or secured:
        yield Finding("discovery", OK, found)
    else:
        yield Finding(
            "discovery",
            WARN,
            f"{found}, without SROS2: whoever is on it can watch, listen and command",
            "export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST (Humble: ROS_LOCALHOST_ONLY=1), or "
            "use SROS2 (docs/security.md)",
        )


def security(env: Environment) -> Iterator[Finding]:
    """Check what SROS2 is set to, and the files of the node's enclave."""
    if env.get("ROS_SECURITY_ENABLE", "").lower() != "true":
        yield Finding("security", OK, "SROS2 is off (ROS_SECURITY_ENABLE)", "see docs/security.md")
        return
    strategy = env.get("ROS_SECURITY_STRATEGY", "Permissive")
    if strategy != "Enforce":
        yield Finding(
            "security",
            WARN,
            f"ROS_SECURITY_STRATEGY is {strategy}: a node without keys starts unprotected",
            "export ROS_SECURITY_STRATEGY=Enforce",
        )
    store = Path(env.get("ROS_SECURITY_KEYSTORE", ""))
    enclave = store / "enclaves" / "mmfuse"
    missing = [name for name in _ENCLAVE_FILES if not os.access(enclave / name, os.R_OK)]
    if missing:
        yield Finding(
            "security",
            FAIL,
            f"{enclave} lacks {', '.join(missing)} (or they are not readable)",
            "make the keystore and the permission: docs/security.md",
        )
        return
    mode = (enclave / "key.pem").stat().st_mode & 0o077
    if mode:
        yield Finding(
            "security",
            WARN,
            f"{enclave / 'key.pem'} is open to others ({mode:03o})",
            "chmod 600 it",
        )
    joined = subprocess.run(
        [sys.executable, "-c", _JOIN], env=dict(env), capture_output=True, timeout=_JOIN_S
    )
    if joined.returncode:
        last = joined.stderr.decode(errors="replace").strip().splitlines()[-3:]
        yield Finding(
            "security",
            FAIL,
            "a node in the enclave /mmfuse cannot start: " + " ".join(last),
            "use a middleware that is built with security (those of apt are, the wheels are not), "
            "and make the permission for this ROS_DOMAIN_ID: docs/security.md",
        )
    else:
        yield Finding("security", OK, f"{enclave}, strategy {strategy}")
