"""Checkpoints: what is saved comes back, what does not fit is refused with every reason."""

import json
import pathlib
import struct
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmfuse_ros.config import Config
from mmfuse_ros.errors import CheckpointError
from mmfuse_ros.model.checkpoint import (
    FILE_NAME,
    load_checkpoint,
    open_checkpoint,
    read_header,
    save_checkpoint,
)
from mmfuse_ros.model.runtime import build_engine


@pytest.fixture
def trained(make_system):
    """A system whose trainable parts are not as they were initialised."""
    system = make_system()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in system.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    return system


@pytest.mark.parametrize("name", ["run", "run.safetensors"])
def test_round_trip(trained, make_system, inputs, tmp_path, name):
    file = save_checkpoint(trained, tmp_path / name)
    assert file.is_file()
    assert [p.suffix for p in file.parent.iterdir()] == [".safetensors"]  # no draft left behind
    fresh = make_system()
    assert not torch.equal(fresh(**inputs()), trained(**inputs()))
    load_checkpoint(fresh, tmp_path / name)
    assert torch.equal(fresh(**inputs()), trained(**inputs()))


def test_frozen_encoders_are_named_and_not_stored(trained, tmp_path):
    file = save_checkpoint(trained, tmp_path)
    with safe_open(file, "pt") as content:
        assert {n.split(".")[0] for n in content.keys()} == {"fusion", "pressure", "emg"}  # noqa: SIM118
    header = read_header(tmp_path)
    assert header["encoders"]["vision"].keys() == {"name", "stored", "weights"}
    assert header["modalities"] == ["vision", "audio", "pressure", "emg"]
    assert str(tmp_path.parent) not in json.dumps(header)


def test_a_trained_encoder_is_stored_and_needs_no_weights(
    make_system, inputs, tmp_path, monkeypatch
):
    """Once unfrozen it may have changed, even if it was frozen again before saving."""
    system = make_system()
    system.unfreeze_encoders("audio")
    with torch.no_grad():
        next(system.audio.parameters()).mul_(1.5)
    system.freeze_encoders()
    save_checkpoint(system, tmp_path)
    assert read_header(tmp_path)["encoders"]["audio"]["stored"]
    other = make_system(audio=system.audio.model.config)
    load_checkpoint(other, tmp_path)
    assert torch.equal(other(**inputs()), system(**inputs()))
    save_checkpoint(other, tmp_path)  # what came from a checkpoint goes into the next one
    assert read_header(tmp_path)["encoders"]["audio"]["stored"]
    save_checkpoint(system, tmp_path, encoders=True)
    monkeypatch.setenv("MMFUSE_WEIGHTS", "pretrained")  # not on this disk, and not asked for
    alone = open_checkpoint(tmp_path, device="cpu").eval()
    assert torch.allclose(alone(**inputs()), system(**inputs()), atol=1e-5)
    assert alone.vision.spec == system.vision.spec


def test_open_builds_the_saved_system(make_system, inputs, weights, tmp_path):
    system = make_system(preset="lightweight", fusion_dim=40, emg_channels=3, seed=9)
    save_checkpoint(system, tmp_path)
    opened = open_checkpoint(tmp_path, device="cpu", weights=weights).eval()
    batch = {**inputs(), "emg": torch.randn(2, 3, 99)}
    assert torch.equal(opened(**batch), system(**batch))


def test_the_node_loads_it(trained, weights, tmp_path, inputs):
    save_checkpoint(trained, tmp_path)
    flat = {
        "model.vision": str(weights / "vision"),
        "model.audio": str(weights / "audio"),
        "model.device": "cpu",
        "model.precision": "fp32",
    }
    plain = build_engine(Config.from_flat(flat))
    tuned = build_engine(Config.from_flat({**flat, "model.checkpoint": str(tmp_path)}))
    vectors = {n: v[0] for n, v in trained.encode(**inputs(1)).items() if n != "vision"}
    expected = trained.fuse({n: v[None] for n, v in vectors.items()})[0]
    assert torch.allclose(tuned.fuse(vectors), expected, atol=1e-5)
    assert not torch.allclose(plain.fuse(vectors), expected, atol=1e-2)
    assert len(tuned.info["checkpoint"]) == 64
    assert tuned.info["weights"] != plain.info["weights"]


def test_every_mismatch_is_listed(trained, make_system, weights, tmp_path):
    save_checkpoint(trained, tmp_path)
    other = make_system(
        preset="lightweight", emg_channels=4, fusion_dim=64, audio=weights / "hubert"
    )
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(other, tmp_path)
    for line in (
        'preset: checkpoint "balanced", system "lightweight"',
        'fusion: checkpoint {"dim": 512, "method": "concat_project"}, system {"dim": 64, ',
        'channels: checkpoint {"emg": 8, "pressure": 1}, system {"emg": 4, "pressure": 1}',
        "audio weights: checkpoint wav2vec2 ",
        "emg.lift.weight: checkpoint (256, 240), system (256, 120)",
        "fusion.project.weight: unknown to the system",
        "fusion.logits: missing in the checkpoint",
    ):
        assert line in str(caught.value), line
    assert all(torch.equal(t, before[n]) for n, t in other.state_dict().items())


def _rewrite(file, change=None, tensors=None):
    with safe_open(file, "pt") as content:
        header = json.loads(content.metadata()["mmfuse_checkpoint"])
    header.update(change or {})
    values = load_file(file)
    values.update(tensors or {})
    save_file(values, file, metadata={"mmfuse_checkpoint": json.dumps(header)})


def test_a_newer_format_is_refused(trained, tmp_path):
    file = save_checkpoint(trained, tmp_path)
    _rewrite(file, {"format_version": 2})
    with pytest.raises(CheckpointError, match=r"format 1 or older, got 2 .* update mmfuse_ros"):
        read_header(tmp_path)


def test_a_nan_is_refused(trained, make_system, tmp_path):
    file = save_checkpoint(trained, tmp_path)
    _rewrite(file, tensors={"pressure.mlp.0.bias": torch.full((128,), float("nan"))})
    with pytest.raises(CheckpointError, match=r"pressure\.mlp\.0\.bias holds NaN"):
        load_checkpoint(make_system(), tmp_path)


def test_a_header_that_asks_for_other_sizes_takes_no_memory(trained, tmp_path):
    file = save_checkpoint(trained, tmp_path)
    _rewrite(file, {"fusion": {"method": "concat_project", "dim": 2**40}})
    with pytest.raises(
        CheckpointError, match=r"fusion.dim of its tensors, 512, got 1099511627776"
    ):
        open_checkpoint(tmp_path, device="cpu")


def test_truncated_foreign_and_absent_files(trained, tmp_path):
    file = save_checkpoint(trained, tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="whole safetensors file"):
        read_header(tmp_path)
    file.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CheckpointError, match="whole safetensors file"):
        read_header(tmp_path)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="written by save_checkpoint"):
        read_header(tmp_path)
    with pytest.raises(CheckpointError, match=f"directory with {FILE_NAME}"):
        read_header(tmp_path / "nowhere")


def test_a_killed_writer_leaves_the_old_checkpoint(trained, inputs, weights, tmp_path):
    """The process dies in the middle of the write; what was there before is still whole."""
    save_checkpoint(trained, tmp_path)
    script = (
        "import os, sys, mmfuse_ros.model.checkpoint as c\n"
        "from mmfuse_ros import RoboticFeedbackSystem\n"
        "save = c.save_file\n"
        "def dying(tensors, path, metadata):\n"
        "    save(tensors, path, metadata=metadata); os.truncate(path, 999); os._exit(9)\n"
        "c.save_file = dying\n"
        "c.save_checkpoint(RoboticFeedbackSystem(device='cpu', seed=4, weights=sys.argv[1]),"
        " sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(weights), str(tmp_path)], check=False)
    assert done.returncode == 9
    opened = open_checkpoint(tmp_path, device="cpu", weights=weights).eval()
    assert torch.equal(opened(**inputs()), trained(**inputs()))


def test_no_pickle_in_the_package():
    """`torch.load` and `pickle` run code from a file; nothing here may read one with them."""
    root = pathlib.Path(__file__).parents[2] / "mmfuse_ros"
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("torch.load(", "torch.save(", "import pickle", "joblib", "allow_pickle=True"):
            assert word not in text, f"{path.name}: {word}"
