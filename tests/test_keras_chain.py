"""Sequential.from_keras: files of three versions of Keras, and models that are no chains."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_keras_hostile import damaged

import conv3dt
from conv3dt import Sequential

DATA = Path(__file__).parent / "data" / "formats" / "keras_chain"
VERSIONS = ("3.15", "2.21", "2.13")
STEPS = {
    "generator": [
        "Dense", "Reshape", "Conv3DTranspose", "Conv3DTranspose", "BatchNormalization",
        "Conv3DTranspose", "Conv3DTranspose",
    ],
    "functional": ["Conv3DTranspose", "Conv3DTranspose", "Flatten", "Dense"],
    "half": ["Conv3DTranspose"],
}  # fmt: skip


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


def unpacked(version, name, folder):
    with zipfile.ZipFile(DATA / f"{version}.zip") as archive:
        return Path(archive.extract(name, folder))


def expected(version, model):
    with zipfile.ZipFile(DATA / f"{version}.zip") as archive:
        with np.load(io.BytesIO(archive.read("expected.npz"))) as values:
            return values[f"{model}:x"], values[f"{model}:y"]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("model", STEPS)
def test_same_results_as_keras(version, model, suffix, tmp_path):
    chain = Sequential.from_keras(unpacked(version, model + suffix, tmp_path))
    assert [type(layer).__name__ for layer in chain] == STEPS[model]
    x, want = expected(version, model)
    y = chain(x)
    assert y.shape == want.shape and y.dtype == want.dtype and chain.built
    tolerance = 2e-3 if want.dtype == np.float16 else 1e-5
    np.testing.assert_allclose(y, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("model", STEPS)
def test_wrong_bytes(version, model, suffix, tmp_path):
    """A few bytes changed: a chain, or a ValueError that names the file."""
    path = unpacked(version, model + suffix, tmp_path)
    data, outcomes = path.read_bytes(), set()
    for seed in range(40):
        path.write_bytes(damaged(data, seed))
        try:
            outcomes.add(type(Sequential.from_keras(path)))
        except ValueError as error:
            assert str(path) in str(error)
            outcomes.add(ValueError)
    assert ValueError in outcomes


def test_the_steps_keep_their_names(tmp_path):
    chain = Sequential.from_keras(str(unpacked("3.15", "functional.keras", tmp_path)))
    assert [layer.name for layer in chain][:2] == ["up1", "up2"]
    assert chain.compute_output_shape((None, 2, 2, 2, 3)) == (None, 5)


# ---- what is no chain -------------------------------------------------------------


def edited(tmp_path, model, change, version="3.15"):
    """A model file with another config."""
    path = unpacked(version, f"{model}.keras", tmp_path)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(contents["config.json"])
    change(config["config"])
    contents["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def rename(number, class_name, **options):
    def change(config):
        config["layers"][number].update(class_name=class_name, **options)

    return change


def configure(number, **options):
    return lambda config: config["layers"][number]["config"].update(options)


def rewire(number, *names):
    """A layer of a functional model takes the results of others."""

    def change(config):
        tensors = [
            {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}
            for name in names
        ]
        config["layers"][number]["inbound_nodes"] = [{"args": [tensors], "kwargs": {}}]

    return change


def drop(*numbers):
    def change(config):
        config["layers"] = [x for i, x in enumerate(config["layers"]) if i not in numbers]

    return change


BAD = {
    "a convolution": ("generator", rename(6, "Conv3D"), "got Conv3D 'conv3d_transpose"),
    "the user's own": (
        "generator", rename(9, "Noise", module="mine", registered_name="mine>Noise"), "mine>Noise",
    ),
    "a merge": ("functional", rewire(3, "up1", "batch_normalization_3"), "must take one"),
    "a branch": ("functional", rewire(3, "up1"), "one layer must follow, got "),
    "another end": (
        "functional",
        lambda config: config.update(output_layers=[["up1", 0, 0]]),
        "must end in its last layer",
    ),
    "two inputs": (
        "functional",
        lambda config: config["layers"][1].update(inbound_nodes=[]),
        "one layer must follow, got InputLayer '.*', Conv3DTranspose 'up1'",
    ),
    "twice": (
        "functional",
        lambda config: config["layers"][2].update(inbound_nodes=[
            {"args": [{"class_name": "__keras_tensor__",
                       "config": {"keras_history": [name, 0, 0]}}], "kwargs": {}}
            for name in ("up1", "up1")
        ]),
        "must take one",
    ),
    "a circle": ("functional", rewire(1, "up1"), "must end in its last layer"),
    "weights of another shape": (
        "generator", configure(6, filters=9), "Conv3DTranspose '.*' of .*: kernel must",
    ),
    "an unknown argument": ("generator", configure(1, volume=11), "Dense 'dense' of .*volume"),
    "an unknown activation": ("generator", configure(10, activation="loud"), "loud"),
    "renorm": ("generator", configure(2, renorm=True), "renorm must be False"),
    "channels first": ("functional", configure(5, data_format="channels_first"), "data_format"),
    "a size that does not fit": ("generator", configure(4, target_shape=[3, 3, 3, 3]), "Reshape"),
    "huge": ("generator", configure(1, units=10**12), "Dense 'dense' of .*shape"),
    "nothing": ("generator", drop(*range(14)), "at least one"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "change", "words"), BAD.values(), ids=BAD)
def test_refused(tmp_path, model, change, words):
    with pytest.raises(ValueError, match=words):
        Sequential.from_keras(edited(tmp_path, model, change))


def test_identities_of_all_kinds(tmp_path):
    kinds = ("Dropout", "GaussianNoise", "AlphaDropout", "ActivityRegularization", "Identity")
    x, want = expected("3.15", "generator")
    for kind in kinds:
        chain = Sequential.from_keras(edited(tmp_path, "generator", rename(9, kind)))
        np.testing.assert_allclose(chain(x), want, rtol=0, atol=1e-5)


def test_weights_alone(tmp_path):
    path = unpacked("3.15", "generator.keras", tmp_path)
    with zipfile.ZipFile(path) as archive:
        data = archive.read("model.weights.h5")
    weights = tmp_path / "some.weights.h5"
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="weights alone"):
        Sequential.from_keras(weights)
    with pytest.raises(OSError):
        Sequential.from_keras(tmp_path / "none.keras")


def test_configs_of_keras_make_chains(tmp_path):
    """from_config reads what Keras wrote; the weights go over as they are."""
    for version in VERSIONS[:2]:
        path = unpacked(version, "half.keras", tmp_path)
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))["config"]
        chain = Sequential.from_config(config)
        loaded = Sequential.from_keras(path)
        assert chain.compute_output_shape((None, 2, 2, 2, 3)) == loaded.compute_output_shape(
            (None, 2, 2, 2, 3)
        )


# ---- Keras itself -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in Keras
def test_what_keras_writes_now(tmp_path):
    keras = pytest.importorskip("keras", reason="needs Keras 3 (the keras extra)")
    layers = keras.layers
    for policy in ("float32", "mixed_float16", "float64"):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                layers.Input((6,)), layers.Dense(16, "relu", dtype=policy),
                layers.Reshape((2, 2, 2, 2), dtype=policy),
                layers.Conv3DTranspose(4, 4, strides=2, padding="same", dtype=policy),
                layers.BatchNormalization(dtype=policy), layers.LeakyReLU(0.2, dtype=policy),
                layers.Conv3DTranspose(1, 3, activation="tanh", dtype=policy),
            ]
        )  # fmt: skip
        path = tmp_path / "model.keras"
        model.save(path)
        x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
        want = np.asarray(model(x, training=False))
        chain = Sequential.from_keras(path)
        # TensorFlow has the slope of a LeakyReLU in single precision.
        tolerance = {"float64": 1e-8, "float32": 1e-5}.get(policy, 2e-3)
        np.testing.assert_allclose(chain(x), want, rtol=0, atol=tolerance)
        ours = Sequential.from_config(model.get_config())
        ours.set_weights(model.get_weights())
        np.testing.assert_allclose(ours(x), want, rtol=0, atol=tolerance)
        assert [w.shape for w in ours.weights] == [w.shape for w in model.get_weights()]


def test_keras_reads_the_config_of_a_chain():
    keras = pytest.importorskip("keras", reason="needs Keras 3 (the keras extra)")
    chain = Sequential(
        [
            conv3dt.Dense(16, "relu"), conv3dt.Reshape((2, 2, 2, 2)),
            conv3dt.Conv3DTranspose(3, 4, strides=2, padding="same"), conv3dt.BatchNormalization(),
            "softmax", conv3dt.Flatten(), conv3dt.Dropout(0.1), conv3dt.Dense(2),
        ],
        input_shape=(6,),
    )  # fmt: skip
    model = keras.Sequential.from_config(chain.get_config())
    model.build((None, 6))
    model.set_weights(chain.get_weights())
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    np.testing.assert_allclose(chain(x), np.asarray(model(x)), rtol=0, atol=1e-5)
