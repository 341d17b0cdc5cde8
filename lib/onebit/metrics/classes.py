"""Which classes are generated, and how evenly, as some classifier sees them: its mistakes are in every number."""

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from .estimate import CONFIDENCE, RESAMPLES, Estimate, doubles, jackknife

CLASSES = 10  # of digits
FEWEST_EXPECTED = 5  # images of a class, for the chi-square distribution to hold (Cochran 1954)


def inception_score(probabilities: ArrayLike) -> Estimate:
    r"""Inception score of whatever classifier gave the probabilities, in one split.

        IS = exp(mean_x KL(p(y|x) || p(y))) = exp(H(mean_x p(y|x)) - mean_x H(p(y|x)))

    Shapes    probabilities (N, K), rows summing to 1; N >= 20.
    Units     classes, 1 .. K: K if every image is certain and the classes are even.  Too low for few images, as the
              mean's entropy is.  Jackknife interval over the images.
    Raises    ValueError for rows that are no distributions, or fewer than 20.
    DIFFERS   usual code takes the mean of ten splits, each with a tenth of the images and their larger bias; and
              Inception, where this takes the caller's classifier, so values of different classifiers do not compare.
    Source    Salimans et al. 2016 (arXiv:1606.03498) section 4.
    """
    p = _distributions(probabilities)
    uncertainty = entr(p).sum(axis=1)  # (N,) entropy of each image
    return jackknife(lambda keep: float(np.exp(entr(p[keep].mean(axis=0)).sum() - uncertainty[keep].mean())), len(p),
                     f"inception score of {len(p)} images, {p.shape[1]} classes, one split")


def class_shares(labels: ArrayLike, k: int = 10) -> NDArray[np.float64]:
    """Share of the images in each class.

    Shapes    labels (N,) integers in 0..k-1 -> (k,), summing to 1; 0 for an empty class.
    Raises    ValueError for no labels, or labels that are not integers or out of range.
    """
    x = as_classes(labels, k)
    return np.bincount(x, minlength=k) / len(x)


def class_entropy(labels: ArrayLike) -> Estimate:
    r"""Entropy of the class histogram, corrected for the number of images.

        H = -sum_c p_c log p_c + (K - 1) / (2 N),    K the number of classes that occur

    The first term alone is too low by about the second.  Resampled histograms repeat that bias, so their percentiles
    would have it twice and, for even classes, miss log 10.  The basic bootstrap of the first term (twice its value less
    the quantiles) subtracts it instead.

    Shapes    labels (N,) integers in 0..9, N >= 2.
    Units     nats, 0 for one class to log 10 = 2.303 for even ones; value and interval can exceed that by chance.
    Raises    ValueError for fewer than two labels, or labels that are not integers or out of range.
    Source    Miller 1955 (the Miller-Madow correction); Paninski 2003, Neural Computation 15, 1191-1253.
              Interval: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 5.2.
    """
    x = as_classes(labels, CLASSES)
    if len(x) < 2:
        raise ValueError("need at least two labels for an interval")

    interval = scipy.stats.bootstrap((x,), _plug_in, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
                                     method="basic", rng=np.random.default_rng(0), batch=100).confidence_interval
    value = _plug_in(x) + (len(np.unique(x)) - 1) / (2 * len(x))
    return Estimate(float(value), float(interval.low), float(interval.high), len(x),
                    f"entropy of the classes of {len(x)} images, {CLASSES} classes, Miller-Madow, nats")


def uniformity_test(labels: ArrayLike, expected: ArrayLike | None = None, k: int = 10) -> tuple[float, float]:
    """Pearson's chi-square test of the class counts: the statistic, and the chance of one as large or larger.

    An empty class is a count of 0 like any other.

    Shapes    labels (N,) integers in 0..k-1; expected (k,) class shares summing to 1, even ones by default.
    Raises    ValueError for no labels, labels that are not integers or out of range; expected shares that are not (k,)
              or do not sum to 1, or promise fewer than five images of a class.
    Source    Pearson 1900; scipy.stats.chisquare.  Five: Cochran 1954.
    """
    counts = np.bincount(as_classes(labels, k), minlength=k)
    shares = np.full(k, 1 / k) if expected is None else doubles(expected)
    if shares.shape != (k,) or not (shares >= 0).all() or not np.isclose(shares.sum(), 1, rtol=0, atol=1e-6):
        raise ValueError(f"expected: need {k} shares that sum to 1, got shape {shares.shape}, sum {shares.sum():.6g}")
    wanted = counts.sum() * shares / shares.sum()
    if wanted.min() < FEWEST_EXPECTED:
        raise ValueError(f"only {wanted.min():.3g} images expected of class {wanted.argmin()}, need {FEWEST_EXPECTED}: "
                         f"give more images, or leave out classes that are not to occur")
    result = scipy.stats.chisquare(counts, wanted)
    return float(result.statistic), float(result.pvalue)


def _plug_in(labels: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
    """Entropy of the histograms along an axis."""
    return entr(np.stack([(labels == c).mean(axis=axis) for c in range(CLASSES)])).sum(axis=0)


def _distributions(probabilities: ArrayLike) -> NDArray[np.float64]:
    p = doubles(probabilities)
    if p.ndim != 2 or not p.size or not (p >= 0).all() or not np.allclose(p.sum(axis=1), 1, atol=1e-4):
        raise ValueError(f"need probabilities (N, K) whose rows sum to 1, got shape {p.shape}")
    return p / p.sum(axis=1, keepdims=True)  # float32 rows sum to 1 only nearly


def as_classes(labels: ArrayLike, k: int, name: str = "labels", least: int = 0) -> NDArray[np.int64]:
    """Labels (N,) as integers, if they are classes least .. k-1."""
    y = np.asarray(labels)
    if y.ndim != 1 or not len(y) or y.dtype.kind not in "iu":
        raise ValueError(f"need integer {name} (N,) of at least one image, got {y.dtype} {y.shape}")
    if (y < least).any() or (y >= k).any():
        mend = "" if least else "; leave out images without a class first"
        raise ValueError(f"{name} must be classes {least} .. {k - 1}, got {y.min()} .. {y.max()}{mend}")
    return y.astype(np.int64)
