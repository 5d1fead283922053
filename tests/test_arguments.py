"""The gate: each argument made canonical, or refused with its name, its value and the rule."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from conv3dt import arguments
from conv3dt.problem import Axis

NOT_POSITIVE_INTS = [0, -1, 2.5, 2.0, "3", b"3", None, np.array(2.0), {3}, object()]
NOT_TRIPLES = [
    (), (2,), (2, 2), (2, 2, 2, 2), (1, 2, 0), (1, 2, -1), (1, 2, 2.5), (1, 2, "3"), "111",
    [[1, 1, 1]], np.ones((3, 1), int), np.ones(3), {1, 2, 3}, (1, 2, None),
]  # fmt: skip


@pytest.mark.parametrize("value", [2, np.int64(2), np.uint8(2), np.array(2)])
def test_one_integer_stands_for_three(value):
    result = arguments.triple("strides", value)
    assert result == (2, 2, 2) and all(type(n) is int for n in result)


@pytest.mark.parametrize(
    "value", [(1, 2, 3), [1, 2, 3], np.array([1, 2, 3]), (True, 2, np.int8(3))]
)
def test_three_integers(value):
    result = arguments.triple("strides", value)
    assert result == (1, 2, 3) and all(type(n) is int for n in result)


@pytest.mark.parametrize("true", [True, np.True_])
def test_true_is_one(true):
    assert arguments.triple("strides", true) == (1, 1, 1)
    assert arguments.positive_int("filters", true) == 1


@pytest.mark.parametrize("value", NOT_POSITIVE_INTS + NOT_TRIPLES, ids=repr)
def test_bad_triples(value):
    with pytest.raises(ValueError, match="kernel_size must be 1 or 3 positive integers, got"):
        arguments.triple("kernel_size", value)


@pytest.mark.parametrize("value", [*NOT_POSITIVE_INTS, (), (2,), [3], False], ids=repr)
def test_bad_positive_ints(value):
    with pytest.raises(ValueError, match="filters must be a positive integer, got"):
        arguments.positive_int("filters", value)


def test_errors_say_argument_value_and_rule():
    with pytest.raises(ValueError) as error:
        arguments.triple("kernel_size", (3, 3))
    assert str(error.value) == "kernel_size must be 1 or 3 positive integers, got (3, 3)"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("valid", "valid"),
        ("SAME", "same"),
        (0, ((0, 0),) * 3),
        (True, ((1, 1),) * 3),
        (np.int64(2), ((2, 2),) * 3),
        ((0, 1, 2), ((0, 0), (1, 1), (2, 2))),
        ([(0, 1), (2, 3), (4, 5)], ((0, 1), (2, 3), (4, 5))),
        (np.arange(6).reshape(3, 2), ((0, 1), (2, 3), (4, 5))),
    ],
)
def test_padding(value, expected):
    assert arguments.padding(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "full", "causal", "", None, -1, 1.5, (), (1,), (1, 1), (1, 1, 1, 1), (1, 1, -1),
        ((0, 1),) * 2, ((0, 1, 2),) * 3, ((0, -1),) * 3, ((0, 0.5),) * 3, ("same",) * 3, b"same",
    ],
    ids=repr,
)  # fmt: skip
def test_bad_padding(value):
    with pytest.raises(ValueError, match="padding must be .*, got"):
        arguments.padding(value)


def test_output_padding():
    def check(value, padding, strides=(2, 3, 4), dilations=(1, 1, 1)):
        return arguments.output_padding(value, strides, dilations, padding)

    assert check(None, "same") is None
    assert check(0, "same") == (0, 0, 0)
    assert check((1, 2, 3), "valid") == (1, 2, 3)
    assert check(True, "same") == (1, 1, 1)
    explicit = ((0, 0),) * 3
    assert check(2, explicit, (1, 1, 3), (3, 3, 1)) == (2, 2, 2)
    for value, padding in [(2, "same"), ((0, 0, 4), "valid"), ((2, 0, 0), explicit), (4, explicit)]:
        with pytest.raises(ValueError, match="output_padding must be less than .*strides"):
            check(value, padding)
    for value in (-1, (0, 0, -1), 0.5, "0", (), (0, 0)):
        for padding in ("same", explicit):
            with pytest.raises(ValueError, match="output_padding must be 1 or 3 non-negative"):
                check(value, padding)


def test_strides_with_dilation_need_explicit_padding():
    ones = (1, 1, 1)
    arguments.stride_dilation_rule((2, 2, 2), ones, "same")
    arguments.stride_dilation_rule(ones, (2, 2, 2), "valid")
    arguments.stride_dilation_rule((2, 1, 1), (1, 2, 1), ((0, 0),) * 3)
    with pytest.raises(ValueError, match="strides > 1 and dilation_rate > 1"):
        arguments.stride_dilation_rule((2, 1, 1), (1, 2, 1), "valid")


def test_num_threads():
    assert arguments.num_threads(None) is None
    assert arguments.num_threads(np.int64(3)) == 3
    assert arguments.num_threads(10**6) == 64
    for value in (0, -5, 2.5, "2", (1,)):
        with pytest.raises(ValueError, match="num_threads must be a positive integer"):
            arguments.num_threads(value)


def test_algorithm():
    for name in arguments.ALGORITHMS:
        assert arguments.algorithm(name) == name
    for value in ("fast", "DIRECT", None, 1, ["auto"]):
        with pytest.raises(ValueError, match="algorithm must be one of auto, direct"):
            arguments.algorithm(value)


# keras.json


@pytest.fixture
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras"


def write_settings(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "keras.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("value", ["channels_first", "channels_last", "Channels_First"])
def test_data_format_given(value, keras_home):
    write_settings(keras_home, "not even JSON")
    assert arguments.data_format(value) == value.lower()


@pytest.mark.parametrize("value", ["bogus", "", "channels", 1, ("channels_last",)], ids=repr)
def test_bad_data_format(value):
    with pytest.raises(ValueError, match='data_format must be "channels_last" or'):
        arguments.data_format(value)


def test_keras_json_is_read(keras_home):
    write_settings(keras_home, json.dumps({"image_data_format": "channels_first"}))
    assert arguments.data_format(None) == "channels_first"


def test_keras_json_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert arguments.data_format(None) == "channels_last"
    write_settings(tmp_path / ".keras", '{"image_data_format": "channels_first"}')
    assert arguments.data_format(None) == "channels_first"


def test_missing_keras_json_is_not_created(keras_home):
    assert arguments.data_format(None) == "channels_last"
    assert not keras_home.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"epsilon": 1}', "[" * 100_000])
def test_malformed_keras_json_is_ignored(text, keras_home):
    write_settings(keras_home, text)
    assert arguments.data_format(None) == "channels_last"


def test_undecodable_keras_json_is_ignored(keras_home):
    keras_home.mkdir()
    (keras_home / "keras.json").write_bytes(b'{"image_data_format": "\xff"}')
    assert arguments.data_format(None) == "channels_last"


@pytest.mark.parametrize("value", ["bogus", 3, None, ["channels_last"]])
def test_bad_value_in_keras_json(value, keras_home):
    write_settings(keras_home, json.dumps({"image_data_format": value}))
    with pytest.raises(ValueError, match="image_data_format in .*keras.json must be"):
        arguments.data_format(None)


# Arrays


class OffersArray:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class OffersDlpack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


FLOAT_DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_float_arrays_pass_as_they_are(dtype):
    array = np.arange(12).astype(dtype).reshape(3, 4)[:, ::-2]
    result = arguments.as_array("x", array)
    assert result.dtype == dtype
    assert result.strides == array.strides and np.shares_memory(result, array)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_foreign_byte_order_becomes_native(dtype):
    array = np.arange(5).astype(dtype)
    result = arguments.as_array("x", array)
    assert result.dtype.isnative and result.tolist() == array.tolist()


def test_unaligned_arrays_are_copied():
    array = np.empty(17, np.uint8)[1:].view(np.float32)
    array[:] = range(4)
    result = arguments.as_array("x", array)
    assert result.flags.aligned and result.tolist() == [0, 1, 2, 3]


def test_subclasses_become_plain_arrays(tmp_path):
    array = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2, 3))
    assert type(arguments.as_array("x", array)) is np.ndarray


@pytest.mark.parametrize(
    "value",
    [
        [[1.0, 2.0]],
        ((1.0, 2),),
        [np.array([1.0, 2.0])],
        OffersArray(np.array([[1.0, 2.0]])),
        OffersDlpack(np.array([[1.0, 2.0]])),
        memoryview(np.array([[1.0, 2.0]])),
    ],
)
def test_whatever_numpy_reads_is_an_array(value):
    result = arguments.as_array("x", value)
    assert result.dtype == np.float64 and result.tolist() == [[1, 2]]


@pytest.mark.parametrize("value", [[[1.0], [2.0, 3.0]], [1.0, [2.0]]])
def test_ragged_lists(value):
    with pytest.raises(ValueError, match="kernel must be an array, got list"):
        arguments.as_array("kernel", value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        np.ones(3, int),
        np.ones(3, bool),
        np.ones(3, np.complex64),
        np.ones(3, object),
        np.array(["1"]),
        np.ones(3, [("a", "f4")]),
        np.ma.ones(3),
        np.ones(3, "M8[s]"),
        np.ones(3, ml_dtypes.float8_e4m3fn),
        pytest.param(
            np.ones(3, np.longdouble),
            marks=pytest.mark.skipif(np.longdouble().itemsize == 8, reason="it is float64 here"),
        ),
        [1, 2],
        [None],
        "text",
        {1.0: 2.0},
        (n for n in [1.0]),
    ],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__)),
)
def test_what_is_not_floats(value):
    with pytest.raises(TypeError, match="x must be .*, got"):
        arguments.as_array("x", value)


def test_failing_protocols_name_the_argument():
    class OnAnotherDevice:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    class NoSuchDlpack:
        def __dlpack__(self, **_):
            raise BufferError("no")

        def __dlpack_device__(self):
            return (1, 0)

    for value, reason in [(OnAnotherDevice(), "cuda:0"), (NoSuchDlpack(), "no")]:
        with pytest.raises(TypeError, match=f"x must be an array, got .*{reason}"):
            arguments.as_array("x", value)


def test_compute_dtype():
    results = [arguments.compute_dtype(np.dtype(dtype)) for dtype in FLOAT_DTYPES]
    assert results == [np.float32, np.float32, np.float32, np.float64]


# The problem


def make(x_shape=(2, 4, 5, 6, 3), kernel_shape=(3, 3, 3, 7, 3), **changes):
    values = dict(
        strides=(1, 1, 1),
        padding="valid",
        output_padding=None,
        dilation=(1, 1, 1),
        groups=1,
        channels_last=True,
    )
    return arguments.make_problem(x_shape, kernel_shape, **{**values, **changes})


def test_problem_of_shapes():
    problem = make(strides=(1, 2, 3), padding="same")
    expected = (Axis(4, 4, 3, 1, 1, 1), Axis(5, 10, 3, 2, 1, 0), Axis(6, 18, 3, 3, 1, 0))
    assert problem.axes == expected
    assert problem.y_shape(2) == (2, 4, 10, 18, 7)
    assert problem.kernel_shape == (3, 3, 3, 7, 3)


def test_channels_first_differs_in_the_layout_only():
    first = make((2, 3, 4, 5, 6), channels_last=False)
    assert first.axes == make().axes
    assert first.y_shape(2) == (2, 7, 6, 7, 8)


def test_explicit_pads_and_groups():
    problem = make(
        (1, 4, 4, 4, 6),
        (3, 3, 3, 2, 6),
        strides=(2, 2, 2),
        padding=((0, 0), (1, 1), (1, 2)),
        output_padding=(0, 1, 1),
        groups=3,
    )
    assert problem.filters == 6
    assert [(axis.out, axis.crop) for axis in problem.axes] == [(9, 0), (8, 1), (7, 1)]


@pytest.mark.parametrize("shape", [(), (4,), (4, 5, 6, 3), (1, 2, 4, 5, 6, 3)])
def test_rank_of_x(shape):
    with pytest.raises(ValueError, match=rf"x must have 5 axes .*, got {len(shape)}"):
        make(shape)


@pytest.mark.parametrize("shape", [(), (3,), (3, 3, 3, 7), (1, 3, 3, 3, 7, 3)])
def test_rank_of_kernel(shape):
    with pytest.raises(ValueError, match=rf"kernel must have 5 axes .*, got {len(shape)}"):
        make(kernel_shape=shape)


@pytest.mark.parametrize("axis", range(4))
def test_empty_kernel(axis):
    shape = [3, 3, 3, 7, 3]
    shape[axis] = 0
    with pytest.raises(ValueError, match="kernel must have no empty"):
        make(kernel_shape=shape)


def test_mismatched_channels_say_both_numbers():
    with pytest.raises(ValueError, match=r"kernel's 4 input channels, got 3"):
        make(kernel_shape=(3, 3, 3, 7, 4))
    with pytest.raises(ValueError, match=r"kernel's 3 input channels, got 4"):
        make((2, 4, 5, 6, 3), channels_last=False)


def test_groups_must_divide():
    with pytest.raises(ValueError, match="groups 2 and in_channels 3"):
        make(groups=2)
    with pytest.raises(ValueError, match="groups must divide filters, got groups 2 and filters 7"):
        arguments.check_groups(2, "filters", 7)
    arguments.check_groups(7, "filters", 7)


def test_negative_output():
    with pytest.raises(ValueError, match="padding must leave an output .*got -2 for the width"):
        make(padding=((0, 0), (0, 0), (5, 5)))
    assert make(padding=((3, 3),) * 3, x_shape=(1, 4, 4, 4, 3)).y_shape(1) == (1, 0, 0, 0, 7)


def test_size_limits():
    unit = dict(x_shape=(1, 1, 1, 1, 1), kernel_shape=(1, 1, 1, 1, 1))
    assert make(**unit, strides=(2**61 - 1, 1, 1)).axes[0].out == 2**61 - 1
    assert make(**unit, strides=(2**61, 1, 1), itemsize=2).axes[0].out == 2**61
    too_large = [
        dict(strides=(2**61, 1, 1)),
        dict(strides=(2**60, 1, 1), itemsize=8),
        dict(strides=(2**31, 2**31, 1)),
        dict(strides=(2**62, 1, 1)),
        dict(strides=(5717580618211388939, 1, 1)),
        dict(strides=(2**100,) * 3),
        dict(kernel_shape=(2, 2, 2, 1, 1), dilation=(1879048192,) * 3),
    ]
    for case in too_large:
        with pytest.raises(ValueError, match="strides"):
            make(**{**unit, **case})
    with pytest.raises(ValueError, match="x must have fewer than"):
        make(x_shape=(2**31, 2**31, 1, 1, 1), kernel_shape=(1, 1, 1, 1, 1))


def test_empty_axes_do_not_hide_sizes_that_numpy_refuses():
    shape, strides = (0, 1, 1, 1, 1), (2**31, 2**31, 1)
    with pytest.raises(ValueError, match="result must have fewer than"):
        make(shape, (1, 1, 1, 1, 1), strides=strides)


@pytest.mark.parametrize("name", ["strides", "dilation"])
def test_coordinates_fit_even_where_the_output_is_small(name):
    x_shape, kernel_shape = ((1, 3, 1, 1, 1), (2, 1, 1, 1, 1))
    for huge, fits in ((2**60, True), (2**62, False), (2**64, False)):
        full = 2 * huge + 2 if name == "strides" else 3 + huge
        case = {name: (huge, 1, 1), "padding": ((full - 1, 0), (0, 0), (0, 0))}
        if fits:
            assert make(x_shape, kernel_shape, **case).axes[0].out == 1
        else:
            with pytest.raises(ValueError, match="depth below"):
                make(x_shape, kernel_shape, **case)


def test_bias():
    arguments.check_bias(np.zeros(3), 3)
    for shape in ((), (0,), (4,), (3, 1), (1, 3)):
        with pytest.raises(ValueError, match=r"bias must have shape \(3,\)"):
            arguments.check_bias(np.zeros(shape), 3)


def test_out():
    good = np.zeros((2, 3), np.float32)
    arguments.check_out(good, (2, 3), np.dtype(np.float32))
    arguments.check_out(np.zeros((4, 3), np.float32)[::2], (2, 3), np.dtype(np.float32))
    locked = good.copy()
    locked.flags.writeable = False
    cases = [
        (good.T, ValueError, "out must have shape"),
        (np.zeros((3, 3), np.float32), ValueError, "out must have shape"),
        (locked, ValueError, "read-only"),
        (good.astype(np.float64), TypeError, "out must have dtype float32"),
        (good.astype(">f4"), TypeError, "out must have dtype float32"),
        (good.tolist(), TypeError, "out must be a NumPy array, got list"),
        (np.ma.array(good), TypeError, "out must be a NumPy array, got MaskedArray"),
    ]
    for out, kind, message in cases:
        with pytest.raises(kind, match=message):
            arguments.check_out(out, (2, 3), np.dtype(np.float32))
