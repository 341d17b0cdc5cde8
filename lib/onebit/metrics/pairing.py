"""Do two networks draw the same image from the same noise?"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .estimate import Estimate, bootstrap


def paired_distance(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Distance of images from the same noise over that of images from different noise, mean over noises.

        r_i = |a_i - b_i| / mean_{j != i} |a_i - b_j|

    0: the same image; 1: the noise does not matter; the network alone decides.

    Shapes    (N, ...) each, the i-th of both from the same noise; N >= 3.
    Raises    ValueError for other shapes, values that are not finite, or images that are all alike.
    Source    this work, notebook 06.
    """
    x, y = _flat(a), _flat(b)
    if x.shape != y.shape or len(x) < 3:
        raise ValueError(f"need two sets of at least 3 images in the same order, got {x.shape} and {y.shape}")
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    distances = np.sqrt(squared.clip(min=0))
    own = np.linalg.norm(x - y, axis=1)  # not the diagonal, which the expansion above rounds
    others = (distances.sum(1) - distances.diagonal()) / (len(x) - 1)
    if not others.all():
        raise ValueError("images of different noises are all alike: nothing to compare with")
    return bootstrap(own / others, f"same noise over different noise, {len(x)} pairs")


def label_agreement(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Share of noises from which both networks draw what a judge calls the same class.

    Shapes    labels (N,) each.
    Raises    ValueError for different lengths.
    """
    x, y = np.asarray(a), np.asarray(b)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"need two label lists of the same length, got {x.shape} and {y.shape}")
    return bootstrap((x == y).astype(float), f"same class from the same noise, {len(x)} pairs")


def chance_agreement(a: ArrayLike, b: ArrayLike, k: int = 10) -> float:
    """Agreement two networks would reach without sharing noise: sum over classes of the product of their shares."""
    return float(np.dot(*(np.bincount(np.asarray(labels), minlength=k) / len(labels) for labels in (a, b))))


def _flat(images: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(images, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("images hold NaN or infinity")
    return x.reshape(len(x), -1)
