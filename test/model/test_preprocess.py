"""Pixels and samples against the reference processors."""

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from mmfuse_ros.errors import InputError
from mmfuse_ros.model.loading import load_vision, make_config
from mmfuse_ros.model.preprocess import (
    AudioSpec,
    ImageSpec,
    normalize_audio,
    normalize_image,
    resample_audio,
    resize_and_crop,
)
from mmfuse_ros.model.presets import get_config

SPEC = ImageSpec(224, 224, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def _ours(frame):
    return resize_and_crop(torch.from_numpy(frame).permute(2, 0, 1)[None], SPEC)


def _enlarged(frame, height, width):
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("size", [(480, 640), (720, 1280), (333, 225), (120, 160)])
def test_bytes_are_resized_as_pillow_does(video_frames, clip_processor, size):
    """Real frames at camera sizes: within a step or two of the reference's 8-bit result."""
    frame = _enlarged(video_frames[3], *size).copy()
    expected = clip_processor(224)(frame, return_tensors="pt")["pixel_values"]
    got = normalize_image(_ours(frame), SPEC)
    step = 1 / 255 / min(SPEC.std)
    assert (got - expected).abs().max() < 2.5 * step
    assert (got - expected).abs().mean() < 0.25 * step


def test_floats_take_the_same_picture(video_frames):
    frame = _enlarged(video_frames[3], 480, 640).copy()
    floats = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
    smooth = resize_and_crop(floats, SPEC)
    assert smooth.min() >= 0
    assert smooth.max() <= 1
    assert (smooth - _ours(frame) / 255).abs().max() < 2.5 / 255


def test_embeddings_of_resized_frames_match_the_reference(video_frames, clip_processor):
    """Cosine above 0.999 through the lightweight tower, also about the mean of the frames.

    Vectors of untrained weights lie close together; without their mean the test is sharper.
    """
    config = get_config("lightweight")
    encoder = load_vision(make_config(config.vision.architecture), SPEC, seed=3)
    frames = [_enlarged(f, 480, 640).copy() for f in video_frames[::3]]
    with torch.no_grad():
        expected = encoder.encode(clip_processor(224)(frames, return_tensors="pt")["pixel_values"])
        got = encoder(torch.cat([_ours(f) for f in frames]))
    assert torch.cosine_similarity(got, expected).min() > 0.9999
    mean = expected.mean(dim=0)
    assert torch.cosine_similarity(got - mean, expected - mean).min() > 0.999


def test_a_picture_of_the_right_size_is_not_touched():
    image = torch.rand(2, 3, 224, 224)
    assert torch.equal(resize_and_crop(image, SPEC), image)


@pytest.mark.parametrize("do_normalize", [True, False])
def test_audio_equals_the_feature_extractor(do_normalize):
    wave = np.random.default_rng(0).normal(0.1, 0.2, (3, 5000)).astype(np.float32)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    expected = extractor(list(wave), sampling_rate=16000, return_tensors="pt").input_values
    got = normalize_audio(torch.from_numpy(wave), AudioSpec(16000, do_normalize))
    assert (got - expected).abs().max() < 1e-5


def test_silence_stays_finite():
    assert torch.equal(normalize_audio(torch.zeros(1, 100), AudioSpec()), torch.zeros(1, 100))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_keeps_a_tone_and_removes_what_would_alias(rate):
    time_s = np.arange(rate) / rate
    low = np.sin(2 * np.pi * 1000 * time_s)
    high = np.sin(2 * np.pi * 0.45 * rate * time_s) if rate > 20000 else 0 * time_s
    got = resample_audio((low + high)[None].astype(np.float32), rate, 16000)
    assert got.shape == (1, 16000)
    assert got.dtype == np.float32
    expected = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert np.abs(got[0, 500:-500] - expected[500:-500]).max() < 0.02


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), 1.0, 1e9])
def test_an_absurd_rate_is_refused(rate):
    with pytest.raises(InputError, match="audio rate must be"):
        resample_audio(np.zeros((1, 100), np.float32), rate, 16000)
