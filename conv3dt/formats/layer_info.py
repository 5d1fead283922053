"""What a file says of a layer, in a form that is the same for every kind of file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..arguments import Pads, Triple
    from ..layer import Conv3DTranspose


@dataclass(frozen=True)
class LayerInfo:
    """One transposed convolution in a file, in Keras' terms; None where the file does not say.

    ``name`` is what ``layer=`` takes: unique in the file, inside nested models with the names
    of these before it, as in ``"decoder/up1"``. ``class_name`` is the file's own word.
    ``kernel_size``, ``strides`` and the like are for depth, height and width.
    """

    name: str
    class_name: str
    filters: int
    kernel_size: Triple
    in_channels: int | None
    strides: Triple | None = None
    padding: str | Pads | None = None
    output_padding: Triple | None = None
    data_format: str | None = None
    dilation_rate: Triple | None = None
    groups: int | None = None
    activation: str | None = None
    use_bias: bool | None = None
    dtype: str | None = None

    @classmethod
    def of(
        cls, layer: Conv3DTranspose, name: str, class_name: str, in_channels: int | None
    ) -> LayerInfo:
        """The record of a layer that has been made as the file says."""
        return cls(
            name=name,
            class_name=class_name,
            filters=layer.filters,
            kernel_size=layer.kernel_size,
            in_channels=in_channels,
            strides=layer.strides,
            padding=layer.padding,
            output_padding=layer.output_padding,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
            groups=layer.groups,
            activation=layer.activation.name,
            use_bias=layer.use_bias,
            dtype=layer.dtype_policy,
        )

    def __str__(self) -> str:
        size = "x".join(map(str, self.kernel_size))
        channels = "?" if self.in_channels is None else self.in_channels
        return f"{self.name!r} ({self.class_name} {channels} to {self.filters}, {size})"


def fitting(kernels: Mapping[str, Sequence[int]], like: Conv3DTranspose) -> list[str]:
    """Names of those kernels that `like` can take, by their shapes as we store them.

    All names if there is no such one, so that the error shows them.
    """
    want = (*like.kernel_size, like.filters // like.groups)
    channels = like.kernel.shape[4] if like.built else None
    found = [
        name
        for name, shape in kernels.items()
        if tuple(shape[:4]) == want and channels in (None, shape[4])
    ]
    return found or list(kernels)


def choose(
    path: Path | str, names: Iterable[str], wanted: str | None, argument: str = "layer"
) -> str:
    """The one of `names` that `wanted` means: the whole name, or its end after a "/".

    None means the only one. ValueError, with all names, if there is no such one, or several.
    """
    names = list(names)
    if wanted in names and names.count(wanted) == 1:
        return str(wanted)
    found = [name for name in names if wanted is None or f"/{name}".endswith(f"/{wanted}")]
    if len(found) == 1:
        return found[0]
    if not names:
        raise ValueError(f"{path} has no Conv3DTranspose layer")
    shown = ", ".join(map(repr, names))
    raise ValueError(
        f"{argument} must name one of the Conv3DTranspose layers of {path}: {shown}; got {wanted!r}"
    )
