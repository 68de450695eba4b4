"""The buffers and the body of a window's CUDA graph, with a recorder that stands in on a CPU.

What a CPU cannot show (streams, capture, replay) is measured by bench/gpu.py on a GPU.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmfuse_ros.model import graphs
from mmfuse_ros.model.backends import TorchBackend
from mmfuse_ros.model.graphs import CudaRecorder, WindowGraphs
from mmfuse_ros.model.runtime import Engine
from mmfuse_ros.samples import Modality, Signal


class Again:
    """Runs a recorded body once more, as a replay does on a GPU."""

    def __init__(self):
        self.recorded = 0
        self.waits = 0

    def together(self, jobs):
        for job in jobs:
            job()

    def record(self, body):
        self.recorded += 1
        body()
        return body

    def wait(self):
        self.waits += 1


@pytest.fixture
def engine(make_system):
    return Engine(make_system(), precision="fp32", backend="torch")


@pytest.fixture
def recorder():
    return Again()


@pytest.fixture
def windows(engine, recorder):
    return WindowGraphs(engine._system, TorchBackend(engine._system, "fp32"), recorder)


def make(seed, size=(40, 60), streams=tuple(Modality)):
    rng = np.random.default_rng(seed)
    images = {m.value: rng.integers(0, 256, (*size, 3), np.uint8) for m in streams if m.is_camera}
    shapes = {"audio": (1, 4000), "pressure": (1, 300), "emg": (8, 300)}
    signals = {
        m.value: rng.normal(0, 0.1, shapes[m.value]).astype(np.float32)
        for m in streams
        if not m.is_camera
    }
    return images, signals


def plain(engine, images, signals):
    rates = {"audio": 16000.0, "pressure": 1000.0, "emg": 1000.0}
    return engine.window(images, {n: Signal(v, rates[n]) for n, v in signals.items()})


def test_recorded_windows_equal_the_plain_path(engine, windows, recorder):
    """Later windows through the same buffers, too: nothing of an earlier one stays."""
    for seed in range(4):
        images, signals = make(seed)
        got = windows.run(images, signals, at_once=True)
        expected = plain(engine, images, signals)
        assert list(got) == ["embedding", *Modality]
        for name, vector in expected.items():
            np.testing.assert_allclose(got[name], vector, atol=2e-5)
    assert recorder.recorded == 1
    assert recorder.waits == 4


@pytest.mark.parametrize(
    "streams",
    [
        (Modality.CAMERA_2,),
        (Modality.AUDIO,),
        (Modality.EMG,),
        (Modality.CAMERA_1, Modality.PRESSURE),
        (Modality.AUDIO, Modality.PRESSURE, Modality.EMG),
    ],
)
def test_missing_streams_are_missing(engine, windows, streams):
    images, signals = make(5, streams=streams)
    got = windows.run(images, signals, at_once=True)
    assert set(got) == {"embedding", *streams}
    np.testing.assert_allclose(
        got["embedding"], plain(engine, images, signals)["embedding"], atol=2e-5
    )


def test_results_are_the_callers_own(windows):
    first = windows.run(*make(1), at_once=True)
    kept = first["embedding"].copy()
    windows.run(*make(2))
    assert np.array_equal(first["embedding"], kept)


def test_a_rare_shape_is_not_recorded_at_once(windows, recorder):
    results = [windows.run(*make(k, size=(50, 50))) for k in range(4)]
    assert [r is None for r in results] == [True, True, False, False]
    assert recorder.recorded == 1


def test_recordings_and_shapes_are_bounded(windows, monkeypatch):
    monkeypatch.setattr(graphs, "_GRAPHS", 2)
    for height in range(33, 38):
        windows.run(*make(0, size=(height, 40)), at_once=True)
    assert len(windows._graphs) == 2
    for height in range(100, 300):
        windows.run(*make(0, size=(height, 40), streams=(Modality.CAMERA_1,)))
    assert len(windows._seen) <= 65


class NoHost(TorchDispatchMode):
    """Refuses what a CUDA recording cannot hold: a value for the host, a tensor of numbers."""

    FORBIDDEN = ("item", "_local_scalar_dense", "nonzero", "is_nonzero", "lift_fresh", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.FORBIDDEN, f"{func} needs the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fusion", ["concat_project", "weighted_sum", "attention"])
def test_the_recorded_work_never_asks_the_host(make_system, fusion):
    system = make_system(fusion_method=fusion).requires_grad_(False)
    bodies = []

    class Keep(Again):
        def record(self, body):
            bodies.append(body)
            return super().record(body)

    WindowGraphs(system, TorchBackend(system, "bf16"), Keep()).run(*make(0), at_once=True)
    with torch.inference_mode(), NoHost():
        bodies[0]()
        with pytest.raises(AssertionError, match="needs the host"):
            torch.ones(1).item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_equal_the_plain_path(make_system):
    engine = Engine(make_system(), device="cuda", precision="fp32")
    engine_plain = Engine(make_system(), device="cuda", precision="fp32")
    engine_plain._graphs = None
    assert isinstance(engine._graphs._recorder, CudaRecorder)
    for seed in range(6):
        images, signals = make(seed)
        got, expected = plain(engine, images, signals), plain(engine_plain, images, signals)
        for name in expected:
            np.testing.assert_allclose(got[name], expected[name], atol=1e-4)
    assert engine._graphs._graphs
