"""The XNOR-popcount product: packed activations against packed weights, for all pixels of all images."""

import numpy as np
from numba import njit, prange

from . import vectors as v
from .vectors import BLOCK

STEPS = 31  # words whose differing bits, up to 8 per byte, fit into a byte's 255
ROWS = 4  # packed rows (a pixel's plane each) that share one load of the weights: 8 of AVX2's 16 registers
CHUNK = 32  # pixels of one job: their outputs stay in the cache while the channels go by


@njit(forceinline=True)
def _popcounts(frame, weights, offsets, steps, a, b, c, d):
    """Differing bits between BLOCK output channels and the rows of words that start at a, b, c and d."""
    counts_a = counts_b = counts_c = counts_d = v.zero_integers()
    begin = 0
    while begin < steps:
        end = min(begin + STEPS, steps)
        bytes_a = bytes_b = bytes_c = bytes_d = v.zero_words()
        for step in range(begin, end):
            weight, at = v.load_words(weights, step * BLOCK), v.load_index(offsets, step)
            bytes_a = v.add_bytes(bytes_a, v.differing(weight, v.splat_word(frame, a + at)))
            bytes_b = v.add_bytes(bytes_b, v.differing(weight, v.splat_word(frame, b + at)))
            bytes_c = v.add_bytes(bytes_c, v.differing(weight, v.splat_word(frame, c + at)))
            bytes_d = v.add_bytes(bytes_d, v.differing(weight, v.splat_word(frame, d + at)))
        counts_a = v.add(counts_a, v.sum_bytes(bytes_a))
        counts_b = v.add(counts_b, v.sum_bytes(bytes_b))
        counts_c = v.add(counts_c, v.sum_bytes(bytes_c))
        counts_d = v.add(counts_d, v.sum_bytes(bytes_d))
        begin = end
    return counts_a, counts_b, counts_c, counts_d


@njit(forceinline=True)
def _finish(out, at, constants, counts, scale, bias, factor, channels_left, spare):
    """(constants - counts) scale factor + bias into out; the last block may be wider than the channels left."""
    value = v.subtract(v.load_integers(constants, 0), counts)
    if channels_left >= BLOCK:
        v.store_scaled(out, at, value, scale, bias, factor)
        return
    v.store_scaled(spare, 0, value, scale, bias, factor)
    for i in range(channels_left):
        v.store_float(out, at + i, v.load_float(spare, i))


@njit(parallel=True, cache=True)
def product(frame, frame_pixels, plane_words, planes, weights, offsets, base, target, kind, constants, scale, bias,
            factor, factor_strides, magnitude, kernel, tap_offsets, map_bias, out, out_pixels, channels):
    r"""out[n, target[p], o] = (constants[kind[p], o] - counts) scale[o] factor[n, target[p]] map[n, p] + bias[o]

        counts = 2 P_0                    one plane
               = sum_j 2^j P_j            more planes

        map    = sum_t kernel[t] magnitude[n, what tap t of p meets] + map_bias,    or 1 without a kernel

    with P_j the bits in which the weights of o differ from plane j of the words that pixel p meets.

    Shapes    frame flat (N, frame_pixels, planes, plane_words) uint64, see packing;
              weights flat (blocks, steps, BLOCK) uint64;
              base, target, kind (pixels,): first pixel in the frame, place in the output, row of `constants`;
              offsets (steps,): where a step's word lies, from the base on;
              constants flat (kinds, blocks BLOCK) int32; scale, bias (blocks BLOCK,) float32;
              factor flat float32, read at n strides[0] + target strides[1];
              magnitude flat (N, frame_pixels), kernel, tap_offsets (taps or 0,) in pixels;
              out flat (N, out_pixels, channels).
    """
    pixels, steps = len(base), len(offsets)
    blocks, total = -(-channels // BLOCK), len(frame) // (frame_pixels * planes * plane_words) * pixels
    together = max(ROWS // planes, 1)  # pixels
    # addresses, since passing an array on means counting a reference
    frame_at, weights_at, offsets_at, out_at = (
        frame.ctypes.data, weights.ctypes.data, offsets.ctypes.data, out.ctypes.data)
    constants_at, scale_at, bias_at = constants.ctypes.data, scale.ctypes.data, bias.ctypes.data
    for job in prange(-(-total // CHUNK)):
        count = min(CHUNK, total - job * CHUNK)
        padded = -(-count // together) * together
        rows, outs = np.empty(padded * planes, np.intp), np.empty(padded, np.intp)
        kinds, factors = np.empty(padded, np.intp), np.empty(padded, np.float32)
        spare = np.empty(BLOCK, np.float32)
        spare_at = spare.ctypes.data
        for i in range(padded):
            number = job * CHUNK + min(i, count - 1)  # a turn's missing pixels repeat the last
            image, pixel = number // pixels, number % pixels
            first = image * frame_pixels + base[pixel]
            for j in range(planes):
                rows[i * planes + j] = (first * planes + j) * plane_words
            outs[i] = (image * out_pixels + target[pixel]) * channels
            kinds[i] = constants_at + kind[pixel] * blocks * BLOCK * 4
            factors[i] = factor[image * factor_strides[0] + target[pixel] * factor_strides[1]]
            if len(kernel):
                value = map_bias
                for tap in range(len(kernel)):
                    value += kernel[tap] * magnitude[first + tap_offsets[tap]]
                factors[i] *= value
        for block in range(blocks):
            o, left = block * BLOCK, channels - block * BLOCK
            weight_at, s, b, k = weights_at + o * steps * 8, scale_at + o * 4, bias_at + o * 4, o * 4
            for i in range(0, padded, together):
                counts = v.zero_integers()
                for group in range(0, planes, ROWS):
                    r = i * planes + group
                    c0, c1, c2, c3 = _popcounts(frame_at, weight_at, offsets_at, steps,
                                                rows[r], rows[r + 1], rows[r + 2], rows[r + 3])
                    if planes == 1:
                        _finish(out_at, outs[i] + o, kinds[i] + k, v.add(c0, c0), s, b, factors[i], left, spare_at)
                        i += 1
                        _finish(out_at, outs[i] + o, kinds[i] + k, v.add(c1, c1), s, b, factors[i], left, spare_at)
                        i += 1
                        _finish(out_at, outs[i] + o, kinds[i] + k, v.add(c2, c2), s, b, factors[i], left, spare_at)
                        i += 1
                        counts = v.add(c3, c3)
                    elif planes == 2:
                        _finish(out_at, outs[i] + o, kinds[i] + k, v.add(c0, v.add(c1, c1)), s, b, factors[i], left,
                                spare_at)
                        i += 1
                        counts = v.add(c2, v.add(c3, c3))
                    else:
                        four = v.add(v.add(c0, v.add(c1, c1)), v.shift_left(v.add(c2, v.add(c3, c3)), 2))
                        counts = v.add(counts, v.shift_left(four, group))
                _finish(out_at, outs[i] + o, kinds[i] + k, counts, s, b, factors[i], left, spare_at)
        spare[0] = 0.0  # a use after the last address of it, which numba does not see
