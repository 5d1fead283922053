"""Regularizers have Keras' names, defaults and values."""

import numpy as np
import pytest

from conv3dt import regularizers

W = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -4.0]])  # sum |w| = 10.5, sum w**2 = 30.25


@pytest.mark.parametrize(
    ("identifier", "value"),
    [
        ("L1", 0.105),
        ("l1", 0.105),
        ("L2", 0.3025),
        ("l2", 0.3025),
        ("l1_l2", 0.4075),  # Keras 2: 0.01 each
        ("l1l2", 0.0),  # Keras 3: 0
        ("L1L2", 0.0),
        (regularizers.L1(2), 21.0),
        (regularizers.L2(0.5), 15.125),
        (regularizers.L1L2(l1=1, l2=2), 71.0),
        (regularizers.L1L2(l1=1, l2=None), 10.5),
        ({"class_name": "L1L2", "config": {"l1": 0.0, "l2": 1.0}}, 30.25),
        ({"module": "keras.regularizers", "class_name": "L2", "config": {"l2": 1.0}}, 30.25),
        (regularizers.L1, 0.105),
        (lambda w: w.max(), 3.0),
    ],
)
def test_values(identifier, value):
    regularizer = regularizers.get(identifier)
    assert float(regularizer(W)) == pytest.approx(value, rel=1e-12)
    assert float(regularizer(W.astype(np.float32))) == pytest.approx(value, rel=1e-7)
    if isinstance(regularizer, regularizers.Regularizer):
        again = regularizers.get(regularizers.serialize(regularizer))
        assert type(again) is type(regularizer) and again(W) == regularizer(W)


def test_sums_are_float64():
    many = np.full(1_000_000, 0.1, np.float32)
    assert regularizers.L1(1.0)(many) == pytest.approx(1e6 * float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_orthogonal(mode):
    regularizer = regularizers.OrthogonalRegularizer(factor=0.5, mode=mode)
    rows = W if mode == "rows" else W.T
    cosines = [
        abs(a @ b) / np.sqrt((a @ a) * (b @ b)) for i, a in enumerate(rows) for b in rows[:i]
    ]
    assert regularizer(W) == pytest.approx(0.5 * np.mean(cosines), rel=1e-6)
    with pytest.raises(ValueError, match="2 axes"):
        regularizer(np.ones((2, 2, 2, 3, 4)))
    again = regularizers.get(regularizers.serialize(regularizer))
    assert (again.factor, again.mode) == (0.5, mode)
    assert regularizers.get("orthogonal_regularizer").factor == 0.01


def test_bad():
    for bad in ("nonsense", "L3", 3, {"class_name": "L3"}):
        with pytest.raises(ValueError, match="regularizer must be"):
            regularizers.get(bad)
    for factor in (-1, float("nan"), float("inf"), "x"):
        with pytest.raises(ValueError, match="l2 must be"):
            regularizers.L2(factor)
    with pytest.raises(ValueError, match="L2 accepts"):
        regularizers.get({"class_name": "L2", "config": {"l3": 1}})
    with pytest.raises(ValueError, match="mode"):
        regularizers.OrthogonalRegularizer(mode="diagonals")
    assert regularizers.get(None) is None


def absolute(w):
    return np.abs(w).max()


def test_custom_objects():
    config = regularizers.serialize(regularizers.get(absolute))
    assert regularizers.get(config, {"absolute": absolute})(W) == 4
    assert regularizers.get("l1_l2", {"l1_l2": absolute})(W) == 4
