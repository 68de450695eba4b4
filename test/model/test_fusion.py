"""The untrained fusion keeps the geometry of its inputs."""

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from torch import nn

from mmfuse_ros.model.encoders import SensorEncoder, seeded, statistics
from mmfuse_ros.model.fusion import make_fusion

METHODS = ("concat_project", "weighted_sum", "attention")
NAMES = ("vision", "audio", "pressure", "emg")


@pytest.fixture(scope="session")
def real_vectors(recordings, video_frames, weights):
    """Vectors of 64 windows from real recordings, each stream drawn on its own."""
    from mmfuse_ros.model.system import RoboticFeedbackSystem

    rng = np.random.default_rng(0)
    waves = [wavfile.read(p)[1] / 32768 for p in sorted((recordings / "bldc").glob("*.wav"))]
    emg = np.loadtxt(sorted((recordings / "emg").glob("*.txt"))[0], skiprows=1)[:, 1:9].T
    blocks = (recordings / "force_torque" / "lp1.data").read_text().split("\n\n")
    forces = [np.loadtxt(b.strip().splitlines()[1:]) for b in blocks if b.strip()]

    def piece(signal, samples):
        begin = rng.integers(signal.shape[-1] - samples)
        return signal[..., begin : begin + samples]

    rows = {"camera": [], "audio": [], "pressure": [], "emg": []}
    for _ in range(64):
        rows["camera"].append(video_frames[rng.integers(len(video_frames))])
        rows["audio"].append(piece(waves[rng.integers(len(waves))], 16000))
        rows["pressure"].append(forces[rng.integers(len(forces))].T)
        rows["emg"].append(piece(emg, 1000))
    tensors = {n: torch.from_numpy(np.stack(v)).float() for n, v in rows.items()}
    system = RoboticFeedbackSystem(device="cpu", weights=weights, pressure_channels=6).eval()
    with torch.no_grad():
        return system.encode(
            {"camera1": tensors["camera"].permute(0, 3, 1, 2) / 255},
            tensors["audio"],
            tensors["pressure"],
            tensors["emg"],
        )


def _agreement(vectors, fused):
    """Rank correlation of the distances before and after; spread of their ratio.

    Before: the concatenation of the modalities, each row of each scaled to one length.
    """
    before = pdist(torch.cat([nn.functional.normalize(vectors[n], dim=1) for n in NAMES], dim=1))
    after = pdist(fused.detach())
    ratio = after / before
    return spearmanr(before, after).statistic, ratio.std() / ratio.mean()


@pytest.mark.parametrize("dim", [256, 512, 768])
@pytest.mark.parametrize("method", METHODS)
def test_untrained_fusion_is_near_isometric_on_real_recordings(real_vectors, method, dim):
    dims = {n: real_vectors[n].shape[1] for n in NAMES}
    every = torch.ones(64, dtype=torch.bool)
    for seed in range(3):
        with seeded(seed, method):
            fusion = make_fusion(method, dims, dim).eval()
        fused = fusion(real_vectors, dict.fromkeys(NAMES, every))
        rank, spread = _agreement(real_vectors, fused)
        assert rank > 0.97
        assert spread < 0.06
        # Its elements are of about unit RMS, and the raw concatenation agrees as well.
        assert 0.7 < fused.square().mean().sqrt() < 1.4
        raw = pdist(torch.cat([real_vectors[n] for n in NAMES], dim=1))
        assert spearmanr(raw, pdist(fused.detach())).statistic > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_a_default_mlp_bends_distances_more(real_vectors, method):
    """Beside it: an MLP of the same size as torch initialises it, on the raw concatenation."""
    width = sum(real_vectors[n].shape[1] for n in NAMES)
    every = torch.ones(64, dtype=torch.bool)
    with seeded(0, method):
        fusion = make_fusion(method, {n: real_vectors[n].shape[1] for n in NAMES}, 512).eval()
        plain = nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 512))
    ours = _agreement(real_vectors, fusion(real_vectors, dict.fromkeys(NAMES, every)))
    concatenated = torch.cat([real_vectors[n] for n in NAMES], dim=1)
    theirs = _agreement(real_vectors, plain(concatenated))
    assert ours[0] > theirs[0]
    assert ours[1] < 0.7 * theirs[1]


def test_no_layer_depends_on_the_batch():
    for method in METHODS:
        fusion = make_fusion(method, dict.fromkeys(NAMES, 8), 16)
        kinds = {type(m).__name__ for m in fusion.modules()}
        assert not any("BatchNorm" in k or "InstanceNorm" in k for k in kinds)


def test_dropout_is_for_training_only():
    fusion = make_fusion("attention", dict.fromkeys(NAMES, 8), 16, dropout=0.5)
    vectors = {n: torch.randn(4, 8) for n in NAMES}
    masks = dict.fromkeys(NAMES, torch.ones(4, dtype=torch.bool))
    assert not torch.equal(fusion(vectors, masks), fusion(vectors, masks))
    fusion.eval()
    assert torch.equal(fusion(vectors, masks), fusion(vectors, masks))


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_sensor_distances_do_not_depend_on_the_unit(unit):
    """A window in volts and one in microvolts: the same geometry."""
    with seeded(0, "emg"):
        encoder = SensorEncoder(8).eval()
    signals = torch.randn(20, 8, 500) * torch.rand(20, 8, 1) * 10
    with torch.no_grad():
        here, there = (pdist(encoder(s).numpy()) for s in (signals, signals * unit))
    assert spearmanr(here, there).statistic > 0.98


def test_amplitude_survives_without_saturating():
    """Each doubling moves the vector, over eight decades, and always by much the same."""
    with seeded(0, "pressure"):
        encoder = SensorEncoder(1).eval()
    base = torch.sin(torch.linspace(0, 40, 1000)).view(1, 1, -1)
    gains = 2.0 ** torch.arange(-13, 14)
    with torch.no_grad():
        vectors = torch.cat([encoder(base * g) for g in gains])
    steps = (vectors[1:] - vectors[:-1]).norm(dim=1)
    assert steps.min() > 0.1 * vectors.norm(dim=1).mean()
    assert steps.max() < 2 * steps.min()


def test_statistics_are_those_of_numpy():
    signal = torch.randn(2, 3, 400, dtype=torch.float64) * 4 + 7
    x = signal.numpy()
    mean, std, rms = x.mean(-1), x.std(-1), np.sqrt((x**2).mean(-1))
    low = np.arcsinh((x.min(-1) - mean) / std)
    high = np.arcsinh((x.max(-1) - mean) / std)
    expected = np.stack([mean / rms, np.log(std), low, high, np.log(rms)], axis=-1)
    assert np.allclose(statistics(signal).numpy(), expected, atol=1e-4)


def test_a_small_ripple_on_a_large_offset_is_seen():
    """A pressure in pascals: 1 mPa on 101325 Pa, where float32 has steps of 8 mPa."""
    time_s = torch.linspace(0, 1, 1000, dtype=torch.float64).view(1, 1, -1)
    ripple = statistics(101325 + 1e-3 * torch.sin(50 * time_s))
    assert abs(ripple[0, 0, 1].exp().item() - 0.7e-3) < 0.05e-3


def test_a_constant_and_a_zero_signal_stay_finite():
    encoder = SensorEncoder(1)
    assert torch.isfinite(encoder(torch.zeros(1, 1, 50))).all()
    assert torch.isfinite(encoder(torch.full((1, 1, 50), 1e9))).all()
