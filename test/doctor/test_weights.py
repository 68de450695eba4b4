"""Weights, checkpoint and calibration on disk: whole, damaged, foreign, hostile."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmfuse_ros.anomaly import artefact, cosine
from mmfuse_ros.cli.checks import machine, weights
from mmfuse_ros.cli.checks.finding import FAIL, OK, WARN
from mmfuse_ros.config import Config
from mmfuse_ros.pipeline import calibration_context


@pytest.fixture
def folder(tmp_path):
    """A directory as `save_pretrained` writes it, with one small tensor."""
    path = tmp_path / "encoder"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "clip_vision_model"}')
    (path / "preprocessor_config.json").write_text("{}")
    save_file({"a": np.arange(1000, dtype=np.float32)}, path / "model.safetensors")
    return path


def vision(folder, **more):
    flat = {"model.vision": str(folder), "model.weights": "random", **more}
    findings = weights.encoders(Config.from_flat(flat))
    return [f for f in findings if f.check == "weights vision"]


def test_whole_weights_and_their_hash(folder):
    first, second = vision(folder)
    assert (first.level, second.level) == (OK, OK)
    assert "clip_vision_model" in first.found
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert f"1 tensors, 0 MiB, sha256 {digest}" in second.found


def test_random_weights_are_named():
    findings = list(weights.encoders(Config.from_flat({"model.weights": "random"})))
    assert [f.level for f in findings] == [OK, OK]
    assert all("untrained" in f.found for f in findings)


def test_damage_is_found(folder):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    assert [f.level for f in vision(folder)] == [OK, FAIL]
    file.unlink()
    (finding,) = vision(folder)
    assert (finding.level, "holds no model.safetensors" in finding.found) == (FAIL, True)
    (folder / "config.json").write_text("{")
    assert [f.level for f in vision(folder)] == [FAIL]


def test_a_pipe_in_place_of_a_file_does_not_block(folder):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    # safetensors itself would wait for a writer, so this must be found out before.
    code = (
        "import sys\n"
        "from mmfuse_ros.cli.checks import weights\n"
        "from mmfuse_ros.config import Config\n"
        "flat = {'model.vision': sys.argv[1], 'model.weights': 'random'}\n"
        "print([f.level for f in weights.encoders(Config.from_flat(flat))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "['OK', 'FAIL', 'OK']", done.stderr


@pytest.mark.parametrize("name", ["../../other.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_stays_in_its_directory(folder, name):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (finding,) = vision(folder)
    assert finding.level == FAIL
    assert "own directory" in finding.found


def test_shards_are_checked_one_by_one(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {
        "metadata": {},
        "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [f.level for f in vision(folder)] == [OK, OK, FAIL]


def test_pickled_weights_of_a_directory_fail_with_a_remedy(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (finding,) = vision(folder)
    assert finding.level == FAIL
    assert "save_pretrained" in finding.remedy


def test_absent_weights(tmp_path):
    (finding,) = vision(tmp_path / "nowhere")
    assert finding.level == FAIL
    assert "model.allow_download" in finding.remedy
    (finding,) = vision("nobody/nothing", **{"model.allow_download": True})
    assert finding.level == WARN


def test_a_cached_file_is_held_against_its_published_hash(folder, tmp_path):
    """The hub's cache: snapshots/REVISION/NAME links to blobs/SHA256."""
    repo = tmp_path / "hub" / "models--somebody--clip"
    snapshot, blobs = repo / "snapshots" / "r1", repo / "blobs"
    for path in (snapshot, blobs, repo / "refs"):
        path.mkdir(parents=True)
    (repo / "refs" / "main").write_text("r1")
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).rename(snapshot / name)
    data = (folder / "model.safetensors").read_bytes()
    blob = blobs / hashlib.sha256(data).hexdigest()
    (snapshot / "model.safetensors").symlink_to(blob)
    code = (
        "from mmfuse_ros.cli.checks import weights\n"
        "from mmfuse_ros.config import Config\n"
        "flat = {'model.vision': 'somebody/clip', 'model.weights': 'random'}\n"
        "print([f.level for f in weights.encoders(Config.from_flat(flat))])\n"
    )
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")}
    for content, expected in ((data, "['OK', 'OK', 'OK']"), (data[:-1] + b"!", "['OK', 'FAIL',")):
        blob.write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.startswith(expected), done.stdout + done.stderr


def test_a_missing_checkpoint_fails(tmp_path):
    flat = {"model.weights": "random", "model.checkpoint": str(tmp_path)}
    first, *rest = weights.encoders(Config.from_flat(flat))
    assert (first.check, first.level) == ("checkpoint", FAIL)
    assert [f.level for f in rest] == [OK, OK]


def baseline(tmp_path, **changes):
    """Write a cosine baseline for the default parameters; return a Config that names it."""
    flat = {"model.weights": "random", "anomaly.method": "cosine"}
    info = {"preset": "balanced", "weights": "random", "precision": "fp32"}
    info["fusion"] = "concat_project"
    context = {**calibration_context(Config.from_flat(flat), info), **changes}
    path = tmp_path / "baseline"
    header = {"kind": cosine.KIND, "version": artefact.VERSION, "context": context}
    artefact.write(path, header, {"embedding": np.ones(4, np.float32)})
    return Config.from_flat({**flat, "anomaly.calibration": str(path)})


def test_calibration_is_compared_as_far_as_no_model_is_needed(tmp_path):
    (none,) = weights.calibration(Config())
    assert (none.level, "mmfuse fit" in none.remedy) == (WARN, True)
    (fits,) = weights.calibration(baseline(tmp_path))
    assert fits.level == OK
    (other,) = weights.calibration(baseline(tmp_path, **{"audio.window_s": 1.5}))
    assert other.level == FAIL
    assert "audio.window_s: calibrated with 1.5, now 3.0" in other.found


def test_a_calibration_may_lie_in_the_home_directory(tmp_path, monkeypatch):
    config = baseline(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    flat = {**config.to_flat(), "anomaly.calibration": "~/baseline"}
    (finding,) = weights.calibration(Config.from_flat(flat))
    assert finding.level == OK


@pytest.mark.parametrize("kind", ["directory", "text"])
def test_what_is_no_calibration_fails(tmp_path, kind):
    path = tmp_path / "calibration"
    if kind == "directory":
        path.mkdir()
    elif kind == "text":
        path.write_text("not this")
    (finding,) = weights.calibration(Config.from_flat({"anomaly.calibration": str(path)}))
    assert finding.level == FAIL
    assert str(path) in finding.found


def test_a_calibration_that_is_yet_to_be_made_is_a_warning(tmp_path):
    path = tmp_path / "calibration"
    (finding,) = weights.calibration(Config.from_flat({"anomaly.calibration": str(path)}))
    assert (finding.level, str(path) in finding.found) == (WARN, True)


def test_device_and_precision():
    found = {f.check: f for f in machine.torch(Config.from_flat({"model.device": "cuda:63"}))}
    assert found["device"].level == FAIL
    flat = {"model.device": "cpu", "model.precision": "fp16", "model.threads": 1024}
    found = {f.check: f for f in machine.torch(Config.from_flat(flat))}
    assert found["precision"].level == WARN
    assert found["threads"].level == WARN


def test_packages_are_held_against_the_requirements(monkeypatch):
    lines = ["numpy>=999", "surely-not-installed>=1", "PyYAML>=1", "absent; extra == 'x'"]
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: lines)
    found = list(machine.packages())
    assert [f.level for f in found] == [FAIL, FAIL, OK]
    assert "numpy must be >=999" in found[0].found
    assert "surely-not-installed is missing" in found[1].found
    assert found[2].found.startswith("3 required")
