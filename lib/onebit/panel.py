"""A panel of judges of other kinds than the network: logistic regression and nearest neighbours, on bare pixels.

They see no features and share no errors of the network's kind, so an image they all read alike is the likelier to be
read for its shape.
"""

import warnings

import numpy as np
import scipy.special
from numpy.typing import ArrayLike, NDArray

from .data import Dataset

CLASSES = 10
ITERATIONS = 100  # of L-BFGS: 92.58 % of MNIST's test images; another hundred, 92.64 %
NEIGHBOURS = 5


def fit_logistic(dataset: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Multinomial logistic regression on all pixels of a training split, stopped after at most 100 steps of L-BFGS.

    No seed: the fit starts at zero and draws nothing.

    Shapes    -> coefficients (10, H W), intercepts (10,).  A class the data set lacks has 0 and -infinity.
    Units     per pixel of ink 0..1.
    Raises    ValueError for a data set with fewer than two classes.
    Source    scikit-learn LogisticRegression, penalty 1/2 |w|^2 against the summed loss (C = 1).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(dataset.labels.unique()) < 2:
        raise ValueError(f"{dataset.name} has {len(dataset.labels.unique())} class: nothing to tell apart")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is part of the definition
        model = LogisticRegression(max_iter=ITERATIONS).fit(_ink(dataset.images), dataset.labels.numpy())
    coefficients, intercepts = np.zeros((CLASSES, model.coef_.shape[1])), np.full(CLASSES, -np.inf)
    if len(model.classes_) == 2:  # there scikit-learn keeps one row, for the second class against the first
        intercepts[model.classes_[0]] = 0
        coefficients[model.classes_[1]], intercepts[model.classes_[1]] = model.coef_[0], model.intercept_[0]
    else:
        coefficients[model.classes_], intercepts[model.classes_] = model.coef_, model.intercept_
    return coefficients, intercepts


def logistic_probabilities(images: ArrayLike, coefficients: ArrayLike, intercepts: ArrayLike) -> NDArray[np.float64]:
    """Class probabilities softmax(W x + b) of uint8 images, x their ink 0..1.

    Shapes    images (N, 1, H, H) uint8, coefficients (10, H H), intercepts (10,) -> (N, 10).
    Raises    ValueError for images of another type or size, or coefficients that are not (10, H H) and finite.
    """
    w, b = np.asarray(coefficients, dtype=np.float64), np.asarray(intercepts, dtype=np.float64)
    if w.ndim != 2 or len(w) != CLASSES or b.shape != (CLASSES,):
        raise ValueError(f"need coefficients ({CLASSES}, D) and intercepts ({CLASSES},), got {w.shape} and {b.shape}")
    if not np.isfinite(w).all() or np.isnan(b).any() or b.max() in (-np.inf, np.inf):
        raise ValueError("coefficients or intercepts hold NaN, infinity or no class at all: fit them anew")
    return scipy.special.softmax(_ink(images, w.shape[1]) @ w.T + b, axis=1)


def knn_labels(images: ArrayLike, dataset: Dataset, k: int = NEIGHBOURS) -> NDArray[np.int64]:
    """The class most named by the k training images nearest in Euclidean distance of pixels.

    A tied vote goes to the smallest class.  Images of the training split are their own nearest neighbours.

    Shapes    images (N, 1, H, H) uint8 -> (N,).
    Raises    ValueError for images of another type or size than the data set's, or a k that it cannot fill.
    Source    Cover & Hart 1967; scikit-learn KNeighborsClassifier, brute force.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if not 1 <= k <= len(dataset):
        raise ValueError(f"k must be 1 to {len(dataset)}, the images of {dataset.name}, got {k}")
    train = _grey(dataset.images)
    asked = _grey(images, train.shape[1])
    model = KNeighborsClassifier(k, algorithm="brute").fit(train, dataset.labels.numpy())
    return model.predict(asked).astype(np.int64)


def _ink(images: ArrayLike, pixels: int | None = None) -> NDArray[np.float64]:
    """Pixels (N, H W) in 0..1."""
    return _flat(images, pixels).astype(np.float64) / 255


def _grey(images: ArrayLike, pixels: int | None = None) -> NDArray[np.float32]:
    """Pixels (N, H W) in 0..255; whole numbers, exact in float32, whose distances scikit-learn sums in float64."""
    return _flat(images, pixels).astype(np.float32)


def _flat(images: ArrayLike, pixels: int | None) -> NDArray[np.uint8]:
    x = np.asarray(images)
    side = x.shape[-1] if pixels is None else round(pixels**0.5)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1:] != (1, side, side) or not len(x):
        raise ValueError(f"need uint8 images (N, 1, {side}, {side}), at least one, got {x.dtype} {x.shape}")
    return x.reshape(len(x), -1)
