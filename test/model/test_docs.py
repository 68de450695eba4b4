"""The code of docs/model.md runs, on tiny weights where it asks for random ones."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_block_runs(index, weights, monkeypatch, tmp_path):
    """`random` full-size encoders would take seconds: the tiny directory stands for the word."""
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[index].replace('weights="random"', f"weights={str(weights)!r}")
    code = code.replace(
        '"model.weights": "random"',
        f'"model.vision": {str(weights / "vision")!r}, "model.audio": {str(weights / "audio")!r}',
    )
    exec(compile(code, f"docs/model.md block {index}", "exec"), {"__name__": "docs"})


def test_the_page_cites_the_right_papers():
    assert len(BLOCKS) == 4
    assert {"2103.00020", "2006.11477"} <= set(re.findall(r"\d{4}\.\d{5}", PAGE))
