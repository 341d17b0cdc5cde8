"""What surrounds the product of a binary layer, in one pass each over a feature: signs and magnitudes before it, the
scale map and the bias after it, and their gradients (`quantizers.fused` has the equations), on a CPU.

Features are (N, P, C): images, pixels, channels, the channels next to each other; magnitudes and scales (N, P, 1).
They are float32, or the bits of bfloat16 as uint16; what belongs to channels is float32, and so are sums.  Nothing
depends on the number of threads: each image is one thread's, and what is summed over images leaves with a row for each.
"""

import threading

import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import overload

from .threads import use_torchs_threads

SUMS = {"reassoc", "contract", "nsz"}  # sums in any order, products and sums in one instruction
_alone = threading.Lock()  # two threads in one of numba's parallel loops end the process, by some of its layers


def wide(stored):
    """The float32 that an element stands for."""


@overload(wide)
def _wide(stored):
    if stored == types.uint16:
        return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)
    return lambda stored: stored


def put(array, n, p, c, value):
    """array[n, p, c] = value, to nearest, ties to even."""


@overload(put)
def _put(array, n, p, c, value):
    def rounded(array, n, p, c, value):
        bits = np.float32(value).view(np.uint32)
        even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        kept = np.uint32(0x7FC00000) if value != value else np.uint32(bits + even)
        array[n, p, c] = np.uint16(kept >> np.uint32(16))

    def exact(array, n, p, c, value):
        array[n, p, c] = value

    return rounded if array.dtype == types.uint16 else exact


def _binarize(x, threshold, signs, magnitude):
    images, pixels, channels = x.shape
    for n in prange(images):
        for p in range(pixels):
            total = np.float32(0)
            for c in range(channels):
                value = wide(x[n, p, c])
                put(signs, n, p, c, np.float32(-1) if value < threshold[c] else np.float32(1))
                total += abs(value)
            put(magnitude, n, p, 0, total / np.float32(channels))


def _binarize_backward(x, threshold, polynomial, to_signs, to_magnitude, to_x, to_threshold):
    images, pixels, channels = x.shape
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    for n in prange(images):
        for c in range(channels):
            to_threshold[n, c] = 0
        for p in range(pixels):
            share = wide(to_magnitude[n, p, 0]) / np.float32(channels)
            for c in range(channels):
                value = wide(x[n, p, c])
                size = abs(value - threshold[c])
                slope = two - two * size if polynomial else one
                slope = zero if size > one else slope  # a select, and no product: outside may lie infinity
                through = wide(to_signs[n, p, c]) * slope
                to_threshold[n, c] -= through
                straight = share if value > zero else zero
                straight = -share if value < zero else straight
                put(to_x, n, p, c, through + straight)


def _scaled(y, scale, bias, output):
    images, pixels, channels = y.shape
    for n in prange(images):
        for p in range(pixels):
            factor = wide(scale[n, p, 0])
            for c in range(channels):
                put(output, n, p, c, factor * wide(y[n, p, c]) + bias[c])


def _scaled_backward(y, scale, gradient, to_y, to_scale, to_bias):
    images, pixels, channels = y.shape
    for n in prange(images):
        for c in range(channels):
            to_bias[n, c] = 0
        for p in range(pixels):
            factor, total = wide(scale[n, p, 0]), np.float32(0)
            for c in range(channels):
                slope = wide(gradient[n, p, c])
                put(to_y, n, p, c, factor * slope)
                total += slope * wide(y[n, p, c])
                to_bias[n, c] += slope
            put(to_scale, n, p, 0, total)


class _Loop:
    """A function compiled twice: for torch's one thread, which lets other Python threads go on, and for several."""

    def __init__(self, function):
        self.serial = njit(nogil=True, cache=True, fastmath=SUMS)(function)
        self.parallel = njit(parallel=True, cache=True, fastmath=SUMS)(function)

    def __call__(self, *arguments) -> None:
        if torch.get_num_threads() == 1:
            self.serial(*arguments)
            return
        with _alone:
            use_torchs_threads()
            self.parallel(*arguments)


binarize, binarize_backward = _Loop(_binarize), _Loop(_binarize_backward)
scaled, scaled_backward = _Loop(_scaled), _Loop(_scaled_backward)
