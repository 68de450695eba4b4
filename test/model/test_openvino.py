"""The OpenVINO backend against torch in fp32, and its compiled models on disk."""

import numpy as np
import pytest
import torch

from mmfuse_ros.errors import ConfigError
from mmfuse_ros.model import openvino_backend
from mmfuse_ros.model.runtime import Engine
from mmfuse_ros.samples import Signal

pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'mmfuse_ros[openvino]'")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mmfuse" / "openvino"


def window(seed, samples=8000):
    rng = np.random.default_rng(seed)
    images = {c: rng.integers(0, 256, (48, 64, 3), np.uint8) for c in ("camera_1", "camera_2")}
    audio = rng.normal(0, 0.1, (1, samples)).astype(np.float32)
    return images, {"audio": Signal(audio, 16000.0)}


def make(make_system, backend="openvino", precision="fp32"):
    return Engine(make_system(), precision=precision, backend=backend, audio_s=0.5)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999999), ("bf16", 0.999)])
def test_vectors_equal_torch(make_system, precision, least):
    plain = make(make_system, "torch")
    fast = make(make_system, precision=precision)
    assert fast.info["backend"] == "openvino"
    for seed in range(3):
        expected, got = plain.window(*window(seed)), fast.window(*window(seed))
        for name, vector in expected.items():
            cosine = torch.cosine_similarity(
                torch.from_numpy(vector), torch.from_numpy(got[name]), dim=0
            )
            assert cosine >= least, name


def test_one_camera_runs_in_the_model_for_two(make_system, cache):
    engine = make(make_system)
    files = len(list(cache.iterdir()))
    images, _ = window(3)
    both = engine.window(images, {})
    one = engine.window({"camera_2": images["camera_2"]}, {})
    np.testing.assert_allclose(one["camera_2"], both["camera_2"], atol=1e-5)
    assert len(list(cache.iterdir())) == files


def test_another_length_of_audio(make_system):
    plain, fast = make(make_system, "torch"), make(make_system)
    for samples in (4000, 12000, 8000):
        images, signals = window(0, samples)
        np.testing.assert_allclose(
            fast.window({}, signals)["audio"], plain.window({}, signals)["audio"], atol=1e-4
        )
    del images


def test_compiled_models_are_read_again(make_system, cache, monkeypatch):
    first = make(make_system).window(*window(0))
    assert len(list(cache.glob("*.blob"))) == 2
    monkeypatch.setattr(
        openvino_backend._Encoder, "_converted", lambda *a: pytest.fail("compiled again")
    )
    again = make(make_system).window(*window(0))
    assert np.array_equal(first["embedding"], again["embedding"])


def test_other_weights_are_another_file(make_system, cache):
    make(make_system)
    system = make_system()
    with torch.no_grad():
        next(system.vision.parameters()).add_(0.01)
    Engine(system, precision="fp32", backend="openvino", audio_s=0.5)
    assert len(list(cache.glob("vision-*.blob"))) == 2
    assert len(list(cache.glob("audio-*.blob"))) == 1


def test_a_damaged_file_is_made_anew(make_system, cache, caplog):
    expected = make(make_system).window(*window(0))["embedding"]
    for path in cache.glob("*.blob"):
        path.write_bytes(b"damaged")
    got = make(make_system).window(*window(0))["embedding"]
    assert "not usable, made anew" in caplog.text
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_cache_is_bounded(make_system, cache, monkeypatch):
    monkeypatch.setattr(openvino_backend, "_FILES", 2)
    engine = make(make_system)
    engine.window({}, window(0, 4000)[1])
    assert len(list(cache.glob("*.blob"))) == 2


def test_auto_takes_it_and_says_so(make_system):
    assert make(make_system, "auto").info["backend"] == "openvino"


def test_auto_goes_on_with_torch_and_says_so(make_system, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(openvino_backend._Encoder, "_converted", fail)
    engine = make(make_system, "auto")
    assert engine.info["backend"] == "torch"
    assert "OpenVINO failed: no such operation" in caplog.text
    with pytest.raises(RuntimeError, match="no such operation"):
        make(make_system, "openvino")


def test_it_is_for_the_cpu(make_system):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device to ask for")
    with pytest.raises(ConfigError, match="must run on the cpu"):
        Engine(make_system(), device="cuda", backend="openvino")
