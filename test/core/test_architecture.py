"""The direction of imports, as DESIGN section 1 draws it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mmfuse_ros"

CORE = {"samples", "config", "errors", "files", "memory"}
# Which parts of the package each part may import at module level or inside functions.
ALLOWED = {
    "samples": set(),
    "errors": set(),
    "files": set(),
    "memory": set(),
    "config": {"samples", "errors"},
    "stream": CORE,
    "model": CORE,
    "anomaly": CORE,
    "analysis": CORE | {"model"},
    "evaluation": CORE | {"model", "anomaly"},
    "worker": CORE,
    "pipeline": CORE | {"model", "anomaly"},
    "ros": CORE | {"stream", "model", "anomaly", "pipeline", "worker"},
    "cli": CORE
    | {"stream", "model", "anomaly", "analysis", "evaluation", "pipeline", "worker", "ros"},
}
ROS_PACKAGES = (
    "rclpy",
    "rcl_interfaces",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "diagnostic_msgs",
    "geometry_msgs",
    "builtin_interfaces",
    "lifecycle_msgs",
    "rosgraph_msgs",
)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def test_every_module_is_covered():
    assert {part_of(p) for p in modules()} <= set(ALLOWED)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = part_of(path)
    for name in imports(path):
        words = name.split(".")
        if words[0] == "mmfuse_ros" and len(words) > 1 and words[1] != "__version__":
            assert words[1] in ALLOWED[own] | {own}, f"{own} must not import {name}"
        if words[0] in ROS_PACKAGES and own != "ros":
            assert own == "cli", f"{own} must not know {name}"
        if words[0] == "transformers":
            assert own == "model", f"{own} must not know transformers"


def run_blocked(code: str, blocked: tuple[str, ...]) -> None:
    """Run code in a fresh interpreter in which some packages cannot be imported."""
    guard = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked!r}:\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    subprocess.run([sys.executable, "-c", guard + code], check=True, timeout=120)


def test_package_imports_nothing_heavy():
    heavy = ("torch", "transformers", "rclpy", "cv2", "scipy", "sklearn", "rosbags", "matplotlib")
    run_blocked("import mmfuse_ros, mmfuse_ros.samples, mmfuse_ros.config", heavy)
    run_blocked("import mmfuse_ros.stream.synchronizer", heavy)


def test_core_needs_no_ros():
    run_blocked(
        "import mmfuse_ros.pipeline, mmfuse_ros.worker, mmfuse_ros.model.system\n"
        "import mmfuse_ros.anomaly.detector, mmfuse_ros.analysis.report",
        ROS_PACKAGES,
    )


def test_anomaly_needs_no_torch():
    run_blocked("from mmfuse_ros.anomaly import Detector", ("torch",))
