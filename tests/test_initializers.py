"""Initializers have Keras' names, arguments and distributions."""

import math

import numpy as np
import pytest

from conv3dt import initializers

SHAPE = (3, 3, 4, 24, 30)  # fan_in = 36 * 24, fan_out = 36 * 30
FAN_IN, FAN_OUT = 864, 1080

NAMES = """
Zeros Ones Constant RandomNormal RandomUniform TruncatedNormal VarianceScaling GlorotNormal
GlorotUniform HeNormal HeUniform LecunNormal LecunUniform Orthogonal Identity zeros ones constant
random_normal random_uniform truncated_normal variance_scaling glorot_normal glorot_uniform
he_normal he_uniform lecun_normal lecun_uniform orthogonal identity IdentityInitializer
OrthogonalInitializer normal uniform one zero STFT stft GlorotUniformV2 ZerosV2 ConstantV2
RandomNormalV2 HeNormalV2 LecunUniformV2 VarianceScalingV2 OnesV2 TruncatedNormalV2
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_names_and_configs(name):
    initializer = initializers.get(name)
    config = initializers.serialize(initializer)
    again = initializers.get(config)
    assert type(again) is type(initializer) and again.get_config() == initializer.get_config()
    assert config["module"] == "keras.initializers" and config["registered_name"] is None
    if "STFT" in name.upper() or "dentity" in name:
        with pytest.raises(ValueError, match="shape"):
            initializer(SHAPE)
        return
    array = initializer(SHAPE)
    assert array.shape == SHAPE and array.dtype == np.float32
    assert initializer(SHAPE, dtype="float64").dtype == np.float64


@pytest.mark.parametrize("bad", ["nonsense", "glorotuniform", "", 3, {"class_name": "X"}, ["ones"]])
def test_unknown(bad):
    with pytest.raises(ValueError, match="initializer must be"):
        initializers.get(bad)


def test_none_stays_none():
    assert initializers.get(None) is None
    assert initializers.serialize(None) is None


@pytest.mark.parametrize(
    ("name", "variance", "shape"),
    [
        ("GlorotNormal", 2 / (FAN_IN + FAN_OUT), "truncated"),
        ("GlorotUniform", 2 / (FAN_IN + FAN_OUT), "uniform"),
        ("HeNormal", 2 / FAN_IN, "truncated"),
        ("HeUniform", 2 / FAN_IN, "uniform"),
        ("LecunNormal", 1 / FAN_IN, "truncated"),
        ("LecunUniform", 1 / FAN_IN, "uniform"),
        ("VarianceScaling", 1 / FAN_IN, "truncated"),
        ("RandomNormal", 0.05**2, "normal"),
        ("RandomUniform", 0.1**2 / 12, "uniform"),
        # The standard normal cut at 2: 1 - 4 phi(2) / (2 Phi(2) - 1)
        ("TruncatedNormal", 0.05**2 * 0.7737413035499232, "truncated"),
    ],
)
def test_distribution(name, variance, shape):
    values = initializers.get({"class_name": name, "config": {"seed": 7}})(SHAPE, "float64").ravel()
    n = values.size
    assert abs(values.mean()) < 5 * math.sqrt(variance / n)
    assert abs(values.var() / variance - 1) < 5 * math.sqrt(2 / n)
    largest = np.abs(values).max() / math.sqrt(variance)
    low, high = {
        "uniform": (1.72, math.sqrt(3)),
        "truncated": (2.2, 2 / 0.8796256610342397),
        "normal": (3.5, 7),
    }[shape]
    assert low < largest <= high * (1 + 1e-12)


def test_modes_axes_and_distributions():
    make = initializers.VarianceScaling
    assert make(scale=3, mode="fan_out", distribution="uniform")(SHAPE).max() <= math.sqrt(
        9 / FAN_OUT
    )
    assert make(distribution="normal").distribution == "truncated_normal"
    wide = make(distribution="untruncated_normal", seed=1)(SHAPE)
    assert np.abs(wide).max() > 3 / math.sqrt(FAN_IN)
    assert initializers.fans(SHAPE) == (FAN_IN, FAN_OUT)
    assert initializers.fans(SHAPE, (4,), (0, 3)) == (30, 72)
    assert initializers.fans((5,)) == (5, 5) and initializers.fans((2, 3)) == (2, 3)
    for bad in ({"scale": 0}, {"mode": "fan"}, {"distribution": "cauchy"}, {"seed": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            make(**bad)


@pytest.mark.parametrize("name", ["GlorotUniform", "RandomNormal", "TruncatedNormal", "Orthogonal"])
def test_seed(name):
    def make(seed):
        return initializers.get({"class_name": name, "config": {"seed": seed}})

    first = make(3)
    assert (first(SHAPE) == make(3)(SHAPE)).all() and (first(SHAPE) == first(SHAPE)).all()
    assert (first(SHAPE) != make(4)(SHAPE)).any()
    assert (make(None)(SHAPE) != make(None)(SHAPE)).any()
    generator = {"class_name": "SeedGenerator", "config": {"seed": 3}}
    assert make(generator).seed == 3 and make(np.int64(-3)).seed == -3
    make(-3)((2, 2))


def test_orthogonal():
    for shape in ((2, 2, 2, 3, 5), (1, 1, 1, 3, 8)):
        matrix = initializers.Orthogonal(gain=2, seed=0)(shape, "float64").reshape(-1, shape[-1])
        small = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
        np.testing.assert_allclose(small, 4 * np.eye(len(small)), atol=1e-12)
    with pytest.raises(ValueError, match="2 or more"):
        initializers.Orthogonal()((3,))


def test_identity_is_for_matrices():
    assert (initializers.Identity(2)((2, 3)) == 2 * np.eye(2, 3)).all()


def test_constants_and_arrays():
    assert (initializers.get("constant")((2, 3)) == 0).all()
    assert (initializers.Constant(2.5)((2, 3)) == 2.5).all()
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    initializer = initializers.get(given)
    assert (initializer((2, 3)) == given).all()
    again = initializers.get(initializers.serialize(initializer))
    assert (again((2, 3)) == given).all() and again((2, 3)).dtype == np.float32
    with pytest.raises(ValueError, match="broadcasts"):
        initializer((3, 3))


class Mine(initializers.Initializer):
    """A user's own initializer."""

    def __init__(self, value=1.0):
        self.value = value

    def __call__(self, shape, dtype=None):
        return np.full(shape, self.value, dtype)

    def get_config(self):
        return {"value": self.value}


def halves(shape, dtype=None):
    return np.full(shape, 0.5, dtype)


def test_custom_objects():
    custom = {"Mine": Mine, "halves": halves}
    for target, value in ((Mine(3.0), 3), (Mine, 1), (halves, 0.5)):
        initializer = initializers.get(target)
        assert (initializer((2,)) == value).all()
        config = initializers.serialize(initializer)
        assert (initializers.get(config, custom)((2,)) == value).all()
        with pytest.raises(ValueError, match="custom_objects"):
            initializers.get(config)
    assert initializers.get({"class_name": "pack>Mine", "config": {}}, custom).value == 1
    with pytest.raises(ValueError, match="Mine accepts"):
        initializers.get({"class_name": "Mine", "config": {"volume": 1}}, custom)
