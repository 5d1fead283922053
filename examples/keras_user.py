"""The Keras user: the same layer, the same arguments, the same weights, no TensorFlow."""

import numpy as np

import conv3dt

layer = conv3dt.Conv3DTranspose(
    16, 3, strides=2, padding="same", activation="relu", input_shape=(8, 8, 8, 32)
)
weights = layer.get_weights()  # or keras_layer.get_weights(): the same order and shapes
layer.set_weights(weights)
x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 32)).astype("float32")
y = layer(x)
print(y.shape, y.dtype)
