"""The examples, run as a user runs them, on tiny models."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.usefixtures("tiny_models")


@pytest.fixture
def example(monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_contributions(example):
    blocks = example("contributions.py").split("without audio:")
    for block, streams in zip(blocks, (5, 4), strict=True):
        shares = [float(share) for share in re.findall(r"(-?[\d.]+)%", block)]
        assert len(shares) == streams
        assert sum(shares) == pytest.approx(100.0, abs=0.1)


def test_retrieval(example, tmp_path):
    out = example("retrieval.py", tmp_path / "states")
    assert out.startswith("pouring: ")
    assert "nearest: 'pouring' at 2000000000 ns, run 7" in out


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_report(example, tmp_path, name):
    path = tmp_path / name
    assert f"written to {path}" in example("report.py", path)
    assert path.stat().st_size > 1000


def test_anomaly(example):
    out = example("anomaly.py")
    assert "supported by counting" in out
    states = re.findall(r"^ *\d+ s .* (\w+)$", out, re.MULTILINE)
    assert len(states) == 12
    assert states[:6].count("ALARM") == 0
    assert states[7:] == ["ALARM"] * 5
