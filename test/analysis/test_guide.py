"""The guide's code on embeddings, run with the import changed and nothing else.

Where the guide writes `...` or names what the reader is to fill in, a value stands ready under
that name. On a machine without a GPU, "cuda" is read as "cpu".
"""

import json
import re
import textwrap
from types import SimpleNamespace

import pytest
import torch

from mmfuse_ros import RoboticFeedbackSystem

pytestmark = pytest.mark.usefixtures("tiny_models")

IMPORTS = r"from (robotic_feedback_system|utils\.embedding_utils|config) import"


class Filled:
    """A system that takes the guide's `system(...)`, and its `camera_images={...}`."""

    def __init__(self, inputs, **always):
        self.system = RoboticFeedbackSystem(device="cpu")
        self.inputs, self.always = inputs, always

    def __call__(self, *arguments, **named):
        if named.get("camera_images") == {...}:
            named["camera_images"] = self.inputs["camera_images"]
        if arguments:  # `...`, or one place's sensor data
            data = self.inputs if arguments[0] is ... else arguments[0]
            named = {**data, **named}
        return self.system(**{**self.always, **named})


def readings(seed):
    torch.manual_seed(seed)
    return {
        "camera_images": {
            "camera1": torch.rand(1, 3, 48, 64),
            "camera2": torch.rand(1, 3, 48, 64),
        },
        "audio": 0.1 * torch.randn(1, 4800),
        "pressure": (1 + seed) * torch.randn(1, 1000),
        "emg": torch.randn(1, 8, 1000),
    }


def run(code, **names):
    code = re.sub(IMPORTS, "from mmfuse_ros import", textwrap.dedent(code))
    if not torch.cuda.is_available():
        code = code.replace('"cuda"', '"cpu"')
    scope = {"torch": torch, **names}
    exec(compile(code, "guide", "exec"), scope)
    return SimpleNamespace(**scope)


def test_example_2_anomaly_detection(capsys):
    class Monitoring:
        def __init__(self, steps):
            self.steps = steps

        def __bool__(self):
            self.steps -= 1
            return self.steps >= 0

    def get_fused_embedding(system, data):
        with torch.no_grad():
            return system(**data)

    seen = run(
        """
        from robotic_feedback_system import RoboticFeedbackSystem
        from utils.embedding_utils import EmbeddingAnalysis
        import torch

        system = RoboticFeedbackSystem(device="cuda")

        # Establish baseline from normal operation
        baseline_embedding = get_fused_embedding(system, normal_sensor_data)

        # Monitor for anomalies
        while monitoring:
            current_embedding = get_fused_embedding(system, current_sensor_data)

            # Compute similarity to baseline
            similarity = EmbeddingAnalysis.cosine_similarity(
                baseline_embedding,
                current_embedding
            )

            if similarity < 0.85:
                print("ANOMALY DETECTED!")
                # Take corrective action
        """,
        get_fused_embedding=get_fused_embedding,
        normal_sensor_data=readings(0),
        current_sensor_data={"pressure": readings(0)["pressure"]},  # the other plugs are pulled
        monitoring=Monitoring(2),
    )
    assert capsys.readouterr().out == "ANOMALY DETECTED!\n" * 2
    assert -1.0 <= seen.similarity < 0.85


def test_example_3_modality_importance(capsys):
    inputs = readings(1)
    seen = run(
        """
        from utils.embedding_utils import EmbeddingAnalysis
        with torch.no_grad():
            fused, modalities = system(
                camera_images={...},
                audio=audio,
                pressure=pressure,
                emg=emg,
                return_modality_embeddings=True
            )

        # Analyze modality contributions
        contributions = EmbeddingAnalysis.modality_contribution(
            modalities, fused
        )

        print("Modality Contributions:")
        for modality, contrib in contributions.items():
            print(f"  {modality}: {contrib:.2%}")
        """,
        system=Filled(inputs),
        **{name: inputs[name] for name in ("audio", "pressure", "emg")},
    )
    assert list(seen.contributions) == ["camera_1", "camera_2", "audio", "pressure", "emg"]
    assert sum(seen.contributions.values()) == pytest.approx(1.0)
    assert len(re.findall(r"  \w+: -?[\d.]+%", capsys.readouterr().out)) == 5


def test_statistics(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = run(
        """
        from utils.embedding_utils import create_embeddings_report

        with torch.no_grad():
            fused, modalities = system(...)

        # Generate comprehensive report
        report = create_embeddings_report(fused, modalities,
                                          output_path="report.json")

        print("Embedding Statistics:")
        for modality, stats in report['modalities'].items():
            print(f"\\n{modality}:")
            print(f"  Dimension: {stats['dimension']}")
            print(f"  Norm: {stats['norm']:.4f}")
            print(f"  Sparsity: {stats['sparsity']:.2%}")
        """,
        system=Filled(readings(2), return_modality_embeddings=True),
    )
    assert json.loads((tmp_path / "report.json").read_text()) == seen.report
    assert seen.report["contribution_method"] == "shapley"
    out = capsys.readouterr().out
    assert "\nvision:\n  Dimension: 24\n" in out
    assert "\nemg:\n  Dimension: 256\n" in out


def test_retrieval(capsys):
    seen = run(
        """
        from utils.embedding_utils import EmbeddingRetrieval

        # Build database of reference states
        retrieval = EmbeddingRetrieval(device="cuda")

        for label, sensor_data in reference_database:
            embedding = system(sensor_data)
            retrieval.add_to_database(embedding, label)

        # Find similar states during operation
        current_embedding = system(current_sensor_data)
        similar_states = retrieval.retrieve_similar(current_embedding, top_k=5)

        print("Most similar reference states:")
        for label, similarity in similar_states:
            print(f"  {label}: {similarity:.4f}")
        """,
        system=Filled({}),
        reference_database=[(f"place {i}", readings(i)) for i in range(8)],
        current_sensor_data=readings(3),
    )
    assert seen.similar_states[0] == ("place 3", pytest.approx(1.0, abs=1e-3))
    similarities = [similarity for _, similarity in seen.similar_states]
    assert len(similarities) == 5
    assert similarities == sorted(similarities, reverse=True)
    assert "  place 3: " in capsys.readouterr().out


def test_the_quick_references_calls():
    inputs = readings(4)
    with torch.no_grad():
        fused, modalities = Filled(inputs)(..., return_modality_embeddings=True)
    seen = run(
        """
        from utils.embedding_utils import EmbeddingAnalysis
        sim = EmbeddingAnalysis.cosine_similarity(emb1, emb2)
        dist = EmbeddingAnalysis.euclidean_distance(emb1, emb2)
        contrib = EmbeddingAnalysis.modality_contribution(modality_embeddings, fused)
        stats = EmbeddingAnalysis.embedding_statistics(embedding)
        """,
        emb1=fused[0],
        emb2=fused[0],
        modality_embeddings=modalities,
        fused=fused,
        embedding=fused,
    )
    assert seen.sim == pytest.approx(1.0)
    assert seen.dist == 0.0
    assert seen.stats["dimension"] == 512
    assert sum(seen.contrib.values()) == pytest.approx(1.0)
