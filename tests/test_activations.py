"""Activations mean what Keras means, to a few units in the last place."""

import copy
import decimal
import functools
import pickle
from decimal import Decimal as D

import numpy as np
import pytest

from conv3dt import activations

# The definitions, as they stand in Keras' documentation, in 300 decimal digits: no care for
# overflow or cancellation is needed, so none can be wrong.
CONTEXT = decimal.Context(prec=300, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


def exp(x):
    return x.exp()


def tanh(x):
    return (exp(x) - exp(-x)) / (exp(x) + exp(-x))


def sigmoid(x):
    return 1 / (1 + exp(-x))


def softplus(x):
    return (exp(x) + 1).ln()


def pi():
    """Gauss-Legendre: each step doubles the digits."""
    a, b, t, p = D(1), 1 / D(2).sqrt(), D(1) / 4, D(1)
    for _ in range(10):
        a, b, t, p = (a + b) / 2, (a * b).sqrt(), t - p * ((a - b) / 2) ** 2, 2 * p
    return (a + b) ** 2 / (4 * t)


def normal_cdf(x):
    """1/2 + phi(x) * (x + x^3/3 + x^5/15 + ...); far out, the continued fraction."""
    density = exp(-x * x / 2) / (2 * pi()).sqrt()
    if abs(x) > 8:
        fraction = abs(x)
        for n in range(400, 0, -1):
            fraction = abs(x) + n / fraction
        return density / fraction if x < 0 else 1 - density / fraction
    term = total = x
    for n in range(1, 500):
        term *= x * x / (2 * n + 1)
        total += term
    return D("0.5") + total * density


def clip(x, low, high):
    return min(max(x, D(low)), D(high))


def gelu_tanh(x):
    return x / 2 * (1 + tanh((2 / pi()).sqrt() * (x + D("0.044715") * x**3)))


def selu(x):
    scale, alpha = D("1.0507009873554804934193349852946"), D("1.6732632423543772848170429916717")
    return scale * x if x > 0 else scale * alpha * (exp(x) - 1)


def relu_with_all(x):
    """max_value 2, threshold 0.5, negative_slope 0.25."""
    return min(x, D(2)) if x > D("0.5") else D("0.25") * (x - D("0.5"))


FORMULAS = {
    "celu": lambda x: x if x > 0 else exp(x) - 1,
    "elu": lambda x: x if x > 0 else exp(x) - 1,
    "exponential": exp,
    "gelu": lambda x: x * normal_cdf(x),
    "hard_shrink": lambda x: x if abs(x) > D("0.5") else D(0),
    "hard_sigmoid": lambda x: clip(x + 3, 0, 6) / 6,
    "hard_silu": lambda x: x * clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x: x * clip(x + 3, 0, 6) / 6,
    "hard_tanh": lambda x: clip(x, -1, 1),
    "leaky_relu": lambda x: x if x > 0 else x / 5,
    "linear": lambda x: x,
    "log_sigmoid": lambda x: sigmoid(x).ln(),
    "mish": lambda x: x * tanh(softplus(x)),
    "relu": lambda x: max(x, D(0)),
    "relu6": lambda x: clip(x, 0, 6),
    "selu": selu,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "soft_shrink": lambda x: x - clip(x, -D("0.5"), D("0.5")),
    "softplus": softplus,
    "softsign": lambda x: x / (1 + abs(x)),
    "sparse_plus": lambda x: D(0) if x <= -1 else (x + 1) ** 2 / 4 if x < 1 else x,
    "sparse_sigmoid": lambda x: clip((x + 1) / 2, 0, 1),
    "squareplus": lambda x: (x + (x * x + 4).sqrt()) / 2,
    "swish": lambda x: x * sigmoid(x),
    "tanh": tanh,
    "tanh_shrink": lambda x: x - tanh(x),
}
WITH_OPTIONS = [
    ("relu", {"negative_slope": 0.25, "max_value": 2.0, "threshold": 0.5}, relu_with_all),
    ("relu", {"max_value": 3.0}, lambda x: clip(x, 0, 3)),
    ("relu", {"threshold": 1.0}, lambda x: x if x > 1 else D(0)),
    ("leaky_relu", {"negative_slope": 0.125}, lambda x: x if x > 0 else x / 8),
    ("elu", {"alpha": 0.5}, lambda x: x if x > 0 else (exp(x) - 1) / 2),
    ("celu", {"alpha": 2.0}, lambda x: x if x > 0 else 2 * (exp(x / 2) - 1)),
    ("gelu", {"approximate": True}, gelu_tanh),
    ("hard_shrink", {"threshold": 0.25}, lambda x: x if abs(x) > D("0.25") else D(0)),
    ("soft_shrink", {"threshold": 0.25}, lambda x: x - clip(x, -D("0.25"), D("0.25"))),
    ("squareplus", {"b": 0.25}, lambda x: (x + (x * x + D("0.25")).sqrt()) / 2),
    ("threshold", {"threshold": 1.0, "default_value": -7.0}, lambda x: x if x > 1 else D(-7)),
    ("hard_sigmoid", {"slope": 0.2}, lambda x: clip(D(0.2) * x + D("0.5"), 0, 1)),
]
CASES = [(name, {}, formula) for name, formula in FORMULAS.items()] + WITH_OPTIONS
ROWS = ("glu", "log_softmax", "softmax", "sparsemax")
ALL_NAMES = [*FORMULAS, *ROWS, "threshold"]

POINTS = [
    *np.random.default_rng(0).normal(0, 3, 60),
    *np.linspace(-6, 6, 25),
    *[s * m for s in (-1, 1) for m in (1e-20, 1e-6, 1e-3, 0.01, 0.3, 0.999, 1.001, 9.5, 20, 85)],
]


def exactly(formula, x):
    """The formula's values for the numbers in x, rounded to float64 once."""
    with decimal.localcontext(CONTEXT):
        return np.array([float(formula(D(float(value)))) for value in x])


def ulps(got, want):
    """Largest error in units in the last place of got's dtype, not finer than denormals."""
    spacing = np.spacing(np.abs(want).astype(got.dtype)).astype(np.float64)
    return np.max(np.abs(got.astype(np.float64) - want) / spacing)


def test_every_name_is_tested():
    assert set(ALL_NAMES) == set(activations.ACTIVATIONS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options", "formula"), CASES)
def test_elementwise(name, options, formula, dtype):
    x = np.array(POINTS, dtype)
    limit = 1 if dtype == np.float32 else 8
    if options.get("approximate") and dtype == np.float64:
        # exp amplifies the rounding of its argument by its size: 90 at x = -10.
        x, limit = x[x > -10], 128
    got = activations.get(name)(x, **options)
    assert got.dtype == dtype
    assert ulps(got, exactly(formula, x)) <= limit


def softmax_of(row):
    total = sum(exp(v) for v in row)
    return [exp(v) / total for v in row]


def sparsemax_of(row):
    """As Keras 3.15 computes it: the sum of all running sums over the support."""
    order = sorted(row, reverse=True)
    sums = [sum(order[: i + 1]) for i in range(len(order))]
    support = [i for i in range(len(order)) if order[i] - (sums[i] - 1) / (i + 1) > 0]
    tau = (sum(sums[i] for i in support) - 1) / len(support)
    return [max(v - tau, D(0)) for v in row]


def glu_of(row):
    half = len(row) // 2
    return [a * sigmoid(b) for a, b in zip(row[:half], row[half:], strict=True)]


ROW_FORMULAS = {
    "softmax": softmax_of,
    "log_softmax": lambda row: [v.ln() for v in softmax_of(row)],
    "sparsemax": sparsemax_of,
    "glu": glu_of,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ROWS)
def test_rows(name, dtype):
    x = np.random.default_rng(1).normal(0, 3, (2, 3, 5, 8)).astype(dtype)
    x[0, 0, 0] = [40, 0, 0, 0, 0, 0, 0, 1]  # log_softmax near 0
    with decimal.localcontext(CONTEXT):
        rows = [ROW_FORMULAS[name]([D(float(v)) for v in row]) for row in x.reshape(-1, 8)]
    want = np.array(rows, np.float64).reshape(2, 3, 5, -1)
    got = activations.get(name)(x)
    assert got.dtype == dtype and got.shape == want.shape
    if name == "sparsemax":  # a difference: exact to the size of its operands
        np.testing.assert_allclose(got, want, rtol=0, atol=50 * np.finfo(dtype).eps)
    else:
        assert ulps(got, want) <= (2 if dtype == np.float32 else 32)


@pytest.mark.parametrize("size", [1, 2, 3, 33])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_rows_of_any_size(name, dtype, size):
    x = np.random.default_rng(5).normal(0, 3, (2, 3, size)).astype(dtype)
    x[0, 0] = 2  # ties: every term of the sum is the largest
    x[0, 1, 0] = 60  # log_softmax near 0
    x[1, 0, 0] = -np.inf
    x[1, 1, -1] = np.nan
    x[1, 2, 0] = np.inf  # inf - inf
    got = activations.get(name)(x)
    with decimal.localcontext(CONTEXT):
        rows = [ROW_FORMULAS[name]([D(float(v)) for v in row]) for row in x[0]]
    assert ulps(got[0], np.array(rows, np.float64)) <= (2 if dtype == np.float32 else 32)
    assert np.isnan(got[1]).all(axis=-1).tolist() == [size == 1, True, True]
    if size > 1:
        assert got[1, 0, 0] == (0 if name == "softmax" else -np.inf)


@pytest.mark.parametrize("size", [9, 17, 32, 33])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "sparsemax"])
def test_a_row_by_itself_has_the_same_bits(name, size):
    x = np.random.default_rng(0).standard_normal((20, size))
    activation = activations.get(name)
    np.testing.assert_array_equal([activation(row[None])[0] for row in x], activation(x))


@pytest.mark.parametrize("name", ROWS)
def test_rows_along_another_axis(name):
    x = np.random.default_rng(2).normal(size=(4, 6, 5)).astype(np.float32)
    act = activations.get(name)
    want = np.moveaxis(act(np.ascontiguousarray(np.moveaxis(x, 1, -1))), -1, 1)
    np.testing.assert_array_equal(act(x, axis=1), want)


@pytest.mark.parametrize("name", [n for n in ALL_NAMES if n != "threshold"])
def test_nan_propagates_and_large_values_do_not_overflow(name):
    act = activations.get(name)
    x = np.zeros((3, 4), np.float32)
    x[0, 0] = x[1, 3] = np.nan
    y = act(x)
    assert np.isnan(y).any(axis=-1).tolist() == [True, True, False]
    big = np.array([[-3e38, -1e4, 3e38, 1e4]], np.float32)
    assert not np.isnan(act(big)).any()


def test_infinities():
    x = np.array([-np.inf, np.inf], np.float32)
    for name, want in {
        "relu": (0, np.inf),
        "relu6": (0, 6),
        "sigmoid": (0, 1),
        "tanh": (-1, 1),
        "softplus": (0, np.inf),
        "elu": (-1, np.inf),
        "log_sigmoid": (-np.inf, 0),
        "hard_sigmoid": (0, 1),
        "silu": (np.nan, np.inf),  # -inf * 0, as everywhere
    }.items():
        np.testing.assert_array_equal(activations.get(name)(x), np.array(want, np.float32), name)


@pytest.mark.parametrize("name", [n for n in ALL_NAMES if n not in ("threshold", "glu")])
def test_in_place_in_blocks_and_with_any_strides(name, monkeypatch):
    x = np.random.default_rng(3).normal(0, 2, (2, 3, 70, 6)).astype(np.float32)
    act = activations.get(name)
    want = act(x)
    monkeypatch.setattr(activations, "BLOCK", 64)
    wide = np.full((2, 3, 70, 9), 7, np.float32)
    y = wide[..., 1:7]
    y[...] = x
    assert act.inplace(y) is y
    np.testing.assert_array_equal(y, want)
    assert (wide[..., 0] == 7).all() and (wide[..., 7:] == 7).all()
    fortran = np.asfortranarray(x)
    np.testing.assert_array_equal(act.inplace(fortran), want)


@pytest.mark.parametrize("name", [n for n in ALL_NAMES if n != "threshold"])
def test_half_types_and_empty_arrays(name):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    act = activations.get(name)
    x = np.random.default_rng(4).normal(0, 2, (4, 6))
    for dtype in (np.float16, bfloat16):
        y = act(x.astype(dtype))
        want = act(x.astype(dtype).astype(np.float64))
        assert y.dtype == dtype
        np.testing.assert_allclose(y.astype(np.float64), want, rtol=0.01, atol=0.01)
    assert act(np.empty((0, 6), np.float32)).shape == act.output_shape((0, 6))


def test_glu_shapes():
    assert activations.get("glu").output_shape((None, 3, 8)) == (None, 3, 4)
    assert activations.get("glu").output_shape((2, 3, None)) == (2, 3, None)
    for bad in (
        lambda: activations.glu(np.ones((2, 3))),
        lambda: activations.glu.output_shape((3,)),
    ):
        with pytest.raises(ValueError, match="even size"):
            bad()


def test_threshold_needs_its_arguments():
    with pytest.raises(TypeError, match="missing 2 required"):
        activations.get("threshold")(np.ones(3))


def test_names_are_spelled_exactly():
    assert activations.get(None).name == "linear"
    for bad in ("ReLU6", "RELU", "", "crelu", "nonsense", 3, 2.5, ["relu"], {}, {"class_name": 3}):
        with pytest.raises(ValueError, match="activation must be"):
            activations.get(bad)


@pytest.mark.parametrize(
    ("identifier", "name", "options"),
    [
        ("LeakyReLU", "leaky_relu", {"negative_slope": 0.3}),
        ("ELU", "elu", {"alpha": 1.0}),
        ("PReLU", "relu", {}),
        ("ReLU", "relu", {}),
        ("Softmax", "softmax", {"axis": -1}),
        ("ThresholdedReLU", "relu", {"threshold": 1.0}),
        (
            {"class_name": "LeakyReLU", "config": {"alpha": 0.5}},
            "leaky_relu",
            {"negative_slope": 0.5},
        ),
        (
            {
                "module": "keras.layers",
                "class_name": "ReLU",
                "config": {
                    "name": "re_lu",
                    "max_value": 4.0,
                    "negative_slope": 0.0,
                    "threshold": 0,
                },
                "registered_name": None,
            },
            "relu",
            {"max_value": 4.0},
        ),
        ({"class_name": "Activation", "config": {"activation": "tanh"}}, "tanh", {}),
        (
            {
                "module": "builtins",
                "class_name": "function",
                "config": "relu6",
                "registered_name": "function",
            },
            "relu6",
            {},
        ),
        ({"class_name": "gelu", "config": {"approximate": True}}, "gelu", {"approximate": True}),
    ],
)
def test_config_forms(identifier, name, options):
    act = activations.get(identifier)
    assert (act.name, act.options) == (name, options)
    assert activations.get(act.config()) == act


def test_prelu_with_slopes_of_its_own_is_refused():
    with pytest.raises(ValueError, match="PReLU"):
        activations.get({"class_name": "PReLU", "config": {"alpha_initializer": "ones"}})


def double(x):
    return 2 * x


class Scaled:
    """A user's class: an object with a config."""

    def __init__(self, by=3.0):
        self.by = by

    def __call__(self, x):
        return self.by * x

    def get_config(self):
        return {"by": self.by}


def test_callables_and_custom_objects():
    x = np.array([1.0, -2.0], np.float32)
    for identifier, factor in (
        (double, 2),
        (lambda v: v * 2, 2),
        (Scaled, 3),
        (Scaled(4.0), 4),
        (functools.partial(np.multiply, 5), 5),
    ):
        y = activations.get(identifier)(x)
        assert y.dtype == np.float32 and (y == factor * x).all()
    custom = {"double": double, "Scaled": Scaled, "relu": double}
    assert activations.get("relu", custom)(x)[1] == -4  # the user's own come first
    for target in (double, Scaled(4.0)):
        act = activations.get(target)
        again = activations.get(act.config(), custom)
        assert (again(x) == act(x)).all()
    assert activations.get({"class_name": "mine>Scaled", "config": {"by": 2}}, custom)(x)[0] == 2
    # A foreign object is not taken for Keras' of the same name.
    foreign = {
        "module": "mine",
        "class_name": "function",
        "config": "relu",
        "registered_name": "relu",
    }
    with pytest.raises(ValueError, match="custom_objects"):
        activations.get(foreign)
    with pytest.raises(ValueError, match="name"):
        activations.get(lambda v: v).config()


def test_a_callable_must_keep_the_shape():
    with pytest.raises(ValueError, match="keep the shape"):
        activations.get(lambda x: x[:1])(np.ones(3))


@pytest.mark.parametrize("name", ALL_NAMES)
def test_pickle_copy_and_repr(name):
    act = activations.get(name)
    assert pickle.loads(pickle.dumps(act)) == act == copy.deepcopy(act)
    assert act.name in repr(act)
    assert activations.get(act.config()) == act


def test_what_kernels_may_fuse():
    codes = {name: act.code for name, act in activations.ACTIVATIONS.items() if act.code >= 0}
    assert codes == {
        "linear": 0, "relu": 1, "leaky_relu": 1, "relu6": 2, "hard_sigmoid": 2, "hard_tanh": 2,
        "hard_silu": 3, "hard_swish": 3, "softsign": 4, "exponential": 5, "sigmoid": 6,
        "silu": 7, "swish": 7, "tanh": 8, "elu": 9, "selu": 9, "softplus": 10, "gelu": 12,
        "softmax": 13,
    }  # fmt: skip
    assert activations.gelu.with_options(approximate=True).code == 11
    assert activations.softmax.with_options(axis=1).code == -1
    assert activations.relu.with_options(threshold=1.0).code == -1
    assert activations.relu.with_options(max_value=2.0).params == (1.0, 0.0, 0.0, 2.0)
