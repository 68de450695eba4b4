"""The calibration file: plain numbers and a JSON header, in the layout of safetensors.

Eight bytes give the header's length, the header names each array's type, shape and place, the
arrays follow. Nothing is pickled, nothing is executed, and nothing is allocated before the sizes
agree with the size of the file. There is no time in it: the same fit writes the same bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmfuse_ros.errors import CalibrationError
from mmfuse_ros.files import atomic_write, read_bounded

if TYPE_CHECKING:
    from mmfuse_ros.anomaly.detector import Detector

Arrays = dict[str, npt.NDArray[Any]]

KIND = "mmfuse-calibration"
VERSION = 1
MAX_BYTES = 5_000_000
_MAX_HEADER = 1_000_000
_MAX_AXES = 4  # of an array; two are used
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
}


def write(path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Arrays) -> None:
    """Write header and arrays to a file that appears whole or not at all.

    Raises:
        CalibrationError: it would be larger than 5 MB.
        OSError: it cannot be written.
    """
    payload = encode(header, arrays)
    if len(payload) > MAX_BYTES:
        raise CalibrationError(
            f"a calibration must be at most {MAX_BYTES} bytes, got {len(payload)}; "
            "fit fewer phases or feature blocks"
        )
    with atomic_write(path) as draft:
        draft.write_bytes(payload)


def exists(path: str) -> bool:
    """Return whether there is anything at `path`, readable or not; `~` is the home directory."""
    return bool(path) and os.path.lexists(os.path.expanduser(path))


def keep(save: Callable[[str], None], path: str) -> str:
    """Save what was gathered live to `path`, where there is one; return why that failed, or ""."""
    try:
        if path:
            save(os.path.expanduser(path))
    except (OSError, CalibrationError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        return f"the new baseline is in use, but could not be saved ({cause}): a restart loses it"
    return ""


def read(path: str | os.PathLike[str], kind: str = KIND) -> tuple[dict[str, Any], Arrays]:
    """Read header and arrays; `~` is the home directory.

    Raises:
        CalibrationError: it cannot be read, is not of this kind, damaged, too large or newer.
    """
    name = os.path.expanduser(path)
    try:
        payload = read_bounded(name, MAX_BYTES)
    except OSError as error:
        raise CalibrationError(
            f"a calibration must be a readable file, got {name}: {error.strerror}; correct the "
            "path (anomaly.calibration in the node)"
        ) from error
    return decode(payload, name, kind)


def encode(header: Mapping[str, Any], arrays: Arrays) -> bytes:
    """Return the bytes of a file; `header` is any JSON value, arrays are named freely."""
    entries: dict[str, Any] = {
        "__metadata__": {"header": json.dumps(header, sort_keys=True, allow_nan=False)}
    }
    pieces = []
    offset = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        code = {"f": "F32" if array.itemsize <= 4 else "F64"}.get(array.dtype.kind, "I32")
        piece = array.astype(_DTYPES[code]).tobytes()
        end = offset + len(piece)
        entries[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, end]}
        pieces.append(piece)
        offset = end
    text = json.dumps(entries, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(pieces)


def decode(payload: bytes, name: str = "file", kind: str = KIND) -> tuple[dict[str, Any], Arrays]:
    """Return header and arrays of `encode`d bytes; raises CalibrationError as `read` does."""
    try:
        return _decode(payload, name, kind)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, CalibrationError):
            raise
        raise CalibrationError(f"{name} is damaged or not a calibration: {error!r}") from error


def _decode(payload: bytes, name: str, kind: str) -> tuple[dict[str, Any], Arrays]:
    length = int.from_bytes(payload[:8], "little")
    if len(payload) < 8 or not 2 <= length <= min(_MAX_HEADER, len(payload) - 8):
        raise CalibrationError(f"{name} is damaged or not a calibration: no header in it")
    entries = json.loads(payload[8 : 8 + length])
    header = json.loads(entries.pop("__metadata__")["header"])
    if header.get("kind") != kind:
        raise CalibrationError(f"{name} must be a {kind} file, got {header.get('kind')!r}")
    if type(header["version"]) is not int or header["version"] > VERSION:
        raise CalibrationError(
            f"{name} has format version {header['version']}, this program reads up to {VERSION}; "
            "update mmfuse_ros or fit again"
        )
    if not isinstance(header.get("context", {}), dict):
        raise CalibrationError(f"{name} is damaged: its context is {header['context']!r:.100}")
    data = payload[8 + length :]
    arrays: Arrays = {}
    covered = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"][0]):
        begin, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        numbers = (*shape[:_MAX_AXES], begin, end)
        if len(shape) > _MAX_AXES or any(type(n) is not int or n < 0 for n in numbers):
            raise CalibrationError(f"{name} is damaged: {key} has shape {shape}")
        if begin != covered or end > len(data) or math.prod(shape) * dtype.itemsize != end - begin:
            raise CalibrationError(f"{name} is damaged: {key} does not fit into the file")
        arrays[key] = np.frombuffer(data[begin:end], dtype=dtype).reshape(shape)
        covered = end
    if covered != len(data):
        raise CalibrationError(f"{name} is damaged: {len(data) - covered} bytes too many")
    return header, arrays


def check_context(made_with: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Refuse features made by another system; raises CalibrationError naming every difference."""
    differences = [
        f"{name}: calibrated with {made_with.get(name, 'nothing')!r}, "
        f"now {now.get(name, 'nothing')!r}"
        for name in sorted(set(made_with) | set(now))
        if _plain(made_with.get(name)) != _plain(now.get(name))
    ]
    if differences:
        raise CalibrationError(
            "the calibration was made for another system ("
            + "; ".join(differences)
            + "); fit a new one"
        )


def _plain(value: object) -> object:
    """Return a value as JSON would give it back, so that tuples compare equal to lists."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def pack(detector: Detector) -> tuple[dict[str, Any], Arrays]:
    """Return a detector as header and arrays."""
    arrays: Arrays = {}
    parts = []
    for number, (phase, calibration) in enumerate(detector.calibrations.items()):
        part, own = calibration.pack()
        arrays.update({f"{number}/{name}": value for name, value in own.items()})
        promise = vars(detector.promises[phase])
        finite = {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in promise.items()
        }
        parts.append({"phase": phase, "promise": finite, **part})
    header = {
        "kind": KIND,
        "version": VERSION,
        "alpha": detector.alpha,
        "enabled": list(detector.enabled),
        "context": dict(detector.context),
        "dims": dict(detector.dims),
        "calibrations": parts,
    }
    return header, arrays


def unpack(header: Mapping[str, Any], arrays: Arrays) -> Detector:
    """Return the detector of `pack`.

    Raises:
        CalibrationError: a part is missing, of another type, or holds numbers that nothing can be
            scored with.
    """
    from mmfuse_ros.anomaly.calibration import Promise
    from mmfuse_ros.anomaly.detector import Detector
    from mmfuse_ros.anomaly.joint import Calibration

    try:
        calibrations, promises = {}, {}
        for number, part in enumerate(header["calibrations"]):
            own = {
                name.split("/", 1)[1]: value
                for name, value in arrays.items()
                if name.startswith(f"{number}/")
            }
            calibrations[part["phase"]] = Calibration.unpack(part, own)
            values: dict[str, Any] = {
                k: math.nan if v is None else v for k, v in part["promise"].items()
            }
            promises[part["phase"]] = Promise(**values)
            promises[part["phase"]].check()
        dims = {str(key): int(value) for key, value in header["dims"].items()}
        detector = Detector(calibrations, promises, dims, dict(header["context"]))
        for calibration in calibrations.values():
            with np.errstate(all="ignore"):  # what overflows is refused
                calibration.check(dims)
        detector.alpha = header["alpha"]
        detector.enable(header["enabled"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, CalibrationError):
            raise
        raise CalibrationError(f"the calibration is damaged: {error!r}") from error
    return detector
