"""Measure the model on a GPU in one call, without ROS, and print JSON.

    python bench/gpu.py [--preset balanced] [--compile] > gpu.json

One window in process (p50, p99, device memory), equality of the recorded path with the plain,
and offline batches as a share of the measured matrix rate. With `--device cpu --quick` the
same code runs on a CPU, where there are no graphs; that tests the script and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmfuse_ros.cli.benches.load import (
    host,
    input_hash,
    make_images,
    make_signals,
    quantiles_ms,
)
from mmfuse_ros.config import PRESETS, Config
from mmfuse_ros.model.preprocess import normalize_audio, normalize_image
from mmfuse_ros.model.reference import Reference, window_flops
from mmfuse_ros.model.runtime import Engine, build_engine, build_system

BATCHES = (1, 8, 16, 32, 64, 128, 256)
GEMM = 8192


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="balanced")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile for the batches, too"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, small batches")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("needs a CUDA device and a CUDA build of torch, found none", file=sys.stderr)
        return 2
    if args.quick:
        args.rounds = 3
    print(json.dumps(measure(args), indent=2))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return every number; a part that fails is its error, and the others are measured."""
    images, signals = make_images(), make_signals()
    config = _config(args, args.precision)
    before_mb = _device_used_mb()
    begun = time.monotonic()
    engine = build_engine(config)
    engine.warm_up(
        {name: image.shape[:2] for name, image in images.items()},
        {name: (*s.values.shape, s.rate_hz) for name, s in signals.items()},
    )
    start_s = time.monotonic() - begun
    system = build_system(config)
    flops = window_flops(system, lambda: Reference(system).window(images, signals))
    rate = gemm_rate(engine, 256 if args.quick else GEMM)
    result: dict[str, Any] = {
        "host": host(),
        "input": input_hash(images, signals),
        "info": engine.info,
        "start_s": start_s,
        "gflop_per_window": flops / 1e9,
        "gemm_tflops": rate / 1e12,
    }
    parts: dict[str, Callable[[], Any]] = {
        "window": lambda: single(engine, images, signals, args.rounds),
        "memory_mb": lambda: {**engine.memory(), "device_used": _device_used_mb() - before_mb},
        "plain_path": lambda: plain(engine, images, signals, args.rounds),
        "equality": lambda: equality(engine, config, args),
        "reference": lambda: reference(system, args.device, images, signals, args.rounds),
        "batches": lambda: batches(engine, images, signals, flops, rate, args),
    }
    for name, part in parts.items():
        try:
            result[name] = part()
        except Exception as error:  # one call on a lent machine: the rest must still be measured
            result[name] = {"error": f"{type(error).__name__}: {error}"}
    return result


def single(engine: Engine, images: Any, signals: Any, rounds: int) -> dict[str, Any]:
    """One window from host arrays to host vectors, the way the node runs it."""
    stages: list[float] = []
    for _ in range(rounds):
        begun = time.perf_counter()
        engine.window(images, signals)
        stages.append(time.perf_counter() - begun)
    graphs = engine._graphs
    return {
        "recorded": len(graphs._graphs) if graphs is not None else 0,
        "window_ms": quantiles_ms(stages),
    }


def plain(engine: Engine, images: Any, signals: Any, rounds: int) -> dict[str, Any]:
    """The same window without a graph: eager kernels, one launch at a time."""
    graphs, engine._graphs = engine._graphs, None
    try:
        return single(engine, images, signals, max(3, rounds // 10))
    finally:
        engine._graphs = graphs


def equality(engine: Engine, config: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Compare the recorded path with the plain one, and with plain fp32, on other inputs."""
    exact = build_engine(Config.from_flat({**config.to_flat(), "model.precision": "fp32"}))
    exact._graphs = None
    graphs = engine._graphs
    rows: dict[str, dict[str, float]] = {}
    for seed in range(1, 3 if args.quick else 9):
        images, signals = make_images(seed), make_signals(seed)
        fast = engine.window(images, signals)
        engine._graphs = None
        eager = engine.window(images, signals)
        engine._graphs = graphs
        truth = exact.window(images, signals)
        for name, vector in fast.items():
            row = rows.setdefault(name, {"difference": 0.0, "cosine_plain": 1.0, "cosine_fp32": 1})
            row["difference"] = max(row["difference"], float(np.abs(vector - eager[name]).max()))
            row["cosine_plain"] = min(row["cosine_plain"], _cosine(vector, eager[name]))
            row["cosine_fp32"] = min(row["cosine_fp32"], _cosine(vector, truth[name]))
    exact.close()
    return rows


def reference(system: Any, device: str, images: Any, signals: Any, rounds: int) -> dict[str, Any]:
    """The plain way: eager, fp32, one camera after the other, processors on the CPU."""
    run = Reference(system.to(device))
    run.window(images, signals)
    times = []
    for _ in range(max(3, rounds // 20)):
        begun = time.perf_counter()
        run.window(images, signals)
        times.append(time.perf_counter() - begun)
    system.to("cpu")
    return quantiles_ms(times)


def batches(
    engine: Engine, images: Any, signals: Any, flops: int, rate: float, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Windows per second of offline batches: from the device's memory, and from the host's."""
    rows = []
    for count in BATCHES[:2] if args.quick else BATCHES:
        row: dict[str, Any] = {"batch": count}
        step = _device_step(engine, signals, count)
        variants = {"eager": step}
        if args.compile:
            variants["compiled"] = torch.compile(step, mode="max-autotune-no-cudagraphs")
        for name, run in variants.items():
            try:
                seconds = _sustained(run, engine, args.rounds)
            except Exception as error:  # such as out of memory: larger batches end here
                row[name] = {"error": f"{type(error).__name__}: {error}"}
                continue
            per_s = count / seconds
            row[name] = {"windows_per_s": per_s, "of_gemm_rate": per_s * flops / rate}
        if count <= 64:  # 5.5 MB of pictures each, uploaded and resized
            begun = time.perf_counter()
            engine.batch([(images, signals)] * count)
            row["from_host_windows_per_s"] = count / (time.perf_counter() - begun)
        rows.append(row)
    return rows


def _device_step(engine: Engine, signals: Any, count: int) -> Callable[[], torch.Tensor]:
    """Return a batch whose input is on the device: 224-pixel bytes, samples and readings."""
    system, backend, device = engine._system, engine._backend, engine._device
    side = system.vision.spec.crop
    pixels = torch.randint(0, 256, (2 * count, 3, side, side), dtype=torch.uint8, device=device)
    inputs = {
        name: torch.from_numpy(s.values).to(device).expand(count, *s.values.shape).contiguous()
        for name, s in signals.items()
    }

    def step() -> torch.Tensor:
        with torch.inference_mode():
            seen = backend.vision(normalize_image(pixels, system.vision.spec))
            heard = normalize_audio(inputs["audio"][:, 0], system.audio.spec)
            vectors = {
                "vision": seen.unflatten(0, (count, 2)).mean(dim=1),
                "audio": backend.audio(heard),
                "pressure": system.pressure(inputs["pressure"]),
                "emg": system.emg(inputs["emg"]),
            }
            present = {n: torch.ones(count, dtype=torch.bool, device=device) for n in vectors}
            return system.fusion(vectors, present)

    return step


def _sustained(run: Callable[[], Any], engine: Engine, rounds: int) -> float:
    """Return seconds a run, launched back to back."""
    for _ in range(3):
        run()
    _wait(engine)
    count = max(2, rounds // 25)
    begun = time.perf_counter()
    for _ in range(count):
        run()
    _wait(engine)
    return (time.perf_counter() - begun) / count


def gemm_rate(engine: Engine, size: int) -> float:
    """Return the operations per second of a square product in the engine's precision."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    options: dict[str, Any] = {
        "device": engine._device,
        "dtype": dtype[engine.info["precision"]],
    }
    x, y = torch.randn(size, size, **options), torch.randn(size, size, **options)
    with torch.inference_mode():
        seconds = _sustained(lambda: x @ y, engine, 1000)
    return 2 * size**3 / seconds


def _wait(engine: Engine) -> None:
    if engine._device.type == "cuda":
        torch.cuda.synchronize(engine._device)


def _device_used_mb() -> float:
    """Return the device memory in use by all, contexts and libraries included, MiB."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**20


def _cosine(a: Any, b: Any) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _config(args: argparse.Namespace, precision: str) -> Config:
    return Config.from_flat(
        {
            "model.preset": args.preset,
            "model.weights": "random",
            "model.device": args.device,
            "model.precision": precision,
            "model.backend": "torch",
        }
    )


if __name__ == "__main__":
    sys.exit(main())
