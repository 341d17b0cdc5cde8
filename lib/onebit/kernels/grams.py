"""Gram matrices of patches, where they lie in an image: what SPD compares (`onebit.gram_distance`), on a CPU.

Patch (i, j) of p x p starts at row i H // p and column j W // p and has h = H // p rows and w = W // p columns.  Its
matrix for channel c has a row per image row.  Images are (B, H, W, C), channels next to each other, and a Gram matrix,
being symmetric, is kept as its diagonals: entries (r, r + d) for r < h - d, d = 0 first, each with its C channels.  In
a column of pixels all entries of a diagonal are the product of one run of numbers with another; loops over such runs
become vector instructions, where small matrix products, which torch and BLAS do slowly, do not.  Patches side by side
are one task, whose rows are read from end to end.

Nothing assumes finite numbers: what is not finite in a feature is not finite in its loss.
"""

import numpy as np
from numba import njit, prange

SUMS = {"reassoc", "contract", "nsz"}  # sums in any order, products and sums in one instruction


@njit
def _turn(pixels, turned):
    """(M, N, C) as (N, M, C): pixels by row as pixels by column, and back."""
    rows, columns, channels = pixels.shape
    for r in range(rows):
        for k in range(columns):
            pixel, place = pixels[r, k], turned[k, r]
            for c in range(channels):
                place[c] = pixel[c]


@njit(fastmath=SUMS)
def _add_product(total, x, y):
    for i in range(total.size):
        total[i] += x[i] * y[i]


@njit(parallel=True, cache=True, fastmath=SUMS)
def grams(image, p):
    """Diagonals of A, A[r, q] = sum_k row_r[k] row_q[k], (B, p^2, h (h + 1) / 2 C); |A|^2 over all h h C, (B, p^2)."""
    batch, height, width, channels = image.shape
    h, w = height // p, width // p
    gram = np.empty((batch, p * p, h * (h + 1) // 2 * channels), dtype=image.dtype)
    square = np.empty((batch, p * p), dtype=image.dtype)
    for task in prange(batch * p):
        b, i = task // p, task % p
        top = i * height // p
        columns = np.empty((width, h * channels), dtype=image.dtype)
        _turn(image[b, top : top + h], columns.reshape(width, h, channels))
        for j in range(p):
            left, total, begin = j * width // p, gram.dtype.type(0), 0
            for d in range(h):
                shift, size = d * channels, (h - d) * channels
                diagonal = gram[b, i * p + j, begin : begin + size]
                diagonal[:] = 0
                for k in range(left, left + w):
                    _add_product(diagonal, columns[k, :size], columns[k, shift : shift + size])
                part = gram.dtype.type(0)
                for n in range(size):
                    part += diagonal[n] * diagonal[n]
                total += part if d == 0 else part + part
                begin += size
            square[b, i * p + j] = total
    return gram, square


@njit(parallel=True, cache=True, fastmath={"reassoc", "nsz"})  # a product in one instruction would part what is equal
def part(gram, other, unit, other_unit, h):
    """D = unit A - other_unit A^fp in the place of `other`, its factors (B, p^2); and |D|^2, (B, p^2)."""
    batch, patches, size = gram.shape
    first = size // (h * (h + 1) // 2) * h  # entries of the diagonal d = 0; all others stand for two
    square = np.empty((batch, patches), dtype=gram.dtype)
    for task in prange(batch * patches):
        b, patch = task // patches, task % patches
        a, d = gram[b, patch], other[b, patch]
        x, y = unit[b, patch], other_unit[b, patch]
        once, twice = gram.dtype.type(0), gram.dtype.type(0)
        for n in range(size):
            d[n] = x * a[n] - y * d[n]
            twice += d[n] * d[n]
        for n in range(first):
            once += d[n] * d[n]
        square[b, patch] = twice + twice - once
    return square


@njit(parallel=True, cache=True, fastmath=SUMS)
def slopes(image, p, gram, difference, along, factor):
    """factor (D - along A) times the patch's rows, (B, H, W, C); zero where no patch is.  along, factor (B, p^2)."""
    batch, height, width, channels = image.shape
    h, w = height // p, width // p
    slope = np.zeros(image.shape, dtype=image.dtype)
    for task in prange(batch * p):
        b, i = task // p, task % p
        top = i * height // p
        columns = np.empty((width, h * channels), dtype=image.dtype)
        _turn(image[b, top : top + h], columns.reshape(width, h, channels))
        sums, weights = np.zeros_like(columns), np.empty(gram.shape[2], dtype=image.dtype)
        for j in range(p):
            patch, left, begin = i * p + j, j * width // p, 0
            a, apart = gram[b, patch], difference[b, patch]
            for n in range(weights.size):
                weights[n] = factor[b, patch] * (apart[n] - along[b, patch] * a[n])
            for d in range(h):
                shift, size = d * channels, (h - d) * channels
                weight = weights[begin : begin + size]
                for k in range(left, left + w):
                    _add_product(sums[k, :size], weight, columns[k, shift : shift + size])
                    if d > 0:
                        _add_product(sums[k, shift : shift + size], weight, columns[k, :size])
                begin += size
        _turn(sums.reshape(width, h, channels), slope[b, top : top + h])
    return slope
