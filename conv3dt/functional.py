"""The function: one call, arrays in, array out, nothing kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import activations, arguments, plan

if TYPE_CHECKING:
    import numpy.typing as npt


def conv3d_transpose(
    x: npt.ArrayLike,
    kernel: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    strides: int | tuple[int, int, int] = 1,
    padding: Any = "valid",
    *,
    output_padding: int | tuple[int, int, int] | None = None,
    data_format: str | None = "channels_last",
    dilation_rate: int | tuple[int, int, int] = 1,
    groups: int = 1,
    activation: Any = None,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
    algorithm: str = "auto",
) -> np.ndarray:
    """Transposed 3D convolution, with the meaning of Keras' Conv3DTranspose.

    Per axis, with input size ``I``, kernel size ``k``, stride ``s``, dilation ``d`` and
    effective kernel ``K = (k-1)*d + 1``:

        full[i*s + t*d] += x[i] * kernel[t]      (I-1)*s + K voxels
        y = activation(full[crop : crop + O] + bias)

    Voxels that no tap reaches still get bias and activation. The kernel is not flipped.

    Parameters
    ----------
    x : array_like, (N, D, H, W, C) or (N, C, D, H, W)
        Input, in the order that `data_format` names. float16, bfloat16 (of ml_dtypes),
        float32 or float64; any strides and byte order. Lists and objects with ``__array__``
        or ``__dlpack__`` are accepted.
    kernel : array_like, (kd, kh, kw, filters // groups, C)
        As Keras stores it. A PyTorch weight is ``weight.transpose(2, 3, 4, 1, 0)``. Cast to
        the dtype of the computation when its float dtype differs.
    bias : array_like, (filters,), optional
        Cast like `kernel`.
    strides : int or 3 ints
        For depth, height and width.
    padding : {"valid", "same"}, int, 3 ints, or 3 pairs of ints
        The strings (any case) are those of Keras. Numbers are voxels ``(lo, hi)`` cropped
        from the full output, as PyTorch and ONNX mean their pads.
    output_padding : int or 3 ints, optional
        Settles the output size where several are possible, see the table below. Less than
        the stride; with explicit padding less than ``max(stride, dilation)``.
    data_format : {"channels_last", "channels_first"} or None
        Order of the axes of `x` and of the result. None asks Keras' ``keras.json``.
    dilation_rate : int or 3 ints
        Distance between the kernel's taps. As in Keras, not together with strides > 1,
        except with explicit padding.
    groups : int
        Group g maps the g-th share of the input channels to the g-th share of the filters.
    activation : str, callable, config dict or None
        Any activation of Keras; None is linear. Note that softmax and glu work on the last
        axis, whatever the data format, as in Keras.
    out : ndarray, optional
        Receives the result and is returned. Any writeable array of the result's shape and
        dtype; it may be strided, and may overlap the other arrays.
    num_threads : int, optional
        Default: as `conv3dt.set_num_threads` and OpenMP say. The result does not depend on it.
    algorithm : {"auto", "direct", "im2col", "winograd"}
        "direct" sums the formula as written, and has NaN and Inf exactly where it says.
        "winograd" is minimal filtering, where phases have 2 or 3 taps along two axes or more;
        elsewhere it is "direct". "im2col" is NumPy. "auto" takes what should be fastest, by a
        rule that depends on the shapes of one sample alone.

    Returns
    -------
    ndarray, (N, O_d, O_h, O_w, filters) or (N, filters, O_d, O_h, O_w)
        In the dtype of `x`. float32 and float64 are computed in their own precision, the half
        types in float32. Per axis:

            padding   output_padding  O                              crop
            valid     None            (I-1)*s + max(K, s)            0
            valid     p               (I-1)*s + K + p                0
            same      None            I*s                            max(K-s, 0) // 2
            same      p               (I-1)*s + K%2 + p              max(K - K%2 - p, 0) // 2
            (lo, hi)  None is 0       (I-1)*s + K - lo - hi + p      lo

    Raises
    ------
    ValueError
        An argument out of its range, shapes that do not fit together, a negative output
        size, x or result of 2**63 bytes or more. Nothing is written to `out`.
    TypeError
        Arrays that do not hold floats; an `out` of another dtype.
    MemoryError
        The result, or memory to work in, cannot be allocated.

    Notes
    -----
    The sizes and crops of the string paddings are as observed on Keras 3.15 with TensorFlow
    and JAX; explicit padding follows PyTorch's ConvTranspose3d and ONNX' ConvTranspose.

    Examples
    --------
    >>> import numpy as np
    >>> from conv3dt import conv3d_transpose
    >>> x = np.ones((1, 4, 4, 4, 2), np.float32)
    >>> kernel = np.ones((3, 3, 3, 5, 2), np.float32)
    >>> conv3d_transpose(x, kernel, strides=2, padding="same").shape
    (1, 8, 8, 8, 5)
    """
    x = arguments.as_array("x", x)
    kernel = arguments.as_array("kernel", kernel)
    strides = arguments.triple("strides", strides)
    dilation = arguments.triple("dilation_rate", dilation_rate)
    padding = arguments.padding(padding)
    arguments.stride_dilation_rule(strides, dilation, padding)
    extra = arguments.output_padding(output_padding, strides, dilation, padding)
    channels_last = arguments.data_format(data_format) == "channels_last"
    groups = arguments.positive_int("groups", groups)
    act = activations.get(activation)
    num_threads = arguments.num_threads(num_threads)
    algorithm = arguments.algorithm(algorithm)
    compute = arguments.compute_dtype(x.dtype)
    problem = arguments.make_problem(
        x.shape,
        kernel.shape,
        strides,
        padding,
        extra,
        dilation,
        groups,
        channels_last,
        itemsize=compute.itemsize,
    )
    if bias is not None:
        bias = arguments.as_array("bias", bias)
        arguments.check_bias(bias, problem.filters)
    shape = act.output_shape(problem.y_shape(x.shape[0]))
    if out is not None:
        arguments.check_out(out, shape, x.dtype)
    with np.errstate(all="ignore"):  # float64 numbers beyond float32 become Inf, silently
        kernel = np.ascontiguousarray(kernel, compute)
        bias = None if bias is None else np.ascontiguousarray(bias, compute)
    return plan.execute(
        problem,
        plan.Weights(kernel, bias, groups),
        x,
        activation=act,
        out=out,
        num_threads=num_threads,
        algorithm=algorithm,
    )
