"""paperlab.regular_language.max_margin against closed forms."""

import inspect
import math

import numpy as np
import pytest
import torch
from paperlab.regular_language import max_margin

RNG = np.random.default_rng(5)


def check(features, labels, direction, margin):
    result = max_margin(features, labels)
    assert set(result) == {"direction", "margin", "gap"}
    assert result["direction"].dtype == np.float64
    np.testing.assert_allclose(result["direction"], direction, rtol=0, atol=1e-9)
    assert np.linalg.norm(result["direction"]) == pytest.approx(1.0, abs=1e-14)
    assert result["margin"] == pytest.approx(margin, rel=1e-9)
    assert 0.0 <= result["gap"] <= 1e-10


def test_the_signature_is_the_contract():
    assert list(inspect.signature(max_margin).parameters) == ["features", "labels"]


def test_one_row_points_at_itself():
    check([[3.0, 4.0]], [1], [0.6, 0.8], 5.0)
    check([[3.0, 4.0]], [-1], [-0.6, -0.8], 5.0)


def test_orthogonal_rows():
    labels = np.array([1, -1, 1, 1, -1])
    check(np.eye(5), labels, labels / math.sqrt(5), 1 / math.sqrt(5))


def test_the_margin_has_the_units_of_the_features():
    features = np.array([[1.0, 0.0], [0.0, 2.0]])
    direction = np.array([2.0, 1.0]) / math.sqrt(5)
    check(features, [1, 1], direction, 2 / math.sqrt(5))
    check(1e-6 * features, [1, 1], direction, 2e-6 / math.sqrt(5))
    check(1e9 * features, [1, 1], direction, 2e9 / math.sqrt(5))


def test_rows_that_are_no_support_vectors_do_not_matter():
    features = np.vstack([np.eye(3), 10 + RNG.random((20, 3))])
    check(features, np.ones(23), np.ones(3) / math.sqrt(3), 1 / math.sqrt(3))


def test_the_margin_is_the_smallest_of_the_rows():
    truth = RNG.normal(size=6)
    features = RNG.normal(size=(50, 6))
    labels = np.sign(features @ truth)
    result = max_margin(features, labels)
    margins = labels * (features @ result["direction"])
    assert result["margin"] == pytest.approx(margins.min(), rel=1e-12)
    assert result["margin"] >= (labels * (features @ truth)).min() / np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        ([[1.0, 0.0], [1.0, 0.0]], [1, -1]),
        ([[1.0, 0.0], [-1.0, 0.0]], [1, 1]),
        ([[1.0, 0.0], [0.0, 0.0]], [1, 1]),
        ([[0.0]], [1]),
        (np.array([[0, 0], [0, 1], [1, 0], [1, 1.0]]) - 0.5, [1, -1, -1, 1]),
    ],
)
def test_data_that_cannot_be_separated_are_refused(features, labels):
    with pytest.raises(ValueError, match=r"^max_margin: .*features.*separable"):
        max_margin(np.array(features), np.array(labels))


@pytest.mark.parametrize(
    ("argument", "features", "labels"),
    [
        ("features", [1.0, 2.0], [1, 1]),
        ("features", np.ones((0, 3)), []),
        ("features", np.ones((3, 0)), [1, 1, 1]),
        ("features", np.ones((2, 2, 2)), [1, 1]),
        ("features", [[1.0], [math.nan]], [1, 1]),
        ("features", [[1.0], [math.inf]], [1, 1]),
        ("features", [[1.0], [1j]], [1, 1]),
        ("features", [["a"], ["b"]], [1, 1]),
        ("features", None, [1, 1]),
        ("features", torch.quantize_per_tensor(torch.ones(2, 1), 0.1, 0, torch.qint8), [1, 1]),
        ("labels", [[1.0], [2.0]], [1]),
        ("labels", [[1.0], [2.0]], [1, 0]),
        ("labels", [[1.0], [2.0]], [1, 2]),
        ("labels", [[1.0], [2.0]], [1, math.nan]),
        ("labels", [[1.0], [2.0]], [[1], [1]]),
        ("labels", [[1.0], [2.0]], [True, True]),
        ("labels", [[1.0], [2.0]], 1),
    ],
)
def test_bad_arguments_are_value_errors_that_name_them(argument, features, labels):
    with pytest.raises(ValueError, match=rf"^max_margin: .*\b{argument}\b"):
        max_margin(features, labels)


def test_views_and_torch_tensors_give_the_same_and_stay_as_they_are():
    features = RNG.random((4, 3)) + 0.1
    labels = np.ones(4)
    expected = max_margin(features, labels)
    tensors = torch.tensor(features.T).T, torch.ones(1, dtype=torch.int8).expand(4)
    before = [tensor.clone() for tensor in tensors]
    for result in (
        max_margin(np.asfortranarray(features), labels.astype(np.int16)),
        max_margin(*tensors),
    ):
        np.testing.assert_array_equal(result["direction"], expected["direction"])
        assert result["margin"] == expected["margin"]
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
