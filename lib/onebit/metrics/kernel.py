"""Kernel distance between feature sets: unbiased, so it needs no extrapolation."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .estimate import Estimate, doubles, jackknife

BLOCK = 1_000  # rows of a kernel matrix held at once, where only its sums are needed


def kid(features: ArrayLike, real: ArrayLike) -> Estimate:
    r"""Kernel Inception Distance: the U-statistic of the squared maximum mean discrepancy over all pairs.

        MMD^2 = sum_(i != j) k(x_i, x_j) / (m (m - 1)) + sum_(i != j) k(y_i, y_j) / (n (n - 1))
                - 2 sum_(i, j) k(x_i, y_j) / (m n),        k(x, y) = (x.y / D + 1)^3

    Its mean is 0 for two sets of one distribution, whatever their sizes.  So values below 0 occur; none is clipped.

    Shapes    generated features x (m, D), m >= 20; real y (n, D), n >= 2; about 20 m^2 bytes are held.
    Units     of the kernel, cubic in x.y, so values of different feature networks do not compare.  The jackknife
              interval is over the generated images; the reals are held fixed.
    Raises    ValueError for features that are not (N, D), not finite, of different dimensions, or too few.
    DIFFERS   usual code averages over random subsets of 1,000; all pairs give the same mean with less spread.
    Source    Bińkowski et al. 2018 (arXiv:1801.01401), KID; the estimator is Gretton et al. 2012, JMLR 13, Lemma 6.
    """
    x, y = _features(features, "features"), _features(real, "real")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features and real have different dimensions: {x.shape} and {y.shape}")
    within = _kernel(x, x)  # (m, m)
    np.fill_diagonal(within, 0)
    across = np.concatenate([_kernel(part, y).mean(axis=1) for part in _blocks(x)])  # (m,) mean over the reals
    reals = _mean_of_pairs(y)

    def mmd(keep: NDArray[np.int64]) -> float:
        used = np.zeros(len(x))
        used[keep] = 1
        return used @ within @ used / (len(keep) * (len(keep) - 1)) + reals - 2 * across[keep].mean()

    return jackknife(mmd, len(x), f"KID, unbiased, over all pairs of {len(x)} generated and {len(y)} real features "
                                  f"in {x.shape[1]} dimensions")


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic kernel of all pairs, (m, n)."""
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base  # ** 3 calls pow for every pair, which takes longer than the product of matrices


def _mean_of_pairs(y: NDArray[np.float64]) -> float:
    """Mean kernel of two different rows: blocks on the diagonal without their own, those above it twice."""
    total = -np.sum(((y**2).mean(axis=1) + 1) ** 3)
    for i, part in enumerate(_blocks(y)):
        total += _kernel(part, part).sum() + 2 * _kernel(part, y[(i + 1) * BLOCK :]).sum()
    return float(total / (len(y) * (len(y) - 1)))


def _blocks(x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [x[i : i + BLOCK] for i in range(0, len(x), BLOCK)]


def _features(x: ArrayLike, name: str) -> NDArray[np.float64]:
    x = doubles(x)
    if x.ndim != 2 or len(x) < 2 or not x.shape[1]:
        raise ValueError(f"{name}: need (N, D) with at least two rows, got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} hold NaN or infinity")
    return x
