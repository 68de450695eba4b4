"""Weights, checkpoint and calibration on disk, without loading a model."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path

from mmfuse_ros.cli.checks.finding import FAIL, OK, WARN, Finding
from mmfuse_ros.config import Config
from mmfuse_ros.errors import MmfuseError
from mmfuse_ros.files import read_bounded, sha256

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_FILES = ("config.json", _SINGLE, _INDEX, *_PICKLED, *_PROCESSORS)
_MAX_JSON = 16 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONVERT = (
    "convert them once, where you trust their source: load them with `transformers`, save them "
    "with save_pretrained(), and name that directory"
)


def encoders(config: Config) -> Iterator[Finding]:
    """Check each encoder's files: present, whole, and their hashes."""
    from mmfuse_ros.model.presets import get_config

    model = config.model
    stored = yield from _checkpoint(model.checkpoint)
    preset = get_config(model.preset)
    for kind in ("vision", "audio"):
        name = f"weights {kind}"
        source = getattr(model, kind)
        if kind in stored:
            yield Finding(name, OK, "stored in the checkpoint")
        elif not source and model.weights == "random":
            found = "random, as model.weights asks: embeddings of an untrained encoder"
            yield Finding(name, OK, found)
        else:
            yield from _encoder(name, source or getattr(preset, kind).model_name, config)


def _checkpoint(path: str) -> Generator[Finding, None, frozenset[str]]:
    """Check the checkpoint; return the names of the encoders that it stores."""
    if not path:
        return frozenset()
    from mmfuse_ros.model.checkpoint import FILE_NAME, read_header

    try:
        header = read_header(path)
    except MmfuseError as error:
        yield Finding("checkpoint", FAIL, str(error), "correct model.checkpoint")
        return frozenset()
    file = Path(path).expanduser()
    file = file if file.suffix == ".safetensors" else file / FILE_NAME
    yield Finding("checkpoint", OK, f"{file}, sha256 {sha256(file)}")
    return frozenset(n for n, e in header.get("encoders", {}).items() if e.get("stored"))


def _encoder(name: str, source: str, config: Config) -> Iterator[Finding]:
    folder, files = _locate(source)
    if folder is None or "config.json" not in files:
        kind = name.split()[-1]
        download = config.model.allow_download
        yield Finding(
            name,
            WARN if download else FAIL,
            f"{source} is not on disk"
            + (", the node will download it when it starts" if download else ""),
            f"give a local directory in model.{kind}, set model.allow_download, "
            "or model.weights to random for a trial",
        )
        return
    try:
        kind_of_model = json.loads(read_bounded(files["config.json"], _MAX_JSON)).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        yield Finding(
            name, FAIL, f"{files['config.json']} is unreadable: {error}", "fetch it again"
        )
        return
    shards: dict[Path, frozenset[str]]
    if _SINGLE in files:
        shards = {files[_SINGLE]: frozenset()}
    elif _INDEX in files:
        try:
            shards = _indexed(files[_INDEX])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            found = f"{files[_INDEX]} is damaged: {error}"
            yield Finding(name, FAIL, found, "fetch it again")
            return
    elif any(p in files for p in _PICKLED):
        found = f"{folder} holds pickled weights only ({', '.join(sorted(files))})"
        local = Path(source).expanduser().is_dir()
        yield Finding(name, FAIL if local else WARN, found, _CONVERT)
        return
    else:
        yield Finding(name, FAIL, f"{folder} holds no {_SINGLE}", "fetch the weights again")
        return
    yield Finding(name, OK, f"{source}: {kind_of_model} in {folder}")
    for file, tensors in shards.items():
        yield _whole(name, file, tensors)
    if not any(p in files for p in _PROCESSORS):
        yield Finding(
            name,
            WARN,
            f"no preprocessor_config.json in {folder}: the preset's constants will be taken",
            "save the processor beside the weights",
        )


def _locate(source: str) -> tuple[Path | None, dict[str, Path]]:
    """Return where an encoder's files are, and the files by name."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder, {n: folder / n for n in _FILES if (folder / n).exists()}
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        return None, {}
    from huggingface_hub import try_to_load_from_cache

    files = {n: try_to_load_from_cache(source, n) for n in _FILES}
    found = {n: Path(p) for n, p in files.items() if isinstance(p, str)}
    return (next(iter(found.values())).parent if found else None), found


def _indexed(index: Path) -> dict[Path, frozenset[str]]:
    """Return the shards that an index names, which must lie beside it, and their tensors."""
    weight_map = json.loads(read_bounded(index, _MAX_JSON))["weight_map"]
    shards: dict[Path, set[str]] = {}
    for tensor, name in weight_map.items():
        if Path(name).name != name:
            raise ValueError(f"weight_map must name files of its own directory, got {name!r}")
        shards.setdefault(index.parent / name, set()).add(tensor)
    return {file: frozenset(shards[file]) for file in sorted(shards)}


def _whole(name: str, file: Path, tensors: frozenset[str]) -> Finding:
    """Check one file: its header, its hash, and the tensors that an index promises."""
    from safetensors import SafetensorError, safe_open

    try:
        digest = sha256(file)  # first: it refuses a pipe, on which safe_open would wait
        with safe_open(file, "np") as content:  # checks the header against the file's size
            there = frozenset(content.keys())
    except (SafetensorError, OSError) as error:
        return Finding(name, FAIL, f"{file.name} is damaged: {error}", "fetch it again")
    found = f"{file.name}: {len(there)} tensors, {file.stat().st_size >> 20} MiB, sha256 {digest}"
    # The hub's cache names a large file by the hash it was published with.
    published = file.resolve().name
    if _SHA256.fullmatch(published) and published != digest:
        return Finding(name, FAIL, f"{found}, published as {published}", "fetch it again")
    if missing := sorted(tensors - there):
        found += f"; {len(missing)} of its index are missing, such as {missing[0]}"
        return Finding(name, FAIL, found, "fetch it again, with its index")
    return Finding(name, OK, found)


def calibration(config: Config) -> Iterator[Finding]:
    """Read the calibration, and compare what it was made with as far as no model is needed."""
    from mmfuse_ros.anomaly import artefact, cosine
    from mmfuse_ros.anomaly.detector import Detector
    from mmfuse_ros.pipeline import calibration_context

    anomaly, path = config.anomaly, config.anomaly.calibration
    if not path:
        yield Finding(
            "calibration",
            WARN,
            "none: the node reports STALE, uncalibrated, until it has a baseline",
            "mmfuse fit BAG... --out FILE and set anomaly.calibration, or call ~/set_baseline",
        )
        return
    if not artefact.exists(path):
        yield Finding(
            "calibration",
            WARN,
            f"{path} does not exist: the node reports STALE, uncalibrated, until it does",
            "correct anomaly.calibration, make it with mmfuse fit, or call ~/set_baseline",
        )
        return
    try:
        calibrated = anomaly.method == "calibrated"
        header, _ = artefact.read(path, artefact.KIND if calibrated else cosine.KIND)
        made_with = header["context"]
        random = config.model.weights == "random"
        info = {
            "preset": config.model.preset,
            "weights": "random" if random else made_with.get("weights"),
            "fusion": config.model.fusion,
            "checkpoint": made_with.get("checkpoint", ""),
            "precision": "fp32" if made_with.get("precision") == "fp32" else "bf16",
        }
        artefact.check_context(made_with, calibration_context(config, info))
        if calibrated and anomaly.alpha:
            Detector.load(path).check_alpha(anomaly.alpha)
    except MmfuseError as error:
        yield Finding(
            "calibration", FAIL, str(error), "fit again with these parameters: mmfuse fit"
        )
        return
    yield Finding(
        "calibration",
        OK,
        f"{path} fits these parameters; weights and precision are compared when the node starts",
    )
