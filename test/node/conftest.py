"""Fixtures: tiny real weights on disk, nodes as processes, a robot that publishes."""

from __future__ import annotations

from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from harness import NodeProcess, Robot, isolate  # noqa: E402
from tiny import save_tiny_weights  # noqa: E402


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """Save tiny CLIP and Wav2Vec2 checkpoints, of the real classes, laid out as on a hub."""
    root = tmp_path_factory.mktemp("weights")
    save_tiny_weights(root)
    return root


@pytest.fixture(scope="module")
def domain(request):
    """A DDS domain by test module, so that no two ever talk to each other."""
    names = sorted(p.name for p in Path(__file__).parent.glob("test_*.py"))
    number = 101 + names.index(Path(request.module.__file__).name)
    isolate(number)
    return number


@pytest.fixture(scope="module")
def parameters(tiny_weights):
    """Parameters of a node on the tiny weights, quick to start."""
    return {
        "model.vision": str(tiny_weights / "vision"),
        "model.audio": str(tiny_weights / "audio"),
        "model.precision": "fp32",
        "model.threads": 1,
        "audio.window_s": 0.5,
        "pressure.window_s": 0.25,
        "emg.window_s": 0.25,
    }


@pytest.fixture
def start(domain, parameters, tmp_path):
    """Return a function that starts a node process with further parameters."""
    running = []

    def run(remappings=(), **more):
        given = {**parameters, **{k.replace("__", "."): v for k, v in more.items()}}
        log = tmp_path / f"node_{len(running)}.log"
        running.append(NodeProcess(given, log=log, remappings=remappings))
        return running[-1]

    yield run
    for node in running:
        node.stop()


@pytest.fixture
def robot(domain):
    made = Robot()
    yield made
    made.close()
