"""Fast tests first: what is cheap to break is told before processes are started."""

from __future__ import annotations

from pathlib import Path

ORDER = ("core", "stream", "adapters", "anomaly", "analysis", "model", "bench", "doctor",
         "security", "node", "soak")  # fmt: skip
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    def rank(item):
        area = item.path.relative_to(HERE).parts[0]
        return ORDER.index(area) if area in ORDER else len(ORDER)

    items.sort(key=rank)
