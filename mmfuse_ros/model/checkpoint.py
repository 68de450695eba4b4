"""Checkpoints of a fine-tuned system: safetensors with a JSON header, written whole or not at all.

A checkpoint is one file, `mmfuse.safetensors`, given by its path or by its directory. It holds the
trained parts; a frozen encoder is named by the hash of its weights and stays where it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmfuse_ros import __version__
from mmfuse_ros.errors import CheckpointError
from mmfuse_ros.files import atomic_write, sha256
from mmfuse_ros.model.encoders import tensor_hash
from mmfuse_ros.model.fusion import MODALITIES
from mmfuse_ros.model.loading import make_config
from mmfuse_ros.model.preprocess import AudioSpec, ImageSpec
from mmfuse_ros.model.presets import ENCODERS
from mmfuse_ros.model.system import RoboticFeedbackSystem

FILE_NAME = "mmfuse.safetensors"
FORMAT_VERSION = 1
_KEY = "mmfuse_checkpoint"
_SPECS = {"vision": ImageSpec, "audio": AudioSpec}


def save_checkpoint(
    system: RoboticFeedbackSystem, path: str | Path, *, encoders: bool = False
) -> Path:
    """Write a system's trained parts; return the file.

    Args:
        path: a directory, or a file that ends in .safetensors.
        encoders: store CLIP and Wav2Vec2 too; one that was ever unfrozen is stored in any case.
    """
    file = _file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = ENCODERS if encoders else tuple(n for n in ENCODERS if n in system.trained)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in system.state_dict().items()
        if name.split(".")[0] not in ENCODERS or name.split(".")[0] in stored
    }
    header = json.dumps(_describe(system, stored), sort_keys=True)
    with atomic_write(file) as draft:
        save_file(tensors, draft, metadata={_KEY: header})
    return file


def read_header(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's header, without its tensors.

    Raises:
        CheckpointError: missing, damaged, of another kind or of a newer format.
    """
    file = _file(path)
    if not file.is_file():
        raise CheckpointError(
            f"a checkpoint must be a directory with {FILE_NAME} or that file, "
            f"got {str(path)!r}, where there is none; correct the path"
        )
    try:
        with safe_open(file, "pt") as content:
            text = (content.metadata() or {}).get(_KEY)
        header = None if text is None else json.loads(text)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must be a whole safetensors file: {error}; copy it again"
        ) from error
    if not isinstance(header, dict) or not isinstance(header.get("format_version"), int):
        raise CheckpointError(
            f"checkpoint {str(path)!r} must be written by save_checkpoint; it has no header of it"
        )
    if header["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must be of format {FORMAT_VERSION} or older, got "
            f"{header['format_version']} (mmfuse_ros {header.get('library')}); update mmfuse_ros"
        )
    return header


def load_checkpoint(system: RoboticFeedbackSystem, path: str | Path) -> None:
    """Load a checkpoint into a system that was built alike; nothing is changed on error.

    Raises:
        CheckpointError: it cannot be read, or does not fit; every mismatch is listed.
    """
    header, file = read_header(path), _file(path)
    stored = [n for n in ENCODERS if header.get("encoders", {}).get(n, {}).get("stored")]
    target = {
        name: tensor
        for name, tensor in system.state_dict().items()
        if name.split(".")[0] not in ENCODERS or name.split(".")[0] in stored
    }
    expected = _describe(system, tuple(stored))
    with safe_open(file, "pt") as content:
        shapes = {n: tuple(content.get_slice(n).get_shape()) for n in content.keys()}  # noqa: SIM118
        wrong = _compare(header, expected) + _compare_shapes(shapes, target)
        if not wrong:
            tensors = {name: content.get_tensor(name) for name in target}
            wrong = [
                f"{n} holds NaN or infinite values"
                for n, t in tensors.items()
                if not bool(torch.isfinite(t).all())
            ]
    if wrong:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must fit the system; it differs in {len(wrong)} points:\n"
            + "\n".join(f"  {line}" for line in wrong)
            + "\nset model.* (the constructor's arguments) to what it was saved with, or let "
            "open_checkpoint build the system"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            target[name].copy_(tensor)
    for name in stored:
        encoder = getattr(system, name)
        encoder.random, encoder.name = False, header["encoders"][name]["name"]
        encoder.spec = _SPECS[name](**_tuples(header["encoders"][name]["preprocessing"]))
        system.trained.add(name)
    system.checkpoint = sha256(file)


def encoder_sources(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return, for each encoder that a checkpoint stores, the configuration to build it from."""
    encoders = header.get("encoders", {})
    return {n: make_config(e["config"]) for n, e in encoders.items() if e.get("stored")}


def open_checkpoint(path: str | Path, **options: Any) -> RoboticFeedbackSystem:
    """Build the system that a checkpoint was saved from, and load it.

    Args:
        options: of RoboticFeedbackSystem, where they differ from the checkpoint's, such as
            device, weights, or vision for a local directory of the encoder's weights.

    Raises:
        CheckpointError: as of load_checkpoint, or an encoder's weights are missing.
    """
    header = read_header(path)
    try:
        built = {
            "preset": header["preset"],
            "fusion_method": header["fusion"]["method"],
            "fusion_dim": header["fusion"]["dim"],
            "pressure_channels": header["channels"]["pressure"],
            "emg_channels": header["channels"]["emg"],
            "seed": header["seed"],
            **encoder_sources(header),
        }
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must name {error} in its header"
        ) from None
    with safe_open(_file(path), "pt") as content:
        # The header decides how much memory is taken: it has to agree with the tensors first.
        width = content.get_slice("fusion.mlp.branch.1.weight").get_shape()[0]
    if built["fusion_dim"] != width:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must have the fusion.dim of its tensors, {width}, "
            f"got {built['fusion_dim']}; the file is damaged"
        )
    system = RoboticFeedbackSystem(**{**built, **options})
    load_checkpoint(system, path)
    return system


def _describe(system: RoboticFeedbackSystem, stored: tuple[str, ...]) -> dict[str, Any]:
    encoders: dict[str, Any] = {}
    for name in ENCODERS:
        encoder = getattr(system, name)
        encoders[name] = {"name": encoder.name, "stored": name in stored}
        if name in stored:
            config = encoder.model.config.to_dict()
            config.pop("_name_or_path", None)  # a path tells of a machine
            encoders[name]["config"] = config
            encoders[name]["preprocessing"] = asdict(encoder.spec)
        else:
            encoders[name]["weights"] = tensor_hash(encoder)
    return {
        "format_version": FORMAT_VERSION,
        "library": __version__,
        "preset": system.preset,
        "seed": system.seed,
        "fusion": {"method": system.fusion_method, "dim": system.fusion_dim},
        "modalities": list(MODALITIES),
        "dims": dict(system.fusion.dims),
        "channels": {"pressure": system.pressure.channels, "emg": system.emg.channels},
        "encoders": encoders,
    }


def _compare(header: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """List what the checkpoint's header and the system's say differently."""
    wrong = []
    rules = ("preset", "fusion", "modalities", "dims", "channels")
    for key in rules:
        if header.get(key) != expected[key]:
            saved, here = (json.dumps(d.get(key), sort_keys=True) for d in (header, expected))
            wrong.append(f"{key}: checkpoint {saved}, system {here}")
    for name in ENCODERS:
        saved = header.get("encoders", {}).get(name, {})
        if (
            not saved.get("stored")
            and saved.get("weights") != expected["encoders"][name]["weights"]
        ):
            wrong.append(
                f"{name} weights: checkpoint {saved.get('name')} "
                f"{str(saved.get('weights'))[:12]}, system {expected['encoders'][name]['name']} "
                f"{expected['encoders'][name]['weights'][:12]}"
            )
    return wrong


def _compare_shapes(
    shapes: Mapping[str, tuple[int, ...]], target: Mapping[str, torch.Tensor]
) -> list[str]:
    wrong = [f"{name}: missing in the checkpoint" for name in target if name not in shapes]
    wrong += [f"{name}: unknown to the system" for name in shapes if name not in target]
    for name, tensor in target.items():
        if name in shapes and shapes[name] != tuple(tensor.shape):
            wrong.append(f"{name}: checkpoint {shapes[name]}, system {tuple(tensor.shape)}")
    return wrong


def _file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    return path if path.suffix == ".safetensors" else path / FILE_NAME


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
