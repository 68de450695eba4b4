"""Transport settings, shared memory and its left-overs, discovery, security."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmfuse_ros.cli.checks import transport
from mmfuse_ros.cli.checks.finding import FAIL, OK, WARN
from mmfuse_ros.cli.checks.loopback import judge

VARIABLE = "FASTDDS_BUILTIN_TRANSPORTS"


def levels(findings, check):
    return [f.level for f in findings if f.check == check]


@pytest.mark.parametrize(
    ("value", "level", "text"),
    [
        ("", WARN, "not set"),
        ("DEFAULT", WARN, "not set"),
        ("LARGE_DATA", WARN, "not one of those"),
        ("SHM", WARN, "512 KB"),
        ("SHM?max_msg_size=8MB&sockets_size=8MB", WARN, "512 KB"),
        ("UDPv4", WARN, "sockets_size unset"),
        ("UDPv4?sockets_size=4MiB", OK, "4MiB"),
        ("UDPv4?sockets_size=four", WARN, "sockets_size four"),
        ("UDPv4?max_msg_size=64KB&sockets_size=1MB", WARN, "sockets_size 1MB"),
        (transport.UDP_TRANSPORT, OK, "4MB"),
    ],
)
def test_fast_dds_settings(value, level, text):
    findings = list(transport._fast_dds({VARIABLE: value}, "jazzy"))
    assert levels(findings, "transport") == [level]
    assert text in findings[0].found
    assert (VARIABLE in findings[0].remedy) == (level == WARN)


def test_fast_dds_profile_decides(tmp_path):
    profile = tmp_path / "profile.xml"
    missing, _ = transport._fast_dds({"FASTDDS_DEFAULT_PROFILES_FILE": str(profile)}, "jazzy")
    assert (missing.level, "missing" in missing.found) == (FAIL, True)
    profile.touch()
    env = {"FASTDDS_DEFAULT_PROFILES_FILE": str(profile)}
    there, kept = transport._fast_dds(env, "jazzy")
    assert (there.level, kept.level) == (OK, WARN)
    assert "keep the memory" in kept.found
    (there,) = transport._fast_dds({**env, "RMW_FASTRTPS_USE_QOS_FROM_XML": "1"}, "jazzy")
    assert there.level == OK


def test_humble_does_not_know_the_sizes():
    (finding,) = transport._fast_dds({VARIABLE: transport.UDP_TRANSPORT}, "humble")
    assert finding.level == WARN
    assert "config/fastdds.xml" in finding.remedy


@pytest.mark.parametrize(
    ("limit", "needed", "level"),
    [
        (212992, 4 * 10**6, WARN),
        (4194304, 4 * 10**6, OK),
        (4194304, 10 << 20, WARN),
        (2147483647, 10 << 20, OK),
    ],
)
def test_socket_buffers(tmp_path, limit, needed, level):
    path = tmp_path / "rmem_max"
    path.write_text(f"{limit}\n")
    (finding,) = transport.socket_buffers(needed, path)
    assert finding.level == level
    assert str(limit) in finding.found
    assert (f"rmem_max={needed}" in finding.remedy) == (level == WARN)


@pytest.mark.parametrize(
    ("env", "expected", "text"),
    [
        ({}, [WARN], "domain 0, the whole network"),
        ({"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}, [OK], "this machine only"),
        ({"ROS_LOCALHOST_ONLY": "1", "ROS_DOMAIN_ID": "7"}, [OK], "domain 7"),
        ({"ROS_SECURITY_ENABLE": "true"}, [OK], "the whole network"),
        ({"ROS_LOCALHOST_ONLY": "1", "ROS_DOMAIN_ID": "150"}, [WARN, OK], "domain 150"),
        ({"ROS_DOMAIN_ID": "233"}, [FAIL], "0 to 232"),
        ({"ROS_DOMAIN_ID": "robot"}, [FAIL], "'robot'"),
    ],
)
def test_discovery(env, expected, text):
    findings = list(transport.discovery(env))
    assert [f.level for f in findings] == expected
    assert text in findings[-1].found


def test_locks_without_an_owner_are_left_overs(tmp_path):
    for name in ("fastrtps_live", "fastrtps_dead", "fastdds_port7000"):
        (tmp_path / name).write_bytes(bytes(3 << 20))
        (tmp_path / f"{name}_el").touch()
    (tmp_path / "other_el").touch()
    with (tmp_path / "fastrtps_live_el").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        findings = list(transport.shared_memory(tmp_path))
        for name in ("fastrtps_dead_el", "fastdds_port7000_el"):
            (tmp_path / name).unlink()
        assert list(transport.shared_memory(tmp_path))[1].level == OK
    assert [f.check for f in findings] == ["shared memory"] * 2
    assert findings[1].level == WARN
    assert findings[1].found.startswith("2 segments or ports of ended processes, 6 MiB")
    assert "1 locks held" in findings[1].found


def test_a_killed_participant_leaves_what_the_doctor_finds():
    rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    if "fastrtps" not in rclpy.get_rmw_implementation_identifier():
        pytest.skip("only Fast DDS leaves such files")
    folder = Path("/dev/shm")
    code = (
        "import rclpy, time\n"
        "rclpy.init(); node = rclpy.create_node('victim')\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    env = {**os.environ, "ROS_DOMAIN_ID": "176", VARIABLE: "SHM"}
    env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    before = set(folder.iterdir())
    victim = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    try:
        assert victim.stdout.readline() == b"ready\n"
        own = {p for p in set(folder.iterdir()) - before if _open_in(victim.pid, p)}
        locks = {p for p in own if p.name.endswith("_el")}
        assert locks
        assert not locks & set(transport._segments(folder)[0])
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        time.sleep(0.1)
        assert locks <= set(transport._segments(folder)[0])
    finally:
        victim.kill()
        victim.wait()
        victim.stdout.close()
        for path in own:
            path.unlink(missing_ok=True)


def _open_in(pid, path):
    """Whether a process has this file, or the lock beside it, open or mapped."""
    text = Path(f"/proc/{pid}/maps").read_text()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            text += f"\n{os.readlink(link)}\n"
        except OSError:
            continue
    names = {line.split()[-1] for line in text.splitlines() if line.strip()}
    return str(path) in names


def test_security_off_on_and_broken(tmp_path):
    (off,) = transport.security({})
    assert off.level == OK
    env = {"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_KEYSTORE": str(tmp_path)}
    findings = list(transport.security(env))
    assert [f.level for f in findings] == [WARN, FAIL]
    assert "Enforce" in findings[0].remedy
    assert "permissions.p7s" in findings[1].found
    assert "docs/security.md" in findings[1].remedy


@pytest.mark.parametrize(
    ("sent", "received", "load", "level"),
    [
        (60, 60, 0.2, OK),
        (60, 58, 0.2, WARN),
        (60, 50, 0.2, FAIL),
        (60, 50, 2.5, WARN),
        (60, 0, 0.2, FAIL),
        (0, 0, 0.2, FAIL),
    ],
)
def test_loss_is_judged(sent, received, load, level):
    finding = judge(sent, received, "60 images", load)
    assert finding.level == level
    assert bool(finding.remedy) == (level != OK)
