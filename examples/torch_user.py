"""The PyTorch user: ConvTranspose3d(32, 16, 3, stride=2, padding=1, output_padding=1)."""

import numpy as np

import conv3dt

rng = np.random.default_rng(0)
state = {  # module.state_dict(), or the path of a .safetensors file
    "weight": rng.normal(size=(32, 16, 3, 3, 3)).astype("float32"),
    "bias": np.linspace(-1, 1, 16, dtype="float32"),
}
layer = conv3dt.from_torch(state, stride=2, padding=1, output_padding=1)
x = rng.normal(size=(1, 32, 8, 8, 8)).astype("float32")
y = layer(x)
print(y.shape, y.dtype)
