"""Fréchet distance between Gaussians fitted to features, in float64 throughout."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
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
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or len(x) <= x.shape[1]:
            raise ValueError(f"need features (N, D) with N > D, got {x.shape}: a covariance of fewer is singular")
        if not np.isfinite(x).all():
            raise ValueError("features hold NaN or infinity")
        return cls(x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False)), len(x))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    r"""Squared 2-Wasserstein distance of two Gaussians.

        d = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2))

    Units     squared units of the features, so values of different feature networks do not compare.
    DIFFERS   usual code takes sqrtm(C_a C_b); its trace is that of the symmetric form here, whose eigenvalues are
              real and >= 0 (what rounding makes negative is set to 0).
    Source    Dowson & Landau 1982; FID (arXiv:1706.08500) Eq. 6.  With the judge's features: source 000's "FMD".
    """
    values, vectors = scipy.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = scipy.linalg.eigvalsh(root @ b.covariance @ root)
    shift = np.sum((a.mean - b.mean) ** 2)
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(cross.clip(min=0)).sum()
    return float(shift + trace)
