"""Files that somebody handed over: none runs code, none is read elsewhere, none makes us wait."""

from __future__ import annotations

import ast
import json
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import save_tiny_weights

from mmfuse_ros.analysis import store
from mmfuse_ros.anomaly import artefact
from mmfuse_ros.errors import CheckpointError, MmfuseError
from mmfuse_ros.model.checkpoint import read_header
from mmfuse_ros.model.loading import load_vision
from mmfuse_ros.model.preprocess import ImageSpec

PACKAGE = Path(__file__).resolve().parents[2] / "mmfuse_ros"
SPEC = ImageSpec(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def folder(tmp_path):
    """A tiny image encoder as `save_pretrained` writes it."""
    return save_tiny_weights(tmp_path)[0]


def within(seconds, call):
    """Return what a call returns or raises; fail where it takes longer."""
    box = []

    def run():
        try:
            box.append(call())
        except Exception as error:
            box.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert box, f"still waiting after {seconds} s"
    return box[0]


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_the_folder_loads(folder):
    assert load_vision(folder, SPEC).dim == 16


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_not_unpickled(folder, tmp_path, name):
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "mark"
    (folder / name).write_bytes(pickle.dumps({"a": Bomb(mark)}))
    with pytest.raises(CheckpointError, match="vision weights"):
        load_vision(folder, SPEC)
    assert not mark.exists()


def test_sound_pickled_weights_are_refused_too(folder):
    """They might be sound; nobody can know before they are unpickled."""
    state = load_vision(folder, SPEC).model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"must hold config\.json and model\.safetensors"):
        load_vision(folder, SPEC)


def test_code_beside_the_weights_is_not_run(folder, tmp_path):
    mark = tmp_path / "mark"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    for kind in (config["model_type"], "of_my_own"):
        changed = {**config, "model_type": kind, "auto_map": {"AutoConfig": "own.Own"}}
        (folder / "config.json").write_text(json.dumps(changed))
        result = within(60, lambda: load_vision(folder, SPEC))
        assert isinstance(result, CheckpointError) == (kind == "of_my_own"), result
        assert not mark.exists()


@pytest.mark.parametrize("how", ["parent", "absolute", "pipe"])
def test_an_index_stays_in_its_directory(folder, how):
    state = load_vision(folder, SPEC).model.state_dict()
    (folder / "model.safetensors").unlink()
    elsewhere = folder.parent / "elsewhere.safetensors"
    save_file(state, elsewhere, metadata={"format": "pt"})
    name = {"parent": "../elsewhere.safetensors", "absolute": str(elsewhere), "pipe": "pipe"}[how]
    os.mkfifo(folder / "pipe")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(state, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    error = within(60, lambda: load_vision(folder, SPEC))
    assert isinstance(error, CheckpointError)
    assert "must name files of that directory" in str(error)
    elsewhere.rename(folder / "part.safetensors")
    index["weight_map"] = dict.fromkeys(state, "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_vision(folder, SPEC).dim == 16


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_pipe_among_the_weights_does_not_block(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    result = within(60, lambda: load_vision(folder, SPEC))
    assert isinstance(result, CheckpointError) == (name != "preprocessor_config.json"), result


READERS = {
    "calibration": artefact.read,
    "checkpoint": read_header,
    "manifest": lambda path: store.read_manifest(path.parent),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse"])
def test_readers_neither_wait_nor_fill_the_memory(tmp_path, reader, kind):
    name = {"calibration": "c.cal", "checkpoint": "c.safetensors", "manifest": store.MANIFEST}
    path = tmp_path / name[reader]
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 42)
    error = within(30, lambda: READERS[reader](path))
    assert isinstance(error, (MmfuseError, OSError)), error
    assert not isinstance(error, MemoryError)


FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"}
FORBIDDEN_CALLS = {"torch.load", "yaml.load", "eval", "exec", "os.system", "pandas.read_pickle"}


def _dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_no_code_of_ours_unpickles_or_evaluates(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not FORBIDDEN_IMPORTS & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_IMPORTS
        elif isinstance(node, ast.Call):
            name = _dotted(node.func)
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            assert name not in FORBIDDEN_CALLS
            assert not given.get("shell")
            if name in ("np.load", "numpy.load"):
                assert given.get("allow_pickle") is False
