"""The NumPy user: double a volume along each axis, every voxel repeated."""

import numpy as np

import conv3dt

volume = np.random.default_rng(0).normal(size=(20, 30, 40)).astype("float32")
box = np.ones((2, 2, 2, 1, 1), "float32")  # depth, height, width, filters, input channels
doubled = conv3dt.conv3d_transpose(volume[None, ..., None], box, strides=2)[0, ..., 0]
print(volume.shape, "->", doubled.shape)
