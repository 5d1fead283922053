"""Made the files beside it, with PyTorch 2.13 and safetensors 0.8: python make.py

`decoder.safetensors` is a state dict with two transposed convolutions among other layers, and
`decoder.npz` has inputs and what the modules made of them; `half.safetensors` has the first
one's weights in both half types.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.up1 = nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.norm = nn.BatchNorm3d(6)
        self.mix = nn.Conv3d(6, 2, 3, padding=1)
        self.up2 = nn.ConvTranspose3d(2, 3, (1, 2, 2), stride=(1, 2, 2), bias=False)

    def forward(self, x):
        return self.up2(self.mix(torch.relu(self.norm(self.up1(x)))))


if __name__ == "__main__":
    torch.manual_seed(0)
    decoder = Decoder().eval()
    save_file(decoder.state_dict(), HERE / "decoder.safetensors")
    halves = {
        f"{name}.{key}": value.to(dtype)
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
        for key, value in decoder.up1.state_dict().items()
    }
    save_file(halves, HERE / "half.safetensors")
    with torch.inference_mode():
        x1, x2 = torch.randn(2, 4, 2, 3, 4), torch.randn(1, 2, 3, 2, 2)
        arrays = {"x1": x1, "y1": decoder.up1(x1), "x2": x2, "y2": decoder.up2(x2)}
    np.savez_compressed(HERE / "decoder.npz", **{k: v.numpy() for k, v in arrays.items()})
