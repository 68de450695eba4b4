"""`colcon build` of this repository, and the installed executable and launch file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import RELIABLE, Robot
from rosbags.rosbag2 import StoragePlugin
from sensor_msgs.msg import Image
from test_replay import write

from mmfuse_ros.samples import Modality

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("package.xml", "setup.py", "setup.cfg", "resource", "launch", "config", "mmfuse_ros")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Build a workspace that holds a copy of this repository; return the install prefix."""
    colcon = Path(sys.executable).with_name("colcon")
    if not colcon.exists():
        pytest.skip("colcon is not installed beside this Python")
    workspace = tmp_path_factory.mktemp("workspace")
    package = workspace / "src" / "mmfuse_ros"
    package.mkdir(parents=True)
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, package / name)
    done = subprocess.run(
        [str(colcon), "build"], cwd=workspace, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace / "install" / "mmfuse_ros"


@pytest.fixture
def environment(prefix, domain):
    """The environment that sourcing the workspace makes, for the Python that runs the tests."""
    env = dict(os.environ)
    (site,) = prefix.glob("lib/python*/site-packages")
    env["PYTHONPATH"] = str(site)
    env["AMENT_PREFIX_PATH"] = os.pathsep.join(
        filter(None, [str(prefix), env.get("AMENT_PREFIX_PATH", "")])
    )
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env


def test_everything_is_installed(prefix):
    for name in ("fusion_node", "sensor_sim", "mmfuse"):
        script = prefix / "lib" / "mmfuse_ros" / name
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith("#!/usr/bin/env python3")
    share = prefix / "share"
    assert (share / "ament_index/resource_index/packages/mmfuse_ros").is_file()
    launch = [f"launch/{name}.launch.py" for name in ("mmfuse", "demo", "replay")]
    config = [f"config/{name}.yaml" for name in ("mmfuse", "lightweight", "high_capacity")]
    for name in ("package.xml", *launch, *config, "config/fastdds.xml"):
        assert (share / "mmfuse_ros" / name).is_file()


def test_installed_node_runs_and_ends(prefix, environment, robot, parameters, tmp_path):
    arguments = ["--ros-args"]
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={value}"]
    log = (tmp_path / "log").open("w+")
    node = subprocess.Popen(
        [prefix / "lib" / "mmfuse_ros" / "fusion_node", *arguments],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        assert robot.run(60, until=lambda: bool(robot.watch.embeddings)), _text(log)
    finally:
        node.send_signal(signal.SIGINT)
        code = node.wait(10)
    assert code == 0, _text(log)


LAUNCH = """
import sys, launch
from launch.launch_description_sources import PythonLaunchDescriptionSource as Source
from launch.actions import IncludeLaunchDescription as Include
service = launch.LaunchService()
arguments = [a.split(':=') for a in sys.argv[2:]]
include = Include(Source(sys.argv[1]), launch_arguments=arguments)
service.include_launch_description(launch.LaunchDescription([include]))
sys.exit(service.run())
"""


@pytest.fixture
def launch(prefix, environment, tmp_path):
    """Return a function that launches a file of the package, as `ros2 launch` does."""
    pytest.importorskip("launch", reason="launch is not on PyPI; this runs where ROS has it")
    pytest.importorskip("launch_ros", reason="launch_ros is not on PyPI")
    running = []

    def run(name, **arguments):
        file = prefix / "share/mmfuse_ros/launch" / name
        given = [f"{key}:={value}" for key, value in arguments.items()]
        log = (tmp_path / f"{name}.log").open("w+")
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(file), *given],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        return running[-1], log

    yield run
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def params_file(parameters, tmp_path):
    lines = "\n".join(f"    {name}: {value!r}" for name, value in parameters.items())
    path = tmp_path / "params.yaml"
    path.write_text(f"/**:\n  ros__parameters:\n{lines}\n    sync.tolerance_s: 0.07\n")
    return path


def interrupt(process, log):
    """Press Ctrl-C: in a terminal it reaches the whole group. Return the seconds it took."""
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) == 0, _text(log)
    return time.monotonic() - begun


def test_mmfuse_launch(launch, params_file, domain):
    """Bring the node to active with remaps and a YAML, and end it within 3 s of Ctrl-C."""
    process, log = launch(
        "mmfuse.launch.py", params_file=params_file, camera_1="front/image", namespace="arm"
    )
    robot = Robot(namespace="arm")
    try:
        front = robot.node.create_publisher(Image, "front/image", RELIABLE)
        robot.out[Modality.CAMERA_1] = front
        assert robot.run(60, until=lambda: robot.mask() == set(Modality)), _text(log)
        assert interrupt(process, log) < 3.0
        assert "process has finished cleanly" in _text(log)
    finally:
        robot.close()


def test_replay_launch(launch, params_file, robot, tmp_path):
    """Play a recording into the node under simulated time."""
    folder, _ = write(tmp_path / "bag", StoragePlugin.MCAP)
    process, log = launch("replay.launch.py", bag=folder, params_file=params_file)
    end = time.monotonic() + 90
    while time.monotonic() < end and robot.mask() != set(Modality):
        robot.watch.spin_for(0.2)
    assert robot.mask() == set(Modality), _text(log)
    interrupt(process, log)


def test_demo_launch(launch, robot):
    """The preset's full-size model, untrained, on the simulated sensors."""
    process, log = launch("demo.launch.py")
    end = time.monotonic() + 120
    while time.monotonic() < end and robot.mask() != set(Modality):
        robot.watch.spin_for(0.2)
    assert robot.mask() == set(Modality), _text(log)
    interrupt(process, log)


def _text(log):
    log.seek(0)
    return log.read()
