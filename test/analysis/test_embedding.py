"""EmbeddingAnalysis: measures against their definitions, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmfuse_ros import EmbeddingAnalysis
from mmfuse_ros.errors import InputError

finite = st.floats(-1e3, 1e3, width=32)


@given(arrays(np.float32, st.integers(2, 40), elements=finite))
def test_statistics_are_torchs(vector):
    tensor = torch.from_numpy(vector).double()
    stats = EmbeddingAnalysis.embedding_statistics(torch.from_numpy(vector), "audio")
    assert list(stats) == [
        "modality",
        "dimension",
        "norm",
        "mean",
        "std",
        "min",
        "max",
        "sparsity",
    ]
    assert stats["modality"] == "audio"
    assert stats["dimension"] == len(vector)
    for name, value in {
        "norm": tensor.norm(),
        "mean": tensor.mean(),
        "std": tensor.std(),
        "min": tensor.min(),
        "max": tensor.max(),
        "sparsity": (tensor.abs() < 0.01).double().mean(),
    }.items():
        assert stats[name] == pytest.approx(value.item(), rel=1e-9, abs=1e-9), name


def test_statistics_of_a_batch_are_those_of_all_elements():
    rows = np.random.default_rng(0).normal(1e3, 1.0, (7, 5)).astype(np.float32)
    stats = EmbeddingAnalysis.embedding_statistics(rows)
    assert stats["norm"] == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-6)
    assert stats["std"] == pytest.approx(rows.astype(np.float64).std(ddof=1), rel=1e-9)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, list])
@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_similarity_and_distance_take_what_people_have(kind, shape):
    first = kind(np.array([3.0, 0.0, 4.0], np.float32).reshape(shape))
    second = kind(np.array([0.0, 5.0, 0.0], np.float32).reshape(shape))
    assert EmbeddingAnalysis.cosine_similarity(first, first) == pytest.approx(1.0, abs=1e-12)
    assert EmbeddingAnalysis.cosine_similarity(first, second) == 0.0
    assert EmbeddingAnalysis.euclidean_distance(first, second) == pytest.approx(50**0.5)
    assert type(EmbeddingAnalysis.cosine_similarity(first, second)) is float


def test_tensors_that_need_gradients_or_are_half():
    tensor = torch.ones(4, requires_grad=True)
    assert EmbeddingAnalysis.cosine_similarity(tensor, tensor.bfloat16()) == pytest.approx(1.0)


def test_zeros_have_no_direction():
    assert EmbeddingAnalysis.cosine_similarity(np.zeros(3), np.ones(3)) == 0.0


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        (np.ones(3), np.ones(4), "one dimension, got 3 and 4"),
        (np.ones((2, 3)), np.ones(3), "one vector"),
        (np.array([1.0, np.nan]), np.ones(2), "finite, got 1"),
        (np.ones((1, 1, 3)), np.ones(3), r"got \(1, 1, 3\)"),
        (np.empty(0), np.ones(3), "not empty"),
        ("vector", np.ones(3), "numbers, got str"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, match):
    with pytest.raises(InputError, match=match):
        EmbeddingAnalysis.cosine_similarity(first, second)
    with pytest.raises(InputError, match=match):
        EmbeddingAnalysis.euclidean_distance(first, second)
