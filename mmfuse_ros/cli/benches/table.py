"""One table of a bench result, and the comparison of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from mmfuse_ros.cli.benches.model import STAGES


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print what was measured; ratios first, since milliseconds are those of one machine."""
    host = result["host"]
    table = Table(title=f"mmfuse bench: {host['cpu']}, {host['cores']} cores")
    for column in ("case", "stage", "p50 ms", "p95 ms", "p99 ms", "min ms", "of the whole"):
        table.add_column(column, justify="left" if column in ("case", "stage") else "right")
    for case in result["model"]:
        _model_rows(table, case)
    if result.get("node"):
        _node_rows(table, result["node"])
    console.print(table)
    load = result["load_average"]
    console.print(
        f"load average {load['before']:.1f} before, {load['after']:.1f} after; above the number "
        "of cores, other programs took part of the time and only the ratios mean something"
    )


def _model_rows(table: Table, case: Mapping[str, Any]) -> None:
    info, whole = case["info"], case["stages_ms"]["window"]["p50"]
    name = f"{case['preset']} {info['precision']} {info['backend']} x{case['batch']}"
    for stage in (s for s in STAGES if s in case["stages_ms"]):
        times = case["stages_ms"][stage]
        numbers = [f"{times[k]:.2f}" for k in ("p50", "p95", "p99", "min")]
        table.add_row(name, stage, *numbers, f"{times['p50'] / whole:.0%}")
        name = ""
    table.add_row("", f"peak memory {case['peak_mb']:.0f} MiB")
    if case["paired"]:
        lines = {
            "window / floor": f"{case['window_to_floor']:.2f}",
            "reference / floor": f"{case['reference_to_floor']:.2f}",
            "reference / window": f"{case['reference_to_window']:.2f}",
            f"floor ({case['gflop']:.1f} GFLOP)": f"{case['floor_ms']:.1f} ms",
        }
        for line, number in lines.items():
            table.add_row("", line, number)
    table.add_section()


def _node_rows(table: Table, node: Mapping[str, Any]) -> None:
    age, memory = node["age_ms"], node["memory"]
    table.add_row(
        "node, full load",
        "age at publication",
        *(f"{age[k]:.1f}" for k in ("p50", "p95", "p99")),
    )
    lines = {
        "embeddings/s": f"{node['embeddings_hz']:.1f}",
        "worst input loss": f"{node['worst_loss']:.2%}",
        "ROS side, cores": f"{node['ros_cpu_cores']:.2f}",
        "first embedding": f"{node['first_embedding_s']:.1f} s",
        "memory": f"{memory['last_mb']:.0f} MiB, {memory['slope_mb_per_min']:+.2f} a minute",
    }
    for line, number in lines.items():
        table.add_row("", line, number)
    for thread, cores in node["cpu_cores"].items():
        table.add_row("", f"thread {thread}", f"{cores:.2f} cores")


def compare(old: Mapping[str, Any], new: Mapping[str, Any], console: Console) -> None:
    """Print each number of both results with the ratio new / old."""
    before = dict(numbers(old))
    table = Table(title="new / old")
    for column in ("number", "old", "new", "ratio"):
        table.add_column(column, justify="left" if column == "number" else "right")
    for name, value in numbers(new):
        if before.get(name):
            ratio = value / before[name]
            table.add_row(name, f"{before[name]:.3g}", f"{value:.3g}", f"{ratio:.2f}")
    console.print(table)
    for key in ("host", "input"):
        if old.get(key) != new.get(key):
            console.print(
                f"[yellow]the two results differ in {key}: only ratios to the floor and "
                "the reference can be compared[/]"
            )


def numbers(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a result that a comparison is made of, by name."""
    for case in result["model"]:
        name = f"{case['preset']} {case['precision']} {case['info']['backend']} x{case['batch']}"
        for stage, times in case["stages_ms"].items():
            yield f"{name} {stage} p50 ms", times["p50"]
        yield f"{name} peak MiB", case["peak_mb"]
        for key in ("window_to_floor", "reference_to_window"):
            if key in case:
                yield f"{name} {key}", case[key]
    node = result.get("node")
    if node:
        yield "node embeddings/s", node["embeddings_hz"]
        yield "node age p50 ms", node["age_ms"]["p50"]
        yield "node age p95 ms", node["age_ms"]["p95"]
        yield "node worst loss", node["worst_loss"]
        yield "node ROS cores", node["ros_cpu_cores"]
