"""Fixtures: tiny real weights on disk, nodes as processes, a robot that publishes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from harness import NodeProcess, Robot, isolate  # noqa: E402


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """Save tiny CLIP and Wav2Vec2 checkpoints, of the real classes, laid out as on a hub."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Wav2Vec2Config,
        Wav2Vec2Model,
    )

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=16,
        )
    )
    vision.save_pretrained(root / "vision")
    processor = {
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 32},
    }
    (root / "vision" / "preprocessor_config.json").write_text(json.dumps(processor))
    audio = Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            conv_dim=(16, 16, 16),
            conv_kernel=(10, 8, 4),
            conv_stride=(5, 8, 8),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        )
    )
    audio.save_pretrained(root / "audio")
    extractor = {
        "do_normalize": True,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }
    (root / "audio" / "preprocessor_config.json").write_text(json.dumps(extractor))
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
