"""Do two networks draw the same image from the same noise?"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .classes import CLASSES, as_classes
from .estimate import Estimate, bootstrap, check_layout, doubles, share
from .legibility import NO_CLASS

ALIKE = 1e-6  # of the largest norm: nearer than that, the expansion of |a - b|^2 is rounding


def paired_distance(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Distance of images from the same noise over that of images from different noise, mean over noises.

        r_i = |a_i - b_i| / mean_{j != i} |a_i - b_j|

    0: the same image; 1: the noise does not matter; the network alone decides.

    Shapes    (N, ...) each, the i-th of both from the same noise; N >= 3.
    Raises    ValueError for other shapes, values that are not finite, or images that are all alike.
    Source    this work, notebook 06.
    """
    x, y = _flat(a), _flat(b)
    check_layout(a, b, "a and b")
    if x.shape != y.shape or len(x) < 3:
        raise ValueError(f"need two sets of at least 3 images in the same order, got {x.shape} and {y.shape}")
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    distances = np.sqrt(squared.clip(min=0))
    own = np.linalg.norm(x - y, axis=1)  # not the diagonal, which the expansion above rounds
    others = (distances.sum(1) - distances.diagonal()) / (len(x) - 1)
    if (others <= ALIKE * np.linalg.norm(x, axis=1).max()).any():
        raise ValueError("images of different noises are all alike: nothing to compare with")
    return bootstrap(own / others, f"same noise over different noise, {len(x)} pairs")


def label_agreement(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Share of noises from which both networks draw what a judge calls the same class; Wilson's interval.

    Images of `NO_CLASS` (a panel's ties, see `majority`) count among the pairs and agree with none, not even another.

    Shapes    labels (N,) each, the i-th of both from the same noise: integers 0..9, or -1.
    Raises    ValueError for different lengths, no labels, or labels that are no classes.
    """
    x, y = (as_classes(labels, CLASSES, name, NO_CLASS) for labels, name in ((a, "labels a"), (b, "labels b")))
    if len(x) != len(y):
        raise ValueError(f"need two label lists of the same length, got {len(x)} and {len(y)}")
    return share((x == y) & (x != NO_CLASS), f"same class from the same noise, {len(x)} pairs")


def chance_agreement(a: ArrayLike, b: ArrayLike) -> float:
    """Agreement two networks would reach without sharing noise: sum over classes of the product of their shares.

    Images of `NO_CLASS` count among the images and in no class, as in `label_agreement`.

    Shapes    labels (N,) and (M,): integers 0..9, or -1.
    Raises    ValueError for no labels, or labels that are no classes.
    """
    return float(np.dot(_shares(a, "labels a"), _shares(b, "labels b")))


def _shares(labels: ArrayLike, name: str) -> NDArray[np.float64]:
    """Of each class among all images, (10,)."""
    x = as_classes(labels, CLASSES, name, NO_CLASS)
    return np.bincount(x[x != NO_CLASS], minlength=CLASSES) / len(x)


def _flat(images: ArrayLike) -> NDArray[np.float64]:
    x = doubles(images)
    if not np.isfinite(x).all():
        raise ValueError("images hold NaN or infinity")
    return x.reshape(len(x), -1)
