"""The arithmetic of the bench, its table and comparison; one slow test measures the model."""

import argparse
import json
import os
import threading

import numpy as np
import pytest
from rich.console import Console

from mmfuse_ros.cli import bench
from mmfuse_ros.cli.benches import load, table
from mmfuse_ros.cli.benches.model import _Pairs
from mmfuse_ros.cli.benches.node import slope, thread_seconds
from mmfuse_ros.errors import ConfigError
from mmfuse_ros.memory import resident_mb


def parse(*words):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(list(words))


def test_the_input_is_the_same_every_time():
    first = load.input_hash(load.make_images(), load.make_signals())
    assert first == load.input_hash(load.make_images(), load.make_signals())
    assert first != load.input_hash(load.make_images(1), load.make_signals())
    assert {i.shape for i in load.make_images().values()} == {(720, 1280, 3)}


def test_quantiles():
    row = load.quantiles_ms(np.arange(1, 101) / 1000)
    assert row["min"] == pytest.approx(1.0)
    assert row["p50"] == pytest.approx(50.5)
    assert row["p99"] == pytest.approx(99.01)


def test_memory_slope():
    rows = [(float(t), 100.0 + 2.0 * t / 60.0) for t in range(0, 600, 10)]
    row = slope(rows)
    assert row["slope_mb_per_min"] == pytest.approx(2.0)
    assert row["first_mb"] == 100.0
    assert slope([(0.0, 5.0)])["slope_mb_per_min"] == 0.0


def test_threads_are_told_apart_by_name():
    def work():
        with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file:
            file.write("odd (name) 7")
        done = 0
        while not stop.is_set():
            done += sum(range(1000))

    stop = threading.Event()
    thread = threading.Thread(target=work)
    before = thread_seconds(os.getpid())
    thread.start()
    try:
        while thread_seconds(os.getpid()).get("odd (name) ", 0.0) < 0.03:
            pass
    finally:
        stop.set()
        thread.join()
    assert before["ros"] > 0
    assert resident_mb(os.getpid()) > 10


def test_ratios_are_of_the_same_round():
    """A machine that was three times slower in one round says the same of all three."""
    pairs = _Pairs.__new__(_Pairs)
    pairs.flops = 8 * 1024**3
    pairs._products = {"fp32": None, "bf16": None}
    slow = [1.0, 3.0, 1.0]
    pairs.times = {
        "reference": [0.8 * s for s in slow],
        "fp32": [0.1 * s for s in slow],
        "bf16": [0.025 * s for s in slow],
    }
    result = pairs.result([0.2 * s for s in slow])
    assert result["floor_precision"] == "bf16"
    assert result["floor_ms"] == pytest.approx(100.0)
    assert result["window_to_floor"] == pytest.approx(2.0)
    assert result["reference_to_window"] == pytest.approx(4.0)


def fake(factor):
    times = {"p50": 10.0 * factor, "p95": 12.0, "p99": 13.0, "min": 9.0}
    case = {
        "preset": "balanced",
        "precision": "auto",
        "batch": 1,
        "paired": True,
        "info": {"backend": "torch", "precision": "bf16"},
        "stages_ms": {"vision": times, "window": times},
        "peak_mb": 900.0,
        "gflop": 59.0,
        "floor_ms": 7.0,
        "window_to_floor": 1.2 * factor,
        "reference_to_floor": 6.0,
        "reference_to_window": 5.0 / factor,
    }
    return {
        "host": {"cpu": "some CPU", "cores": 2},
        "input": "a",
        "load_average": {"before": 0.1, "after": 0.2},
        "model": [case],
        "node": None,
    }


def test_table_and_comparison(tmp_path):
    console = Console(record=True, width=120)
    table.show(fake(1.0), console)
    table.compare(fake(1.0), {**fake(2.0), "input": "b"}, console)
    text = console.export_text()
    assert "window / floor" in text
    assert "balanced auto torch x1 vision p50 ms" in text
    assert "2.00" in text
    assert "differ in input" in text


def test_a_file_that_is_no_result_is_refused(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"model": 3}))
    with pytest.raises(ConfigError, match="--compare must be a file that --json wrote"):
        bench.run(parse("--compare", str(path)))


def test_every_preset_precision_and_batch_is_a_case():
    cases = bench._cases(
        parse("--presets", "lightweight", "balanced", "--precisions", "fp32", "bf16")
    )
    assert [(c.preset, c.precision) for c in cases] == [
        ("lightweight", "fp32"),
        ("lightweight", "bf16"),
        ("balanced", "fp32"),
        ("balanced", "bf16"),
    ]
    assert all(c.paired for c in cases)


def test_batches_must_be_positive():
    with pytest.raises(ConfigError, match="must be at least 1"):
        bench.run(parse("--parts", "model", "--batches", "0"))


@pytest.mark.slow
def test_quick_run_measures_the_real_model(tmp_path):
    path = tmp_path / "result.json"
    words = ["--quick", "--parts", "model", "--backend", "torch", "--json", str(path)]
    assert bench.run(parse(*words)) == 0
    result = json.loads(path.read_text())
    case = result["model"][0]
    assert case["stages_ms"]["vision"]["p50"] > 0
    assert case["gflop"] == pytest.approx(26.8, abs=0.1)
    assert case["reference_to_window"] > 0
    assert case["peak_mb"] > 100
