"""What surrounds the product of a binary layer, in one pass each over a feature: signs and magnitudes before it, the
scale map and the bias after it, and their gradients (`quantizers.fused` has the equations), on a CPU.

Features are (N, P, C): images, pixels, channels, the channels next to each other; magnitudes and scales (N, P, 1).
They are float32, or the bits of bfloat16 as uint16; what belongs to channels is float32, and so are sums.  Nothing
depends on the number of threads: each image is one thread's, and what is summed over images leaves with a row for each.
"""

from types import FunctionType

import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import overload

from .threads import alone

SUMS = {"reassoc", "contract", "nsz"}  # sums in any order, products and sums in one instruction


def wide(stored):
    """The float32 that an element stands for."""


@overload(wide)
def _wide(stored):
    if stored == types.uint16:
        return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)
    return lambda stored: stored


def put(array, p, c, value):
    """array[p, c] = value, to nearest, ties to even."""


@overload(put)
def _put(array, p, c, value):
    def rounded(array, p, c, value):
        bits = np.float32(value).view(np.uint32)
        even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        kept = np.uint32(0x7FC00000) if value != value else np.uint32(bits + even)
        array[p, c] = np.uint16(kept >> np.uint32(16))

    def exact(array, p, c, value):
        array[p, c] = value

    return rounded if array.dtype == types.uint16 else exact


@njit(fastmath=SUMS)
def _binarize_image(x, threshold, signs, magnitude):
    pixels, channels = x.shape
    one, two = np.float32(1), np.float32(2)
    for p in range(pixels):
        total = np.float32(0)
        for c in range(channels):
            value = wide(x[p, c])
            put(signs, p, c, one - two * np.float32(value < threshold[c]))  # a branch here would keep vectors away
            total += abs(value)
        put(magnitude, p, 0, total / np.float32(channels))


def _binarize(x, threshold, signs, magnitude):
    for n in prange(len(x)):
        _binarize_image(x[n], threshold, signs[n], magnitude[n])


@njit(fastmath=SUMS)
def _binarize_image_backward(x, threshold, polynomial, to_signs, to_magnitude, to_x, to_threshold):
    pixels, channels = x.shape
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    for c in range(channels):
        to_threshold[c] = 0
    for p in range(pixels):
        share = wide(to_magnitude[p, 0]) / np.float32(channels)
        for c in range(channels):
            value = wide(x[p, c])
            size = abs(value - threshold[c])
            slope = two - two * size if polynomial else one
            slope = zero if size > one else slope  # a select, and no product: outside may lie infinity
            through = wide(to_signs[p, c]) * slope
            to_threshold[c] -= through
            straight = share if value > zero else zero
            straight = -share if value < zero else straight
            put(to_x, p, c, through + straight)


def _binarize_backward(x, threshold, polynomial, to_signs, to_magnitude, to_x, to_threshold):
    for n in prange(len(x)):
        _binarize_image_backward(x[n], threshold, polynomial, to_signs[n], to_magnitude[n], to_x[n], to_threshold[n])


@njit(fastmath=SUMS)
def _scale_image(y, scale, bias, output):
    pixels, channels = y.shape
    for p in range(pixels):
        factor = wide(scale[p, 0])
        for c in range(channels):
            put(output, p, c, factor * wide(y[p, c]) + bias[c])


def _scaled(y, scale, bias, output):
    for n in prange(len(y)):
        _scale_image(y[n], scale[n], bias, output[n])


@njit(fastmath=SUMS)
def _scale_image_backward(y, scale, gradient, to_y, to_scale, to_bias):
    pixels, channels = y.shape
    for c in range(channels):
        to_bias[c] = 0
    for p in range(pixels):
        factor, total = wide(scale[p, 0]), np.float32(0)
        for c in range(channels):
            slope = wide(gradient[p, c])
            put(to_y, p, c, factor * slope)
            total += slope * wide(y[p, c])
            to_bias[c] += slope
        put(to_scale, p, 0, total)


def _scaled_backward(y, scale, gradient, to_y, to_scale, to_bias):
    for n in prange(len(y)):
        _scale_image_backward(y[n], scale[n], gradient[n], to_y[n], to_scale[n], to_bias[n])


def _renamed(function, name):
    """The same function to numba, but for its cache."""
    twin = FunctionType(function.__code__, function.__globals__, name)
    twin.__qualname__ = name
    return twin


class _Loop:
    """A loop over images, compiled for torch's one thread, which lets other Python threads go on, and for several.

    What it does with an image is compiled before, and once: within each loop the order of its sums would be another.

    Under two names: numba's cache knows a function by name and line, and not by the options it is compiled with, so
    that one would be loaded in place of the other.
    """

    def __init__(self, function):
        self.serial = njit(nogil=True, cache=True, fastmath=SUMS)(_renamed(function, f"{function.__name__}_serial"))
        self.parallel = njit(parallel=True, cache=True, fastmath=SUMS)(function)

    def __call__(self, *arguments) -> None:
        if torch.get_num_threads() == 1:
            self.serial(*arguments)
            return
        with alone():
            self.parallel(*arguments)


binarize, binarize_backward = _Loop(_binarize), _Loop(_binarize_backward)
scaled, scaled_backward = _Loop(_scaled), _Loop(_scaled_backward)
