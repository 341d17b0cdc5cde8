"""Gram matrices of patches, where they lie in an image: what SPD compares (`onebit.gram_distance`), on a CPU.

Patch (i, j) of p x p starts at row i H // p and column j W // p and has h = H // p rows and w = W // p columns.  Its
matrix for channel c has a row per image row.  Images are float32 (B, H, W, C), channels next to each other, and a Gram
matrix, being symmetric, is kept as its diagonals: entries (r, r + d) for r < h - d, d = 0 first, each with its C
channels.  Matrices this small are slow work for torch and BLAS, and their rows too short for loops that a compiler
turns into vectors; so eight channels at a time are summed in a register, over the few pixels of a row or a column.

Nothing assumes finite numbers: what is not finite in a feature is not finite in its loss.
"""

import numpy as np
from numba import njit, prange

from . import floats as f
from .floats import FLOATS
from .vectors import load_float, load_index, store_float


@njit
def _gram(image, gram, first, out, shape):
    """The diagonals of one patch, from element `out` of gram on; |A|^2 over all h h C entries.  `first`: its pixel."""
    h, w, step, channels = shape  # step: elements from one image row to the next
    at, to = image.ctypes.data, gram.ctypes.data
    whole = channels // FLOATS * FLOATS
    squares, square, diagonal = f.zero_floats(), np.float32(0), np.float32(0)
    for d in range(h):
        for r in range(h - d):
            row, other = first + r * step, first + (r + d) * step
            for c in range(0, whole, FLOATS):
                total = f.zero_floats()
                for k in range(c, c + w * channels, channels):
                    total = f.add_product(total, f.load_floats(at, row + k), f.load_floats(at, other + k))
                f.store_floats(to, out + c, total)
                squares = f.add_product(squares, total, total)
            for c in range(whole, channels):
                one = np.float32(0)
                for k in range(c, c + w * channels, channels):
                    one += load_float(at, row + k) * load_float(at, other + k)
                store_float(to, out + c, one)
                square += one * one
            out += channels
        if d == 0:
            diagonal = square + f.sum_floats(squares)
    total_square = square + f.sum_floats(squares)
    return total_square + total_square - diagonal  # all entries but the diagonal's stand for two


@njit(parallel=True, cache=True)
def grams(image, p):
    """Diagonals of A, A[r, q] = sum_k row_r[k] row_q[k], (B, p^2, h (h + 1) / 2 C); |A|^2 over all h h C, (B, p^2)."""
    batch, height, width, channels = image.shape
    h, w, step = height // p, width // p, width * channels
    size = h * (h + 1) // 2 * channels
    gram = np.empty((batch, p * p, size), dtype=np.float32)
    square = np.empty((batch, p * p), dtype=np.float32)
    for task in prange(batch * p * p):
        b, i, j = task // (p * p), task // p % p, task % p
        first = (b * height + i * height // p) * step + j * width // p * channels
        square[b, i * p + j] = _gram(image, gram, first, task * size, (h, w, step, channels))
    return gram, square


@njit(parallel=True, cache=True, fastmath={"reassoc", "nsz"})  # a product in one instruction would part what is equal
def part(gram, other, unit, other_unit, h):
    """D = unit A - other_unit A^fp in the place of `other`, its factors (B, p^2); and |D|^2, (B, p^2)."""
    batch, patches, size = gram.shape
    first = size // (h * (h + 1) // 2) * h  # entries of the diagonal d = 0; all others stand for two
    square = np.empty((batch, patches), dtype=np.float32)
    for task in prange(batch * patches):
        b, patch = task // patches, task % patches
        a, d = gram[b, patch], other[b, patch]
        x, y = unit[b, patch], other_unit[b, patch]
        once, twice = np.float32(0), np.float32(0)
        for n in range(size):
            d[n] = x * a[n] - y * d[n]
            twice += d[n] * d[n]
        for n in range(first):
            once += d[n] * d[n]
        square[b, patch] = twice + twice - once
    return square


@njit
def _slope(image, slope, weights, places, first, shape):
    """A symmetric matrix times one patch's rows; `places`: where entry (r, q) stands among its diagonals, (h, h)."""
    h, w, step, channels = shape
    at, to, weights_at, places_at = image.ctypes.data, slope.ctypes.data, weights.ctypes.data, places.ctypes.data
    whole = channels // FLOATS * FLOATS
    for r in range(h):
        for k in range(w):
            column = first + k * channels
            pixel = column + r * step
            for c in range(0, whole, FLOATS):
                total = f.zero_floats()
                for q in range(h):
                    weight = f.load_floats(weights_at, load_index(places_at, r * h + q) + c)
                    total = f.add_product(total, weight, f.load_floats(at, column + q * step + c))
                f.store_floats(to, pixel + c, total)
            for c in range(whole, channels):
                one = np.float32(0)
                for q in range(h):
                    weight = load_float(weights_at, load_index(places_at, r * h + q) + c)
                    one += weight * load_float(at, column + q * step + c)
                store_float(to, pixel + c, one)


@njit
def _places(h, channels):
    """Where entry (r, q) of a symmetric matrix that is kept as diagonals begins, (h, h)."""
    places = np.empty((h, h), dtype=np.intp)
    for r in range(h):
        for q in range(h):
            d = abs(r - q)
            places[r, q] = (d * h - d * (d - 1) // 2 + min(r, q)) * channels
    return places


@njit(parallel=True, cache=True, fastmath={"contract"})
def slopes(image, p, gram, difference, along, factor):
    """factor (D - along A) times the patch's rows, (B, H, W, C); zero where no patch is.  along, factor (B, p^2)."""
    batch, height, width, channels = image.shape
    h, w, step = height // p, width // p, width * channels
    places, slope = _places(h, channels), np.zeros(image.shape, dtype=np.float32)
    for task in prange(batch * p * p):
        b, i, j = task // (p * p), task // p % p, task % p
        a, apart, patch = gram[b, i * p + j], difference[b, i * p + j], i * p + j
        weights = np.empty(a.size, dtype=np.float32)
        for n in range(weights.size):
            weights[n] = factor[b, patch] * (apart[n] - along[b, patch] * a[n])
        first = (b * height + i * height // p) * step + j * width // p * channels
        _slope(image, slope, weights, places, first, (h, w, step, channels))
    return slope
