"""The demo: a trained layer on its real input, timed, checked and drawn.

The layer is the last one of deepbet's brain extraction network, the input what the rest of
that network computed from the ICBM 152 T1 template; ``data/NOTICE`` names the sources. The
class probabilities come from the public ``conv3dt.Conv3DTranspose`` alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

import conv3dt

from . import arguments, engine, plan

AGREEMENT = 0.99999  # of voxels; rounding may turn a few at the border of the brain
WARM_CALLS = 15


@dataclass(frozen=True)
class Head:
    """The trained layer's input and weights, the T1 volume and the reference mask."""

    features: np.ndarray  # (1, 64, 64, 64, 8) float32
    kernel: np.ndarray  # (2, 2, 2, 2, 8) float32
    bias: np.ndarray  # (2,) float32
    t1: np.ndarray  # (128, 128, 128) uint8: left-right, back-front, bottom-top
    mask: np.ndarray  # (128, 128, 128) bool


def load_head() -> Head:
    """Read ``data/brain_head.npz``, which every install carries."""
    with (resources.files("conv3dt") / "data" / "brain_head.npz").open("rb") as file:
        arrays = dict(np.load(file))
    t1 = arrays["t1"]
    mask = np.unpackbits(arrays["mask"], count=t1.size).reshape(t1.shape).astype(bool)
    features = arrays["features"].astype(np.float32)
    return Head(features, arrays["kernel"], arrays["bias"], t1, mask)


def build_layer(head: Head, num_threads: int | None = None) -> conv3dt.Conv3DTranspose:
    """The layer as its network defines it, with the trained weights."""
    layer = conv3dt.Conv3DTranspose(
        2,
        2,
        strides=2,
        activation="softmax",
        data_format="channels_last",
        input_shape=head.features.shape[1:],
        num_threads=num_threads,
    )
    layer.set_weights([head.kernel, head.bias])
    return layer


def timed_calls(layer: conv3dt.Conv3DTranspose, x: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The layer's result, and the seconds of its first call and of the median warm one."""
    seconds = []
    for _ in range(1 + WARM_CALLS):
        start = time.perf_counter()
        y = layer(x)
        seconds.append(time.perf_counter() - start)
    return y, seconds[0], statistics.median(seconds[1:])


def algorithm_of(head: Head) -> str:
    """Name of the algorithm that the plan picks for the layer."""
    problem = arguments.make_problem(
        head.features.shape, head.kernel.shape, (2, 2, 2), "valid", None, (1, 1, 1), 1, True
    )
    return plan.plan_for(problem, plan.Weights(head.kernel, head.bias)).algorithm


def why_not_compiled(algorithm: str) -> str | None:
    """What keeps the compiled kernels from running, unless NumPy was asked for; else None.

    A package without kernels that nobody allowed to be so cannot even be imported, see
    ``engine``; so one with nothing built was asked for.
    """
    if engine.selected() == "numpy":
        asked = os.environ.get("CONV3DT_ISA") == "numpy" or not engine.built()
        return None if asked else f"this CPU runs none of {', '.join(engine.built())}"
    return "the compiled kernels declined the layer" if algorithm == "im2col" else None


def draw(head: Head, mask: np.ndarray, path: Path) -> None:
    """Write a PNG: T1 slices, one row per axis, the outline of ``mask`` over them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, paper, outline = "#e8e8e8", "black", "#ffb000"
    columns = 6
    box = tuple(_extent(head.t1 > 0, axis) for axis in range(3))
    figure = Figure(figsize=(13.2, 7.0), dpi=110, facecolor=paper)
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        3,
        columns,
        gridspec_kw=dict(left=0.04, right=0.99, top=0.88, bottom=0.01, wspace=0, hspace=0.1),
    )
    for axis, view in enumerate(("sagittal", "coronal", "axial")):
        first, last = _extent(mask, axis)
        slices = np.linspace(first, last, columns + 2).round().astype(int)[1:-1]
        window = [slice(*box[other]) for other in range(3) if other != axis]
        for index, panel in zip(slices, grid[axis], strict=True):
            image = head.t1.take(index, axis)[tuple(window)].T
            inside = mask.take(index, axis)[tuple(window)].T
            panel.imshow(image, "gray", vmin=0, vmax=255, origin="lower", interpolation="bicubic")
            if inside.any():
                panel.contour(inside, levels=[0.5], colors=outline, linewidths=1.1)
            panel.set_axis_off()
            panel.set_title(f"{'xyz'[axis]} = {index}", color=ink, fontsize=9, pad=3)
        place = grid[axis, 0].get_position()
        middle = (place.y0 + place.y1) / 2
        figure.text(0.02, middle, view, color=ink, fontsize=12, rotation=90, va="center")
    figure.text(0.02, 0.95, "Brain mask on the ICBM 152 T1 template", color=ink, fontsize=15)
    figure.text(
        0.98, 0.95, f"outline: the layer's mask, {mask.sum():,} voxels",
        color=outline, fontsize=11, ha="right",
    )  # fmt: skip
    figure.savefig(path, facecolor=paper)


def _extent(inside: np.ndarray, axis: int, margin: int = 4) -> tuple[int, int]:
    """First and last index (plus margin) along ``axis`` at which ``inside`` has a voxel."""
    others = tuple(other for other in range(3) if other != axis)
    hits = np.flatnonzero(inside.any(axis=others))
    if not hits.size:
        return 0, inside.shape[axis]
    return max(int(hits[0]) - margin, 0), min(int(hits[-1]) + 1 + margin, inside.shape[axis])


def main(argv: list[str] | None = None) -> int:
    """Run the demo; ``argv`` as on the command line. Returns the exit code, 0 or 1."""
    options = _parse(argv)
    head = load_head()
    algorithm = algorithm_of(head)
    reason = why_not_compiled(algorithm)
    if reason:
        print(f"FAIL: no compiled kernels are in use: {reason}", file=sys.stderr)
        return 1
    layer = build_layer(head, options.threads)
    y, first, warm = timed_calls(layer, head.features)
    mask = y[0, ..., 1] > 0.5
    wrong = int(np.count_nonzero(mask != head.mask))
    agreement = 1 - wrong / mask.size
    operations = 2 * head.kernel.size * (head.features.size // head.features.shape[-1])

    print(f"conv3dt {conv3dt.__version__}: last layer of a brain extraction network, real input")
    _say("instruction set", f"{engine.selected()} (algorithm: {algorithm})")
    _say("threads", options.threads or conv3dt.get_num_threads())
    _say("shapes", f"{head.features.shape} -> {y.shape} {y.dtype}")
    _say("first call", f"{first * 1e3:.2f} ms")
    _say("warm call", f"{warm * 1e3:.2f} ms, median of {WARM_CALLS}, softmax included")
    _say("throughput", f"{operations / warm / 1e9:.1f} GF/s, {y.nbytes / warm / 1e6:,.0f} MB/s out")
    _say("brain volume", f"{mask.sum():,} voxels (reference: {head.mask.sum():,})")
    _say("agreement", f"{agreement:.7f} ({wrong:,} of {mask.size:,} voxels differ)")
    drawn = _draw_and_say(head, mask, options.output)
    passed = agreement >= AGREEMENT and drawn
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="conv3dt demo", description=main.__doc__)
    parser.description = "Apply a trained layer to a real brain volume, and check the result."
    parser.add_argument(
        "--output", type=Path, default=Path("conv3dt_demo.png"), metavar="PATH",
        help="the picture, a PNG (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="default: as conv3dt decides")
    options = parser.parse_args(argv)
    try:
        options.threads = arguments.num_threads(options.threads)
    except ValueError as error:
        parser.error(str(error))
    return options


def _say(what: str, value: object) -> None:
    print(f"  {what:<16} {value}")


def _draw_and_say(head: Head, mask: np.ndarray, path: Path) -> bool:
    """Draw if matplotlib is there; False only when the picture could not be written."""
    try:
        draw(head, mask, path)
    except ImportError:
        _say("picture", "none: matplotlib is not installed (the `demo` extra brings it)")
    except OSError as error:
        _say("picture", f"could not be written: {error}")
        return False
    else:
        _say("picture", path.resolve())
    return True
