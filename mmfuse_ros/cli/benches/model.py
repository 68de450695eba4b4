"""The model's stages, one configuration a process: its peak memory is then its own."""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmfuse_ros.cli.benches.load import (
    input_hash,
    make_images,
    make_signals,
    make_window,
    quantiles_ms,
)
from mmfuse_ros.config import Config
from mmfuse_ros.memory import resident_mb
from mmfuse_ros.samples import NS_PER_S

STAGES = ("preprocess", "vision", "audio", "sensors", "fusion", "anomaly", "window")
_CALIBRATION_WINDOWS = 400
_GEMM = 1024


@dataclass(frozen=True)
class Case:
    """One configuration.

    Attributes:
        rounds: measured repetitions.
        paired: also measure the reference and the floor, in turns with the window.
    """

    preset: str = "balanced"
    precision: str = "auto"
    backend: str = "auto"
    device: str = "auto"
    batch: int = 1
    threads: int = 0
    rounds: int = 30
    paired: bool = False
    weights: str = "random"


def measure(case: Case) -> dict[str, Any]:
    """Return times by stage, memory, and for a paired case the reference and the floor."""
    import torch

    from mmfuse_ros.model.runtime import build_engine
    from mmfuse_ros.pipeline import Pipeline

    begun = time.monotonic()
    images, signals = make_images(), make_signals()
    engine = build_engine(_config(case))
    built_s = time.monotonic() - begun
    pipeline = Pipeline(engine, _monitor(pipeline_features(engine, images, signals)))
    engine.warm_up(
        {name: image.shape[:2] for name, image in images.items()},
        {name: (*s.values.shape, s.rate_hz) for name, s in signals.items()},
    )
    if case.batch == 1:
        stages: dict[str, list[float]] = {name: [] for name in STAGES}
        stamps = itertools.count(NS_PER_S, NS_PER_S // 30)

        def window() -> None:
            started = time.perf_counter()
            result = pipeline.run(make_window(next(stamps), images, signals))
            stages["window"].append(time.perf_counter() - started)
            laps = dict(result.timings_s)
            laps["anomaly"] += laps.pop("features")
            for name, seconds in laps.items():
                stages.setdefault(name, []).append(seconds)

    else:
        stages, window = _batched(engine, images, signals, case.batch)
    window()
    for rows in stages.values():
        rows.clear()
    pairs = _Pairs(case, images, signals) if case.paired else None
    if pairs is None:
        for _ in range(case.rounds):
            window()
    memory = _memory(engine)
    if pairs is not None:
        pairs.run(window, case.rounds)
    return {
        **asdict(case),
        "info": {k: engine.info[k] for k in ("backend", "precision", "device", "weights")},
        "torch_threads": torch.get_num_threads(),
        "start_s": built_s,
        "input_hash": input_hash(images, signals),
        "stages_ms": {n: quantiles_ms(rows) for n, rows in stages.items() if rows},
        **memory,
        **(pairs.result(stages["window"]) if pairs is not None else {}),
    }


class _Pairs:
    """The reference and the floor, measured in turns with the window under the same load."""

    def __init__(self, case: Case, images: Any, signals: Any) -> None:
        import torch

        from mmfuse_ros.model.reference import Reference, window_flops
        from mmfuse_ros.model.runtime import build_system

        system = build_system(_config(case))
        reference = Reference(system)
        self._reference = lambda: reference.window(images, signals)
        self.flops = window_flops(system, self._reference)
        self._products: dict[str, Callable[[], Any]] = {}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            x, weight = (torch.ones(_GEMM, _GEMM, device=system.device).to(dtype) for _ in "ab")
            self._products[name] = _product(x, weight)
        self.times: dict[str, list[float]] = {n: [] for n in ("reference", *self._products)}

    def run(self, window: Callable[[], None], rounds: int) -> None:
        for product in self._products.values():
            product()
        for _ in range(rounds):
            window()
            for name, job in {"reference": self._reference, **self._products}.items():
                started = time.perf_counter()
                job()
                self.times[name].append(time.perf_counter() - started)

    def result(self, windows: list[float]) -> dict[str, Any]:
        """Return medians and ratios; the floor takes the precision that multiplies fastest."""
        rates = {n: 2 * _GEMM**3 / float(np.median(self.times[n])) for n in self._products}
        best = max(rates, key=lambda name: rates[name])
        floors = 2 * _GEMM**3 / np.array(self.times[best])
        floor_s = self.flops / rates[best]
        reference = np.array(self.times["reference"])
        ours = np.array(windows)
        return {
            "gflop": self.flops / 1e9,
            "gemm_tflops": {n: r / 1e12 for n, r in rates.items()},
            "floor_precision": best,
            "floor_ms": floor_s * 1e3,
            "reference_ms": quantiles_ms(self.times["reference"]),
            # Of each round, then the median: what loads the machine loads all three.
            "window_to_floor": float(np.median(ours * floors / self.flops)),
            "reference_to_floor": float(np.median(reference * floors / self.flops)),
            "reference_to_window": float(np.median(reference / ours)),
            "best_window_to_best_floor": float(min(ours) * max(floors) / self.flops),
        }


def _product(x: Any, weight: Any) -> Callable[[], Any]:
    import torch

    def run() -> None:
        with torch.inference_mode():
            torch.nn.functional.linear(x, weight)
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def _batched(
    engine: Any, images: Any, signals: Any, batch: int
) -> tuple[dict[str, list[float]], Callable[[], None]]:
    """Return the stages of `Engine.batch` and what runs one."""
    stages: dict[str, list[float]] = {n: [] for n in STAGES if n != "anomaly"}

    def window() -> None:
        started = last = time.perf_counter()

        def lap(stage: str) -> None:
            nonlocal last
            now = time.perf_counter()
            stages[stage].append(now - last)
            last = now

        engine.batch([(images, signals)] * batch, lap)
        stages["window"].append(time.perf_counter() - started)

    return stages, window


def pipeline_features(engine: Any, images: Any, signals: Any) -> dict[str, Any]:
    """Return one window's features, as the monitor judges them."""
    from mmfuse_ros.pipeline import Pipeline

    return dict(Pipeline(engine).encode(make_window(1, images, signals)).features)


def _monitor(features: dict[str, Any]) -> Any:
    """Return a monitor that is calibrated, on scatter around one window's features."""
    from mmfuse_ros.anomaly.detector import Detector
    from mmfuse_ros.anomaly.monitor import CalibratedMonitor
    from mmfuse_ros.config import AnomalyConfig

    rng = np.random.default_rng(0)
    rows = {
        key: value + rng.normal(0, 0.1, (_CALIBRATION_WINDOWS, len(value))).astype(np.float32)
        for key, value in features.items()
        if key != "embedding"
    }
    monitor = CalibratedMonitor.from_config(AnomalyConfig(alpha=0.05), {})
    monitor.detector = Detector.fit([rows], 0.05, unit="block", hop_s=0.5)
    return monitor


def _config(case: Case) -> Config:
    return Config.from_flat(
        {
            "model.preset": case.preset,
            "model.weights": case.weights,
            "model.precision": case.precision,
            "model.backend": case.backend,
            "model.device": case.device,
            "model.threads": case.threads,
        }
    )


def _memory(engine: Any) -> dict[str, float]:
    """Return this process' peak and present memory, and the device's, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mb": peak, "resident_mb": resident_mb(), **engine.memory()}


if __name__ == "__main__":
    print(json.dumps(measure(Case(**json.loads(sys.argv[1])))))
