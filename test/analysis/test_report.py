"""Reports: the guide's JSON, the page, and a whole recording."""

import base64
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from mmfuse_ros import EmbeddingAnalysis, create_embeddings_report
from mmfuse_ros.analysis import plots
from mmfuse_ros.analysis.maps import project
from mmfuse_ros.analysis.recording import Recording
from mmfuse_ros.analysis.report import write_recording_report
from mmfuse_ros.errors import ConfigError, InputError
from mmfuse_ros.samples import Level, Modality, Result, Verdict

DIMS = {"camera_1": 6, "camera_2": 6, "audio": 6, "pressure": 6, "emg": 6}


def additive(vectors, present):
    return sum(torch.where(present[n][:, None], v, 0.0) for n, v in vectors.items())


def one_window(seed=0):
    rng = np.random.default_rng(seed)
    vectors = {n: torch.from_numpy(rng.standard_normal((1, d))).float() for n, d in DIMS.items()}
    return sum(vectors.values()), vectors


def result(step, absent=(), score=float("nan"), dim=6):
    rng = np.random.default_rng(step)
    there = [m for m in Modality if m not in absent]
    vectors = {m.value: rng.standard_normal(dim).astype(np.float32) for m in there}
    return Result(
        stamp_ns=1_700_000_000_000_000_000 + step * 100_000_000,
        frame_id="camera",
        embedding=sum(vectors.values()),
        present=tuple(there),
        modality_embeddings=vectors,
        verdict=Verdict(Level.STALE, score, 2.0, float("nan"), score > 2.0, top="emg"),
    )


class Page(HTMLParser):
    """What a browser would load and show."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data

    def figures(self):
        return [
            base64.b64decode(s.removeprefix("data:image/svg+xml;base64,")) for s in self.sources
        ]


def check(text):
    """Return a page that is whole, loads nothing and runs nothing."""
    page = Page(text)
    assert text.endswith("</html>\n")
    assert not {"script", "iframe", "object", "link", "base", "form"} & set(page.tags)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert "default-src 'none'" in text
    for figure in page.figures():
        root = ElementTree.fromstring(figure)
        links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
        assert b"nan" not in re.sub(rb"base64,[^\"]*", b"", figure)
    return page


def test_json_has_the_guides_keys(tmp_path):
    fused, vectors = one_window()
    path = tmp_path / "report.json"
    report = create_embeddings_report(fused, vectors, output_path=str(path), fuse=additive)
    assert json.loads(path.read_text()) == report
    assert set(report) == {"fused", "modalities", "contribution", "contribution_method"}
    assert list(report["modalities"]) == list(vectors)
    assert report["fused"] == EmbeddingAnalysis.embedding_statistics(fused, "fused")
    for name, stats in report["modalities"].items():
        assert stats == EmbeddingAnalysis.embedding_statistics(vectors[name], name)
    assert report["contribution_method"] == "shapley"
    assert sum(report["contribution"].values()) == pytest.approx(1.0)


def test_without_a_head_the_report_names_its_method():
    fused, vectors = one_window()
    with pytest.warns(UserWarning, match="not known"):
        report = create_embeddings_report(fused, vectors)
    assert report["contribution_method"] == "squared_norm"


def test_a_page_of_one_window(tmp_path):
    fused, vectors = one_window()
    path = tmp_path / "report.html"
    create_embeddings_report(fused, vectors, path, fuse=additive)
    page = check(path.read_text())
    assert len(page.figures()) == 2  # contribution and values: one window has no time and no map
    assert "Exact Shapley values" in page.text


def test_a_page_of_many_windows(tmp_path):
    rng = np.random.default_rng(0)
    vectors = {n: rng.standard_normal((12, d)) for n, d in DIMS.items()}
    path = tmp_path / "report.HTM"
    stamps = [100_000_000 * i for i in range(12)]
    create_embeddings_report(
        sum(vectors.values()), vectors, path, fuse=additive, stamps_ns=stamps, method="tsne"
    )
    page = check(path.read_text())
    assert len(page.figures()) == 4
    assert "t-SNE" in page.text


def test_text_is_escaped(tmp_path):
    recording = Recording()
    recording.add(result(0))
    path = tmp_path / "report.html"
    evil = "<script>alert(1)</script>&\"'"
    write_recording_report(recording, path, title=evil, details={evil: evil})
    page = check(path.read_text())
    assert page.text.count(evil) == 4  # title, heading, and both sides of the detail


def test_a_recording_with_everything_that_happens(tmp_path):
    recording = Recording(additive)
    for step in range(300):
        absent = [Modality.AUDIO] if 100 <= step < 150 else []
        absent += [Modality.CAMERA_2] if step % 50 < 3 else []
        at = step + 400 if step > 200 else step  # a gap of 40 s
        recording.add(result(at, absent, score=3.0 if 250 <= step < 260 else 1.0))
    path = tmp_path / "report.html"
    report = write_recording_report(recording, path)
    page = check(path.read_text())
    assert len(page.figures()) == 4
    about = report["recording"]
    assert about["windows"] == 300
    assert about["flagged"] == 10
    assert about["named"] == {**dict.fromkeys(DIMS, 0), "emg": 10}
    assert about["duration_s"] == pytest.approx(69.9)
    assert about["present"]["audio"] == pytest.approx(250 / 300)
    assert sum(report["contribution"].values()) == pytest.approx(1.0)
    assert "2023-11-14 22:13:20 UTC" in page.text
    assert path.stat().st_size < 1_500_000


def test_shares_of_a_recording_are_those_of_each_window_alone():
    recording = Recording(additive)
    windows = [result(i, [Modality.EMG] if i % 3 == 0 else []) for i in range(300)]
    for window in windows:
        recording.add(window)
    line = recording.timeline()
    for i in (0, 1, 150, 299):
        alone = EmbeddingAnalysis.modality_contribution(
            windows[i].modality_embeddings, windows[i].embedding, fuse=additive
        )
        for name in line.shares:
            assert line.shares[name][i] == pytest.approx(alone.get(name, 0.0), abs=1e-6)
    stats = recording.report()["modalities"]["emg"]
    rows = [w.modality_embeddings["emg"] for w in windows if "emg" in w.modality_embeddings]
    expected = EmbeddingAnalysis.embedding_statistics(np.array(rows), "emg")
    assert stats.pop("modality") == expected.pop("modality")
    assert stats == pytest.approx(expected, rel=1e-9)


def test_recordings_that_are_odd_still_get_a_page(tmp_path):
    cases = {
        "one": [result(0)],
        "two": [result(0), result(1)],
        "same": [result(0)] * 5,
        "looped": [result(i % 4) for i in range(12)],
        "uncalibrated and silent": [result(i, list(Modality)[1:]) for i in range(5)],
    }
    for name, windows in cases.items():
        recording = Recording(additive)
        for window in windows:
            recording.add(window)
        path = tmp_path / f"{name}.html"
        write_recording_report(recording, path, title=name)
        check(path.read_text())


def test_same_input_same_bytes(tmp_path):
    fused, vectors = one_window()
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for path in pages:
        create_embeddings_report(fused, vectors, path, fuse=additive)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_report_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    fused, vectors = one_window()
    path = tmp_path / "report.html"
    path.write_text("old")

    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="no space"):
        create_embeddings_report(fused, vectors, path, fuse=additive)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


def test_what_cannot_be_reported_is_refused(tmp_path):
    fused, vectors = one_window()
    with pytest.raises(ConfigError, match="pca, tsne, got 'umap'"):
        create_embeddings_report(fused, vectors, tmp_path / "x.json", fuse=additive, method="umap")
    with pytest.raises(InputError, match="stamps_ns must be 1"):
        create_embeddings_report(fused, vectors, fuse=additive, stamps_ns=[1, 2])
    with pytest.raises(InputError, match="at least one window, got none"):
        write_recording_report(Recording(), tmp_path / "x.html")
    recording = Recording()
    recording.add(result(0))
    with pytest.raises(InputError, match=r"one dimension, got \(3,\)"):
        recording.add(result(1, dim=3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_pca_is_scikit_learns(shape):
    from sklearn.decomposition import PCA

    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    points, names = project(rows)
    model = PCA(2).fit(rows.astype(np.float64))
    expected = model.transform(rows.astype(np.float64))
    signs = np.sign((points * expected).sum(axis=0))
    np.testing.assert_allclose(points, expected * signs, atol=1e-5)
    shares = [round(100 * v) for v in model.explained_variance_ratio_]
    assert names == [f"principal component {i + 1} ({s} %)" for i, s in enumerate(shares)]


def test_every_stream_has_a_colour_of_its_own():
    colours = [plots.COLOURS[m.value] for m in Modality]
    assert len(set(colours)) == len(colours)
