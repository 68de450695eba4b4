"""The evaluation's figures, its plot, and a short run on the recordings where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from mmfuse_ros.anomaly import Detector
from mmfuse_ros.anomaly.plot import plot_fit
from mmfuse_ros.errors import InputError
from mmfuse_ros.evaluation.metrics import auprc, auroc, spread, summary

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")


@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_those_of_scikit_learn(ties):
    rng = np.random.default_rng(0)
    normal, odd = rng.normal(size=80), rng.normal(1.0, 1.0, 40)
    if ties:
        normal, odd = normal.round(), odd.round()
    truth = np.r_[np.zeros(80), np.ones(40)]
    scores = np.r_[normal, odd]
    assert auroc(normal, odd) == pytest.approx(roc_auc_score(truth, scores))
    assert auprc(normal, odd) == pytest.approx(average_precision_score(truth, scores))


def test_summary_leaves_nan_out():
    assert summary([1.0, float("nan"), 3.0]) == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}
    assert summary([float("nan")]) == {}
    assert spread([{"a": 1.0}, {"a": 2.0, "b": 5.0}])["b"]["mean"] == 5.0


def test_delay_counts_from_the_onset_and_only_a_new_alarm():
    pytest.importorskip("torch", reason="torch is not installed")
    from mmfuse_ros.evaluation.protocols import count_alarms, delay

    flags = np.array([0, 0, 1, 1, 1], bool)
    ends = np.arange(5) * 0.5
    assert delay(flags, ends, 1.0) == 0.5
    assert np.isnan(delay(flags, ends, 2.0))  # raised before the onset
    assert np.isnan(delay(np.zeros(5, bool), ends, 0.0))
    assert count_alarms(np.array([0, 1, 1, 0, 0, 0, 1, 1, 1, 0], bool)) == 2
    assert count_alarms(np.array([0, 1, 0, 0, 1, 0], bool)) == 0


@pytest.mark.parametrize("name", ["fit.html", "fit.png"])
def test_plot(tmp_path, name):
    if name.endswith("png"):
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    rng = np.random.default_rng(0)
    data = [
        {"audio": rng.normal(size=(20, 3)), "<emg>": rng.normal(size=(20, 2))} for _ in range(6)
    ]
    data[2]["<emg>"][5:] = np.nan
    data[3]["audio"][8:14] += 9.0
    plot_fit(Detector.fit(data), data, tmp_path / name, hop_s=0.5)
    written = (tmp_path / name).read_bytes()
    if name.endswith("html"):
        text = written.decode()
        assert "&lt;emg&gt;" in text
        assert "<emg>" not in text
        assert "http" not in text  # self-contained
        assert 'class="alarm"' in text
        assert text.count('class="score"') + text.count('class="flag"') == 3 * 120 - 15
    else:
        assert written.startswith(b"\x89PNG")


def test_plot_refuses_another_ending(tmp_path):
    data = [{"a": np.random.default_rng(i).normal(size=(5, 2))} for i in range(5)]
    with pytest.raises(InputError, match=r"must end in \.html or \.png, got fit\.svg"):
        plot_fit(Detector.fit(data), data, tmp_path / "fit.svg")


def test_missing_recordings_are_named(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    from mmfuse_ros.evaluation.data import Recordings

    with pytest.raises(InputError, match="--data must name a folder with bldc in it"):
        Recordings.read(tmp_path)


@needs_data
def test_the_recordings_give_what_the_documentation_says():
    """One or two splits of each protocol; the bounds lie well below the means over 20 splits."""
    pytest.importorskip("torch", reason="torch is not installed")
    from mmfuse_ros.evaluation import composite, protocols
    from mmfuse_ros.evaluation.data import Recordings

    data = Recordings.read(DATA)
    for seed in (0, 1):
        motor = protocols.motors(data, seed, 0.05)
        assert motor["calibrated"]["auroc"] > 0.97
        assert motor["calibrated"]["tpr"] > motor["cosine_0.85"]["tpr"] + 0.5
        assert motor["plain_knn"]["fpr"] > 0.5  # windows taken as independent
    emg = protocols.emg(data, 0, 0.05)
    assert emg["electrode_off"]["calibrated"]["auroc"] > 0.99
    assert emg["novel_gesture"]["calibrated"]["auroc"] > 0.85
    assert protocols.force(data, 0, 0.05)["calibrated"]["auroc"] > 0.95
    rows = composite.faults(data, 0, 0.05)
    assert rows["any"]["calibrated"]["auroc"] > 0.8
    assert rows["removed audio"]["calibrated"]["fpr_rise"] <= 0.05
