"""Fréchet distance between Gaussians fitted to features, in float64 throughout."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from .estimate import GROUPS, Estimate, doubles, jackknife


@dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Gaussian:
    """Mean and covariance of a feature set.

    Shapes    mean (D,), covariance (D, D), float64; n is the number of features they come from.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    n: int

    @classmethod
    def fit(cls, features: ArrayLike) -> "Gaussian":
        """Fit to features (N, D).

        Raises    ValueError for features that are not finite, not two-dimensional, or fewer than their dimensions.
        """
        x = doubles(features)
        if x.ndim != 2 or len(x) <= x.shape[1]:
            raise ValueError(f"need features (N, D) with N > D, got {x.shape}: a covariance of fewer is singular")
        if not np.isfinite(x).all():
            raise ValueError("features hold NaN or infinity")
        return cls(x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False)), len(x))

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """Some R (D, D) with R R^T = covariance: Cholesky's, or from eigenvectors where that is singular."""
        try:
            return np.linalg.cholesky(self.covariance)
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(self.covariance)
            return vectors * np.sqrt(values.clip(min=0))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    r"""Squared 2-Wasserstein distance of two Gaussians; fastest where many a meet the same b, whose root is kept.

        d = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2))

    Units     squared units of the features, so values of different feature networks do not compare.
    DIFFERS   usual code takes sqrtm(C_a C_b).  R^T C_a R, for any R with R R^T = C_b, is symmetric and has the same
              eigenvalues; they are real and >= 0 (what rounding makes negative is set to 0), and found faster.
    Raises    ValueError for Gaussians of different dimensions.
    Source    Dowson & Landau 1982; FID (arXiv:1706.08500) Eq. 6.  With the judge's features: source 000's "FMD".
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"need Gaussians of one dimension, got {len(a.mean)} and {len(b.mean)}: fit both to features "
                         f"of the same network")
    cross = np.linalg.eigvalsh(b.root.T @ a.covariance @ b.root)
    shift = np.sum((a.mean - b.mean) ** 2)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(cross.clip(min=0)).sum()
    return float(shift + trace)


def frechet(features: ArrayLike, real: Gaussian, protocol: str = "Fréchet distance") -> Estimate:
    """Fréchet distance of generated features to a reference, with the jackknife interval.

    Biased upwards by about a constant over N, and another over real.n: compare equal N, or see `frechet_infinity`.
    The interval is around this biased value, and holds the reference fixed.

    Shapes    features (N, D), enough that D + 1 are left when a twentieth is not used.
    Units     squared units of the features.  `protocol` says whose features; the sizes are added to it.
    Raises    ValueError for features that are not finite, not (N, D) of the reference's D, or too few; or a reference
              that is no Gaussian.
    Source    as `frechet_distance`.
    """
    x = _features(features, real)
    if len(x) - -(-len(x) // GROUPS) <= x.shape[1]:
        raise ValueError(f"{len(x)} features of {x.shape[1]} dimensions are too few to leave out one in {GROUPS}; "
                         f"give more")
    return jackknife(lambda keep: frechet_distance(Gaussian.fit(x[keep]), real), len(x),
                     f"{protocol}, {len(x)} features in {x.shape[1]} dimensions to {real.n}")


def curve_sizes(n: int, dim: int, count: int = 6) -> tuple[int, ...]:
    """Subset sizes for `frechet_infinity`: from a fifth of n to n, evenly in 1/n.

    Smaller subsets would lengthen the line, but below about 3 D features the bias is no longer linear in 1/n.

    Shapes    fewer than `count` sizes, down to three, where they would lie within 4 % of n of each other.
    Raises    ValueError if no three sizes lie above the dimension.
    """
    smallest = max(n // 5, min(3 * dim, (n + dim) // 2))
    count = min(count, max(3, 1 + 25 * (n - smallest) // max(n, 1)))
    sizes = np.unique(np.round(1 / np.linspace(1 / smallest, 1 / n, count)).astype(int)) if smallest > dim else []
    if len(sizes) < 3:
        raise ValueError(f"{n} features in {dim} dimensions leave no three sizes to draw a line through; give more")
    return tuple(int(size) for size in sizes)


def frechet_curve(
    features: ArrayLike, real: Gaussian, sizes: Sequence[int], draws: int = 5, seed: int = 0
) -> list[tuple[int, float, float]]:
    """How the Fréchet distance depends on the number of images: (n, mean, standard deviation) over random subsets.

    Subsets are drawn without replacement, so the deviation shrinks to 0 as n reaches N: it is no error of the mean.

    Shapes    features (N, D); one row per size.
    Raises    ValueError as `frechet`, for sizes not in D + 1 .. N, or fewer than two draws.
    Source    Chong & Forsyth 2020 (arXiv:1911.07023), FID_N against N.
    """
    x = _features(features, real)
    drawn = [[_distance(x, subset, real) for subset in subsets] for subsets in _subsets(x, sizes, draws, seed)]
    return [(int(n), float(np.mean(d)), float(np.std(d, ddof=1))) for n, d in zip(sizes, drawn, strict=True)]


def frechet_infinity(
    features: ArrayLike, real: Gaussian, sizes: Sequence[int] | None = None, draws: int = 5, seed: int = 0
) -> Estimate:
    r"""Fréchet distance extrapolated to infinitely many generated images.

        d_n = d_inf + b / n,    least squares over the mean distances of subsets of n

    The bias of the reference's own finite n is not removed.  The line may end below 0, and is not clipped.

    Shapes    features (N, D), enough that D + 1 of every subset are left when a twentieth of the images is not used;
              sizes: at least three different ones, `curve_sizes` by default.
    Units     squared units of the features.
    Error     Interval: the jackknife's, of the whole extrapolation.  A group of images is taken out of every subset at
              once, so that what they share is counted; the points' distance from the line, which subsets that share
              their images hide, is not used.  As in `frechet` the reference is held fixed.  In 200 simulations each
              with Gaussians (D = 16, N = 1000) it held the truth in 97 to 98 %; between equal distributions always,
              being half too wide there, where the distance has no linear part.  How far the curve is from a line it
              does not count: -0.16 between equal ones with D = 128 and N = 2000, where d_N is 2.1.
    Raises    ValueError as `frechet_curve`, for fewer than three different sizes, or for too few features.
    DIFFERS   the paper's code takes one subset at each of 15 sizes from a tenth of N to N, evenly in n.
    Source    Chong & Forsyth 2020 (arXiv:1911.07023), FID_infinity; the interval: `estimate.jackknife`.
    """
    x = _features(features, real)
    sizes = curve_sizes(*x.shape) if sizes is None else sizes
    if len(set(sizes)) < 3:
        raise ValueError(f"need three different sizes for a line and its error, got {list(sizes)}")
    subsets = _subsets(x, sizes, draws, seed)

    def intercept(keep: NDArray[np.int64]) -> float:
        kept = np.isin(np.arange(len(x)), keep)
        left = [[subset[kept[subset]] for subset in same] for same in subsets]
        if min(len(subset) for same in left for subset in same) <= x.shape[1]:
            raise ValueError(f"subsets of {min(sizes)} features in {x.shape[1]} dimensions are too few to leave out "
                             f"one in {GROUPS}; give more features, or larger sizes")
        return _intercept([(len(subset), _distance(x, subset, real)) for same in left for subset in same])

    return jackknife(intercept, len(x), f"Fréchet distance in {x.shape[1]} dimensions to {real.n}, extrapolated from "
                     f"{draws} subsets each of {min(sizes)} to {max(sizes)} of {len(x)} features; interval: jackknife")


def _subsets(x: NDArray, sizes: Sequence[int], draws: int, seed: int) -> list[list[NDArray[np.int64]]]:
    """The numbers of the features in every draw of every size."""
    if draws < 2 or not len(sizes) or min(sizes) <= x.shape[1] or max(sizes) > len(x):
        raise ValueError(f"need two draws or more of sizes in {x.shape[1] + 1}..{len(x)} (above the feature dimension, "
                         f"up to all features), got {draws} draws of {list(sizes)}")
    rng = np.random.default_rng(seed)
    return [[np.sort(rng.choice(len(x), n, replace=False)) for _ in range(draws)] for n in sizes]


def _distance(x: NDArray, subset: NDArray[np.int64], real: Gaussian) -> float:
    return frechet_distance(Gaussian.fit(x[subset]), real)


def _intercept(points: list[tuple[int, float]]) -> float:
    """Of the least-squares line of the distance over 1/n."""
    n, distance = np.array(points).T
    return float(scipy.stats.linregress(1 / n, distance).intercept)


def _features(features: ArrayLike, real: Gaussian) -> NDArray[np.float64]:
    if not isinstance(real, Gaussian):
        raise ValueError(f"real must be a Gaussian, got {type(real).__name__}: fit it first: Gaussian.fit(real)")
    x = doubles(features)
    if x.ndim != 2 or x.shape[1] != len(real.mean):
        raise ValueError(f"need features (N, {len(real.mean)}) as the reference's, got {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinity")
    return x
