"""Where every output pixel's words lie: convolutions, transposed ones and linear layers as lists of offsets.

A transposed convolution of stride s is s x s convolutions of stride 1, one for every residue of the output's row and
column; each has the taps of its residue, for a 4x4 kernel and s = 2 four of the sixteen.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np


@dataclass(frozen=True)
class Axis:
    """One residue along one axis: output m (m = 0, 1, ...) lies at start + m step and meets, by tap, the input at
    m stride + shift."""

    start: int
    step: int
    count: int
    stride: int
    taps: tuple[tuple[int, int], ...]  # (index in the kernel, shift)


@dataclass(frozen=True)
class Sliding:
    """How a kernel slides over an image; a linear layer's is the default.  Pairs are (rows, columns)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    output_padding: tuple[int, int] = (0, 0)
    transposed: bool = False

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output.

        Raises    ValueError where there is none.
        """
        size = tuple(self._length(n, d) for d, n in enumerate((height, width)))
        if min(size) < 1:
            raise ValueError(f"a kernel of {self.kernel} does not fit an input of {height} x {width}")
        return size

    def _length(self, n: int, d: int) -> int:
        reach = self.dilation[d] * (self.kernel[d] - 1)
        if self.transposed:
            return (n - 1) * self.stride[d] - 2 * self.padding[d] + reach + self.output_padding[d] + 1
        return (n + 2 * self.padding[d] - reach - 1) // self.stride[d] + 1

    def axes(self, d: int, out: int) -> list[Axis]:
        """The residues along axis d of an output of length `out`."""
        stride, padding, dilation = self.stride[d], self.padding[d], self.dilation[d]
        taps = range(self.kernel[d])
        if not self.transposed:
            return [Axis(0, 1, out, stride, tuple((k, k * dilation - padding) for k in taps))]
        met = {r: tuple((k, (r + padding - k * dilation) // stride) for k in taps
                        if (r + padding - k * dilation) % stride == 0) for r in range(min(stride, out))}
        return [Axis(r, stride, -(-(out - r) // stride), 1, met[r]) for r in met]


@dataclass(frozen=True)
class Phase:
    """One pair of residues: what `product` needs to know, in pixels of the frame.

    taps      the kernel's indices, flat, in the order of the steps
    offsets   (taps,) pixels from a base to what the tap meets
    base, target, kind   (pixels,): start in the frame, place in the output, row of `valid`
    valid     (kinds, taps): which taps meet the image and not its padding
    """

    taps: np.ndarray
    offsets: np.ndarray
    base: np.ndarray
    target: np.ndarray
    kind: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Plan:
    """All phases for one size of image, and the frame that serves them: margins (top, bottom, left, right)."""

    output: tuple[int, int]
    margins: tuple[int, int, int, int]
    frame_pixels: int
    phases: tuple[Phase, ...]


def plan(sliding: Sliding, height: int, width: int) -> Plan:
    """The plan for images of that size.

    Raises    ValueError where the kernel does not fit.
    """
    sizes, output = (height, width), sliding.output_size(height, width)
    axes = [sliding.axes(d, output[d]) for d in (0, 1)]
    margins = [_margins(axes[d], sizes[d]) for d in (0, 1)]
    columns = width + sum(margins[1])
    phases = tuple(_phase(rows, cols, sizes, margins, columns, sliding.kernel[1], output[1])
                   for rows, cols in product(*axes))
    return Plan(output, (*margins[0], *margins[1]), (height + sum(margins[0])) * columns, phases)


def _met(axis: Axis) -> np.ndarray:
    """The input's index, by output and tap."""
    shifts = np.array([shift for _, shift in axis.taps], dtype=np.intp)
    return np.arange(axis.count)[:, None] * axis.stride + shifts


def _margins(axes: list[Axis], size: int) -> tuple[int, int]:
    met = np.concatenate([_met(axis).ravel() for axis in axes] + [np.zeros(1, np.intp)])
    return max(0, -int(met.min())), max(0, int(met.max()) - size + 1)


def _phase(rows: Axis, cols: Axis, sizes, margins, columns: int, kernel_columns: int, out_columns: int) -> Phase:
    taps = [(ky * kernel_columns + kx, dy * columns + dx) for (ky, dy), (kx, dx) in product(rows.taps, cols.taps)]
    m, n = (a.ravel() for a in np.meshgrid(np.arange(rows.count), np.arange(cols.count), indexing="ij"))
    inside = [(_met(axis) >= 0) & (_met(axis) < size) for axis, size in zip((rows, cols), sizes, strict=True)]
    met = (inside[0][m][:, :, None] & inside[1][n][:, None, :]).reshape(len(m), len(taps))  # (pixels, taps)
    valid, kind = np.unique(met, axis=0, return_inverse=True)
    return Phase(
        taps=np.array([tap for tap, _ in taps], dtype=np.intp),
        offsets=np.array([offset for _, offset in taps], dtype=np.intp),
        base=(m * rows.stride + margins[0][0]) * columns + n * cols.stride + margins[1][0],
        target=(rows.start + m * rows.step) * out_columns + cols.start + n * cols.step,
        kind=kind.reshape(-1), valid=valid,
    )
