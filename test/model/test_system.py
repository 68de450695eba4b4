"""The whole model: shapes, equality with the reference, independence of the batch, errors."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from mmfuse_ros.errors import ConfigError, InputError

METHODS = ("concat_project", "weighted_sum", "attention")


@pytest.mark.parametrize("method", METHODS)
def test_fused_shape_and_modalities(make_system, inputs, method):
    system = make_system(fusion_method=method, fusion_dim=64)
    fused, parts = system(**inputs(3), return_modality_embeddings=True)
    assert fused.shape == (3, 64)
    shapes = {name: tuple(vector.shape) for name, vector in parts.items()}
    assert shapes == {
        "vision": (3, 24),
        "audio": (3, 48),
        "pressure": (3, 256),
        "emg": (3, 256),
        "camera_1": (3, 24),
        "camera_2": (3, 24),
    }
    assert torch.allclose(parts["vision"], (parts["camera_1"] + parts["camera_2"]) / 2)
    assert torch.equal(parts.fuse(parts), fused)


@pytest.mark.parametrize("preset", ["lightweight", "balanced", "high_capacity"])
def test_preset_sets_dim_and_method(make_system, preset):
    system = make_system(preset=preset)
    expected = {
        "lightweight": (256, "weighted_sum"),
        "balanced": (512, "concat_project"),
        "high_capacity": (768, "attention"),
    }
    assert (system.fusion_dim, system.fusion_method) == expected[preset]


def test_use_attention_selects_attention(make_system):
    assert make_system(use_attention=True).fusion_method == "attention"
    with pytest.raises(ConfigError, match="weighted_sum"):
        make_system(use_attention=True, fusion_method="weighted_sum")


@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_depend_on_the_batch(make_system, inputs, method):
    system = make_system(fusion_method=method)
    batch = inputs(16)
    with torch.no_grad():
        whole = system(**batch)
        for row in (0, 7, 15):
            cut = slice(row, row + 1)
            single = system(
                camera_images={k: v[cut] for k, v in batch["camera_images"].items()},
                **{k: batch[k][cut] for k in ("audio", "pressure", "emg")},
            )
            assert torch.allclose(single[0], whole[row], atol=2e-5), row


_PROBE = """
import sys
import numpy as np
import torch
from transformers import CLIPVisionConfig, Wav2Vec2Config
from mmfuse_ros import RoboticFeedbackSystem

def embed(rows):
    clip = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                            num_attention_heads=2, image_size=32, patch_size=8)
    speech = Wav2Vec2Config(hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                            num_attention_heads=2, conv_dim=(16,), conv_kernel=(10,),
                            conv_stride=(40,), num_conv_pos_embeddings=16,
                            num_conv_pos_embedding_groups=4)
    system = RoboticFeedbackSystem(device="cpu", vision=clip, audio=speech, seed=5).eval()
    t = torch.linspace(0, 1, 4000).repeat(rows, 1)
    with torch.no_grad():
        fused = system(
            {"camera1": t[:, :3072].reshape(-1, 3, 32, 32)},
            torch.sin(400 * t),
            t * 9,
            torch.cos(t[:, None] * torch.arange(8)[:, None] * 50),
        )
    return fused.numpy()

if __name__ == "__main__":
    torch.manual_seed(99)
    np.save(sys.argv[1], embed(1))
"""


def test_same_seed_same_embedding_in_another_process_and_batch(tmp_path):
    """The other process has another global generator, and a batch of one."""
    file = tmp_path / "there.npy"
    subprocess.run([sys.executable, "-c", _PROBE, str(file)], check=True)
    namespace = {"__name__": "probe"}
    exec(_PROBE, namespace)
    here = namespace["embed"](16)
    assert np.abs(here - np.load(file)).max() < 1e-5


def test_building_leaves_the_global_generator_alone(make_system):
    torch.manual_seed(42)
    expected = torch.rand(3)
    torch.manual_seed(42)
    make_system(weights="random", vision=None, audio=None, preset="lightweight")
    assert torch.equal(torch.rand(3), expected)


def test_seed_changes_the_weights(make_system, inputs):
    one, other = make_system(seed=1), make_system(seed=2)
    assert not torch.allclose(one(**inputs()), other(**inputs()))


def test_vision_equals_the_reference(make_system, clip_model):
    """Same tensor, same weights: our vector is CLIPVisionModelWithProjection's."""
    system = make_system()
    pixels = torch.rand(4, 3, 32, 32)
    mean = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
    std = torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = clip_model(pixel_values=(pixels - mean) / std).image_embeds
        got = system.encode({"camera1": pixels})["vision"]
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["audio", "hubert"])
def test_audio_equals_the_reference(make_system, weights, kind):
    """With and without the extractor's standardisation, Wav2Vec2 and HuBERT."""
    from transformers import AutoModel

    system = make_system(audio=weights / kind)
    wave = torch.rand(2, 5000) - 0.3
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(weights / kind)
    values = extractor(list(wave.numpy()), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = AutoModel.from_pretrained(weights / kind).eval()(values).last_hidden_state
        got = system.encode(audio=wave)["audio"]
    assert (got - expected.mean(dim=1)).abs().max() < 1e-4


def test_the_shortest_audio_makes_one_frame(make_system, speech_model):
    system = make_system()
    samples = system.audio.min_samples
    with torch.no_grad():
        assert speech_model(torch.randn(1, samples)).last_hidden_state.shape[1] == 1
    assert torch.isfinite(system(audio=torch.rand(1, samples))).all()
    with pytest.raises(InputError, match=f"at least {samples} samples"):
        system(audio=torch.rand(1, samples - 1))


def test_absent_modalities_change_the_vector_and_any_subset_works(make_system, inputs):
    system, batch = make_system(), inputs(1)
    full = system(**batch)
    for name in ("camera_images", "audio", "pressure", "emg"):
        without = system(**{k: v for k, v in batch.items() if k != name})
        assert without.shape == full.shape
        assert not torch.allclose(without, full)
        assert torch.isfinite(system(**{name: batch[name]})).all()
    one_camera = {"camera_2": batch["camera_images"]["camera2"]}
    parts = system.encode(one_camera)
    assert set(parts) == {"vision", "camera_2"}
    assert torch.equal(parts["vision"], parts["camera_2"])


def test_fuse_with_row_masks_equals_fusing_each_subset(make_system, inputs):
    """All 32 subsets in one batch, from one row of vectors."""
    system = make_system()
    parts = system.encode(**inputs(1))
    names = ("camera_1", "camera_2", "audio", "pressure", "emg")
    subsets = [[bool(i >> k & 1) for k in range(5)] for i in range(32)]
    masks = {n: torch.tensor([s[k] for s in subsets]) for k, n in enumerate(names)}
    with torch.no_grad():
        batch = system.fuse({n: parts[n] for n in names}, masks)
        assert batch.shape == (32, 512)
        assert torch.allclose(system.fuse(parts, masks), batch)
        for i in (1, 2, 3, 6, 21, 31):
            chosen = {n: parts[n] for k, n in enumerate(names) if subsets[i][k]}
            assert torch.allclose(system.fuse(chosen)[0], batch[i], atol=1e-5), i


def test_a_masked_row_ignores_its_vector(make_system, inputs):
    system = make_system()
    parts = system.encode(**inputs(1))
    broken = {**parts, "audio": torch.full_like(parts["audio"], float("nan"))}
    got = system.fuse(broken, {"audio": False})
    assert torch.equal(got, system.fuse({n: v for n, v in parts.items() if n != "audio"}))


def _cameras(image):
    return {"camera_images": {"camera1": image}}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ({}, "at least one of camera_images, audio, pressure, emg"),
        (_cameras(torch.rand(3, 32, 32)), r"\(B, 3, H, W\) RGB, got \(3, 32, 32\)"),
        (_cameras(torch.rand(1, 32, 32, 3)), r"permute\(0, 3, 1, 2\)"),
        (_cameras(torch.rand(1, 3, 32, 32) * 255), r"in \[0, 1\], got .* divide bytes by 255"),
        (_cameras(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "uint8; divide bytes by 255"),
        (_cameras(torch.full((1, 3, 32, 32), float("nan"))), "finite, got 3072 NaN"),
        (_cameras(np.zeros((1, 3, 32, 32))), "torch.Tensor .* got ndarray; torch.from_numpy"),
        ({"camera_images": {"left": torch.rand(1, 3, 32, 32)}}, "camera1, camera2.* got 'left'"),
        ({"camera_images": torch.rand(1, 3, 32, 32)}, "dict with keys camera1 and camera2"),
        ({"audio": torch.rand(1, 1, 4000)}, r"\(B, samples\), mono, got \(1, 1, 4000\)"),
        ({"audio": torch.full((1, 4000), 12000.0)}, "divide int16 samples by 32768"),
        ({"audio": torch.zeros(1, 4000, dtype=torch.int16)}, "floating-point .* torch.int16"),
        ({"audio": torch.rand(1, 50)}, "at least .* samples .* got 50"),
        (
            {"audio": torch.rand(1, 4000), "audio_rate_hz": 44100},
            "16000 Hz, got 44100 Hz; resample",
        ),
        ({"pressure": torch.rand(1, 2, 50)}, r"pressure must be .* got \(1, 2, 50\)"),
        ({"emg": torch.rand(1, 50)}, r"emg must be \(B, 8, T\), got \(1, 50\); .*emg_channels"),
        ({"emg": torch.full((1, 8, 50), float("inf"))}, "emg must be finite, got 400"),
        (
            {"pressure": torch.rand(2, 50), "audio": torch.rand(3, 4000)},
            "same batch size, got audio 3, pressure 2",
        ),
    ],
)
def test_wrong_input_says_what_was_expected_and_what_came(make_system, call, match):
    with pytest.raises(InputError, match=match):
        make_system()(**call)


@pytest.mark.parametrize(
    ("vectors", "present", "match"),
    [
        ({}, {}, "got none"),
        ({"text": torch.rand(1, 8)}, {}, "got .'text'."),
        ({"audio": torch.rand(1, 8)}, {}, r"audio must be \(B, 48\), got \(1, 8\)"),
        ({"audio": torch.rand(2, 48), "emg": torch.rand(3, 256)}, {}, "3 rows or one, got 2"),
        ({"audio": torch.rand(2, 48)}, {"audio": torch.ones(3, dtype=torch.bool)}, "mask of 3"),
    ],
)
def test_fuse_refuses(make_system, vectors, present, match):
    with pytest.raises(InputError, match=match):
        make_system().fuse(vectors, present)


def test_mildly_wrong_range_warns_once_and_runs(make_system):
    system = make_system()
    images = {"camera1": torch.randn(1, 3, 32, 32)}
    with pytest.warns(UserWarning, match=r"camera1 must be in \[0, 1\], got"):
        system(camera_images=images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        system(camera_images=images)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fusion_method": "bilinear"}, "concat_project, weighted_sum, attention, got 'bilinear'"),
        ({"preset": "huge"}, "lightweight, balanced, high_capacity, got 'huge'"),
        ({"device": "tpu"}, "auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"fusion_dim": 30, "fusion_method": "attention"}, "multiple of the 8 .* got 30"),
        ({"fusion_dim": 0}, "at least 1, got 0"),
        ({"weights": "some"}, "'pretrained', 'random' or a directory .* got 'some'"),
    ],
)
def test_wrong_option_is_named(make_system, options, match):
    with pytest.raises(ConfigError, match=match):
        make_system(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_gpu_is_an_error(make_system):
    with pytest.raises(ConfigError, match="'cuda' with 0 CUDA devices"):
        make_system(device="cuda")
