"""Made the files beside it, with PyTorch 2.13 and onnxscript 0.7: python make.py

A small generator, for any batch, by PyTorch's two exporters. `traced.onnx` computes the shape of
its view from the batch; `exported.onnx` has a constant shape, and normalizations in the weights.
`expected.npz` has an input and PyTorch's result.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

HERE = Path(__file__).parent


class View(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), 2, 2, 2, 2)


def generator():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(5, 16, bias=False), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), View(), nn.Dropout(),
        nn.ConvTranspose3d(2, 3, 4, 2, 1, bias=False), nn.BatchNorm3d(3), nn.SiLU(),
        nn.ConvTranspose3d(3, 4, 3, 2, 1, 1), nn.ReLU(), nn.BatchNorm3d(4),
        nn.ConvTranspose3d(4, 1, 4, 2, 1), nn.Sigmoid(),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for part in module:
            if hasattr(part, "running_var"):
                for tensor in (part.running_mean, part.bias):
                    tensor.normal_()
                for tensor in (part.running_var, part.weight):
                    tensor.uniform_(0.5, 2)
    return module


if __name__ == "__main__":
    module = generator()
    x = torch.randn(2, 5)
    with torch.no_grad():
        np.savez_compressed(HERE / "expected.npz", x=x.numpy(), y=module(x).numpy())
    torch.onnx.export(
        module, (x,), HERE / "traced.onnx", dynamo=False, input_names=["z"],
        dynamic_axes={"z": {0: "batch"}},
    )  # fmt: skip
    torch.onnx.export(
        module, (x,), HERE / "exported.onnx", dynamo=True, external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    model = onnx.load(HERE / "exported.onnx")
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # the exporter's view of this file and its folder
    onnx.save(model, HERE / "exported.onnx")
