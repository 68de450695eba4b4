"""Perception loop: sensors in, one vector per step, a policy on it.

    python examples/perception_loop.py --weights random --steps 20

`Robot` stands for your drivers; replace its methods. In a ROS system run the node instead: it
does the same and keeps time stamps.
"""

from __future__ import annotations

import argparse
import time

import torch

from mmfuse_ros import RoboticFeedbackSystem


class Robot:
    """A made-up robot that sweeps its arm, with a sensor reading for every stream."""

    def __init__(self, seed: int = 0) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._step = 0

    def camera_frames(self) -> list[torch.Tensor]:
        """Return two pictures (1, 3, 240, 320) in [0, 1]: a bright bar that moves."""
        frames = []
        for shift in (0, 40):
            frame = 0.2 + 0.05 * torch.rand(1, 3, 240, 320, generator=self._random)
            left = (8 * self._step + shift) % 280
            frame[..., left : left + 40] = 0.9
            frames.append(frame)
        return frames

    def audio_chunk(self) -> torch.Tensor:
        """Return 3 s of motor hum, (1, 48000) in [-1, 1] at 16 kHz."""
        time_s = torch.arange(48000) / 16000
        hum = 0.2 * torch.sin(2 * torch.pi * (110 + self._step) * time_s)
        return (hum + 0.01 * torch.randn(48000, generator=self._random)).unsqueeze(0)

    def pressure_reading(self) -> torch.Tensor:
        """Return 1 s of grip force, (1, 1000) in newton."""
        return 20 + 0.5 * torch.randn(1, 1000, generator=self._random)

    def emg_reading(self) -> torch.Tensor:
        """Return 1 s of muscle activity, (1, 8, 1000) in volt."""
        return 1e-4 * torch.randn(1, 8, 1000, generator=self._random)

    def execute(self, action: torch.Tensor) -> None:
        self._step += 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="pretrained, random, or a directory")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args(arguments)

    system = RoboticFeedbackSystem(weights=options.weights, device=options.device)
    system.eval()
    torch.manual_seed(0)
    policy = torch.nn.Linear(system.fusion_dim, 7).to(system.device)
    robot = Robot()
    for step in range(options.steps):
        begun = time.perf_counter()
        cameras = robot.camera_frames()
        with torch.no_grad():
            embedding = system(
                camera_images={"camera1": cameras[0], "camera2": cameras[1]},
                audio=robot.audio_chunk(),
                pressure=robot.pressure_reading(),
                emg=robot.emg_reading(),
            )
            action = policy(embedding)[0]
        robot.execute(action)
        print(
            f"step {step}: embedding {tuple(embedding.shape)}, length {embedding.norm():.2f}, "
            f"first joint {action[0]:+.3f}, {1000 * (time.perf_counter() - begun):.0f} ms"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
