"""Is this normal? Calibrate on recordings of normal operation, then watch a motor that fails.

The sound goes two ways, as in the node: through the model, and as plain log-mel statistics, which
keep the loudness that a speech model normalises away.
"""

import numpy as np
import torch

from mmfuse_ros import Detector, RoboticFeedbackSystem
from mmfuse_ros.anomaly import Debounce
from mmfuse_ros.model.statistics import log_mel_statistics

RATE_HZ, WINDOW_S, WINDOWS = 16000, 1.0, 12
RECORDINGS = 19  # alpha is counted down to 1 / (recordings + 1)


def main() -> None:
    system = RoboticFeedbackSystem()
    system.eval()
    normal = [features(system, motor(seed)) for seed in range(RECORDINGS)]
    detector = Detector.fit(normal, alpha=0.05, hop_s=WINDOW_S, window_s=WINDOW_S)
    print("\n".join(detector.promise.lines()))

    # A run on another day; the propeller is hit after 6 s.
    scored = detector.score(features(system, motor(seed=1000, fails_at=6)))
    alarm = Debounce()
    for i, (p, flag) in enumerate(zip(scored.p, scored.flag, strict=True)):
        state = "ALARM" if alarm.update(bool(flag)) else "flagged" if flag else "normal"
        print(f"{i:3d} s  p = {p:.4f}  {state}")


def features(system: RoboticFeedbackSystem, sound: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the detector judges of (windows, samples): one row of each kind a window."""
    with torch.no_grad():
        learned = system.encode(audio=torch.from_numpy(sound))["audio"]
    return {
        "audio": learned.cpu().numpy(),
        "audio:log_mel": log_mel_statistics(sound, RATE_HZ),
    }


def motor(seed: int, fails_at: int = WINDOWS) -> np.ndarray:
    """Return a simulated motor's sound, (windows, samples): two broken blades after `fails_at`."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(WINDOWS * WINDOW_S * RATE_HZ)) / RATE_HZ
    turns = 90.0 * (1.0 + 0.03 * rng.standard_normal()) * time_s
    blades = sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 8))
    hiss = rng.standard_normal(len(time_s))
    rattle = 1.0 + 3.0 * (np.sin(2 * np.pi * turns) > 0.6) * (time_s >= fails_at * WINDOW_S)
    gain = 10 ** (0.05 * rng.standard_normal())
    wave = gain * (0.05 * blades + 0.01 * hiss * rattle)
    return wave.astype(np.float32).reshape(WINDOWS, -1)


if __name__ == "__main__":
    main()
