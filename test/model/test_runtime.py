"""The engine that the node runs."""

import weakref

import numpy as np
import pytest
import torch

from mmfuse_ros.config import Config
from mmfuse_ros.errors import ConfigError, InputError, ModelError
from mmfuse_ros.model import runtime
from mmfuse_ros.model.runtime import Engine, build_engine
from mmfuse_ros.samples import Modality, Signal


@pytest.fixture
def window():
    rng = np.random.default_rng(0)
    images = {
        "camera_2": rng.integers(0, 256, (40, 60, 3), np.uint8),
        "camera_1": rng.integers(0, 256, (48, 64, 3), np.uint8),
    }
    signals = {
        "emg": Signal(rng.normal(0, 1e-4, (8, 400)).astype(np.float32), 1000.0),
        "audio": Signal(rng.normal(0, 0.1, (1, 8000)).astype(np.float32), 16000.0),
        "pressure": Signal(rng.normal(20, 1, (1, 400)).astype(np.float32), 1000.0),
    }
    return images, signals


@pytest.fixture
def engine(make_system):
    return Engine(make_system(), precision="fp32")


def test_encode_fuse_fetch(engine, window):
    vectors = engine.encode(*window)
    assert list(vectors) == [m.value for m in Modality]
    fetched = engine.fetch({**vectors, "embedding": engine.fuse(vectors)})
    assert {n: v.shape for n, v in fetched.items()} == {
        **{n: (d,) for n, d in engine.info["dims"].items()},
        "embedding": (512,),
    }
    assert np.array_equal(fetched["audio"], engine.fetch(vectors["audio"]))
    assert all(v.dtype == np.float32 and np.isfinite(v).all() for v in fetched.values())


def test_engine_equals_the_library(make_system, window):
    """One implementation: the node's vector is the module's, but for the resize of bytes."""
    images, signals = window
    images = {n: i[:32, :32] for n, i in images.items()}  # no resize: the same pixels
    system = make_system()
    with torch.no_grad():
        expected = system(
            camera_images={
                n: torch.from_numpy(i.copy()).permute(2, 0, 1)[None] / 255
                for n, i in images.items()
            },
            **{n: torch.from_numpy(s.values) for n, s in signals.items() if n == "audio"},
            **{n: torch.from_numpy(s.values)[None] for n, s in signals.items() if n != "audio"},
        )
    engine = Engine(system, precision="fp32")
    got = engine.fetch(engine.fuse(engine.encode(images, signals)))
    assert np.abs(got - expected[0].numpy()).max() < 1e-4


@pytest.mark.parametrize("name", [m.value for m in Modality])
def test_one_stream_is_enough(engine, window, name):
    images, signals = window
    vectors = engine.encode(
        {n: v for n, v in images.items() if n == name},
        {n: v for n, v in signals.items() if n == name},
    )
    assert list(vectors) == [name]
    assert engine.fetch(engine.fuse(vectors)).shape == (512,)


def test_audio_of_another_rate_is_resampled(engine):
    """A tone recorded at 44.1 kHz encodes as the same tone at 16 kHz."""
    vectors = []
    for rate in (16000, 44100):
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        signal = Signal(tone[None].astype(np.float32), float(rate))
        vectors.append(engine.encode({}, {"audio": signal})["audio"])
    assert torch.cosine_similarity(*vectors, dim=0) > 0.999


def test_bf16_stays_close_and_is_reported(make_system, window):
    exact = Engine(make_system(), precision="fp32")
    fast = Engine(make_system(), precision="bf16")
    assert fast.info["precision"] == "bf16"
    a, b = (e.fuse(e.encode(*window)) for e in (exact, fast))
    assert b.dtype == torch.float32
    assert torch.cosine_similarity(a, b, dim=0) > 0.999


def test_a_precision_that_strays_is_refused(make_system, monkeypatch):
    monkeypatch.setattr(runtime, "MIN_COSINE", 0.9999999999)
    with pytest.raises(ConfigError, match=r"'bf16' must keep a cosine of .* got 0\.9\d+ for"):
        Engine(make_system(), precision="bf16")


@pytest.mark.parametrize(
    ("images", "signals", "match"),
    [
        ({"camera_1": np.zeros((4, 4, 3), np.float32)}, {}, "camera_1 must be a uint8 array"),
        ({"camera_1": np.zeros((4, 4), np.uint8)}, {}, r"\(H, W, 3\) RGB, got \(4, 4\)"),
        ({"camera_3": np.zeros((4, 4, 3), np.uint8)}, {}, "got 'camera_3'"),
        ({}, {"emg": np.zeros((4, 100))}, r"emg must be \(8, samples\), got \(4, 100\)"),
        ({}, {"pressure": np.full((1, 9), np.nan)}, "pressure must be finite"),
        ({}, {"audio": np.zeros((1, 40))}, "audio must last at least .* got 0.0025 s"),
    ],
)
def test_wrong_input_is_named(engine, images, signals, match):
    signals = {n: Signal(v.astype(np.float32), 16000.0) for n, v in signals.items()}
    with pytest.raises(InputError, match=match):
        engine.encode(images, signals)


def test_read_only_and_mirrored_images_are_taken(engine):
    image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
    bgr = np.ascontiguousarray(image[..., ::-1])
    image.setflags(write=False)
    plain = engine.encode({"camera_1": image}, {})["camera_1"]
    assert torch.equal(plain, engine.encode({"camera_1": bgr[..., ::-1]}, {})["camera_1"])


def test_build_engine_from_a_node_configuration(weights):
    config = Config.from_flat(
        {
            "model.vision": str(weights / "vision"),
            "model.audio": str(weights / "hubert"),
            "model.device": "cpu",
            "model.precision": "fp32",
            "model.fusion": "attention",
            "emg.channels": 4,
            "pressure.channels": 6,
        }
    )
    engine = build_engine(config)
    engine.warm_up()
    info = engine.info
    assert info["fusion"] == "attention"
    assert info["encoders"]["audio"]["name"] == "hubert"
    assert len(info["weights"]) == 64
    assert str(weights) not in str(info)
    engine.close()


def test_random_weights_are_named(weights):
    flat = {"model.weights": "random", "model.vision": str(weights / "vision")}
    engine = build_engine(
        Config.from_flat({**flat, "model.preset": "lightweight", "model.device": "cpu"})
    )
    assert engine.info["weights"] == "random"
    assert engine.info["encoders"]["audio"]["weights"] == "random"
    assert engine.info["encoders"]["vision"]["weights"] != "random"


def test_an_unknown_backend_is_refused(make_system):
    with pytest.raises(ConfigError, match="'tensorrt'"):
        Engine(make_system(), backend="tensorrt")


def test_out_of_memory_is_named_and_what_was_held_is_released(engine, window, monkeypatch):
    """A double: the backend raises as CUDA does, with a tensor of the window in its hands."""
    held, freed = [], []

    def vision(pixels):
        work = pixels.clone()
        held.append(weakref.ref(work))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    def empty_cache():
        freed.append(held[0]() is None)

    monkeypatch.setattr(engine._backend, "vision", vision)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    with pytest.raises(ModelError, match=r"Tried to allocate 2\.00 GiB\.; end other programs"):
        engine.window(*window)
    assert freed == [True]
    monkeypatch.undo()
    assert engine.window(*window)["embedding"].shape == (512,)
