"""Constraints have Keras' names, defaults and values."""

import numpy as np
import pytest

from conv3dt import constraints

KERNEL = np.random.default_rng(0).normal(0, 2, (3, 2, 2, 4, 5))


def norms(w, axis=0):
    return np.sqrt((w**2).sum(axis=axis, keepdims=True))


CASES = [
    (("MaxNorm", "max_norm", "maxnorm"), lambda w: w * np.minimum(norms(w), 2) / (norms(w) + 1e-7)),
    (
        ("MinMaxNorm", "min_max_norm", "minmaxnorm"),
        lambda w: w * np.clip(norms(w), 0, 1) / (norms(w) + 1e-7),
    ),
    (("NonNeg", "non_neg", "nonneg"), lambda w: np.where(w > 0, w, 0)),
    (("UnitNorm", "unit_norm", "unitnorm"), lambda w: w / (norms(w) + 1e-7)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("names", "formula"), CASES)
def test_defaults(names, formula, dtype):
    kernel = KERNEL.astype(dtype)
    for name in names:
        constraint = constraints.get(name)
        got = constraint(kernel)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, formula(KERNEL), rtol=1e-6)
        again = constraints.get(constraints.serialize(constraint))
        assert type(again) is type(constraint)
        np.testing.assert_array_equal(again(kernel), got)


@pytest.mark.parametrize("axis", [1, -1, [0, 1, 2, 4], (0, 1, 2, 4)])
def test_arguments(axis):
    axes = axis if isinstance(axis, int) else tuple(axis)
    n = norms(KERNEL, axes)
    for constraint, want in (
        (constraints.MaxNorm(1.5, axis=axis), KERNEL * np.minimum(n, 1.5) / (n + 1e-7)),
        (constraints.UnitNorm(axis=axis), KERNEL / (n + 1e-7)),
        (
            constraints.MinMaxNorm(2.0, 3.0, rate=0.25, axis=axis),
            KERNEL * (0.25 * np.clip(n, 2, 3) + 0.75 * n) / (n + 1e-7),
        ),
    ):
        np.testing.assert_allclose(constraint(KERNEL), want, rtol=1e-12)
        again = constraints.get(constraints.serialize(constraint))
        np.testing.assert_array_equal(again(KERNEL), constraint(KERNEL))


def test_radial_constraint_is_for_other_kernels():
    with pytest.raises(ValueError, match="4 axes"):
        constraints.get("RadialConstraint")(KERNEL)


def test_bad():
    for bad in ("nonsense", 3, {"class_name": "L2"}):
        with pytest.raises(ValueError, match="constraint must be"):
            constraints.get(bad)
    with pytest.raises(ValueError, match="MaxNorm accepts"):
        constraints.get({"class_name": "MaxNorm", "config": {"min": 1}})
    assert constraints.get(None) is None


def halved(w):
    return w / 2


def test_custom_objects():
    config = constraints.serialize(constraints.get(halved))
    assert (constraints.get(config, {"halved": halved})(KERNEL) == KERNEL / 2).all()
