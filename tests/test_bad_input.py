"""Bad and edge inputs, through the function and through the layer.

A wrong call is a ValueError or TypeError that names the argument, nothing is written, and
the process lives. What may take the process down is run in another one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from itertools import product

import ml_dtypes
import numpy as np
import oracle
import pytest
from test_arguments import OffersArray, OffersDlpack

from conv3dt import engine
from conv3dt.functional import conv3d_transpose
from conv3dt.layer import Conv3DTranspose


def through_function(x, kernel, bias=None, **options):
    return conv3d_transpose(x, kernel, bias, **options)


def through_layer(x, kernel, bias=None, *, out=None, **options):
    """The same operation by a layer built with the kernel's shape, then given the weights."""
    options.setdefault("data_format", "channels_last")
    *size, filters, channels = kernel.shape
    filters *= int(options.get("groups", 1))
    layer = Conv3DTranspose(filters, size, use_bias=bias is not None, dtype=kernel.dtype, **options)
    last = options["data_format"] != "channels_first"
    layer.build((None,) * 4 + (channels,) if last else (None, channels) + (None,) * 3)
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return layer(x, out=out)


both = pytest.mark.parametrize("call", [through_function, through_layer])


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


X, KERNEL, BIAS = ones(1, 2, 2, 2, 3), ones(2, 2, 2, 4, 3), ones(4)


def refused(call, kind, message, x=X, kernel=KERNEL, bias=None, **options):
    with pytest.raises(kind, match=message):
        call(x, kernel, bias, **options)


# Numbers

BAD_INTEGERS = [0, -1, 2.5, "3", (), (2, 2)]


@both
@pytest.mark.parametrize("value", BAD_INTEGERS, ids=repr)
@pytest.mark.parametrize("name", ["strides", "dilation_rate"])
def test_bad_triples(call, name, value):
    refused(call, ValueError, f"{name} must be .*, got", **{name: value})


@pytest.mark.parametrize("value", BAD_INTEGERS, ids=repr)
@pytest.mark.parametrize("name", ["filters", "kernel_size", "strides", "dilation_rate", "groups"])
def test_bad_numbers_of_the_layer(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got"):
        Conv3DTranspose(**{"filters": 4, "kernel_size": 3, name: value})


@pytest.mark.parametrize("value", BAD_INTEGERS, ids=repr)
def test_bad_groups(value):
    refused(through_function, ValueError, "groups must be a positive integer", groups=value)


@both
@pytest.mark.parametrize("one", [True, np.True_, np.int64(1), np.uint8(1), (1, True, np.int8(1))])
def test_integers_of_any_kind(call, one):
    result = call(X, KERNEL, strides=one, dilation_rate=one)
    np.testing.assert_array_equal(result, call(X, KERNEL))


@pytest.mark.parametrize("one", [True, np.int64(1)])
def test_integers_of_any_kind_for_the_layer(one):
    layer = Conv3DTranspose(one, one, groups=one, input_shape=(2, 2, 2, 3))
    assert layer.kernel.shape == (1, 1, 1, 1, 3)


@both
@pytest.mark.parametrize("value", [0, -5, 2.5, "2"])
def test_bad_num_threads(call, value):
    refused(call, ValueError, "num_threads must be", num_threads=value)


@both
@pytest.mark.parametrize("value", [1, np.int64(2), 7, 10**6])
def test_any_number_of_threads(call, value):
    np.testing.assert_array_equal(call(X, KERNEL, num_threads=value), call(X, KERNEL))


@both
@pytest.mark.parametrize("value", ["fastest", None, 3])
def test_bad_algorithm(call, value):
    refused(call, ValueError, "algorithm must be one of", algorithm=value)


# Options


@both
@pytest.mark.parametrize("value", ["full", "causal", -1, 0.5, (1, 1), ((0, -1),) * 3, None])
def test_bad_padding(call, value):
    refused(call, ValueError, "padding must be", padding=value)


@both
@pytest.mark.parametrize("value", ["bogus", "", 3])
def test_bad_data_format(call, value):
    refused(call, ValueError, "data_format must be", data_format=value)


@both
def test_upper_case_padding(call):
    np.testing.assert_array_equal(
        call(X, KERNEL, strides=2, padding="SAME"), call(X, KERNEL, strides=2, padding="same")
    )


@both
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_strides_with_dilation(call, padding):
    for strides, dilation in [(2, 2), ((2, 1, 1), (1, 1, 3))]:
        options = dict(strides=strides, dilation_rate=dilation, padding=padding)
        refused(call, ValueError, "strides > 1 and dilation_rate > 1", **options)
    assert call(X, KERNEL, strides=2, dilation_rate=2, padding=0).shape == (1, 5, 5, 5, 4)


@both
@pytest.mark.parametrize(
    ("value", "padding"),
    [(-1, "valid"), (-1, 0), (2, "same"), (2, "valid"), ((0, 0, 2), "same"), (2, 0), (0.5, "same")],
)
def test_bad_output_padding(call, value, padding):
    options = dict(strides=2, padding=padding, output_padding=value)
    refused(call, ValueError, "output_padding must be", **options)


@both
def test_output_padding_below_the_dilation_is_fine_with_explicit_padding(call):
    result = call(X, KERNEL, dilation_rate=3, padding=0, output_padding=2)
    assert result.shape == (1, 7, 7, 7, 4)
    refused(call, ValueError, "output_padding", dilation_rate=3, padding="valid", output_padding=2)


@both
def test_unknown_activation(call):
    refused(call, ValueError, "no_such", activation="no_such")


# Shapes


@both
@pytest.mark.parametrize("shape", [(), (2, 2, 2, 3), (1, 1, 2, 2, 2, 3)])
def test_rank_of_x(call, shape):
    refused(call, ValueError, f"5.*got {len(shape)}", x=ones(*shape))


@both
def test_channels_of_x(call):
    refused(call, ValueError, "3 input channels, got 5", x=ones(1, 2, 2, 2, 5))
    options = dict(x=ones(1, 5, 2, 2, 3), data_format="channels_first")
    refused(call, ValueError, "3 input channels, got 5", **options)


@pytest.mark.parametrize("shape", [(), (2,), (2, 2, 2, 4), (1, 2, 2, 2, 4, 3)])
def test_rank_of_kernel(shape):
    message = f"kernel must have 5 axes.*got {len(shape)}"
    refused(through_function, ValueError, message, kernel=ones(*shape))


@pytest.mark.parametrize("axis", range(4))
def test_empty_kernel(axis):
    shape = [2, 2, 2, 4, 3]
    shape[axis] = 0
    refused(through_function, ValueError, "kernel must have no empty", kernel=ones(*shape))


@pytest.mark.parametrize("shape", [(0,), (5,), (3,), (1, 4), (4, 1), ()])
def test_shape_of_bias(shape):
    message = r"bias must have shape \(4,\).*, got " + re.escape(str(shape))
    refused(through_function, ValueError, message, bias=ones(*shape))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 2, 2, 4, 3)], "weights must be 2 arrays .*, got 1"),
        ([(4,)], "weights must be 2 arrays .*, got 1"),
        *(
            ([shape, (4,)], f"kernel must have shape .*, got {re.escape(str(shape))}")
            for shape in [(), (2,), (2, 2, 2, 4), (2, 2, 2, 3, 4), (0, 2, 2, 4, 3), (2, 2, 2, 4, 0)]
        ),
        *(
            ([(2, 2, 2, 4, 3), shape], f"bias must have shape .*, got {re.escape(str(shape))}")
            for shape in [(), (0,), (5,), (4, 1)]
        ),
    ],
    ids=str,
)
def test_shapes_of_the_weights_of_the_layer(shapes, message):
    layer = Conv3DTranspose(4, 2, input_shape=(2, 2, 2, 3))
    before = layer.get_weights()
    with pytest.raises(ValueError, match=message):
        layer.set_weights([ones(*shape) for shape in shapes])
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_groups_that_do_not_divide():
    refused(through_function, ValueError, "groups 2 and in_channels 3", groups=2)
    with pytest.raises(ValueError, match="groups 3 and filters 4"):
        Conv3DTranspose(4, 2, groups=3)
    with pytest.raises(ValueError, match="groups 2 and in_channels 3"):
        Conv3DTranspose(4, 2, groups=2, input_shape=(2, 2, 2, 3))


@both
def test_output_of_negative_size(call):
    refused(call, ValueError, "padding must leave an output of size 0 or more, got -1", padding=2)
    assert call(X, KERNEL, padding=((0, 0), (1, 1), (1, 2))).shape == (1, 3, 1, 0, 4)


@both
@pytest.mark.parametrize("activation", [None, "softmax", "relu"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_empty_batch(call, data_format, activation):
    last = data_format == "channels_last"
    x = ones(*((0, 2, 2, 2, 3) if last else (0, 3, 2, 2, 2)))
    result = call(x, KERNEL, BIAS, data_format=data_format, activation=activation)
    assert result.shape == ((0, 3, 3, 3, 4) if last else (0, 4, 3, 3, 3))
    assert result.dtype == np.float32


@both
@pytest.mark.parametrize(
    ("options", "depth"),
    [
        (dict(strides=2, padding="same"), 0),
        (dict(strides=2), 1),  # k3 s2: (0-1)*2 + 3
        (dict(), 2),
        (dict(strides=3), 0),
        (dict(strides=2, padding=((0, 0), (1, 1), (1, 1))), 1),
        (dict(strides=2, padding=1), 0),
    ],
)
def test_empty_depth(call, options, depth):
    result = call(ones(2, 0, 2, 2, 3), ones(3, 3, 3, 4, 3), np.arange(4, dtype="f4"), **options)
    assert result.shape[:2] == (2, depth)
    assert (result == np.arange(4)).all()


@both
def test_no_input_channels(call):
    bias = np.arange(-2, 2, dtype=np.float32)
    result = call(ones(1, 2, 2, 2, 0), ones(2, 2, 2, 4, 0), bias, activation="relu")
    assert result.shape == (1, 3, 3, 3, 4)
    assert (result == [0, 0, 0, 1]).all()


@both
def test_gaps_hold_bias_and_activation(call):
    bias = np.array([-1, 2, 5, 0], np.float32)
    result = call(X, ones(1, 1, 1, 4, 3), bias, strides=3, activation="exponential")
    assert result.shape == (1, 6, 6, 6, 4)
    hit = np.zeros((6, 6, 6), bool)
    hit[::3, ::3, ::3] = True
    np.testing.assert_allclose(result[0, hit], np.exp([[2, 5, 8, 3]] * 8), rtol=1e-6)
    np.testing.assert_allclose(result[0, ~hit], np.exp([[-1, 2, 5, 0]] * 208), rtol=1e-6)


@both
@pytest.mark.parametrize(("channels", "filters"), [(1, 33), (33, 1), (5, 8), (8, 5)])
def test_bias_runs_over_the_filters(call, channels, filters):
    bias = np.arange(filters, dtype=np.float32)
    result = call(ones(1, 2, 2, 2, channels), ones(2, 2, 2, filters, channels), bias, strides=2)
    assert (result == channels + bias).all()


# Sizes: what a check that is missing would turn into a crash runs in another process

HUGE = 5717580618211388939  # it becomes small when cut to 32 bits
CALLS = (through_function, through_layer)


def scenario_results_of_2_63_bytes():
    for call, options in product(
        CALLS,
        [
            dict(strides=2**31),
            dict(strides=2**62),
            dict(strides=HUGE),
            dict(strides=(2**61, 1, 1)),
            dict(strides=(1, 1, HUGE), padding="same"),
            dict(strides=(2**62, 1, 1), padding=0),
            dict(dilation_rate=1879048192),
            dict(dilation_rate=(1, 2**62, 1)),
            dict(dilation_rate=2**70),
            dict(strides=10**30),
        ],
    ):
        refused(call, ValueError, "2\\*\\*6[23]", x=ones(1, 1, 1, 1, 3), **options)


def scenario_layers_of_2_63_bytes():
    """Refused when the layer is built: its shapes are known then."""
    for message, options in [
        ("result must have fewer", dict(strides=2**31)),
        ("depth below", dict(strides=2**62)),
        ("depth below", dict(strides=HUGE)),
        ("result must have fewer", dict(dilation_rate=1879048192)),
        ("result must have fewer", dict(filters=2**62)),
        ("result must have fewer", dict(kernel_size=2**31)),
        ("x must have fewer", dict(input_shape=(2, 2, 2, 2**62))),
        ("x must have fewer", dict(input_shape=(2**31, 2**31, 1, 3))),
    ]:
        arguments = {"filters": 4, "kernel_size": 2, "input_shape": (1, 1, 1, 3), **options}
        with pytest.raises(ValueError, match=f"{message}.* 2\\*\\*6[23] .*, got "):
            Conv3DTranspose(**arguments)


def scenario_weights_that_no_memory_holds():
    for options in (dict(filters=2**40), dict(input_shape=(1, 1, 1, 2**40))):
        arguments = {"filters": 4, "kernel_size": 2, "input_shape": (1, 1, 1, 3), **options}
        with pytest.raises(MemoryError, match=r"shape \(2, 2, 2, .*1099511627776.*float"):
            Conv3DTranspose(**arguments)


def scenario_results_that_no_memory_holds():
    for call, strides in product(
        CALLS,
        [
            (2**30, 2**20, 1),  # 4 PiB
            (2**31, 2**15, 1),
            (2**61 - 1, 1, 1),  # 2**63 - 4 bytes
            (1, 1, 2**61 - 1),
        ],
    ):
        with pytest.raises(MemoryError, match=r"(?s)shape \(1, .*float32"):
            call(ones(1, 1, 1, 1, 1), ones(1, 1, 1, 1, 1), ones(1), strides=strides)


def scenario_results_beyond_the_memory_limit():
    x, kernel = ones(1, 1, 1, 1, 1), ones(2, 1, 1, 1, 1)
    first = conv3d_transpose(x, kernel, strides=2)
    layer = Conv3DTranspose(1, 1, strides=(2**31, 1, 1), input_shape=(1, 1, 1, 1))
    for call in [
        lambda: conv3d_transpose(x, kernel, strides=(2**31, 1, 1)),
        lambda: conv3d_transpose(x, kernel, dilation_rate=(1879048192, 1, 1)),
        lambda: conv3d_transpose(x.astype(np.float16), kernel, strides=(2**32, 1, 1)),
        lambda: conv3d_transpose(x.astype(np.float64), kernel, strides=(2**30, 1, 1)),
        lambda: layer(x),
    ] * 2:
        with pytest.raises(MemoryError, match=r"(?s)shape \(1, .*float"):
            call()
    np.testing.assert_array_equal(conv3d_transpose(x, kernel, strides=2), first)


def scenario_inputs_without_memory():
    """Broadcast arrays of astronomic sizes: no algorithm may walk along them while planning."""
    for shape, algorithm in product(
        [(1, 2**40, 4, 4, 1), (1, 4, 2**20, 2**20, 1), (1, 4, 4, 2**40, 1), (2**40, 1, 1, 1, 1)],
        ["auto", "direct", "winograd", "im2col"],
    ):
        x = np.broadcast_to(np.float32(1), shape)
        for kernel in (ones(3, 3, 3, 1, 1), ones(3, 3, 3, 16, 1)):
            for strides in (1, 2):
                with pytest.raises(MemoryError, match="shape"):
                    conv3d_transpose(x, kernel, strides=strides, algorithm=algorithm)


def scenario_empty_axes():
    """Nothing along an axis: by every instruction set and algorithm, on several threads."""
    engine.serial_below = 0
    bias = np.arange(4, dtype=np.float32)
    for isa, algorithm, last, empty in product(
        (*engine.can(), "numpy"), ("auto", "direct", "winograd", "im2col"), (True, False), range(5)
    ):
        engine.select(isa)
        sizes = [size if axis != empty else 0 for axis, size in enumerate((2, 3, 4, 5, 6))]
        batch, *space, channels = sizes
        x = ones(batch, *space, channels) if last else ones(batch, channels, *space)
        for strides, groups in product((1, 2), (1, 2)):
            y = conv3d_transpose(
                x, ones(3, 3, 3, 4 // groups, channels), bias, strides, groups=groups,
                data_format="channels_last" if last else "channels_first",
                algorithm=algorithm, num_threads=3,
            )  # fmt: skip
            if not last:
                y = y.transpose(0, 2, 3, 4, 1)
            assert y.shape == (batch, *((n - 1) * strides + 3 for n in space), 4)
            assert (y == bias).all()


def far_calls():
    """Calls whose numbers are far larger than their arrays, and the oracle's view of them."""
    rng = np.random.default_rng(0)
    for last, (channels, filters, groups), algorithm, far in product(
        (True, False),
        ((2, 1, 1), (3, 20, 1), (16, 33, 1), (3, 3, 3)),
        ("auto", "direct", "winograd", "im2col"),
        (1000, 2**20, 1879048192, 2**31, 2**40, 2**61),
    ):
        x = rng.integers(-4, 5, (1, 2, 2, 2, channels) if last else (1, channels, 2, 2, 2))
        kernel = rng.integers(-4, 5, (2, 2, 2, filters // groups, channels))
        options = dict(groups=groups, algorithm=algorithm)
        options["data_format"] = "channels_last" if last else "channels_first"

        def seen(x, kernel, groups=groups, last=last):
            return oracle.conv3d_transpose(
                x, kernel, None, *[(1, 1, 1), (0, 0, 0), (2, 2, 2), (1, 1, 1)], groups, last
            )

        yield x.astype(np.float32), kernel.astype(np.float32), options, seen, far


def scenario_huge_strides_with_a_small_output():
    for x, kernel, options, seen, far in far_calls():
        result = conv3d_transpose(x, kernel, strides=far, padding=((far, 0),) * 3, **options)
        last = options["data_format"] == "channels_last"
        voxel = x[:, 1:, 1:, 1:] if last else x[..., 1:, 1:, 1:]
        np.testing.assert_array_equal(result, seen(voxel, kernel))
    for strides in (2**20, 2**31, 2**40, 2**61):
        pads = ((strides, 0), (0, strides), (0, strides))
        result = through_layer(X, KERNEL, BIAS, strides=strides, padding=pads)
        assert result.shape == (1, 2, 2, 2, 4) and (result == 4).all()


def scenario_huge_dilation_with_a_small_output():
    for x, kernel, options, seen, far in far_calls():
        result = conv3d_transpose(x, kernel, dilation_rate=far, padding=((far, 0),) * 3, **options)
        np.testing.assert_array_equal(result, seen(x, kernel[1:, 1:, 1:]))
    kernel = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1, 1)
    for call, dilation in product(CALLS, [2**20, 1879048192, 2**40, 2**61]):
        pads = ((dilation, 0), (0, dilation), (dilation, 0))
        result = call(ones(1, 1, 1, 1, 1), kernel, dilation_rate=dilation, padding=pads)
        assert result.tolist() == [[[[[5]]]]]  # tap (1, 0, 1)


def scenario_distant_phases():
    """Minimal filtering along two axes, whose third has phases that are far apart."""
    x, kernel = ones(1, 4, 4, 4, 8), ones(2, 4, 4, 8, 8)
    for far in (10**3, 10**6, 2**40):
        far = far // 3 * 3 + 1
        for data_format in ("channels_last", "channels_first"):
            result = conv3d_transpose(
                x if data_format == "channels_last" else x.transpose(0, 4, 1, 2, 3),
                kernel,
                strides=(3, 2, 2),
                dilation_rate=(far, 1, 1),
                padding=((0, far), (1, 1), (1, 1)),
                algorithm="winograd",
                data_format=data_format,
            )
            assert result.size == 10 * 8 * 8 * 8
            assert result.max() == 32


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
@pytest.mark.parametrize(
    "scenario",
    [
        scenario_results_of_2_63_bytes,
        scenario_layers_of_2_63_bytes,
        scenario_weights_that_no_memory_holds,
        scenario_results_that_no_memory_holds,
        scenario_results_beyond_the_memory_limit,
        scenario_inputs_without_memory,
        scenario_empty_axes,
        scenario_huge_strides_with_a_small_output,
        scenario_huge_dilation_with_a_small_output,
        scenario_distant_phases,
    ],
    ids=lambda scenario: scenario.__name__.removeprefix("scenario_"),
)
def test_apart(scenario):
    """In another process, with 4 GiB of memory and 2 minutes."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32));"
        f"import test_bad_input; test_bad_input.{scenario.__name__}()"
    )
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | paths | threads,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.heavy
def test_more_than_2_31_elements():
    """8 GiB of output whose every index beyond 2**31 is checked."""
    depth = 2**31 // 2**20 + 16
    x = np.arange(1, depth // 16 + 1, dtype=np.float32).reshape(1, -1, 1, 1, 1)
    x = np.broadcast_to(x, (1, depth // 16, 64, 64, 1))
    kernel = np.arange(1, 16 * 16 * 16 + 1, dtype=np.float32).reshape(16, 16, 16, 1, 1)
    result = conv3d_transpose(x, kernel, strides=16)
    assert result.size > 2**31
    tile = kernel[..., 0, 0]
    for i in (0, depth // 32, depth // 16 - 2, depth // 16 - 1):
        blocks = result[0, 16 * i : 16 * (i + 1)].reshape(16, 64, 16, 64, 16)
        assert (blocks == (i + 1) * tile[:, None, :, None, :]).all()


# out


@both
def test_bad_out(call):
    good = ones(1, 4, 4, 4, 4)
    locked = good.copy()
    locked.flags.writeable = False
    cases = [
        (ones(1, 4, 4, 4, 3), ValueError, "out must have shape"),
        (ones(4, 4, 4, 4), ValueError, "out must have shape"),
        (ones(1, 4, 4, 4, 4, dtype=np.float64), TypeError, "out must have dtype"),
        (ones(1, 4, 4, 4, 4, dtype=">f4"), TypeError, "out must have dtype"),
        (ones(1, 4, 4, 4, 4, dtype=int), TypeError, "out must have dtype"),
        (locked, ValueError, "read-only"),
        (good.tolist(), TypeError, "out must be a NumPy array"),
        (np.ma.array(good), TypeError, "out must be a NumPy array"),
    ]
    for out, kind, message in cases:
        refused(call, kind, message, x=2 * X, strides=2, out=out)
        if isinstance(out, np.ndarray):
            assert (out == 1).all()


@both
def test_out_of_the_other_layout(call):
    out = ones(1, 4, 3, 3, 3)
    refused(call, ValueError, "out must have shape", out=out)
    assert call(X, KERNEL, out=out.transpose(0, 2, 3, 4, 1)).shape == (1, 3, 3, 3, 4)
    assert (out != 1).all()


@both
@pytest.mark.parametrize(
    "bad",
    [
        dict(x=ones(1, 2, 2, 2, 4)),
        dict(x=ones(1, 2, 2, 2, 3, dtype=int)),
        dict(strides=0),
        dict(padding="full"),
        dict(num_threads=0),
        dict(algorithm="fastest"),
        dict(activation="no_such"),
    ],
    ids=str,
)
def test_a_wrong_call_writes_nothing(call, bad):
    out = np.full((1, 3, 3, 3, 4), 7, np.float32)
    with pytest.raises((ValueError, TypeError)):
        call(**{"x": X, "kernel": KERNEL, "out": out, **bad})
    assert (out == 7).all()


def test_a_wrong_activation_writes_nothing():
    out = np.full((1, 3, 3, 3, 2), 7, np.float32)
    odd = ones(2, 2, 2, 5, 3)
    for call in (through_function, through_layer):
        refused(call, ValueError, "glu", kernel=odd, activation="glu", out=out)
    assert (out == 7).all()


@both
def test_out_as_a_channel_slice(call):
    host = np.full((1, 3, 3, 3, 9), 7, np.float32)
    result = call(X, KERNEL, BIAS, out=host[..., 2:6])
    assert np.shares_memory(result, host)
    np.testing.assert_array_equal(host[..., 2:6], call(X, KERNEL, BIAS))
    assert (host[..., :2] == 7).all() and (host[..., 6:] == 7).all()


@both
@pytest.mark.parametrize("operand", ["x", "kernel", "bias"])
def test_out_overlapping_an_operand(call, operand):
    rng = np.random.default_rng(0)
    shapes = dict(x=(1, 4, 4, 4, 3), kernel=(3, 3, 3, 3, 3), bias=(3,))
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    expected = call(**arrays, padding="same")
    memory = np.zeros(400, np.float32)
    its = arrays[operand]
    inside = memory[100 : 100 + its.size].reshape(its.shape)
    inside[...] = its
    arrays[operand] = inside
    out = memory[7 : 7 + 192].reshape(1, 4, 4, 4, 3)
    call(**arrays, padding="same", out=out)
    np.testing.assert_array_equal(out, expected)


# Kinds of arrays

NOT_FLOATS = [
    None,
    ones(1, 2, 2, 2, 3, dtype=int),
    ones(1, 2, 2, 2, 3, dtype=np.uint8),
    ones(1, 2, 2, 2, 3, dtype=bool),
    ones(1, 2, 2, 2, 3, dtype=complex),
    ones(1, 2, 2, 2, 3, dtype=object),
    ones(1, 2, 2, 2, 3, dtype=str),
    np.zeros((1, 2, 2, 2, 3), [("a", "f4")]),
    np.ma.array(X),
    X.astype(int).tolist(),
    "volume",
]
IDS = ["None", "int", "uint8", "bool", "complex", "object", "str", "structured", "masked",
       "ints", "text"]  # fmt: skip


@both
@pytest.mark.parametrize("value", NOT_FLOATS, ids=IDS)
def test_x_must_hold_floats(call, value):
    refused(call, TypeError, "x must be", x=value)


@pytest.mark.parametrize("value", NOT_FLOATS, ids=IDS)
def test_kernel_must_hold_floats(value):
    refused(through_function, TypeError, "kernel must be", kernel=value)


@pytest.mark.parametrize("value", NOT_FLOATS[1:], ids=IDS[1:])
def test_bias_must_hold_floats(value):
    refused(through_function, TypeError, "bias must be", bias=value)


@both
def test_ragged_lists(call):
    refused(call, ValueError, "x must be an array", x=[[[1.0], [1.0, 2.0]]])


@both
def test_nested_lists(call):
    np.testing.assert_array_equal(call(X.tolist(), KERNEL), call(X, KERNEL))


@both
@pytest.mark.parametrize("offer", [OffersArray, OffersDlpack])
def test_array_protocols(call, offer):
    np.testing.assert_array_equal(call(offer(X), KERNEL), call(X, KERNEL))


LAYER_CASTS = [np.float16, ml_dtypes.bfloat16, np.float64]


@pytest.mark.parametrize("dtype", LAYER_CASTS, ids=lambda dtype: np.dtype(dtype).name)
def test_the_layer_casts_x_and_returns_its_own_dtype(dtype):
    x = np.random.default_rng(0).standard_normal(X.shape).astype(dtype)
    result = through_layer(x, KERNEL)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, through_layer(x.astype(np.float32), KERNEL))


@pytest.mark.parametrize("dtype", LAYER_CASTS, ids=lambda dtype: np.dtype(dtype).name)
def test_the_function_returns_the_dtype_of_x(dtype):
    assert through_function(X.astype(dtype), KERNEL, BIAS.astype(np.float64)).dtype == dtype


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def mapped(array):
    with tempfile.TemporaryFile() as file:
        held = np.memmap(file, array.dtype, "w+", shape=array.shape)
    held[...] = array
    return held


def unaligned(array):
    view = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


@both
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(">f4"),
        unaligned,
        np.asfortranarray,
        lambda x: x[::-1, ::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1, ::-1],
        lambda x: x.transpose(4, 2, 0, 1, 3).copy().transpose(2, 3, 1, 4, 0),
        read_only,
        mapped,
    ],
    ids=["big-endian", "unaligned", "fortran", "reversed", "transposed", "read-only", "memmap"],
)
def test_same_bits_for_any_memory(call, change):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 5, 6, 20)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 3, 17, 20)).astype(np.float32)
    np.testing.assert_array_equal(call(change(x), kernel, strides=2), call(x, kernel, strides=2))
    np.testing.assert_array_equal(call(x, change(kernel), strides=2), call(x, kernel, strides=2))


@both
def test_same_bits_for_a_broadcast_array(call):
    x = np.broadcast_to(np.arange(5, dtype=np.float32) / 3, (2, 4, 4, 4, 5))
    kernel = np.random.default_rng(0).standard_normal((3, 3, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(call(x, kernel, strides=2), call(x.copy(), kernel, strides=2))


# Numbers that are not ordinary


@both
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "kernel"])
def test_nan_and_inf_exactly_where_the_formula_says(call, where, value, strides, data_format):
    rng = np.random.default_rng(0)
    last = data_format == "channels_last"
    x = rng.integers(-2, 3, (1, 4, 4, 4, 3) if last else (1, 3, 4, 4, 4)).astype(np.float32)
    kernel = rng.integers(-1, 2, (3, 3, 3, 4, 3)).astype(np.float32)  # a third of it is zero
    (x if where == "x" else kernel)[0, 1, 2, 2, 1] = value
    size = [3 * strides + 3] * 3
    with np.errstate(all="ignore"):
        expected = oracle.conv3d_transpose(
            x, kernel, None, [strides] * 3, [0] * 3, size, channels_last=last
        )
    options = dict(strides=strides, data_format=data_format, algorithm="direct")
    with np.errstate(all="raise"):
        result = call(x, kernel, **options)
    assert np.isnan(result).any()
    np.testing.assert_array_equal(result, expected)


@both
def test_nan_times_zero_weights(call):
    x = ones(1, 3, 3, 3, 2)
    x[0, 1, 1, 1, 0] = np.nan
    result = call(x, np.zeros((2, 2, 2, 4, 2), np.float32), algorithm="direct")
    hit = np.zeros((1, 4, 4, 4, 4), bool)
    hit[:, 1:3, 1:3, 1:3] = True
    np.testing.assert_array_equal(np.isnan(result), hit)
    assert (result[~hit] == 0).all()


@both
def test_overflow_is_infinity_without_exception(call):
    x = np.full((1, 2, 2, 2, 3), 3e38, np.float32)
    with np.errstate(all="raise"):
        assert (call(x, KERNEL) == np.inf).all()
        assert (call(x, -KERNEL) == -np.inf).all()


def test_kernel_beyond_float32_is_infinity():
    with np.errstate(all="raise"):
        result = conv3d_transpose(X, np.full(KERNEL.shape, 1e300), strides=2)
    assert (result == np.inf).all()


def test_result_beyond_float16_is_infinity():
    with np.errstate(all="raise"):
        result = conv3d_transpose(np.full(X.shape, 6e4, np.float16), KERNEL)
    assert result.dtype == np.float16 and (result == np.inf).all()


@both
def test_denormals_are_preserved(call):
    x = np.full((1, 3, 3, 3, 1), 1e-40, np.float32)
    kernel = ones(2, 2, 2, 17, 1)
    for strides in (1, 2):
        with np.errstate(all="raise"):
            result = call(x, kernel, strides=strides, num_threads=2)
        assert (result[0, 0, 0, 0] == np.float32(1e-40)).all()
        assert (result > 0).all()
    tiny = np.float32(2e-38)
    assert 0 < tiny / np.float32(100) < np.finfo(np.float32).tiny  # the control word is as it was
