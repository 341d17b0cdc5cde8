"""Gram matrices of patches, where they lie in an image: what SPD compares (`onebit.gram_distance`), on a CPU.

Patch (i, j) of p x p starts at row i H // p and column j W // p and has H // p rows and W // p columns.  Its matrix for
channel c has a row per image row.  Images are (B, H, W, C), so that the innermost loop is over channels and becomes one
vector instruction: no patch is copied, and there are no small matrix products, which torch and BLAS do slowly.

Nothing assumes finite numbers: what is not finite in a feature is not finite in its loss.
"""

import numpy as np
from numba import njit, prange

SUMS = {"reassoc", "contract", "nsz"}  # sums in any order, products and sums in one instruction


@njit(parallel=True, cache=True, fastmath=SUMS)
def grams(image, p):
    """A (B, p^2, h, h, C) with A[r, q] = sum_k row_r[k] row_q[k], and |A|^2 over (h, h, C), (B, p^2)."""
    batch, height, width, channels = image.shape
    h, w = height // p, width // p
    gram = np.empty((batch, p * p, h, h, channels), dtype=image.dtype)
    square = np.empty((batch, p * p), dtype=image.dtype)
    for task in prange(batch * p * p):
        b, patch = task // (p * p), task % (p * p)
        top, left = patch // p * height // p, patch % p * width // p
        total = gram.dtype.type(0)
        for r in range(h):
            for q in range(r + 1):
                a = gram[b, patch, r, q]
                a[:] = 0
                for k in range(w):
                    for c in range(channels):
                        a[c] += image[b, top + r, left + k, c] * image[b, top + q, left + k, c]
                mirrored = gram[b, patch, q, r]
                part = gram.dtype.type(0)
                for c in range(channels):
                    part += a[c] * a[c]
                    mirrored[c] = a[c]
                total += part if q == r else part + part
        square[b, patch] = total
    return gram, square


@njit(parallel=True, cache=True, fastmath={"reassoc", "nsz"})  # a product in one instruction would part what is equal
def part(gram, other, unit, other_unit):
    """D = unit A - other_unit A^fp in the place of `other`, its factors (B, p^2); and |D|^2, (B, p^2)."""
    batch, patches = gram.shape[:2]
    square = np.empty((batch, patches), dtype=gram.dtype)
    for task in prange(batch * patches):
        b, patch = task // patches, task % patches
        a, d = gram[b, patch].reshape(-1), other[b, patch].reshape(-1)
        x, y = unit[b, patch], other_unit[b, patch]
        total = gram.dtype.type(0)
        for n in range(a.size):
            d[n] = x * a[n] - y * d[n]
            total += d[n] * d[n]
        square[b, patch] = total
    return square


@njit(parallel=True, cache=True, fastmath=SUMS)
def slopes(image, gram, difference, along, factor):
    """factor (D - along A) times the patch's rows, (B, H, W, C); zero where no patch is.  along, factor (B, p^2)."""
    batch, height, width, channels = image.shape
    patches, h = gram.shape[1], gram.shape[2]
    p = int(np.sqrt(patches))
    w = width // p
    slope = np.zeros(image.shape, dtype=image.dtype)
    for task in prange(batch * patches):
        b, patch = task // patches, task % patches
        top, left = patch // p * height // p, patch % p * width // p
        weight = np.empty(channels, dtype=image.dtype)
        for r in range(h):
            for q in range(h):
                for c in range(channels):
                    weight[c] = factor[b, patch] * (
                        difference[b, patch, r, q, c] - along[b, patch] * gram[b, patch, r, q, c])
                for k in range(w):
                    for c in range(channels):
                        slope[b, top + r, left + k, c] += weight[c] * image[b, top + q, left + k, c]
    return slope
