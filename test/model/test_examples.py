"""The model's examples run, on tiny weights."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(weights):
    def run(name, *arguments):
        main = runpy.run_path(str(EXAMPLES / name))["main"]
        return main(["--weights", str(weights), "--device", "cpu", *arguments])

    return run


def test_perception_loop(run, capsys):
    assert run("perception_loop.py", "--steps", "3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("step 2: embedding (1, 512), length ")


def test_fine_tuning_overfits_and_saves(run, capsys, tmp_path):
    assert run("fine_tuning.py", "--out", str(tmp_path)) == 0
    output = capsys.readouterr().out
    assert "accuracy on the training windows 100%" in output
    assert (tmp_path / "mmfuse.safetensors").is_file()
    for label in ("holds", "slips", "crushes"):
        assert output.count(f"a new window that {label}: {label}") == 2
