"""PyTorch: a layer from a module, a state dict or a safetensors file, and a state dict of one."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..layer import Conv3DTranspose

Array = np.ndarray[Any, Any]


def to_torch_state_dict(layer: Conv3DTranspose, prefix: str = "") -> dict[str, Array]:
    """The weights of a layer; see `Conv3DTranspose.to_torch_state_dict`."""
    layer._check_built("to_torch_state_dict")
    kernel, *bias = layer.get_weights()
    weight = np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))
    return dict(zip((f"{prefix}weight", f"{prefix}bias"), (weight, *bias), strict=False))
