"""Make keras/*.zip: files that Keras wrote, and what its layers compute.

    python make_keras.py keras       with Keras 3.15, TensorFlow 2.21       -> keras/3.15.zip
    python make_keras.py tf_keras    with tf-keras 2.21, TensorFlow 2.21    -> keras/2.21.zip
    python make_keras.py keras       with Keras 2.13, TensorFlow 2.13       -> keras/2.13.zip

Each zip holds files named after a model, and expected.npz: for each Conv3DTranspose of a model,
its ``x``, ``y``, ``kernel`` and ``bias`` as float32 (bfloat16 loses nothing), under
``model:path/of/layer:what``.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def models(keras):
    layers = keras.layers
    up = layers.Conv3DTranspose

    def simple():
        return keras.Sequential(
            [
                layers.Input((2, 2, 2, 3)),
                layers.Conv3D(4, 2, padding="same", name="down"),
                up(3, 3, strides=2, padding="same", activation="hard_sigmoid", name="up1"),
                layers.BatchNormalization(name="norm"),
                up(2, (1, 2, 3), strides=(2, 1, 2), use_bias=False, name="up2"),
            ],
            name="simple",
        )

    def nested():
        """The same names at several depths, and a layer whose weights come last in .h5."""
        decoder = keras.Sequential(
            [
                layers.Input((2, 2, 2, 3)),
                up(4, 2, strides=2, name="up1", trainable=False),
                layers.BatchNormalization(name="norm"),
                up(2, 2, activation="relu", name="up2"),
            ],
            name="decoder",
        )
        x = layers.Input((2, 2, 2, 3), name="inner_input")
        # Keras 2 cannot write an .h5 in which these two have the same name.
        name = "up1" if keras.__version__.startswith("3") else "up3"
        y = up(3, 1, activation=layers.LeakyReLU(0.1), name=name)(x)
        z = decoder(y)
        inner = keras.Model(x, z, name="inner")
        x = layers.Input((2, 2, 2, 2), name="outer_input")
        y = up(3, 1, name="up1")(x)
        return keras.Model(x, inner(y), name="nested")

    def single(policy="float32", **options):
        def make():
            return keras.Sequential(
                [layers.Input((2, 2, 2, 2)), up(3, 2, dtype=policy, name="up", **options)]
            )

        return make

    made = {
        "simple": simple,
        "nested": nested,
        "mixed_float16": single("mixed_float16", strides=2, output_padding=1, padding="same"),
        "mixed_bfloat16": single("mixed_bfloat16", strides=2),
        "float16": single("float16", strides=2),
        "bfloat16": single("bfloat16", strides=2, activation="relu"),
    }
    if keras.__version__.startswith("2"):  # where it is ignored; TensorFlow cannot compute it
        made["dilated"] = single(dilation_rate=2, activation="gelu")
    return made


def containers(keras, model, name):
    """What of it each version can write."""
    version = int(keras.__version__.split(".")[0])
    model.save(f"{name}.keras")
    model.save_weights(f"{name}.weights.h5")
    model.save(f"{name}.h5")  # of bfloat16, too, though Keras itself cannot load that
    if name in ("simple", "nested"):
        if version == 2:
            model.save_weights(f"{name}_weights.h5")
        else:
            model.save_weights(f"{name}.weights.json", max_shard_size=1.3e-6)


def transposed(keras, model, above=()):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv3DTranspose):
            yield "/".join((*above, layer.name)), layer
        elif hasattr(layer, "layers"):
            yield from transposed(keras, layer, (*above, layer.name))


def main(package):
    warnings.simplefilter("ignore")
    keras = importlib.import_module(package)
    rng = np.random.default_rng(0)
    expected = {}
    target = Path(__file__).parent / "keras" / f"{keras.__version__.rpartition('.')[0]}.zip"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, make in models(keras).items():
            keras.backend.clear_session()
            model = make()
            model.set_weights(
                [rng.normal(size=w.shape).astype("float16") for w in model.get_weights()]
            )
            for path, layer in transposed(keras, model):
                kernel, *bias = (np.asarray(w, "float32") for w in layer.get_weights())
                x = rng.normal(size=(2, 2, 3, 2, kernel.shape[4])).astype("float16")
                y = np.asarray(layer(x.astype(layer.compute_dtype)))
                values = {"x": x, "y": y, "kernel": kernel}
                values.update(zip(["bias"], bias, strict=False))
                for what, value in values.items():
                    expected[f"{name}:{path}:{what}"] = np.asarray(value, "float32")
            containers(keras, model, name)
        np.savez_compressed("expected.npz", **expected)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(Path().iterdir()):
                archive.write(path)
    print(target.name, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
