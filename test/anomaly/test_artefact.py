"""The calibration file refuses what it should, and never runs or allocates what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmfuse_ros.anomaly import Detector, artefact
from mmfuse_ros.errors import CalibrationError


@pytest.fixture(scope="module")
def payload(tmp_path_factory):
    rng = np.random.default_rng(0)
    data = [{"a": rng.normal(size=(6, 3)).astype(np.float32)} for _ in range(6)]
    path = tmp_path_factory.mktemp("fit") / "c"
    Detector.fit(data, 0.05).save(path)
    return path.read_bytes()


def edit(payload, change):
    size = int.from_bytes(payload[:8], "little")
    entries = json.loads(payload[8 : 8 + size])
    header = json.loads(entries["__metadata__"]["header"])
    change(header, entries)
    entries["__metadata__"]["header"] = json.dumps(header)
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + payload[8 + size :]


def load(tmp_path, payload):
    path = tmp_path / "c"
    path.write_bytes(payload)
    return Detector.load(path)


def test_a_safetensors_reader_reads_it(payload):
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    arrays = safetensors.load(payload)
    np.testing.assert_array_equal(arrays["0/0/bank"], artefact.decode(payload)[1]["0/0/bank"])


@pytest.mark.parametrize("size", [0, 7, 8, 20, -1, -100])
def test_a_cut_file_is_refused(tmp_path, payload, size):
    with pytest.raises(CalibrationError, match="damaged"):
        load(tmp_path, payload[:size])


def test_bytes_too_many_are_refused(tmp_path, payload):
    with pytest.raises(CalibrationError, match="1 bytes too many"):
        load(tmp_path, payload + b"x")


@pytest.mark.parametrize("junk", [b"PK\x03\x04" + b"\0" * 64, b"\x80\x04\x95" * 40, b"{}" * 50])
def test_another_kind_of_file_is_refused(tmp_path, junk):
    with pytest.raises(CalibrationError, match="damaged or not a calibration"):
        load(tmp_path, junk)


def test_a_newer_version_is_refused_by_name(tmp_path, payload):
    newer = edit(payload, lambda header, entries: header.update(version=2))
    with pytest.raises(CalibrationError, match="format version 2, this program reads up to 1"):
        load(tmp_path, newer)


def test_another_kind_is_refused_by_name(tmp_path, payload):
    other = edit(payload, lambda header, entries: header.update(kind="song"))
    with pytest.raises(CalibrationError, match="must be a mmfuse-calibration file, got 'song'"):
        load(tmp_path, other)


def test_a_shape_that_does_not_fit_is_refused_before_it_is_allocated(tmp_path, payload):
    def grow(header, entries):
        entries["0/0/bank"]["shape"] = [10**12, 10**6]

    with pytest.raises(CalibrationError, match="0/0/bank does not fit into the file"):
        load(tmp_path, edit(payload, grow))


def test_overlapping_arrays_are_refused(tmp_path, payload):
    def overlap(header, entries):
        entries["0/0/scale"]["data_offsets"] = entries["0/0/location"]["data_offsets"]

    with pytest.raises(CalibrationError, match="does not fit into the file"):
        load(tmp_path, edit(payload, overlap))


@pytest.mark.parametrize(
    "change",
    [
        lambda header, entries: header["dims"].update(a=4),
        lambda header, entries: header["calibrations"][0].pop("promise"),
        lambda header, entries: header["calibrations"][0].update(blocks=["a", "b"]),
        lambda header, entries: header.update(enabled=["b"]),
        lambda header, entries: header.pop("context"),
    ],
)
def test_parts_that_disagree_are_refused(tmp_path, payload, change):
    with pytest.raises(CalibrationError, match="damaged"):
        load(tmp_path, edit(payload, change))


def test_a_file_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "big"
    with open(path, "wb") as file:
        file.truncate(artefact.MAX_BYTES + 1)
    with pytest.raises(CalibrationError, match="at most 5000000 bytes"):
        Detector.load(path)
    with pytest.raises(CalibrationError, match="at most 5000000 bytes, got"):
        artefact.write(tmp_path / "x", {"kind": "x"}, {"a": np.zeros(2_000_000, np.float32)})
    assert not (tmp_path / "x").exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "c"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(artefact.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        artefact.write(path, {"kind": artefact.KIND, "version": 1}, {"a": np.zeros(3)})
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
