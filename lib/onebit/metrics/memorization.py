"""Memorization and diversity: distances of samples to training images, and among themselves."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .estimate import CONFIDENCE, Estimate, bootstrap, check_layout, doubles, jackknife, share
from .neighbours import nearest

# as published --------------------------------------------------------------------------------------------------------


def published_memorization(
    samples: ArrayLike | Tensor, train: ArrayLike | Tensor, n: int = 100, subset: int = 5_000, draws: int = 20,
    seed: int = 0,
) -> Estimate:
    """Mean distance of n samples to the nearest of a random subset of the training images.

    Drawn anew `draws` times; the published number is one such draw.  The interval is what these draws scatter over, the
    outermost fortieth at either end left out: the sampling noise of the published protocol, not the error of the mean
    given here.  Of further draws it holds somewhat fewer, 87 % where there are 20 and they are normal.  With no more
    than n samples only the subset varies, and the interval is too narrow.

    Shapes    samples (N, ...), train (M, ...) uint8 images of one size.
    Units     pixels in [0, 1].  Exact training images do not score 0: their original is mostly outside the subset.
    Raises    ValueError for images that are not uint8, fewer samples than n, a training set smaller than the subset,
              or fewer than two draws.
    Source    source 000, simple_bench_trainer.py 215-237 ("Memorization Score").
    """
    x, y = _images(samples, "samples", n), _images(train, "train", subset)
    check_layout(samples, train, "samples and train")
    rng = np.random.default_rng(seed)
    means = [nearest(_draw(x, n, rng), _draw(y, subset, rng))[0].mean() for _ in range(draws)]
    return _single_draws(means, n, f"mean distance of {n} samples to the nearest of {subset} random training images, "
                                   f"pixels in [0, 1]")


def published_diversity(samples: ArrayLike | Tensor, n: int = 100, draws: int = 20, seed: int = 0) -> Estimate:
    """Mean distance between two of n samples; value and interval over draws as in `published_memorization`.

    Shapes    samples (N, ...) uint8 images.
    Units     pixels in [0, 1].  With no more than n samples every draw is the same and the interval has no width.
    Raises    ValueError for images that are not uint8, fewer samples than n, n < 2, or fewer than two draws.
    Source    source 000, simple_bench_trainer.py 215-237 ("Diversity Score").
    """
    if n < 2:
        raise ValueError(f"n must be at least 2 to make a pair, got {n}")
    x, rng = _images(samples, "samples", n), np.random.default_rng(seed)
    means = [_mean_pair(_pairwise(_draw(x, n, rng))) for _ in range(draws)]
    return _single_draws(means, n, f"mean pairwise distance among {n} samples, pixels in [0, 1]")


# nearest training images ---------------------------------------------------------------------------------------------


def nn_distance(distances: ArrayLike, against: str = "training images") -> Estimate:
    """Mean distance to the nearest training image; bootstrap over the samples.

    Shapes    distances (N,), or (N, k) as `nearest` gives them, of which the first column counts.
    Units     those of the distances.  `against` goes into the protocol: say how many ("60,000 training images").
    Raises    ValueError for distances that are negative, not finite, or fewer than two.
    """
    return bootstrap(_first(distances), f"mean distance to the nearest of the {against}")


def distance_ratio(distances: ArrayLike) -> Estimate:
    r"""Mean ratio of the nearest to the second nearest distance; bootstrap over the samples.

        mean d_1 / d_2,    0 / 0 = 0

    0 for exact copies (of duplicated images too), near 1 for samples that are close to no image in particular.

    Shapes    distances (N, 2) or (N, k >= 2), nearest first.
    Units     a number in [0, 1].
    Raises    ValueError for distances of one column, not sorted, negative, not finite, or fewer than two.
    """
    first, second = _first_two(distances)
    ratio = np.divide(first, second, out=np.zeros_like(first), where=second > 0)
    return bootstrap(ratio, "mean ratio of nearest to second nearest distance to the training images")


def closer_than(distances: ArrayLike, threshold: float) -> Estimate:
    """Share of samples nearer to a training image than the threshold; Wilson's interval.

    With the 1st percentile of held-out images as threshold, fresh images of the same distribution score 0.01.

    Shapes    distances (N,) or (N, k), of which the first column counts.
    Units     threshold in the units of the distances; a share in [0, 1].
    Raises    ValueError for a negative or infinite threshold, or distances that are negative or not finite.
    """
    if not 0 <= threshold < np.inf:
        raise ValueError(f"threshold must be a distance, got {threshold}")
    return share(_first(distances) < threshold, f"share nearer than {threshold:.6g} to one of the training images")


def memorized(distances: ArrayLike) -> Estimate:
    r"""Share of samples less than a third as far from their nearest training image as from the second nearest.

        d_1 < d_2 / 3

    Counts copies as the field does; one that is noisy enough passes for an original.

    Shapes    distances (N, 2) or (N, k >= 2), nearest first; a share in [0, 1], with Wilson's interval.
    Raises    ValueError for distances of one column, not sorted, negative, not finite, or none.
    Source    Yoon et al. 2023 (ICML workshop SPIGM), section 3; Gu et al. 2023 (arXiv:2310.02664), section 2.
    """
    first, second = _first_two(distances)
    return share(3 * first < second, "share less than a third as far from the nearest as from the second nearest of "
                                     "the images trained on")


def nearer_seen(seen: ArrayLike, others: ArrayLike) -> Estimate:
    r"""How often a sample is nearer to the images trained on than to as many others of the same kind.

        mean over samples x and sets S' of   1[d(x, S) < d(x, S')] + 1[d(x, S) = d(x, S')] / 2

    S are the images trained on, each S' as many that were not; d is the distance to the nearest of a set.  1/2 for
    images that owe S no more than any S', 1 for copies.  Whatever moves a sample away from all real images, noise
    above all, moves it from either set, so that a noisy copy still counts.

    Shapes    seen (N,); others (N, K), a column per set S'; both the nearest distances, in one unit.
    Returns   the mean with a bootstrap interval over the samples: for these very sets.  What the choice of S adds shows
              in images that cannot be copies, held-out ones.
    Raises    ValueError for other shapes, distances that are negative or not finite, or fewer than two samples.
    Source    the data-copying test of Meehan, Chaudhuri & Dasgupta 2020 (arXiv:2004.05675), with a set of unseen
              training images in the place of its test images, and shares in that of its ranks.
    """
    d, e = _first(seen, "seen"), doubles(others)
    if e.ndim != 2 or len(e) != len(d) or not e.shape[1] or not ((e >= 0) & (e < np.inf)).all():
        raise ValueError(f"others: need finite distances >= 0, ({len(d)}, K), a column per set of images, got shape "
                         f"{e.shape}")
    nearer = (d[:, None] < e) + 0.5 * (d[:, None] == e)
    return bootstrap(nearer.mean(1), f"share nearer to the images trained on than to as many others, {e.shape[1]} sets "
                                     f"of those")


def other_gap(winners: ArrayLike, train: ArrayLike | Tensor) -> NDArray[np.float64]:
    """Distance of each winning training image to its own nearest other training image, for `authenticity`.

    Shapes    winners (N,) or (N, k) indices into train, first column -> (N,); each different winner is searched once.
    Units     those of `nearest`.
    Raises    ValueError for indices that are no integers or out of range, and training sets of one image.
    """
    index = np.asarray(winners)
    index = index[:, 0] if index.ndim == 2 else index
    if index.ndim != 1 or index.dtype.kind not in "iu" or not len(index):
        raise ValueError(f"winners: need integer indices (N,) or (N, k), got {index.dtype} {index.shape}")
    if index.min() < 0 or index.max() >= len(train) or len(train) < 2:
        raise ValueError(f"winners must index train, which needs two images or more: got {index.min()}..{index.max()} "
                         f"for {len(train)}")
    unique, inverse = np.unique(index, return_inverse=True)
    train = train if isinstance(train, Tensor) else np.asarray(train)
    # its own distance 0 is the smallest, so the second smallest is that of the nearest other, duplicates included
    return nearest(train[unique], train, k=2)[0][inverse, 1]


def authenticity(distances: ArrayLike, gap: ArrayLike) -> Estimate:
    r"""Share of samples that are farther from their nearest training image than that one is from the others.

        authentic(x) = d(x, r) > min d(r, r'),    r the training image nearest to x, r' all others


    Shapes    distances (N,) or (N, k), first column; gap (N,) from `other_gap` of the same samples' winners.
    Units     both distances in one unit; a share in [0, 1], with Wilson's interval.
    Raises    ValueError for different lengths, or distances that are negative or not finite.
    DIFFERS   the authors' code looks up the sample nearest to each training image; this is the paper's definition.
              Equality counts as copied, as in their code, so that copies of duplicated images are not authentic.
    Source    Alaa et al. 2022 (arXiv:2102.08921), authenticity.
    """
    d, g = _first(distances), _first(gap, "gap")
    if len(d) != len(g):
        raise ValueError(f"need one gap per sample, got {len(g)} for {len(d)} samples")
    return share(d > g, "share farther from its nearest of the training images than that is from its own nearest")


def diversity(samples: ArrayLike | Tensor) -> Estimate:
    """Mean distance over all pairs of samples, with the jackknife interval.

    Shapes    samples (N, ...) uint8 images, N from 20 to a few thousand: the N^2 distances are held.
    Units     pixels in [0, 1].
    Raises    ValueError for images that are not uint8 or fewer than 20.
    """
    matrix = _pairwise(_images(samples, "samples", 2))
    return jackknife(lambda keep: _mean_pair(matrix[np.ix_(keep, keep)]), len(matrix),
                     f"mean pairwise distance among all {len(matrix)} samples, pixels in [0, 1]")


# building blocks -----------------------------------------------------------------------------------------------------


def _pairwise(x: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Distances (N, N) of flat images; float64 products of grey levels are integers below 2^53, so d^2 is exact."""
    grey = x.astype(np.float64)
    square = np.sum(grey**2, axis=1)
    return np.sqrt(square[:, None] + square - 2 * grey @ grey.T) / 255


def _mean_pair(matrix: NDArray[np.float64]) -> float:
    n = len(matrix)
    return float(matrix.sum() / (n * (n - 1)))  # the diagonal is 0


def _single_draws(means: list[float], n: int, protocol: str) -> Estimate:
    if len(means) < 2:
        raise ValueError(f"need at least 2 draws for an interval, got {len(means)}")
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    protocol += f"; mean of {len(means)} draws, interval: central {CONFIDENCE:.0%} of single draws"
    return Estimate(float(np.mean(means)), float(low), float(high), n, protocol)


def _draw(x: NDArray[np.uint8], n: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    return x[rng.choice(len(x), n, replace=False)]


def _images(x: ArrayLike | Tensor, name: str, least: int) -> NDArray[np.uint8]:
    """uint8 images as (N, D)."""
    x = x.cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if x.dtype != np.uint8 or x.ndim < 2:
        raise ValueError(f"{name}: need uint8 images (N, ...), got {x.dtype} {x.shape}")
    if len(x) < least:
        raise ValueError(f"{name}: need at least {least} images, got {len(x)}; give more or ask for fewer")
    return x.reshape(len(x), -1)


def _first_two(distances: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The nearest and the second nearest distance of each sample."""
    d = doubles(distances)
    if d.ndim != 2 or d.shape[1] < 2 or (d[:, 0] > d[:, 1]).any():
        raise ValueError(f"need distances (N, 2), nearest first, got shape {d.shape}: call nearest with k=2")
    return _first(d), _first(d[:, 1])


def _first(distances: ArrayLike, name: str = "distances") -> NDArray[np.float64]:
    """The nearest distance of each sample."""
    d = doubles(distances)
    d = d[:, 0] if d.ndim == 2 and d.shape[1] else d
    if d.ndim != 1 or not len(d) or not ((d >= 0) & (d < np.inf)).all():
        raise ValueError(f"{name}: need finite distances >= 0, shape (N,) or (N, k), got shape {d.shape}")
    return d
