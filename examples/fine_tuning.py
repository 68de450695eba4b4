"""Fine-tuning: teach the sensor encoders and the fusion a small labelled set, save a checkpoint.

    python examples/fine_tuning.py --weights random --out grasp_checkpoint
    ros2 run mmfuse_ros fusion_node --ros-args -p model.checkpoint:=grasp_checkpoint ...

The windows are made up: a grasp that holds, one that slips, one that crushes. They look and sound
alike; force and muscle activity tell them apart. Replace `make_windows` with your own.
"""

from __future__ import annotations

import argparse

import torch

from mmfuse_ros import RoboticFeedbackSystem
from mmfuse_ros.model.checkpoint import load_checkpoint, save_checkpoint
from mmfuse_ros.model.training import train_classifier

LABELS = ("holds", "slips", "crushes")


def make_windows(count: int, seed: int = 0) -> tuple[dict[str, object], torch.Tensor]:
    """Return `count` windows as arguments of the system, and their labels (count,)."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(LABELS)
    force = torch.tensor([20.0, 20.0, 28.0])[labels]  # newton
    ripple = torch.tensor([0.2, 1.0, 0.2])[labels]  # a slip shakes
    effort = torch.tensor([1.0, 1.0, 2.0])[labels]
    pressure = torch.randn(count, 500, generator=random) * ripple.unsqueeze(1)
    emg = torch.randn(count, 8, 500, generator=random) * effort.view(-1, 1, 1)
    camera = torch.rand(count, 3, 64, 64, generator=random)
    return {
        "camera_images": {"camera1": camera, "camera2": camera.flip(3)},
        "audio": 0.1 * torch.randn(count, 8000, generator=random),
        "pressure": pressure + force.unsqueeze(1),
        "emg": 1e-4 * emg,
    }, labels


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="pretrained, random, or a directory")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", default="grasp_checkpoint")
    options = parser.parse_args(arguments)

    system = RoboticFeedbackSystem(weights=options.weights, device=options.device)
    inputs, labels = make_windows(options.windows)
    done = train_classifier(
        system,
        inputs,
        labels,
        epochs=options.epochs,
        on_epoch=lambda epoch, loss: print(f"epoch {epoch}: loss {loss:.4f}"),
    )
    file = save_checkpoint(system, options.out)
    print(f"accuracy on the training windows {done.accuracy:.0%}; saved {file}")

    again = RoboticFeedbackSystem(weights=options.weights, device=options.device)
    load_checkpoint(again, options.out)
    again.eval()
    unseen, expected = make_windows(6, seed=1)
    with torch.no_grad():
        predicted = done.head(again(**unseen)).argmax(dim=1).tolist()
    for label, guess in zip(expected.tolist(), predicted, strict=True):
        print(f"a new window that {LABELS[label]}: {LABELS[guess]}")
    return 0 if done.accuracy == 1.0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
