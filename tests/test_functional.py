"""conv3d_transpose: the formula for every form of its arguments, whatever the arrays look like.

Small integers make float32 exact, so results are compared for equality with the float64
oracle. Where only the memory differs, so that the numbers are the same, the bits must be.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import oracle
import pytest
from test_arguments import OffersArray, OffersDlpack

from conv3dt.functional import conv3d_transpose

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.float16, BFLOAT16, np.float32, np.float64]


def integers(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def normals(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# Padding. Crops and sizes are written out, from the formulas in the docstring.

FORMS = [  # sizes 3, 4, 5; kernel 3, 2, 4; arguments; crops; output sizes
    (dict(), (0, 0, 0), (5, 5, 8)),
    (dict(strides=2), (0, 0, 0), (7, 8, 12)),
    (dict(strides=(1, 3, 5)), (0, 0, 0), (5, 12, 25)),
    (dict(strides=2, padding="same"), (0, 0, 1), (6, 8, 10)),
    (dict(strides=2, padding="SAME", output_padding=0), (1, 1, 2), (5, 6, 8)),
    (dict(strides=2, padding="same", output_padding=1), (0, 0, 1), (6, 7, 9)),
    (dict(strides=2, padding="valid", output_padding=(0, 1, 1)), (0, 0, 0), (7, 9, 13)),
    (dict(padding="same", dilation_rate=(2, 3, 1)), (2, 1, 1), (3, 4, 5)),
    (dict(padding=1), (1, 1, 1), (3, 3, 6)),
    (dict(strides=2, padding=(1, 0, 1), output_padding=(1, 0, 0)), (1, 0, 1), (6, 8, 10)),
    (dict(strides=2, padding=((0, 1), (1, 0), (2, 3))), (0, 1, 2), (6, 7, 7)),
    (dict(strides=2, padding=0, dilation_rate=3), (0, 0, 0), (11, 10, 18)),
    (dict(strides=3, padding=(3, 0, 0), output_padding=2), (3, 0, 0), (5, 13, 18)),
]


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("form", "crops", "sizes"), FORMS, ids=lambda form: str(form))
def test_padding_forms(form, crops, sizes, bias, data_format):
    last = data_format == "channels_last"
    x = integers(*((2, 3, 4, 5, 3) if last else (2, 3, 3, 4, 5)))
    kernel = integers(3, 2, 4, 5, 3, seed=1)
    bias = integers(5, seed=2) if bias else None
    full = {"strides": 1, "dilation_rate": 1, **form}
    strides, dilation = (np.broadcast_to(full[n], 3).tolist() for n in ("strides", "dilation_rate"))
    expected = oracle.conv3d_transpose(
        x, kernel, bias, strides, crops, sizes, dilation, 1, channels_last=last
    )
    result = conv3d_transpose(x, kernel, bias, data_format=data_format, **form)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups(groups, data_format):
    last = data_format == "channels_last"
    x = integers(*((2, 3, 3, 3, 6) if last else (2, 6, 3, 3, 3)))
    kernel, bias = integers(3, 3, 3, 2, 6, seed=1), integers(2 * groups, seed=2)
    result = conv3d_transpose(x, kernel, bias, 2, "same", groups=groups, data_format=data_format)
    expected = oracle.conv3d_transpose(
        x, kernel, bias, (2,) * 3, (0,) * 3, (6,) * 3, (1,) * 3, groups, channels_last=last
    )
    np.testing.assert_array_equal(result, expected)


def test_positional_arguments_are_the_first_five():
    x, kernel, bias = integers(1, 2, 2, 2, 1), integers(3, 3, 3, 1, 1), integers(1)
    assert conv3d_transpose(x, kernel, bias, 2, "same").shape == (1, 4, 4, 4, 1)
    with pytest.raises(TypeError, match="positional"):
        conv3d_transpose(x, kernel, bias, 2, "same", 1)


def test_arguments_stay_as_they_were():
    x, kernel, bias = normals(1, 3, 3, 3, 2), normals(3, 3, 3, 4, 2), normals(4)
    before = [a.copy() for a in (x, kernel, bias)]
    result = conv3d_transpose(x, kernel, bias, 2, activation="relu")
    assert all(same_bits(a, b) for a, b in zip((x, kernel, bias), before, strict=True))
    assert not any(np.shares_memory(result, a) for a in (x, kernel, bias))


# Activation


def test_activation():
    x, kernel, bias = integers(1, 3, 3, 3, 2), integers(3, 3, 3, 4, 2, seed=1), integers(4, seed=2)
    plain = conv3d_transpose(x, kernel, bias, 2)
    relu = conv3d_transpose(x, kernel, bias, 2, activation="relu")
    np.testing.assert_array_equal(relu, np.maximum(plain, 0))
    softmax = conv3d_transpose(x, kernel, bias, 2, activation="softmax")
    np.testing.assert_allclose(softmax.sum(-1), 1, rtol=1e-6)
    negated = conv3d_transpose(x, kernel, bias, 2, activation=lambda y: -y)
    np.testing.assert_array_equal(negated, -plain)


def test_glu_halves_the_last_axis():
    x, kernel = normals(1, 2, 2, 2, 3), normals(2, 2, 2, 4, 3, seed=1)
    plain = conv3d_transpose(x, kernel, strides=2)
    expected = plain[..., :2] / (1 + np.exp(-plain[..., 2:]))
    result = conv3d_transpose(x, kernel, strides=2, activation="glu")
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    out = np.empty((1, 4, 4, 4, 2), np.float32)
    assert conv3d_transpose(x, kernel, strides=2, activation="glu", out=out) is out
    assert same_bits(out, result)


# Dtypes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_result_has_the_dtype_of_x(dtype):
    x, kernel = integers(1, 3, 3, 3, 2, dtype=dtype), integers(3, 3, 3, 4, 2, dtype=dtype, seed=1)
    bias = integers(4, dtype=dtype, seed=2)
    result = conv3d_transpose(x, kernel, bias, strides=2)
    expected = oracle.conv3d_transpose(x, kernel, bias, (2,) * 3, (0,) * 3, (7,) * 3)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result.astype(np.float64), expected)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_half_types_are_computed_in_float32(dtype):
    x, kernel = normals(1, 4, 4, 4, 64, dtype=dtype), normals(3, 3, 3, 8, 64, seed=1)
    bias = normals(8, dtype=np.float64, seed=2)
    half = conv3d_transpose(x, kernel, bias, activation="tanh")
    single = conv3d_transpose(x.astype(np.float32), kernel, bias, activation="tanh")
    assert same_bits(half, single.astype(dtype))


def test_float64_is_computed_in_float64():
    x, kernel = normals(1, 3, 3, 3, 8, dtype=np.float64), normals(3, 3, 3, 4, 8, dtype=np.float64)
    expected = oracle.conv3d_transpose(x, kernel, None, (1,) * 3, (0,) * 3, (5,) * 3)
    np.testing.assert_allclose(conv3d_transpose(x, kernel), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("other", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=str)
def test_kernel_and_bias_of_another_dtype_are_cast(dtype, other):
    x = normals(1, 3, 3, 3, 2, dtype=dtype)
    kernel, bias = normals(3, 3, 3, 4, 2, dtype=other), normals(4, dtype=other)
    result = conv3d_transpose(x, kernel, bias)
    assert same_bits(result, conv3d_transpose(x, kernel.astype(dtype), bias.astype(dtype)))


# Arrays of every kind


def channel_slice(array, _):
    host = np.full((*array.shape[:-1], array.shape[-1] + 3), np.nan, array.dtype)
    host[..., 1:-2] = array
    return host[..., 1:-2]


def reversed_everywhere(array, _):
    index = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[index])[index]


def unaligned(array, _):
    view = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def read_only(array, _):
    view = array.view()
    view.flags.writeable = False
    return view


def memmap(array, folder):
    np.save(folder / "array.npy", array)
    return np.load(folder / "array.npy", mmap_mode="r")


KINDS = {
    "big-endian": lambda array, _: array.astype(array.dtype.newbyteorder(">")),
    "little-endian": lambda array, _: array.astype(array.dtype.newbyteorder("<")),
    "unaligned": unaligned,
    "fortran": lambda array, _: np.asfortranarray(array),
    "transposed": lambda array, _: np.ascontiguousarray(array.T).T,
    "reversed": reversed_everywhere,
    "channel slice": channel_slice,
    "every other voxel": lambda array, _: np.repeat(array, 2, axis=0)[::2],
    "read-only": read_only,
    "memmap": memmap,
    "__array__": lambda array, _: OffersArray(array),
    "__dlpack__": lambda array, _: OffersDlpack(array),
}
PROBLEMS = [
    dict(x=(2, 4, 5, 6, 20), kernel=(3, 3, 3, 19, 20), strides=2, padding="same"),
    dict(x=(1, 3, 3, 4, 5), kernel=(2, 2, 2, 3, 5), strides=2),
    dict(x=(2, 5, 4, 3, 7), kernel=(3, 3, 3, 2, 5), data_format="channels_first"),
]


def arrays_of(problem, dtype=np.float32):
    options = dict(problem)
    x, kernel = options.pop("x"), options.pop("kernel")
    arrays = normals(*x, dtype=dtype), normals(*kernel, dtype=dtype, seed=1)
    return *arrays, normals(kernel[3], dtype=dtype, seed=2), options


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=["k3s2", "k2s2", "first"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_same_bits_for_any_memory(kind, problem, dtype, tmp_path):
    x, kernel, bias, options = arrays_of(problem, dtype)
    expected = conv3d_transpose(x, kernel, bias, **options)
    for operand in range(3):
        operands = [x, kernel, bias]
        operands[operand] = kind(operands[operand], tmp_path)
        assert same_bits(conv3d_transpose(*operands, **options), expected)


@pytest.mark.parametrize("axes", [(0,), (1, 2, 3), (4,), (0, 1, 2, 3, 4)], ids=str)
def test_same_bits_for_broadcast_arrays(axes):
    shape = (2, 4, 5, 6, 20)
    x = normals(*(1 if axis in axes else size for axis, size in enumerate(shape)))
    x, kernel = np.broadcast_to(x, shape), normals(3, 3, 3, 5, 20, seed=1)
    result = conv3d_transpose(x, kernel, np.broadcast_to(np.float32(0.5), 5), strides=2)
    expected = conv3d_transpose(x.copy(), kernel, np.full(5, 0.5, np.float32), strides=2)
    assert same_bits(result, expected)


def test_nested_lists():
    x, kernel, bias, options = arrays_of(PROBLEMS[1], np.float64)
    result = conv3d_transpose(x.tolist(), kernel.tolist(), bias.tolist(), **options)
    assert same_bits(result, conv3d_transpose(x, kernel, bias, **options))


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    x, kernel, bias, options = arrays_of(PROBLEMS[1])
    result = conv3d_transpose(*(torch.from_numpy(a) for a in (x, kernel, bias)), **options)
    assert same_bits(result, conv3d_transpose(x, kernel, bias, **options))


@pytest.mark.parametrize("problem", PROBLEMS, ids=["k3s2", "k2s2", "first"])
def test_same_bits_for_any_batch(problem):
    x, kernel, bias, options = arrays_of(problem)
    x = np.concatenate([x, x[::-1]])
    whole = conv3d_transpose(x, kernel, bias, **options)
    each = [conv3d_transpose(x[n : n + 1], kernel, bias, **options) for n in range(len(x))]
    assert same_bits(whole, np.concatenate(each))


@pytest.mark.parametrize("algorithm", ["auto", "direct", "im2col"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=["k3s2", "k2s2", "first"])
def test_algorithms_agree(problem, algorithm):
    x, kernel, bias, options = arrays_of(problem)
    result = conv3d_transpose(x, kernel, bias, algorithm=algorithm, **options)
    exact = conv3d_transpose(*(a.astype(np.float64) for a in (x, kernel, bias)), **options)
    np.testing.assert_allclose(result, exact, rtol=1e-4, atol=1e-4)


# out


def strided_out(shape, dtype):
    host = np.full((*shape[:-1], shape[-1] + 3), 7, dtype)
    return host, host[..., 1:-2]


def every_other_out(shape, dtype):
    host = np.full((shape[0], 2 * shape[1], *shape[2:]), 7, dtype)
    return host, host[:, ::-2]


def fortran_out(shape, dtype):
    host = np.full(shape, 7, dtype, order="F")
    return host, host


def unaligned_out(shape, dtype):
    size = int(np.prod(shape))
    host = np.zeros((size + 2) * np.dtype(dtype).itemsize + 1, np.uint8)[1:].view(dtype)
    host[:] = 7
    return host, host[1:-1].reshape(shape)


def plain_out(shape, dtype):
    host = np.full(shape, 7, dtype)
    return host, host


OUTS = [plain_out, strided_out, every_other_out, fortran_out, unaligned_out]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "softmax"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=["k3s2", "k2s2", "first"])
@pytest.mark.parametrize("make", OUTS)
def test_out_of_any_strides(make, problem, activation, dtype):
    x, kernel, bias, options = arrays_of(problem, dtype)
    expected = conv3d_transpose(x, kernel, bias, activation=activation, **options)
    host, out = make(expected.shape, dtype)
    assert conv3d_transpose(x, kernel, bias, activation=activation, out=out, **options) is out
    assert same_bits(np.ascontiguousarray(out), expected)
    out[...] = 7
    assert (host == 7).all(), "a neighbour of out was written"


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 40])
@pytest.mark.parametrize("operand", ["x", "kernel", "bias"])
def test_out_may_overlap_the_operands(operand, shift, dtype):
    arrays = dict(
        x=normals(1, 4, 4, 4, 3, dtype=dtype),
        kernel=normals(3, 3, 3, 3, 3, dtype=dtype, seed=1),
        bias=normals(3, dtype=dtype, seed=2),
    )
    expected = conv3d_transpose(**arrays, padding="same")
    shared = np.zeros(expected.size + arrays[operand].size + shift, dtype)
    place = shared[shift : shift + arrays[operand].size].reshape(arrays[operand].shape)
    place[...] = arrays[operand]
    arrays[operand] = place
    out = shared[: expected.size].reshape(expected.shape)
    assert conv3d_transpose(**arrays, padding="same", out=out) is out
    assert same_bits(out, expected)


def test_out_may_be_x_itself():
    x, kernel = normals(2, 4, 4, 4, 3), normals(3, 3, 3, 3, 3, seed=1)
    expected = conv3d_transpose(x, kernel, padding="same", activation="relu")
    conv3d_transpose(x, kernel, padding="same", activation="relu", out=x)
    assert same_bits(x, expected)


def test_out_memmap(tmp_path):
    x, kernel, bias, options = arrays_of(PROBLEMS[0])
    expected = conv3d_transpose(x, kernel, bias, **options)
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=expected.shape)
    assert conv3d_transpose(x, kernel, bias, out=out, **options) is out
    assert same_bits(np.array(out), expected)


def test_results_do_not_share_memory():
    x, kernel = normals(1, 4, 4, 4, 3), normals(3, 3, 3, 3, 3, seed=1)
    first = conv3d_transpose(x, kernel)
    kept = first.copy()
    second = conv3d_transpose(2 * x, kernel)
    assert not np.shares_memory(first, second) and same_bits(first, kept)
