"""Python, packages, torch and its device, disk space and clock."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from mmfuse_ros.cli.checks.finding import FAIL, OK, WARN, Finding
from mmfuse_ros.config import Config
from mmfuse_ros.errors import ConfigError

_OLDEST_PYTHON = (3, 10)
_NEWEST_PYTHON = (3, 14)
# Where a distribution's name is not that of its module. apt installs some without metadata.
_MODULES = {
    "opencv-python-headless": "cv2",
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
}
_LITTLE_BYTES = 1 << 30
_NO_BYTES = 100 << 20
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 256  # more than sizeof(struct timex) anywhere; all zero asks and sets nothing


def python() -> Iterator[Finding]:
    version = sys.version_info[:2]
    found = f"{platform.python_version()} in {sys.prefix}"
    if version < _OLDEST_PYTHON:
        yield Finding("python", FAIL, found, "install Python 3.10 or newer")
    elif version > _NEWEST_PYTHON:
        yield Finding("python", WARN, found, "newer than what mmfuse_ros is tested with (3.14)")
    else:
        yield Finding("python", OK, found)


def packages() -> Iterator[Finding]:
    """Compare what is installed with what the package requires."""
    from packaging.requirements import Requirement

    try:
        required = importlib.metadata.requires("mmfuse_ros") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "packages",
            WARN,
            "mmfuse_ros is not installed, its requirements are unknown",
            "pip install -e . in the repository, or colcon build and source the workspace",
        )
        return
    count = 0
    for line in required:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            module = _MODULES.get(requirement.name.lower(), requirement.name)
            if importlib.util.find_spec(module) is None:
                yield Finding(
                    "packages",
                    FAIL,
                    f"{requirement.name} is missing",
                    f"pip install '{requirement}', or rosdep install --from-paths src",
                )
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield Finding(
                "packages",
                FAIL,
                f"{requirement.name} must be {requirement.specifier}, got {version}",
                f"pip install '{requirement}'",
            )
    yield Finding("packages", OK, f"{count} required, looked at")


def torch(config: Config) -> Iterator[Finding]:
    """Check that the configured device, precision and backend are there and compute."""
    import torch as t

    from mmfuse_ros.model.backends import auto_precision
    from mmfuse_ros.model.system import resolve_device

    model = config.model
    build = f"CUDA {t.version.cuda}" if t.version.cuda else "CPU build"
    yield Finding("torch", OK, f"{t.__version__} ({build})")
    try:
        device = resolve_device(model.device)
    except ConfigError as error:
        yield Finding("device", FAIL, str(error), "set model.device to auto or cpu, or as above")
        return
    if device.type == "cpu":
        if Path("/dev/nvidiactl").exists():
            yield Finding(
                "device",
                WARN,
                "an NVIDIA driver is there, and the model would run on the CPU",
                "install a CUDA build of torch"
                if not t.version.cuda
                else "see what torch.cuda.init() says: driver and CUDA build must fit",
            )
        else:
            yield Finding("device", OK, f"cpu, {os.cpu_count()} cores")
    else:
        free, total = t.cuda.mem_get_info(device)
        t.ones(8, device=device).add(1).sum().item()  # a build without kernels for it fails here
        found = (
            f"{device} {t.cuda.get_device_name(device)}, {free >> 20} of {total >> 20} MiB free"
        )
        yield Finding("device", OK, found)
    best = auto_precision(device)
    precision = best if model.precision == "auto" else model.precision
    if precision == "fp16" and device.type == "cpu":
        yield Finding(
            "precision", WARN, "fp16 on a CPU is emulated and slow", "set model.precision to auto"
        )
    elif precision == "bf16" and best != "bf16":
        yield Finding(
            "precision",
            WARN,
            f"bf16 is emulated here, {best} is faster",
            "set model.precision to auto",
        )
    elif precision == "fp32" and best != "fp32":
        found = f"fp32, where {best} would be several times as fast"
        yield Finding("precision", OK, found, "set model.precision to auto to use it")
    else:
        yield Finding("precision", OK, precision)
    if model.backend == "openvino" and importlib.util.find_spec("openvino") is None:
        yield Finding(
            "backend", FAIL, "model.backend is openvino, which is missing", "pip install openvino"
        )
    if model.threads > (os.cpu_count() or 1):
        yield Finding(
            "threads",
            WARN,
            f"model.threads is {model.threads} on {os.cpu_count()} cores",
            "set it to 0, or below the number of cores",
        )


def disk(config: Config) -> Iterator[Finding]:
    """Check room and rights where the node and the tools write."""
    home = Path.home()
    ros_home = Path(os.environ.get("ROS_HOME") or home / ".ros")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    folders = {
        "logs": Path(os.environ.get("ROS_LOG_DIR") or ros_home / "log"),
        "cache of `mmfuse fit`": cache / "mmfuse",
    }
    if config.anomaly.calibration:
        folders["calibration"] = Path(config.anomaly.calibration).expanduser().parent
    for use, folder in folders.items():
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        free = shutil.disk_usage(there).free
        found = f"{folder} ({use}): {free / 2**30:.1f} GiB free"
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding("disk", WARN, f"{found}, not writable", f"chown {there}, or move it")
        elif free < _NO_BYTES:
            yield Finding("disk", FAIL, found, "free some space")
        elif free < _LITTLE_BYTES:
            yield Finding("disk", WARN, found, "free some space")
        else:
            yield Finding("disk", OK, found)


def clock() -> Iterator[Finding]:
    """Ask the kernel whether the system clock is disciplined (NTP, PTP)."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state < 0:
        raise OSError(ctypes.get_errno(), "adjtimex failed")
    if state == _TIME_ERROR:
        yield Finding(
            "clock",
            WARN,
            "the kernel holds the system clock for not synchronised",
            "needed only where sensors are on other machines: run chrony or systemd-timesyncd on "
            "all of them",
        )
    else:
        yield Finding("clock", OK, "synchronised")
