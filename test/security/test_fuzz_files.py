"""Damaged files into every reader: its own error comes out or something that works, nothing else.

A small seeded budget runs by default; MMFUSE_FUZZ sets the number of inputs of each reader.
"""

from __future__ import annotations

import resource
import shutil
import time

import numpy as np
import pytest
import torch
from fuzz import BUDGET, mutate, mutate_json, mutate_safetensors, pick
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tiny import CLIP, WAV2VEC2, save_tiny_weights
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from mmfuse_ros.analysis import EmbeddingRetrieval
from mmfuse_ros.anomaly import Detector
from mmfuse_ros.cli.configuration import read_parameter_file
from mmfuse_ros.config import Config
from mmfuse_ros.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    InputError,
    StoreError,
)
from mmfuse_ros.model.checkpoint import load_checkpoint, open_checkpoint, save_checkpoint
from mmfuse_ros.model.loading import load_vision
from mmfuse_ros.model.preprocess import ImageSpec
from mmfuse_ros.model.system import RoboticFeedbackSystem
from mmfuse_ros.ros.bag import Bag

MAX_GROWTH_MB = 256  # of a reader over all its inputs, each of some 10 KB
MAX_SECONDS = 5.0  # of one input


def attack(count, damage, read, refusal):
    """Read `count` damaged files; `read` may raise `refusal` only, slowly or hungrily neither."""
    rng = np.random.default_rng(0)
    used = refused = 0
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(BUDGET or count):
        damage(rng)
        begun = time.monotonic()
        try:
            read()
            used += 1
        except refusal as error:
            assert str(error)  # noqa: PT017
            refused += 1
        except Exception as error:
            raise AssertionError(f"input {number} of seed 0") from error
        assert time.monotonic() - begun < MAX_SECONDS, f"input {number} of seed 0"
    # The damage must reach both sides of the checks.
    assert used > 0
    assert refused > 0
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    assert grown_mb < MAX_GROWTH_MB


def test_calibrations(tmp_path):
    rng = np.random.default_rng(0)
    normal = [
        {
            name: rng.normal(size=(6, dim)).astype(np.float32)
            for name, dim in (("audio", 4), ("emg", 3))
        }
        for _ in range(8)
    ]
    file = tmp_path / "calibration"
    Detector.fit(normal, alpha=0.05).save(file)
    whole = file.read_bytes()

    def read():
        result = Detector.load(file).score(normal[0])
        assert result.p.shape == (6,)
        assert (np.isnan(result.p) | ((result.p >= 0) & (result.p <= 1))).all()

    attack(
        600,
        lambda rng: file.write_bytes(mutate_safetensors(rng, whole)),
        read,
        (CalibrationError, InputError),
    )


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    return RoboticFeedbackSystem(
        fusion_dim=16,
        device="cpu",
        vision=CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP)),
        audio=Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC2)),
    )


@pytest.mark.parametrize("encoders", [False, True])
def test_checkpoints(system, tmp_path, encoders):
    file = save_checkpoint(system, tmp_path, encoders=encoders)
    whole = file.read_bytes()
    attack(
        150,
        lambda rng: file.write_bytes(mutate_safetensors(rng, whole)),
        lambda: load_checkpoint(system, file),
        CheckpointError,
    )


def test_checkpoints_that_say_how_to_build_the_system(system, tmp_path):
    file = save_checkpoint(system, tmp_path, encoders=True)
    whole = file.read_bytes()
    attack(
        60,
        lambda rng: file.write_bytes(mutate_safetensors(rng, whole)),
        lambda: open_checkpoint(file, device="cpu"),
        (CheckpointError, ConfigError),
    )


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        ("config.json", mutate_json),
        ("model.safetensors", mutate_safetensors),
        ("preprocessor_config.json", mutate_json),
    ],
)
def test_weights(tmp_path, name, damaged):
    folder, _ = save_tiny_weights(tmp_path)
    whole = (folder / name).read_bytes()
    spec = ImageSpec(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    attack(
        60,
        lambda rng: (folder / name).write_bytes(damaged(rng, whole)),
        lambda: load_vision(folder, spec),
        CheckpointError,
    )


@pytest.mark.parametrize("part", ["manifest.json", "segment-*.arrow"])
def test_stores_of_embeddings(tmp_path, part):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    rng = np.random.default_rng(0)
    store = EmbeddingRetrieval()
    rows = rng.normal(size=(20, 8)).astype(np.float32)
    store.add_batch(rows, ["a", "b"] * 10, [{"n": n} for n in range(20)], range(20))
    store.save(tmp_path / "store")
    (file,) = (tmp_path / "store").glob(part)
    whole = file.read_bytes()
    damaged = mutate_json if part == "manifest.json" else mutate

    def damage(rng):
        # A new file: the one before is mapped, and must not change under its reader.
        file.unlink()
        file.write_bytes(damaged(rng, whole)[: len(whole) if part != "manifest.json" else None])

    def read():
        found = EmbeddingRetrieval.load(tmp_path / "store")
        if len(found) and found.dimension == 8:
            found.search(rows[:2])

    attack(400, damage, read, StoreError)


STORAGES = {
    "mcap": (StoragePlugin.MCAP, None),
    "mcap_zstd": (StoragePlugin.MCAP, CompressionMode.STORAGE),
    "sqlite3": (StoragePlugin.SQLITE3, None),
    "sqlite3_messages": (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    "sqlite3_file": (StoragePlugin.SQLITE3, CompressionMode.FILE),
}


@pytest.mark.parametrize("part", ["metadata.yaml", "data"])
@pytest.mark.parametrize("storage", STORAGES)
def test_recordings(tmp_path, storage, part):
    plugin, compression = STORAGES[storage]
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    writer = Writer(whole, version=9, storage_plugin=plugin)
    if compression is not None:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    types = get_typestore(Stores.ROS2_JAZZY)
    text = types.types["std_msgs/msg/String"]
    with writer:
        for topic in ("/phase", "/other"):
            connection = writer.add_connection(topic, text.__msgtype__, typestore=types)
            for n in range(20):
                data = types.serialize_cdr(text("pour" * n), text.__msgtype__)
                writer.write(connection, 10**18 + n, data)
    shutil.copytree(whole, copy)
    (name,) = (
        p.name for p in whole.iterdir() if (p.name == "metadata.yaml") == (part == "metadata.yaml")
    )
    sound = (whole / name).read_bytes()

    def read():
        with Bag(copy) as bag:
            assert isinstance(bag.topics, dict)
            assert bag.duration_s >= 0
            assert bag.messages >= 0
            for record in bag.records({"/phase"}):
                assert len(record.data) < 2**20

    attack(120, lambda rng: (copy / name).write_bytes(mutate(rng, sound)), read, InputError)


def test_parameter_files(tmp_path):
    file = tmp_path / "parameters.yaml"
    whole = (
        b"/**:\n  ros__parameters:\n    model:\n      preset: balanced\n      seed: 1\n"
        b"    anomaly: {alpha: 0.05, debounce_k: 1}\n    camera_1.offset_s: 0.5\n"
        b"    emg:\n      channels: 8\n"
    )

    def damage(rng):
        extra = pick(rng, [b"", b"    pressure: [1, 2]\n", b"? x\n", b"    sync: &a {x: *a}\n"])
        file.write_bytes(mutate(rng, whole) + extra)

    attack(400, damage, lambda: Config.from_flat(read_parameter_file(file)), ConfigError)
