"""How well the untrained fusion keeps the geometry of its inputs, on real recordings.

    python bench/fusion_geometry.py ../shared/data --preset balanced --windows 96

Windows pair frames, motor sound, force and EMG that were not recorded together. Distances of all
pairs of windows before the fusion (modality vectors concatenated, as they are, and each scaled to
one length) are compared with those after it: rank correlation, and spread of their ratio
(standard deviation over mean; 0 is an isometry). Beside it, an MLP as torch initialises it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence
from scipy.io import wavfile
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from torch import nn

from mmfuse_ros import RoboticFeedbackSystem
from mmfuse_ros.config import FUSIONS, PRESETS
from mmfuse_ros.model.encoders import seeded
from mmfuse_ros.model.fusion import MODALITIES, make_fusion


def draw_windows(data: Path, count: int) -> dict[str, torch.Tensor]:
    """Return `count` random windows of each stream."""
    rng = np.random.default_rng(0)
    clips = []
    for path in sorted((data / "fino").glob("*.gif")):
        with Image.open(path) as clip:
            clips.append([np.array(f.convert("RGB")) for f in ImageSequence.Iterator(clip)])
    waves = [wavfile.read(p)[1] / 32768 for p in sorted((data / "bldc").glob("*.wav"))]
    emg = np.loadtxt(sorted((data / "emg").glob("*.txt"))[0], skiprows=1)[:, 1:9].T
    blocks = (data / "force_torque" / "lp1.data").read_text().split("\n\n")
    forces = [np.loadtxt(b.strip().splitlines()[1:]) for b in blocks if b.strip()]

    def frame() -> np.ndarray:
        clip = clips[rng.integers(len(clips))]
        return clip[rng.integers(len(clip))]

    def piece(signal: np.ndarray, samples: int) -> np.ndarray:
        begin = rng.integers(signal.shape[-1] - samples)
        return signal[..., begin : begin + samples]

    def window() -> tuple[np.ndarray, ...]:
        wave, force = waves[rng.integers(len(waves))], forces[rng.integers(len(forces))]
        return frame(), frame(), piece(wave, 48000), force[:, 2], piece(emg, 1000)

    rows = [window() for _ in range(count)]
    names = ("camera1", "camera2", "audio", "pressure", "emg")
    columns = zip(*rows, strict=True)
    return {n: torch.from_numpy(np.stack(c)).float() for n, c in zip(names, columns, strict=True)}


@torch.inference_mode()
def encode(system: RoboticFeedbackSystem, windows: dict[str, torch.Tensor]) -> dict:
    """Return the modality vectors, eight windows at a time."""
    parts = []
    for i in range(0, len(windows["audio"]), 8):
        rows = {n: v[i : i + 8] for n, v in windows.items()}
        cameras = {n: rows.pop(n).permute(0, 3, 1, 2) / 255 for n in ("camera1", "camera2")}
        parts.append(system.encode(cameras, **rows))
    return {n: torch.cat([p[n] for p in parts]) for n in MODALITIES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with bldc, emg, fino, force_torque")
    parser.add_argument("--preset", choices=PRESETS, default="balanced")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--windows", type=int, default=96)
    options = parser.parse_args()
    system = RoboticFeedbackSystem(preset=options.preset, weights=options.weights, device="cpu")
    vectors = encode(system.eval(), draw_windows(options.data, options.windows))
    raw = torch.cat([vectors[n] for n in MODALITIES], dim=1)
    scaled = torch.cat([nn.functional.normalize(vectors[n], dim=1) for n in MODALITIES], dim=1)
    before_raw, before = pdist(raw), pdist(scaled)
    print(f"{'fusion':30} {'rank, raw':>10} {'rank, scaled':>13} {'spread':>8}")

    def report(name: str, fused: torch.Tensor) -> None:
        after = pdist(fused)
        ratio = after / before
        ranks = [spearmanr(x, after).statistic for x in (before_raw, before)]
        print(f"{name:30} {ranks[0]:10.3f} {ranks[1]:13.3f} {ratio.std() / ratio.mean():8.3f}")

    dims = {n: vectors[n].shape[1] for n in MODALITIES}
    present = dict.fromkeys(MODALITIES, torch.ones(len(raw), dtype=torch.bool))
    with torch.inference_mode():
        for method in FUSIONS:
            with seeded(0, f"fusion/{method}"):
                fusion = make_fusion(method, dims, system.fusion_dim).eval()
            report(method, fusion(vectors, present))
        for depth in (1, 2, 3):
            with seeded(0, "mlp"):
                hidden = [
                    layer
                    for i in range(depth)
                    for layer in (nn.Linear(512 if i else raw.shape[1], 512), nn.ReLU())
                ]
                mlp = nn.Sequential(*hidden, nn.Linear(512, system.fusion_dim))
            report(f"MLP, {depth} hidden, default init", mlp(raw))


if __name__ == "__main__":
    main()
