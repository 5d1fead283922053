"""Made the files beside it, with PyTorch 2.13 and onnxscript 0.7: python make.py

The same module, ConvTranspose3d, BatchNorm3d, SiLU, ConvTranspose3d, by PyTorch's two exporters:
`traced.onnx` keeps the normalization, `exported.onnx` has it in its weights, which lie in
`exported.onnx.data`. `expected.npz` has the input and the result of each of the four.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

HERE = Path(__file__).parent

if __name__ == "__main__":
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.BatchNorm3d(6),
        nn.SiLU(),
        nn.ConvTranspose3d(6, 2, (1, 2, 2), stride=(1, 2, 2)),
    ).eval()
    with torch.no_grad():
        module[1].running_mean.normal_()
        module[1].running_var.uniform_(0.5, 2)
        module[1].weight.normal_()
        module[1].bias.normal_()
        values = {"x": torch.randn(1, 4, 2, 3, 2)}
        y = values["x"]
        for i, part in enumerate(module):
            values[f"y{i}"] = y = part(y)
    torch.onnx.export(module, (values["x"],), HERE / "traced.onnx", dynamo=False)
    torch.onnx.export(module, (values["x"],), HERE / "exported.onnx", dynamo=True)
    model = onnx.load(HERE / "exported.onnx", load_external_data=False)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # the exporter's view of this file and its folder
    onnx.save(model, HERE / "exported.onnx")
    np.savez_compressed(HERE / "expected.npz", **{k: v.numpy() for k, v in values.items()})
