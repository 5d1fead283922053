"""The PyTorch user: ConvTranspose3d(32, 16, 3, stride=2, padding=1, output_padding=1)."""

import numpy as np

import conv3dt

weight = np.random.default_rng(0).normal(size=(32, 16, 3, 3, 3)).astype("float32")
bias = np.linspace(-1, 1, 16, dtype="float32")  # both: module.state_dict()[...].numpy()
x = np.random.default_rng(1).normal(size=(1, 32, 8, 8, 8)).astype("float32")
kernel = weight.transpose(2, 3, 4, 1, 0)
y = conv3dt.conv3d_transpose(
    x, kernel, bias, strides=2, padding=1, output_padding=1, data_format="channels_first"
)
print(y.shape, y.dtype)
