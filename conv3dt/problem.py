"""The problem: one frozen record of integers, and the rules that fill it.

Per axis, with input size ``I``, kernel ``k``, stride ``s``, dilation ``d`` and
effective kernel ``K = (k-1)*d + 1``, the scatter form of the operation is ::

    full[i*s + t*d] += x[i] * w[t]           full has (I-1)*s + K entries
    y = full[crop : crop + out]              reading zeros past the end of full

Whatever a front end can ask for is a pair ``(out, crop)`` per axis. It is resolved
here, in pure integer functions; nothing below knows what ``"same"`` means. Sizes are
Python ints, which cannot overflow, until ``arguments`` has proved that they fit.

The batch and the strides of the arrays are deliberately no part of a problem: whatever
is decided from a problem (algorithm, blocking of the sums) can then not depend on them,
which is what makes results bit-for-bit independent of both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis: input size, output size and the taps between them (voxels)."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    crop: int


@dataclass(frozen=True, slots=True)
class Problem:
    """One sample's transposed convolution; ``axes`` are depth, height, width."""

    in_channels: int
    filters: int
    groups: int
    axes: tuple[Axis, Axis, Axis]
    channels_last: bool

    @property
    def kernel_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the kernel as Keras stores it: (kd, kh, kw, filters // groups, in)."""
        d, h, w = self.axes
        return d.kernel, h.kernel, w.kernel, self.filters // self.groups, self.in_channels

    def x_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the input array for ``batch`` samples."""
        return self._shape(batch, self.in_channels, tuple(a.size for a in self.axes))

    def y_shape(self, batch: int) -> tuple[int, ...]:
        """Shape of the output array for ``batch`` samples."""
        return self._shape(batch, self.filters, tuple(a.out for a in self.axes))

    def _shape(self, batch: int, channels: int, space: tuple[int, ...]) -> tuple[int, ...]:
        if self.channels_last:
            return (batch, *space, channels)
        return (batch, channels, *space)

    @property
    def multiplications(self) -> int:
        """Multiplications per sample of the scatter form, cropped voxels included."""
        taps = prod(a.kernel for a in self.axes)
        voxels = prod(a.size for a in self.axes)
        return taps * voxels * self.in_channels * (self.filters // self.groups)


def effective_kernel(kernel: int, dilation: int) -> int:
    """Extent in voxels of a dilated kernel: ``K = (k-1)*d + 1``."""
    return (kernel - 1) * dilation + 1


def keras_axis(
    size: int, kernel: int, stride: int, dilation: int, padding: str, output_padding: int | None
) -> tuple[int, int]:
    """``(out, crop)`` of Keras' string paddings, ``"valid"`` and ``"same"``.

    ========  ==============  =========================  ============================
    padding   output_padding  out                        crop
    ========  ==============  =========================  ============================
    valid     None            (I-1)s + max(K, s)         0
    valid     p               (I-1)s + K + p             0
    same      None            I*s                        max(K-s, 0) // 2
    same      p               (I-1)s + K%2 + p           max(K - K%2 - p, 0) // 2
    ========  ==============  =========================  ============================

    Observed on Keras 3.15.1 (TensorFlow and JAX backends). An empty input axis gives 0
    for "same" and the formula clipped at 0 for "valid". A negative result means that no
    such output exists; the caller turns it into a ValueError.
    """
    extent = effective_kernel(kernel, dilation)
    reach = (size - 1) * stride
    if padding == "valid":
        tail = max(extent, stride) if output_padding is None else extent + output_padding
        out, crop = reach + tail, 0
    elif output_padding is None:
        out, crop = size * stride, max(extent - stride, 0) // 2
    else:
        odd = extent % 2
        out = reach + odd + output_padding
        crop = max(extent - odd - output_padding, 0) // 2
    if size == 0:
        out = 0 if padding == "same" else max(out, 0)
    return out, crop


def explicit_axis(
    size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], output_padding: int
) -> tuple[int, int]:
    """``(out, crop)`` of explicit pads, as PyTorch and ONNX mean them.

    ``pads = (lo, hi)`` voxels are cropped from the full scatter output, then
    ``output_padding`` extends the end: ``out = (I-1)s + K - lo - hi + output_padding``.
    An empty input axis is clipped at 0; a negative result is the caller's ValueError.
    """
    lo, hi = pads
    out = (size - 1) * stride + effective_kernel(kernel, dilation) - lo - hi + output_padding
    return (max(out, 0) if size == 0 else out), lo


def explicit_equivalent(
    kernel: int, stride: int, dilation: int, padding: str, output_padding: int | None
) -> tuple[tuple[int, int], int]:
    """``(pads, output_padding)`` that mean for every input size what a string padding means.

    An empty axis is excepted.
    """
    # All the formulas grow by s with the input, so that one size tells.
    out, crop = keras_axis(1, kernel, stride, dilation, padding, output_padding)
    tail = effective_kernel(kernel, dilation) - crop - out
    return (crop, max(tail, 0)), max(-tail, 0)


def cut(axis: Axis, begin: int, end: int, blocks: int = 1) -> tuple[Axis, int]:
    """Outputs ``begin:end`` of an axis as an axis of its own, and the first input it has.

    ``begin`` is a multiple of the stride, so that the phases stay what they are. The inputs are
    those that the outputs read, and at least one where there is any; they begin and end at
    multiples of ``blocks``, or where the axis does.
    """
    first = -((effective_kernel(axis.kernel, axis.dilation) - 1 - begin - axis.crop) // axis.stride)
    last = (end - 1 + axis.crop) // axis.stride
    first = min(max(first, 0), max(axis.size - 1, 0)) // blocks * blocks
    stop = min(max(last, first) // blocks * blocks + blocks, axis.size)
    part = replace(
        axis, size=stop - first, out=end - begin, crop=axis.crop + begin - first * axis.stride
    )
    return part, first


@dataclass(frozen=True, slots=True)
class Phase:
    """Outputs ``o = stride*j + first`` of an axis, and the taps they share.

    Such an output is ``sum over taps of x[j + offset] * w[tap]``, a dense stride-1
    convolution; ``taps`` are pairs ``(tap, offset)``. A phase without taps is a gap, which
    bias and activation alone fill.
    """

    first: int
    taps: tuple[tuple[int, int], ...]

    def count(self, axis: Axis) -> int:
        """How many outputs of ``axis`` the phase has."""
        return max(-(-(axis.out - self.first) // axis.stride), 0)


def phases(axis: Axis) -> tuple[Phase, ...]:
    """The phases of an axis that have taps, in order of their first output.

    Tap ``t`` reaches outputs with ``(o + crop - t*d) % s == 0``. Independent of the axis'
    sizes, so that packed weights serve every input shape.
    """
    members: dict[int, list[tuple[int, int]]] = {}
    for tap in range(axis.kernel):
        reach = tap * axis.dilation - axis.crop
        first = reach % axis.stride
        members.setdefault(first, []).append((tap, (first - reach) // axis.stride))
    return tuple(Phase(first, tuple(members[first])) for first in sorted(members))
