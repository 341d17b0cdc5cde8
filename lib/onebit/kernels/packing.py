"""Activations to bits in one pass: threshold, sign or codes, and the mean magnitude that scale maps are made of.

A packed image is a frame of pixels, (rows, columns, planes, words), with the padding in it.  A word holds 64 channels,
the first in its lowest bit; bits beyond the last channel are 0, here and in the weights, so that they never differ.
"""

import numpy as np
from numba import njit, prange

from . import floats as f
from . import vectors as v
from .floats import FLOATS

WORD = 64


def words_for(channels: int) -> int:
    """64-bit words that hold one bit per channel."""
    return -(-channels // WORD)


def filled_words(channels: int) -> np.ndarray:
    """Words whose bits are 1 for every channel and 0 beyond the last."""
    filled = np.full(words_for(channels), 2**WORD - 1, dtype=np.uint64)
    if channels % WORD:
        filled[-1] = 2 ** (channels % WORD) - 1
    return filled


@njit(forceinline=True)
def _eight(x, before, stride, c):
    """Channels c .. c + 7 of the pixel at address x, after what comes before the layer (see `pack_signs`)."""
    floats = f.load_floats(x, c)
    if before:
        floats = f.affine(floats, f.load_floats(before, c), f.load_floats(before, stride + c))
        floats = f.affine(f.silu(floats), f.load_floats(before, 2 * stride + c), f.load_floats(before, 3 * stride + c))
    return floats


@njit(forceinline=True)
def _one(x, before, stride, c):
    """Channel c alone: as `_eight`, for the channels that eight does not divide."""
    value = v.load_float(x, c)
    if before:
        value = value * v.load_float(before, c) + v.load_float(before, stride + c)
        value = value / (np.float32(1) + np.exp(-value))
        value = value * v.load_float(before, 2 * stride + c) + v.load_float(before, 3 * stride + c)
    return value


@njit(forceinline=True)
def _sign_word(x, before, stride, thresholds, channels):
    """Bits of up to 64 channels of the pixel at address x, and the sum of their magnitudes."""
    word, magnitudes, c = np.uint64(0), f.zero_floats(), 0
    while c + FLOATS <= channels:
        floats = _eight(x, before, stride, c)
        word |= f.not_below(floats, f.load_floats(thresholds, c)) << np.uint64(c)
        magnitudes = f.add_magnitudes(magnitudes, floats)
        c += FLOATS
    total = f.sum_floats(magnitudes)
    while c < channels:
        value = _one(x, before, stride, c)
        if not value < v.load_float(thresholds, c):
            word |= np.uint64(1) << np.uint64(c)
        total += abs(value)
        c += 1
    return word, total


@njit(parallel=True, cache=True)
def pack_signs(x, shape, margins, before, thresholds, per_sample, filled, frame, magnitude):
    """Signs of (z - threshold) into the frame, where a padded bit is 0, and mean |z| over channels into `magnitude`.

    z is x, or with `before`, flat (N or 1, 4, C):  z = before[2] SiLU(before[0] x + before[1]) + before[3].

    Shapes    x flat (N, H, W, C) float32; shape (N, H, W, C); margins (top, bottom, left, right) pixels;
              thresholds flat (N or 1, C); per_sample: 1 or 0 for (before, thresholds);
              frame flat (N, H + top + bottom, W + left + right, words) uint64;
              magnitude flat (N, H + top + bottom, W + left + right) float32, 0 in the padding.
    """
    n, h, w, c = shape
    top, bottom, left, right = margins
    rows, width, words = h + top + bottom, w + left + right, len(filled)
    x_at, before_at, thresholds_at = x.ctypes.data, before.ctypes.data if len(before) else 0, thresholds.ctypes.data
    for row in prange(n * rows):
        image, y = row // rows, row % rows - top
        first = before_at + image * c * per_sample[0] * 16
        threshold_at = thresholds_at + image * c * per_sample[1] * 4
        for i in range(width):
            pixel = row * width + i
            if y < 0 or y >= h or i < left or i >= left + w:
                frame[pixel * words : (pixel + 1) * words] = 0
                magnitude[pixel] = 0
                continue
            at, total = x_at + ((image * h + y) * w + i - left) * c * 4, np.float32(0)
            for word in range(words):
                skip = word * WORD
                bits, part = _sign_word(at + skip * 4, first + skip * 4 if before_at else 0, c, threshold_at + skip * 4,
                                        min(c - skip, WORD))
                frame[pixel * words + word] = bits
                total += part
            magnitude[pixel] = total / np.float32(c)


@njit(forceinline=True)
def _code_words(x, before, stride, thresholds, channels, how, offset, planes_at, words, bits):
    """Bit planes of up to 64 channels of the pixel at address x: one word each at planes_at, + words, ..."""
    times, over, low, high = how
    for j in range(bits):
        v.store_word(planes_at, j * words, np.uint64(0))
    c = 0
    while c + FLOATS <= channels:
        codes = f.to_codes(_eight(x, before, stride, c), f.load_floats(thresholds, c), times, over, low, high)
        for j in range(bits):
            bit = f.plane(codes, offset, j) << np.uint64(c)
            v.store_word(planes_at, j * words, v.load_word(planes_at, j * words) | bit)
        c += FLOATS
    while c < channels:
        ratio = (_one(x, before, stride, c) - v.load_float(thresholds, c)) * times / over
        code = np.int64(np.rint(min(max(ratio, low), high))) + offset
        for j in range(bits):
            bit = np.uint64((code >> j) & 1) << np.uint64(c)
            v.store_word(planes_at, j * words, v.load_word(planes_at, j * words) | bit)
        c += 1


@njit(parallel=True, cache=True)
def pack_codes(x, shape, margins, before, thresholds, steps, per_sample, times, low, high, offset, bits, planes, filled,
               frame):
    """Bit planes of clip(round((z - threshold) times / step), low, high) + offset, lowest first, into the frame.

    A padded pixel has the planes of code 0, which are those of `offset`.  Planes beyond `bits` are 0.

    Shapes    as pack_signs, z too; steps (N or 1,) float32; per_sample: 1 or 0 for (before, thresholds, steps);
              frame flat (N, rows, columns, planes, words).
    """
    n, h, w, c = shape
    top, bottom, left, right = margins
    rows, width, words = h + top + bottom, w + left + right, len(filled)
    pixel_words = planes * words
    x_at, before_at, thresholds_at = x.ctypes.data, before.ctypes.data if len(before) else 0, thresholds.ctypes.data
    frame_at = frame.ctypes.data
    for row in prange(n * rows):
        image, y = row // rows, row % rows - top
        how = (times, steps[image * per_sample[2]], low, high)
        first = before_at + image * c * per_sample[0] * 16
        threshold_at = thresholds_at + image * c * per_sample[1] * 4
        for i in range(-left, w + right):
            at = (row * width + left + i) * pixel_words
            frame[at : at + pixel_words] = 0
            for word in range(words):
                if 0 <= y < h and 0 <= i < w:
                    skip, pixel = word * WORD, (image * h + y) * w + i
                    _code_words(x_at + (pixel * c + skip) * 4, first + skip * 4 if before_at else 0, c,
                                threshold_at + skip * 4, min(c - skip, WORD), how, offset,
                                frame_at + (at + word) * 8, words, bits)
                else:
                    for j in range(bits):
                        if (offset >> j) & 1:
                            frame[at + j * words + word] = filled[word]
