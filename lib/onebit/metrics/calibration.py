"""Calibration: is the judge right as often as it is sure?  A temperature to make it so, and the error that is left."""

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import ArrayLike, NDArray

from .classes import as_classes
from .estimate import CONFIDENCE, GROUPS, RESAMPLES, Estimate, doubles, jackknife

BINS = 15  # of confidence; as published
TEMPERATURES = (1e-3, 1e3)  # where the fit looks: a network's logits are units to hundreds
RELIABILITY = ("low", "high", "count", "confidence", "accuracy")  # columns of `reliability`


def softmax(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Class probabilities softmax(z / T), in float64.

    Shapes    logits (N, K) -> (N, K), rows summing to 1.
    Raises    ValueError for logits that are no finite matrix or a temperature that is not positive and finite.
    Source    Guo et al. 2017 (arXiv:1706.04599) Eq. 9.
    """
    return scipy.special.softmax(_cooled(_logits(logits), temperature), axis=1)


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> float:
    """Mean of -log softmax(z / T)[label] over images.

    Shapes    logits (N, K), labels (N,) integer classes.
    Units     nats per image.
    Raises    ValueError as `softmax`, and for labels that are no classes of the logits.
    Source    Guo et al. 2017 (arXiv:1706.04599) Eq. 6, there a sum.
    """
    z = _logits(logits)
    y = _labels(labels, *z.shape)
    return float(-scipy.special.log_softmax(_cooled(z, temperature), axis=1)[np.arange(len(y)), y].mean())


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The temperature T > 0 with the least negative log-likelihood of softmax(z / T), on images the judge never saw.

    The loss is convex in 1/T, so that a minimum inside the bracket is the only one; the search runs on log T.
    It has none if every image is right (the surer the better: T -> 0) or the logits know nothing of the labels.

    Shapes    logits (N, K), labels (N,) integer classes.
    Raises    ValueError for too few images, logits that are not finite or are probabilities, labels that are no
              classes, and logits whose best temperature is not inside the bracket.
    Source    Guo et al. 2017 (arXiv:1706.04599) section 4.2, temperature scaling.
    """
    z = _logits(logits)
    y = _labels(labels, *z.shape)
    if len(z) < GROUPS:
        raise ValueError(f"need at least {GROUPS} labelled images to fit a temperature, got {len(z)}")
    if (z >= 0).all() and np.allclose(z.sum(axis=1), 1, atol=1e-4):
        raise ValueError("logits are probabilities (rows sum to 1): pass what the softmax takes, or their logarithm")

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(z, y, np.exp(log_temperature))

    bracket = np.log(TEMPERATURES)
    best = scipy.optimize.minimize_scalar(loss, bounds=bracket, method="bounded", options={"xatol": 1e-9})
    if not best.success or not best.fun < min(loss(edge) for edge in bracket):
        right = (z.argmax(axis=1) == y).mean()
        raise ValueError(f"no best temperature in {TEMPERATURES}: {right:.1%} of {len(y)} labels are right; with all "
                         "right the surest judge is the best, with chance the least sure: use more and other images")
    return float(np.exp(best.x))


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> NDArray[np.float64]:
    """How often the judge is right, by how sure it is: one row per bin of confidence (low, high] of equal width.

    Shapes    probabilities (N, K), labels (N,) -> (bins, 5), columns `RELIABILITY`: low, high, count, mean confidence,
              accuracy.  Empty bins keep their row, with count 0 and NaN.
    Raises    ValueError for rows that are no distributions, labels that are no classes, or no bins.
    Source    Guo et al. 2017 (arXiv:1706.04599) section 2, reliability diagrams.
    """
    confidence, right = _confidence_and_hits(probabilities, labels)
    edges = _edges(bins)
    count, sure, hits = _binned(confidence, right, edges)
    filled = np.where(count, count, np.nan)
    return np.column_stack([edges[:-1], edges[1:], count, sure / filled, hits / filled])


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> Estimate:
    r"""Expected calibration error: the mean gap between confidence and accuracy, bins weighted by their images.

        ECE = sum_b n_b / N |accuracy_b - confidence_b|

    Units     a difference of probabilities, 0 to 1.  Noise raises it: a calibrated judge scores above 0 as well, often
              with an interval above 0.  Set it against `calibration_floor`, not against 0.
    Raises    ValueError as `reliability`, and for fewer images than the jackknife has groups.
    Source    Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599) Eq. 3.
    """
    confidence, right = _confidence_and_hits(probabilities, labels)
    edges = _edges(bins)

    return jackknife(lambda used: _gap(confidence[used], right[used], edges), len(right),
                     f"expected calibration error, {bins} equal bins of the largest probability")


def calibration_floor(probabilities: ArrayLike, bins: int = BINS, seed: int = 0) -> Estimate:
    """Expected calibration error of a calibrated judge as sure as this one: what noise alone gives so many images.

    The judge is right with the probability it states, a thousand times over; mean and central 95 % of the errors.

    Shapes    probabilities (N, K).
    Raises    ValueError for rows that are no distributions, or no bins.
    Source    Broecker & Smith 2007, Weather and Forecasting 22, 651-661 (consistency resampling).
    """
    (_, confidence), edges = top_class(probabilities), _edges(bins)
    rng = np.random.default_rng(seed)
    errors = [_gap(confidence, rng.random(len(confidence)) < confidence, edges) for _ in range(RESAMPLES)]
    low, high = np.quantile(errors, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(np.mean(errors)), float(low), float(high), len(confidence),
                    f"expected calibration error by noise alone, {bins} equal bins of the largest probability")


def top_class(probabilities: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The most probable class of each image and its probability: the label, and the confidence in it.

    Shapes    probabilities (N, K) -> labels (N,), confidence (N,); the smallest class where several are equal.
    Raises    ValueError if there are no rows or they are not distributions.
    """
    p = doubles(probabilities)
    if p.ndim != 2 or not p.size or (p < 0).any() or not np.allclose(p.sum(axis=1), 1, atol=1e-4):
        raise ValueError(f"need probabilities (N, K) whose rows sum to 1, got shape {p.shape}")
    return p.argmax(axis=1), p.max(axis=1)


def _confidence_and_hits(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    said, confidence = top_class(probabilities)
    return confidence, said == _labels(labels, *np.shape(probabilities))


def _edges(bins: int) -> NDArray[np.float64]:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    return np.linspace(0, 1, bins + 1)


def _binned(confidence: NDArray, right: NDArray, edges: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Images, summed confidence and right answers of each bin; the closed end is the upper one, as published."""
    number = np.searchsorted(edges[1:-1], confidence, side="left")  # rounding above 1 stays in the last bin
    return tuple(np.bincount(number, weights, len(edges) - 1) for weights in (None, confidence, right))


def _cooled(z: NDArray, temperature: float) -> NDArray[np.float64]:
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    return z / temperature


def _gap(confidence: NDArray, right: NDArray, edges: NDArray) -> float:
    _, sure, hits = _binned(confidence, right, edges)
    return float(np.abs(hits - sure).sum() / len(right))


def _logits(logits: ArrayLike) -> NDArray[np.float64]:
    z = doubles(logits)
    if z.ndim != 2 or not len(z) or z.shape[1] < 2:
        raise ValueError(f"need logits (N, K) of at least two classes, got shape {z.shape}")
    if not np.isfinite(z).all():
        raise ValueError("logits hold NaN or infinity: a failed judge has no confidence")
    return z


def _labels(labels: ArrayLike, n: int, k: int) -> NDArray[np.int64]:
    y = as_classes(labels, k)
    if len(y) != n:
        raise ValueError(f"need labels of shape ({n},), one per row, got {y.shape}")
    return y
