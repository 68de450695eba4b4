"""Contributions: Shapley values against closed forms, brute force and their axioms."""

import itertools

import numpy as np
import pytest
import torch

from mmfuse_ros import EmbeddingAnalysis
from mmfuse_ros.analysis.contribution import SQUARED_NORM, contributions, shapley_values
from mmfuse_ros.errors import InputError

NAMES = ("camera_1", "audio", "pressure", "emg")


def vectors(rows=3, dim=6, names=NAMES):
    rng = np.random.default_rng(7)
    return {name: rng.standard_normal((rows, dim)).astype(np.float32) for name in names}


def additive(vectors, present):
    return sum(torch.where(present[n][:, None], v, 0.0) for n, v in vectors.items()) + 1.0


def crooked(vectors, present):
    """A head with interactions of every order."""
    stack = [torch.where(present[n][:, None], v, 0.3) for n, v in vectors.items()]
    return torch.tanh(sum(stack)) + torch.stack(stack).prod(dim=0)


def everyone(vectors):
    rows = len(next(iter(vectors.values())))
    tensors = {n: torch.from_numpy(v) for n, v in vectors.items()}
    return tensors, {n: torch.ones(rows, dtype=torch.bool) for n in vectors}


def test_additive_head_has_the_closed_form():
    given = vectors()
    total = sum(given.values())
    values = shapley_values(given, additive)
    for name, vector in given.items():
        expected = (vector * total).sum(axis=1) / np.square(total).sum(axis=1)
        np.testing.assert_allclose(values[name], expected, atol=1e-5)


def test_equals_the_mean_over_all_orders_of_arrival():
    given = vectors(rows=1)
    tensors, _ = everyone(given)

    def fused(subset):
        present = {n: torch.tensor([n in subset]) for n in NAMES}
        return crooked(tensors, present).double().numpy()[0]

    full, nothing = fused(NAMES), fused(())

    def worth(subset):
        return 1 - np.square(fused(subset) - full).sum() / np.square(nothing - full).sum()

    expected = dict.fromkeys(NAMES, 0.0)
    orders = list(itertools.permutations(NAMES))
    for order in orders:
        for i, name in enumerate(order):
            expected[name] += (worth(order[: i + 1]) - worth(order[:i])) / len(orders)
    values = shapley_values(given, crooked)
    for name in NAMES:
        assert values[name][0] == pytest.approx(expected[name], abs=1e-6)


def test_shares_sum_to_one_and_an_ignored_modality_gets_nothing():
    given = vectors(rows=200)

    def deaf(vectors, present):
        return crooked({n: v for n, v in vectors.items() if n != "audio"}, present)

    values = shapley_values(given, deaf)
    np.testing.assert_allclose(sum(values.values()), 1.0, atol=1e-9)
    np.testing.assert_allclose(values["audio"], 0.0, atol=1e-9)


def test_equal_modalities_get_equal_shares():
    one = vectors(rows=1)["emg"]
    values = shapley_values({"audio": one, "emg": one, "pressure": 2 * one}, additive)
    assert values["audio"][0] == pytest.approx(values["emg"][0])
    assert values["pressure"][0] == pytest.approx(0.5)


def test_a_modality_that_pulls_against_the_others_is_negative():
    one = np.ones((1, 4), np.float32)
    values = shapley_values({"audio": 3 * one, "emg": -one}, additive)
    assert values["audio"][0] == pytest.approx(1.5)
    assert values["emg"][0] == pytest.approx(-0.5)


def test_a_head_that_ignores_everything_gives_zeros():
    values = shapley_values(vectors(), lambda v, present: torch.ones(len(v["emg"]), 3))
    assert all((share == 0.0).all() for share in values.values())


def test_rows_do_not_depend_on_the_batch():
    given = vectors(rows=300)
    whole = shapley_values(given, crooked)
    alone = shapley_values({n: v[299:] for n, v in given.items()}, crooked)
    for name in NAMES:
        assert whole[name][299] == pytest.approx(alone[name][0], abs=1e-6)


def test_at_most_32_evaluations_in_one_batch():
    calls = []

    def counting(vectors, present):
        calls.append(len(vectors["emg"]))
        return additive(vectors, present)

    shapley_values(vectors(rows=1, names=("camera_1", "camera_2", *NAMES[1:])), counting)
    assert calls == [32]


def test_the_cameras_stand_for_the_vision_vector_made_of_them():
    given = vectors(names=("camera_1", "camera_2", "emg"))
    both = {"vision": given["camera_1"] + given["camera_2"], **given}
    assert shapley_values(both, additive).keys() == given.keys()


def test_the_call_finds_the_head_on_the_embeddings():
    class Carrying(dict):
        fuse = staticmethod(additive)

    given = vectors(rows=1)
    fused = additive(*everyone(given))
    found = EmbeddingAnalysis.modality_contribution(Carrying(given), fused)
    named = EmbeddingAnalysis.modality_contribution(given, fused, fuse=additive)
    assert found == named
    assert sum(found.values()) == pytest.approx(1.0)
    assert all(type(share) is float for share in found.values())


def test_without_a_head_the_fallback_is_named_and_warned_of():
    given = {"audio": np.array([3.0, 0.0]), "emg": np.array([4.0])}
    with pytest.warns(UserWarning, match="fusion head is not known"):
        shares = contributions(given, np.ones(5))
    assert shares.method == SQUARED_NORM
    assert shares.mean == pytest.approx({"audio": 9 / 25, "emg": 16 / 25})


@pytest.mark.parametrize(
    ("fused", "match"),
    [
        (-np.ones((3, 6)), "take both from one call"),
        (np.ones((3, 5)), "dimension 6, got 5"),
        (np.ones((2, 6)), "one row for each of the 3 rows"),
    ],
)
def test_a_fused_vector_of_something_else_is_refused(fused, match):
    positive = {n: np.abs(v) for n, v in vectors().items()}
    with pytest.raises(InputError, match=match):
        EmbeddingAnalysis.modality_contribution(positive, fused, fuse=additive)


def test_what_is_no_set_of_modalities_is_refused():
    with pytest.raises(InputError, match="1 to 12, got 0"):
        shapley_values({}, additive)
    with pytest.raises(InputError, match="same number of rows"):
        shapley_values({"audio": np.ones((2, 3)), "emg": np.ones((1, 3))}, additive)


def test_a_module_is_asked_in_eval_mode_and_left_as_it_was():
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)

        def fuse(self, vectors, present):
            return self.drop(additive(vectors, present))

    head = Head().train()
    values = shapley_values(vectors(), head.fuse)
    expected = shapley_values(vectors(), additive)
    np.testing.assert_array_equal(values["emg"], expected["emg"])
    assert head.training
    assert head.drop.training
