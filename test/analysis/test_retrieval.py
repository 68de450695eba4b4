"""EmbeddingRetrieval: exact answers, and a store that survives what happens to stores."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmfuse_ros import EmbeddingRetrieval
from mmfuse_ros.analysis import retrieval as retrieval_module
from mmfuse_ros.analysis import store
from mmfuse_ros.errors import ConfigError, InputError, StoreError

ROOT = Path(__file__).resolve().parents[2]


def filled(rows=200, dim=16, device="cpu", seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    database = EmbeddingRetrieval(device=device)
    database.add_batch(vectors, [f"state {i}" for i in range(rows)])
    return database, vectors


def brute_force(vectors, query, metric):
    wide, query = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.linalg.norm(wide - query, axis=1)
    return wide @ query / np.linalg.norm(wide, axis=1) / np.linalg.norm(query)


def test_the_guides_calls():
    database = EmbeddingRetrieval(device="cpu")
    for label, vector in (("grasp", [1.0, 0.0]), ("pour", [0.0, 2.0]), ("idle", [-3.0, 0.0])):
        database.add_to_database(torch.tensor([vector]), label)
    similar = database.retrieve_similar(torch.tensor([[2.0, 0.1]]), top_k=2)
    assert [label for label, _ in similar] == ["grasp", "pour"]
    assert similar[0][1] == pytest.approx(2.0 / 4.01**0.5)
    assert type(similar[0][1]) is float
    assert len(database.retrieve_similar(torch.tensor([1.0, 0.0]), top_k=50)) == 3


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # the second takes the way of a GPU
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_search_equals_brute_force(metric, device):
    database, vectors = filled(500, device=device)
    queries = np.random.default_rng(1).standard_normal((7, 16)).astype(np.float32)
    for query, found in zip(queries, database.search(queries, 10, metric), strict=True):
        scores = brute_force(vectors, query, metric)
        best = np.argsort(scores if metric == "l2" else -scores)[:10]
        assert [match.id for match in found] == best.tolist()
        np.testing.assert_allclose([match.score for match in found], scores[best], atol=1e-12)
    more = np.random.default_rng(2).standard_normal((300, 16)).astype(np.float32)
    database.add_batch(more, ["more"] * 300)
    found = database.search(more[123], 1, metric)[0][0]
    assert found.id == 623


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_search_on_cuda_equals_search_on_cpu():
    (here, vectors), (there, _) = filled(), filled(device="cuda")
    found = [[m.id for m in d.search(vectors[3], 5)[0]] for d in (here, there)]
    assert found[0] == found[1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 30))
def test_deleted_rows_are_never_found_and_the_rest_is(seed, rows, top_k):
    rng = np.random.default_rng(seed)
    database, vectors = filled(rows, dim=4, seed=seed)
    dead = np.flatnonzero(rng.random(rows) < 0.5)
    assert database.delete(dead.tolist()) == len(dead)
    assert len(database) == rows - len(dead)
    query = rng.standard_normal(4).astype(np.float32)
    scores = brute_force(vectors, query, "cosine")
    scores[dead] = -np.inf
    expected = np.argsort(-scores)[: min(top_k, rows - len(dead))]
    assert [m.id for m in database.search(query, top_k)[0]] == expected.tolist()


def test_near_duplicates_are_ranked_beyond_float32():
    # Ten rows that differ by less than the rounding of a float32 product of this length.
    base = np.full(512, 1000.0, np.float32)
    rows = np.tile(base, (10, 1))
    rows[np.arange(10), 0] += np.arange(10, dtype=np.float32) * 0.001
    database = EmbeddingRetrieval()
    database.add_batch(rows, [str(i) for i in range(10)])
    found = database.search(rows[4], 10, "l2")[0]
    exact = brute_force(rows, rows[4], "l2")
    assert found[0].id == 4
    np.testing.assert_array_equal([m.score for m in found], np.sort(exact))


def test_a_row_of_zeros_scores_zero():
    database = EmbeddingRetrieval()
    database.add_batch(np.array([[0.0, 0.0], [-1.0, 0.0]]), ["zero", "back"])
    assert database.retrieve_similar([1.0, 0.0]) == [("zero", 0.0), ("back", -1.0)]


def test_metadata_stamps_labels_and_ids(tmp_path):
    database = EmbeddingRetrieval()
    first = database.add_to_database([1.0, 0.0], "grasp", {"object": "cup", "n": [1, 2]}, 17)
    more = database.add_batch(
        np.eye(2), ["pour", "pour"], [None, {"ü": "\u0000"}], [None, np.int64(-5)]
    )
    assert (first, more) == (0, range(1, 3))
    database.save(tmp_path / "states")
    for opened in (database, EmbeddingRetrieval.load(tmp_path / "states")):
        match = opened.search([1.0, 0.0], 1)[0][0]
        assert (match.label, match.stamp_ns, match.metadata) == (
            "grasp",
            17,
            {"object": "cup", "n": [1, 2]},
        )
        assert opened.search([0.0, 1.0], 1)[0][0].metadata == {"ü": "\u0000"}
        assert opened.search([0.0, 1.0], 1)[0][0].stamp_ns == -5
    assert database.delete(label="pour") == 2
    assert database.delete([first]) == 1
    assert database.search([1.0, 0.0]) == [[]]
    database.save(tmp_path / "states")
    opened = EmbeddingRetrieval.load(tmp_path / "states")
    assert len(opened) == 0
    assert opened.add_to_database([1.0], "another dimension, another id") == 3


def test_saves_add_up_and_segments_stay_few(tmp_path):
    database, vectors = filled(1, dim=4)
    database.save(tmp_path)
    for step in range(1, 40):
        database.add_to_database(np.full(4, float(step)), f"row {step}")
        if step % 7 == 0:
            database.delete([step // 2])
        database.save(tmp_path)
        opened = EmbeddingRetrieval.load(tmp_path)
        assert len(opened) == len(database)
        assert opened.search(vectors[0], 50) == database.search(vectors[0], 50)
    assert len(list(tmp_path.glob("segment-*.arrow"))) <= 6
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".arrow") == [
        "lock",
        "manifest.json",
    ]


def test_an_untouched_segment_is_not_written_again(tmp_path):
    database, _ = filled(400)
    database.save(tmp_path)
    (segment,) = tmp_path.glob("*.arrow")
    before = segment.stat().st_mtime_ns
    database.delete(range(20))
    database.add_to_database(np.ones(16), "one more")
    database.save(tmp_path)
    assert segment.stat().st_mtime_ns == before
    database.delete(range(300))
    database.save(tmp_path)
    assert not segment.exists()
    assert len(EmbeddingRetrieval.load(tmp_path)) == 101


def test_a_copy_goes_to_another_folder(tmp_path):
    database, vectors = filled()
    database.save(tmp_path / "a")
    database.delete([0])
    database.save(tmp_path / "b")
    assert len(EmbeddingRetrieval.load(tmp_path / "a")) == 200
    assert len(EmbeddingRetrieval.load(tmp_path / "b")) == 199
    assert database.search(vectors[1], 1)[0][0].label == "state 1"


def test_two_writers_do_not_overwrite_each_other(tmp_path):
    filled()[0].save(tmp_path)
    first, second = EmbeddingRetrieval.load(tmp_path), EmbeddingRetrieval.load(tmp_path)
    first.add_to_database(np.ones(16), "first")
    second.add_to_database(np.ones(16), "second")
    first.save(tmp_path)
    with pytest.raises(StoreError, match=r"generation 1\), it is at 2"):
        second.save(tmp_path)
    with pytest.raises(StoreError, match="as this object last saw it"):
        filled()[0].save(tmp_path)
    assert len(EmbeddingRetrieval.load(tmp_path)) == 201


def test_a_reader_keeps_its_state_while_a_writer_goes_on(tmp_path):
    database, vectors = filled()
    database.save(tmp_path)
    reader = EmbeddingRetrieval.load(tmp_path)
    database.clear_database()
    database.add_batch(np.ones((500, 16)), ["new"] * 500)
    database.save(tmp_path)  # removes the segment that the reader has mapped
    assert reader.search(vectors[7], 1)[0][0].label == "state 7"
    assert len(EmbeddingRetrieval.load(tmp_path)) == 500


WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from mmfuse_ros import EmbeddingRetrieval

folder, die_at = sys.argv[1], int(sys.argv[2])
step = 0

def deadly(real):
    def call(*arguments, **named):
        global step
        step += 1
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)
    return call

database = EmbeddingRetrieval()
if Path(folder, "manifest.json").exists():
    database = EmbeddingRetrieval.load(folder)
if die_at:
    os.fsync, Path.replace, Path.unlink = map(deadly, (os.fsync, Path.replace, Path.unlink))
print("ready", flush=True)
while True:
    start = database._next_id
    rows = np.arange(start, start + 100, dtype=np.float32)[:, None] * np.ones(256, np.float32)
    database.add_batch(rows, [str(i) for i in range(start, start + 100)])
    database.delete([start + 50])
    database.save(folder)
"""


def writer(folder, die_at=0):
    """Start a process that commits 100 rows, one of them deleted, again and again."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(die_at)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    return process


def check_whole(folder):
    """Check every row of the store; return the number of commits behind it."""
    generation = store.read_manifest(folder).generation
    database = EmbeddingRetrieval.load(folder)
    assert len(database) % 99 == 0
    assert len(database) >= 99 * generation
    for block in database._blocks:
        ids = np.repeat(block.ids[:, None], 256, axis=1)
        np.testing.assert_array_equal(block.vectors, ids.astype(np.float32))
        labels = [block.value("labels", i) for i in range(len(block))]
        assert labels == [str(i) for i in block.ids]
    return generation


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (1, "the segment's flush"),
        (2, "the folder's flush"),
        (3, "the manifest's flush"),
        (4, "the manifest's rename"),
        (5, "the flush of that"),
        (6, "the removal of what was replaced"),
    ],
)
def test_a_writer_that_dies_before(tmp_path, step, name):
    folder = tmp_path / "states"
    rows = np.arange(100, dtype=np.float32)[:, None] * np.ones(256, np.float32)
    database = EmbeddingRetrieval()
    database.add_batch(rows, [str(i) for i in range(100)])
    database.delete([50])
    database.save(folder)
    assert writer(folder, step).wait() == -signal.SIGKILL
    assert check_whole(folder) == (1 if step <= 4 else 2), name
    database = EmbeddingRetrieval.load(folder)
    database.add_to_database(np.ones(256), "and on")
    database.save(folder)
    named = {entry.file for entry in store.read_manifest(folder).segments}
    assert {p.name for p in folder.iterdir()} == {*named, store.MANIFEST, store.LOCK}


def test_readers_of_a_writer_that_is_killed_at_any_moment(tmp_path):
    folder = tmp_path / "states"
    rng = np.random.default_rng(0)
    generation = 0
    for _ in range(4):
        process = writer(folder)
        enough = generation + 4
        while generation < enough:
            if (folder / store.MANIFEST).exists():
                assert check_whole(folder) >= generation
                generation = check_whole(folder)
        time.sleep(rng.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert check_whole(folder) >= generation


def test_a_commit_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """What a power cut keeps: the data, its name, then the manifest, and its name."""
    events = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(handle):
        events.append(
            re.sub(r"[0-9a-f]{32}", "", Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        )
        real_fsync(handle)

    def replace(old, new):
        events.append(f"rename to {Path(new).name}")
        return real_replace(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    filled()[0].save(tmp_path / "states")
    assert events == [
        "segment-.arrow",
        "states",
        ".manifest.json..part",
        "rename to manifest.json",
        "states",
    ]


def damaged(folder, **changes):
    path = folder / store.MANIFEST
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(raw))


def test_a_newer_format_is_refused(tmp_path):
    filled()[0].save(tmp_path)
    damaged(tmp_path, version=2)
    with pytest.raises(StoreError, match="version 1, got 2; a newer mmfuse_ros reads it"):
        EmbeddingRetrieval.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": -1},
        {"dimension": "16"},
        {"dimension": 10**9},
        {"segments": [{"file": "../../etc/passwd", "rows": 1, "size": 1, "deleted": []}]},
        {"segments": None},
        {"next_id": True},
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, changes):
    filled()[0].save(tmp_path)
    damaged(tmp_path, **changes)
    with pytest.raises(StoreError, match="is damaged"):
        EmbeddingRetrieval.load(tmp_path)


def test_sizes_are_checked_before_anything_is_read(tmp_path):
    filled()[0].save(tmp_path)
    manifest = json.loads((tmp_path / store.MANIFEST).read_text())
    entry = manifest["segments"][0]
    damaged(tmp_path, segments=[{**entry, "rows": 2**40}])
    with pytest.raises(StoreError, match=r"cannot hold 1099511627776 rows"):
        EmbeddingRetrieval.load(tmp_path)
    damaged(tmp_path, segments=[{**entry, "rows": 199}])
    with pytest.raises(StoreError, match="must hold 199 rows"):
        EmbeddingRetrieval.load(tmp_path)


def test_damaged_segments_are_refused(tmp_path):
    filled()[0].save(tmp_path)
    (segment,) = tmp_path.glob("*.arrow")
    whole = segment.read_bytes()
    segment.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="bytes long, got"):
        EmbeddingRetrieval.load(tmp_path)
    segment.write_bytes(b"\x00" * len(whole))
    with pytest.raises(StoreError, match="is damaged"):
        EmbeddingRetrieval.load(tmp_path)
    segment.unlink()
    with pytest.raises(StoreError, match="lacks a file of its manifest"):
        EmbeddingRetrieval.load(tmp_path)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"it has no manifest\.json"):
        EmbeddingRetrieval.load(tmp_path / "nothing")
    (tmp_path / store.MANIFEST).write_text("[" * 100_000)
    with pytest.raises(StoreError, match="not a manifest"):
        EmbeddingRetrieval.load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((np.ones((2, 16)), ["one"]), "labels must hold one value for each of 2 rows"),
        ((np.ones((2, 16)), "ab"), "labels must hold one value"),
        ((np.ones((1, 16)), [3]), "a label must be a string, got 3"),
        ((np.ones((1, 17)), ["a"]), "dimension 16, got 17"),
        ((np.full((1, 16), np.inf), ["a"]), "finite"),
        ((np.ones((1, 16)), ["a"], [{"x": object()}]), "metadata must be what JSON can hold"),
        ((np.ones((1, 16)), ["a"], [{"x": float("nan")}]), "metadata must be what JSON"),
        ((np.ones((1, 16)), ["a"], ["text"]), "metadata must be a mapping"),
        ((np.ones((1, 16)), ["a"], None, [1.5]), "integer nanoseconds or None, got 1.5"),
        ((np.ones((1, 16)), ["a"], None, [2**63]), "64 bits"),
    ],
)
def test_rows_that_cannot_be_kept_are_refused_whole(arguments, match):
    database, _ = filled()
    with pytest.raises(InputError, match=match):
        database.add_batch(*arguments)
    assert len(database) == 200


def test_questions_that_cannot_be_answered_are_refused():
    database, vectors = filled()
    with pytest.raises(ConfigError, match="cosine, l2, got 'dot'"):
        database.retrieve_similar(vectors[0], metric="dot")
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        database.retrieve_similar(vectors[0], 0)
    with pytest.raises(InputError, match="dimension 16, got 3"):
        database.retrieve_similar(np.ones(3))
    with pytest.raises(ConfigError, match="device must be one that torch has here"):
        EmbeddingRetrieval(device="warp")
    assert EmbeddingRetrieval().retrieve_similar(np.ones(3)) == []


def test_many_queries_go_through_in_parts(monkeypatch):
    database, vectors = filled()
    whole = database.search(vectors, 3)
    monkeypatch.setattr(retrieval_module, "_SCORES_AT_ONCE", 1000)
    assert database.search(vectors, 3) == whole


def test_saving_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    database, vectors = filled()
    with pytest.raises(ConfigError, match=r"pip install 'mmfuse_ros\[retrieval\]'"):
        database.save(tmp_path)
    assert database.search(vectors[3], 1)[0][0].id == 3


def test_searching_needs_neither_torch_nor_pyarrow():
    code = (
        "import sys; from mmfuse_ros import EmbeddingAnalysis, EmbeddingRetrieval\n"
        "d = EmbeddingRetrieval(); d.add_to_database([1.0, 2.0], 'a')\n"
        "assert d.retrieve_similar([1.0, 2.0])[0][0] == 'a'\n"
        "assert EmbeddingAnalysis.cosine_similarity([1.0], [2.0]) == 1.0\n"
        "assert not {'torch', 'pyarrow', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
