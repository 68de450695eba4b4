"""Which sensor made this embedding? The share of each stream, and what changes without one."""

import torch

from mmfuse_ros import EmbeddingAnalysis, RoboticFeedbackSystem


def main() -> None:
    system = RoboticFeedbackSystem()
    system.eval()
    torch.manual_seed(0)
    inputs = {
        "camera_images": {
            "camera1": torch.rand(1, 3, 480, 640),
            "camera2": torch.rand(1, 3, 480, 640),
        },
        "audio": 0.1 * torch.randn(1, 48000),  # 3 s at 16 kHz
        "pressure": torch.randn(1, 1000),
        "emg": torch.randn(1, 8, 1000),
    }
    show("all streams", system, inputs)
    del inputs["audio"]
    show("without audio", system, inputs)


def show(title: str, system: RoboticFeedbackSystem, inputs: dict) -> None:
    with torch.no_grad():
        fused, modalities = system(**inputs, return_modality_embeddings=True)
    # The head travels with `modalities`; a plain dict of vectors needs fuse=system.fuse.
    contributions = EmbeddingAnalysis.modality_contribution(modalities, fused)
    print(f"{title}:")
    for modality, share in contributions.items():
        print(f"  {modality}: {share:.2%}")


if __name__ == "__main__":
    main()
