"""Tiny checkpoints of the real classes, laid out as on a hub."""

from __future__ import annotations

import json

_TRANSFORMER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CLIP = {**_TRANSFORMER, "image_size": 32, "patch_size": 8, "projection_dim": 16}
WAV2VEC2 = {
    **_TRANSFORMER,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (5, 8, 8),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def save_tiny_weights(root):
    """Save a CLIP and a Wav2Vec2 checkpoint under `root`; return their paths."""
    import torch
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        Wav2Vec2Config,
        Wav2Vec2Model,
    )

    torch.manual_seed(0)
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP))
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
    audio = Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC2))
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
    return root / "vision", root / "audio"
