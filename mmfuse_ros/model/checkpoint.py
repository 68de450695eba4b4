"""Checkpoints of a fine-tuned system: safetensors with a JSON header, written whole or not at all.

A checkpoint is one file, `mmfuse.safetensors`, given by its path or by its directory. It holds the
trained parts; a frozen encoder is named by the hash of its weights and stays where it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mmfuse_ros import __version__
from mmfuse_ros.errors import CheckpointError
from mmfuse_ros.files import atomic_write, sha256
from mmfuse_ros.model.encoders import SensorEncoder, tensor_hash
from mmfuse_ros.model.fusion import MODALITIES
from mmfuse_ros.model.loading import check_config, check_size, make_config
from mmfuse_ros.model.preprocess import AudioSpec, ImageSpec
from mmfuse_ros.model.presets import ENCODERS
from mmfuse_ros.model.system import RoboticFeedbackSystem

FILE_NAME = "mmfuse.safetensors"
FORMAT_VERSION = 1
_KEY = "mmfuse_checkpoint"
_SPECS = {"vision": ImageSpec, "audio": AudioSpec}
_FLOATS = ("F16", "BF16", "F32", "F64")
_FEATURES = SensorEncoder.features(1)
# Types of the header's parts, as `_describe` writes them.
_LAYOUT: dict[str, Any] = {
    "preset": str,
    "seed": int,
    "fusion": {"method": str, "dim": int},
    "modalities": list,
    "dims": dict,
    "channels": {"pressure": int, "emg": int},
    "encoders": {name: {"name": str, "stored": bool} for name in ENCODERS},
}
_STORED = {"config": dict, "preprocessing": dict}
_NAMED = {"weights": str}


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
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must be a whole safetensors file: {error}; copy it again"
        ) from error
    if not isinstance(header, dict) or type(header.get("format_version")) is not int:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must be written by save_checkpoint; it has no header of it"
        )
    if header["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must be of format {FORMAT_VERSION} or older, got "
            f"{header['format_version']} (mmfuse_ros {header.get('library')}); update mmfuse_ros"
        )
    wrong = list(_mistakes(header, _LAYOUT, ""))
    if not wrong:
        for name, encoder in header["encoders"].items():
            layout = _STORED if encoder.get("stored") else _NAMED
            wrong += _mistakes(encoder, layout, f"encoders.{name}.")
    if wrong:
        raise CheckpointError(
            f"checkpoint {str(path)!r} must have a header as save_checkpoint writes it, but "
            + "; ".join(wrong)
            + "; the file is damaged"
        )
    return header


def load_checkpoint(system: RoboticFeedbackSystem, path: str | Path) -> None:
    """Load a checkpoint into a system that was built alike; nothing is changed on error.

    Raises:
        CheckpointError: it cannot be read, or does not fit; every mismatch is listed.
    """
    header, file = read_header(path), _file(path)
    stored = [n for n in ENCODERS if header["encoders"][n]["stored"]]
    target = {
        name: tensor
        for name, tensor in system.state_dict().items()
        if name.split(".")[0] not in ENCODERS or name.split(".")[0] in stored
    }
    expected = _describe(system, tuple(stored))
    with safe_open(file, "pt") as content:
        slices = {n: content.get_slice(n) for n in content.keys()}  # noqa: SIM118
        shapes = {n: tuple(part.get_shape()) for n, part in slices.items()}
        wrong = _compare(header, expected) + _compare_shapes(shapes, target)
        wrong += [
            f"{name}: checkpoint {slices[name].get_dtype()}, system {tensor.dtype}"
            for name, tensor in target.items()
            if name in slices
            and (slices[name].get_dtype() in _FLOATS) != tensor.is_floating_point()
        ]
        specs = {}
        for name in stored:
            try:
                specs[name] = _SPECS[name](**_tuples(header["encoders"][name]["preprocessing"]))
                if name == "vision":
                    system.vision.check_spec(specs[name])
            except (CheckpointError, TypeError) as error:
                wrong.append(f"{name} preprocessing: {error}")
        if not wrong:
            # In the system's type: what is finite in 64 bits need not be in 32.
            tensors = {n: content.get_tensor(n).to(t.dtype) for n, t in target.items()}
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
        encoder.spec = specs[name]
        system.trained.add(name)
    system.checkpoint = sha256(file)


def encoder_sources(path: str | Path) -> dict[str, Any]:
    """Return, for each encoder that a checkpoint stores, the configuration to build it from.

    Raises:
        CheckpointError: as of read_header; a configuration that does not go with the tensors.
    """
    encoders, shapes = read_header(path)["encoders"], _shapes(path)
    sources = {}
    for name in ENCODERS:
        if not encoders[name]["stored"]:
            continue
        where = f"the header of checkpoint {str(path)!r}"
        check_config(name, encoders[name]["config"], where)
        try:
            sources[name] = make_config(encoders[name]["config"])
        except Exception as error:  # boundary: `transformers` checks values in many ways
            raise CheckpointError(
                f"{name} configuration in {where} must be one that `transformers` takes, got "
                f"{type(error).__name__}: {error}; the file is damaged"
            ) from error
        sizes = [math.prod(s) for n, s in shapes.items() if n.startswith(f"{name}.")]
        check_size(name, sources[name], sizes, where)
    return sources


def open_checkpoint(path: str | Path, **options: Any) -> RoboticFeedbackSystem:
    """Build the system that a checkpoint was saved from, and load it.

    Args:
        options: of RoboticFeedbackSystem, where they differ from the checkpoint's, such as
            device, weights, or vision for a local directory of the encoder's weights.

    Raises:
        CheckpointError: as of load_checkpoint, or an encoder's weights are missing.
        ConfigError: a preset or a fusion method that does not exist, or a wrong option.
    """
    header, shapes = read_header(path), _shapes(path)
    channels, dim = header["channels"], header["fusion"]["dim"]
    # The header decides how much memory is taken: it has to agree with the tensors first.
    for part, tensor, unit, asked in (
        ("fusion.dim", "fusion.mlp.branch.1.weight", 1, dim),
        ("channels.pressure", "pressure.lift.weight", _FEATURES, channels["pressure"]),
        ("channels.emg", "emg.lift.weight", _FEATURES, channels["emg"]),
    ):
        width = shapes.get(tensor, ())[-1:]
        if asked < 1 or width != (asked * unit,):
            raise CheckpointError(
                f"checkpoint {str(path)!r} must have the {part} of its tensors, "
                f"{width[0] // unit if width else 'which are missing'}, got {asked}; the file is "
                "damaged"
            )
    built = {
        "preset": header["preset"],
        "fusion_method": header["fusion"]["method"],
        "fusion_dim": dim,
        "pressure_channels": channels["pressure"],
        "emg_channels": channels["emg"],
        "seed": header["seed"],
        **encoder_sources(path),
    }
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
        saved = header["encoders"][name]
        if not saved["stored"] and saved["weights"] != expected["encoders"][name]["weights"]:
            wrong.append(
                f"{name} weights: checkpoint {saved['name']} "
                f"{saved['weights'][:12]}, system {expected['encoders'][name]['name']} "
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


def _mistakes(value: Any, layout: Any, name: str) -> Iterator[str]:
    """Yield where a header's value is not of the layout's types."""
    if isinstance(layout, dict) and isinstance(value, dict):
        for key, inner in layout.items():
            if key not in value:
                yield f"{name}{key} is missing"
            else:
                end = "." if isinstance(inner, dict) else ""
                yield from _mistakes(value[key], inner, f"{name}{key}{end}")
        return
    expected = dict if isinstance(layout, dict) else layout
    if type(value) is not expected:
        yield f"{name.rstrip('.')} is {value!r:.100}, not of type {expected.__name__}"


def _shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, without reading one."""
    with safe_open(_file(path), "pt") as content:
        return {n: tuple(content.get_slice(n).get_shape()) for n in content.keys()}  # noqa: SIM118


def _file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    return path if path.suffix == ".safetensors" else path / FILE_NAME


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
