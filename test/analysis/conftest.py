"""Tiny weights of the real encoder classes, as a directory that MMFUSE_WEIGHTS names."""

import json

import pytest
import torch

torch.set_num_threads(1)

PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Model,
    )

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=24)
    CLIPVisionModelWithProjection(vision).save_pretrained(root / "vision")
    (root / "vision" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    audio = Wav2Vec2Config(
        **sizes,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 8, 8),
        conv_stride=(8, 8, 5),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    Wav2Vec2Model(audio).save_pretrained(root / "audio")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / "audio")
    return root


@pytest.fixture
def tiny_models(tiny_weights, monkeypatch):
    """Let RoboticFeedbackSystem() load the tiny weights."""
    monkeypatch.setenv("MMFUSE_WEIGHTS", str(tiny_weights))
