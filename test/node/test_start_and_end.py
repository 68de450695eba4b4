"""How the node starts and ends: one clear error or a node that runs, and code 0."""

from __future__ import annotations

import signal
import time

import pytest

from mmfuse_ros.samples import Modality


def test_interrupts_end_it_with_code_0(start, robot):
    """Ctrl-C in a terminal reaches a launched node twice: from there, and from launch."""
    node = start()
    assert robot.run(60, until=lambda: robot.mask() == set(Modality)), node.text()
    node.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    code, seconds = node.stop(signal.SIGINT)
    assert code == 0, node.text()
    assert seconds < 3.0
    assert "Traceback" not in node.text()


def test_missing_weights_are_one_clear_error(start, robot, tmp_path):
    node = start(model__vision=str(tmp_path / "nowhere"))
    assert robot.run(60, until=lambda: robot.row("node")[0] == 2), node.text()
    assert "nowhere" in robot.row("node")[2] or "vision" in robot.row("node")[2]
    assert "Traceback" not in node.text()
    assert node.process.poll() is None  # it stays up, unconfigured


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"sync__toleranse_s": 1.0},
            "unknown parameter 'sync.toleranse_s'; did you mean sync.tolerance_s?",
        ),
        ({"audio__window_s": 99}, "audio.window_s must be at most 30, got 99"),
    ],
)
def test_unknown_and_bad_parameters_are_named(start, robot, given, text):
    node = start(**given)
    assert robot.run(60, until=lambda: text in robot.row("node")[2]), node.text()
    assert text in node.text()
