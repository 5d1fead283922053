"""Made the files beside it: chains that Keras wrote, and what it computes.

    python make.py keras       with Keras 3.15, TensorFlow 2.21       -> 3.15.zip
    python make.py tf_keras    with tf-keras 2.21, TensorFlow 2.21    -> 2.21.zip
    python make.py keras       with Keras 2.13, TensorFlow 2.13       -> 2.13.zip

Each zip holds MODEL.keras and MODEL.h5, and expected.npz with "MODEL:x" and "MODEL:y".
"""

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

    def generator():
        """What a chain may have, and a chain within it."""
        inner = [layers.Input((8, 8, 8, 4)), up(2, 2, strides=2), layers.Activation("swish")]
        return keras.Sequential(
            [
                layers.Input((10,)),
                layers.Dense(2**3 * 4, use_bias=False), layers.BatchNormalization(),
                layers.LeakyReLU(), layers.Reshape((2, 2, 2, 4)), layers.Dropout(0.3),
                up(8, 4, strides=2, padding="same", use_bias=False), layers.BatchNormalization(),
                layers.ReLU(), layers.SpatialDropout3D(0.1),
                up(4, 3, strides=2, padding="same", activation="hard_sigmoid"),
                layers.BatchNormalization(scale=False, name="norm"),
                keras.Sequential(inner, name="inner"),
                up(1, 4, padding="same", activation="sigmoid"),
            ],
            name="generator",
        )  # fmt: skip

    def functional():
        x = layers.Input((4, 4, 4, 4))
        y = layers.Activation("tanh")(up(2, 2, name="up2")(x))
        inner = keras.Model(x, y, name="inner")
        x = layers.Input((2, 2, 2, 3))
        y = up(4, 2, strides=2, name="up1")(x)
        y = layers.ELU(0.5)(layers.BatchNormalization(epsilon=1e-5, center=False)(y))
        y = layers.Dense(5, activation="softmax")(layers.Flatten()(inner(y)))
        return keras.Model(x, y, name="functional")

    def half():
        """Without an input layer."""
        policy = "mixed_float16"
        model = keras.Sequential(
            [up(4, 2, strides=2, dtype=policy), layers.BatchNormalization(dtype=policy),
             layers.Softmax(dtype=policy)],
        )  # fmt: skip
        model.build((None, 2, 2, 2, 3))
        return model

    return {"generator": generator, "functional": functional, "half": half}


def weights(rng, model):
    for w in model.get_weights():
        yield rng.uniform(0.5, 1.5, w.shape) if w.ndim == 1 else 0.3 * rng.normal(size=w.shape)


def main(package):
    warnings.simplefilter("ignore")
    keras = importlib.import_module(package)
    rng = np.random.default_rng(0)
    expected = {}
    target = Path(__file__).resolve().parent / f"{keras.__version__.rpartition('.')[0]}.zip"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, make in models(keras).items():
            model = make()
            model.set_weights([w.astype("float16") for w in weights(rng, model)])
            shape = {"generator": (10,)}.get(name, (2, 2, 2, 3))
            x = rng.normal(size=(2, *shape)).astype("float32")
            y = np.asarray(model(x, training=False))
            expected |= {f"{name}:x": x, f"{name}:y": y}
            model.save(f"{name}.keras")
            model.save(f"{name}.h5")
        np.savez_compressed("expected.npz", **expected)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(Path().iterdir()):
                archive.write(path)
    print(target.name, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
