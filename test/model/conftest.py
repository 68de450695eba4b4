"""Tiny encoders of the real `transformers` classes, and the real recordings."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)
from transformers.models.clip import image_processing_clip as clip_processing

from mmfuse_ros.model.system import RoboticFeedbackSystem

torch.set_num_threads(1)

TINY_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 24,
}
TINY_SPEECH = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 8),
    "conv_stride": (8, 8, 5),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(scope="session")
def clip_model():
    torch.manual_seed(1)
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**TINY_CLIP)).eval()


@pytest.fixture(scope="session")
def speech_model():
    torch.manual_seed(2)
    return Wav2Vec2Model(Wav2Vec2Config(**TINY_SPEECH)).eval()


@pytest.fixture(scope="session")
def weights(tmp_path_factory, clip_model, speech_model):
    """A directory with `vision` and `audio` in it, as a user would save pretrained weights."""
    root = tmp_path_factory.mktemp("weights")
    clip_model.save_pretrained(root / "vision")
    _processor().save_pretrained(root / "vision")
    speech_model.save_pretrained(root / "audio")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / "audio")
    torch.manual_seed(3)
    hubert = HubertModel(HubertConfig(**TINY_SPEECH, feat_proj_layer_norm=False))
    hubert.save_pretrained(root / "hubert")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(root / "hubert")
    return root


def _processor(side=32):
    """CLIP's image processor, the one that resizes with PIL."""
    try:
        from transformers.models.clip.image_processing_pil_clip import (
            CLIPImageProcessorPil as kind,
        )
    except ImportError:  # transformers 4: the only one
        kind = clip_processing.CLIPImageProcessor
    return kind(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.25, 0.3],
    )


@pytest.fixture(scope="session")
def clip_processor():
    return _processor


@pytest.fixture(scope="session")
def tiny_clip():
    return TINY_CLIP


@pytest.fixture
def make_system(weights):
    """Build a tiny system on the CPU."""

    def make(**options):
        options = {"device": "cpu", "weights": weights, **options}
        return RoboticFeedbackSystem(**options).eval()

    return make


@pytest.fixture
def inputs():
    """Make one call's inputs, all five streams, of a seed."""

    def make(rows=2, seed=0):
        g = torch.Generator().manual_seed(seed)
        return {
            "camera_images": {
                "camera1": torch.rand(rows, 3, 48, 64, generator=g),
                "camera2": torch.rand(rows, 3, 40, 40, generator=g),
            },
            "audio": torch.rand(rows, 4000, generator=g) - 0.5,
            "pressure": torch.randn(rows, 300, generator=g) * 5 + 20,
            "emg": torch.randn(rows, 8, 300, generator=g) * 1e-4,
        }

    return make


@pytest.fixture(scope="session")
def recordings():
    """Folder of the real recordings."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real recordings in ../shared/data, which are not here")
    return folder


@pytest.fixture(scope="session")
def video_frames(recordings):
    """Real frames, (H, W, 3) uint8, every 12th of three clips."""
    from PIL import Image, ImageSequence

    frames = []
    for path in sorted((recordings / "fino").glob("*.gif")):
        with Image.open(path) as clip:
            for i, frame in enumerate(ImageSequence.Iterator(clip)):
                if i % 12 == 0:
                    frames.append(np.asarray(frame.convert("RGB")).copy())
    return frames
