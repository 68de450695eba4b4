"""`mmfuse report` on a recording made of real sensors' data."""

import json
import runpy
from pathlib import Path

import pytest

from mmfuse_ros.cli.main import main

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    if not (ROOT.parent / "shared" / "data" / "bldc").is_dir():
        pytest.skip("the recordings in ../shared/data are not here")
    compose = runpy.run_path(str(ROOT / "test" / "compose.py"))["compose"]
    return compose(tmp_path_factory.mktemp("bags") / "run", 5.0, faults=False, size=(64, 48))


@pytest.fixture
def model(tiny_weights):
    return [f"-pmodel.{name}:={tiny_weights / name}" for name in ("vision", "audio")]


def test_a_page_and_a_json_of_a_whole_recording(bag, model, tmp_path, capsys):
    assert main(["report", str(bag), "--out", str(tmp_path / "run.html"), *model]) == 0
    shown = capsys.readouterr().out
    assert "100%" in shown  # the progress bar
    assert f"report of 10 windows saved to {tmp_path / 'run.html'}" in shown
    assert "<title>run</title>" in (tmp_path / "run.html").read_text()

    out = tmp_path / "run.json"
    assert main(["report", str(bag), "--out", str(out), "--rate-hz", "5", *model]) == 0
    report = json.loads(out.read_text())
    assert report["contribution_method"] == "shapley"
    assert sum(report["contribution"].values()) == pytest.approx(1.0)
    assert report["recording"]["windows"] == 25
    # Audio is there once its first three seconds are.
    assert 0.2 < report["recording"]["present"]["audio"] < 0.5
    assert report["recording"]["present"]["camera_1"] == 1.0
    assert set(report["modalities"]) == set(report["recording"]["present"])


def test_what_cannot_be_reported_is_said(bag, model, tmp_path, capsys):
    nowhere = tmp_path / "none" / "x.html"
    assert main(["report", str(bag), "--out", str(nowhere), *model]) == 2
    assert "--out must be in a folder that exists" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert "rosbag2 folder" in capsys.readouterr().err
    assert main(["report", str(bag), "--out", str(tmp_path / "x"), "--rate-hz", "-1"]) == 2
    assert "--rate-hz must be at least 0, got -1" in capsys.readouterr().err
