"""A page about a run: statistics, shares, a map of its windows and their similarity over time."""

import argparse
import math

import torch

from mmfuse_ros import RoboticFeedbackSystem, create_embeddings_report

WINDOWS, PERIOD_NS = 48, 500_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", default="report.html", help=".html or .json")
    out = parser.parse_args().out

    system = RoboticFeedbackSystem()
    system.eval()
    torch.manual_seed(0)
    # A picture that brightens and darkens, and a contact in the second half.
    brightness = torch.tensor([0.5 + 0.4 * math.sin(i / 6) for i in range(WINDOWS)])
    images = torch.rand(1, 3, 240, 320) * brightness[:, None, None, None]
    pressure = 0.05 * torch.randn(WINDOWS, 1000)
    pressure[WINDOWS // 2 :] += 2.0
    with torch.no_grad():
        fused, modalities = system(
            camera_images={"camera1": images},
            pressure=pressure,
            emg=torch.randn(WINDOWS, 8, 1000),
            return_modality_embeddings=True,
        )

    report = create_embeddings_report(
        fused,
        modalities,
        output_path=out,
        stamps_ns=[i * PERIOD_NS for i in range(WINDOWS)],
        title="Simulated contact",
    )
    for modality, stats in report["modalities"].items():
        print(f"{modality}: dimension {stats['dimension']}, norm {stats['norm']:.4f}")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
