"""Legibility: can the digits be read?  One judge's confidence (published), and the agreement of a panel of judges."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration import top_class
from .classes import as_classes
from .estimate import Estimate, bootstrap, doubles, jackknife, share

NO_CLASS = -1  # the label of an image whose judges are tied


def confidence(probabilities: ArrayLike, n: int | None = None) -> Estimate:
    """Mean over images of the judge's largest class probability, of the first n images or of all.

    Shapes    probabilities (N, K), rows summing to 1.  Source 000 uses n = 1,000.
    Raises    ValueError for rows that are no distributions, fewer than two images, or more asked for than there are.
    Source    source 000, legibility_evaluation.py 213-221 ("Legibility Score").
              A confident wrong class counts in full.
    """
    _, sure = top_class(probabilities)
    n = len(sure) if n is None else n
    if not 2 <= n <= len(sure):
        raise ValueError(f"n must be 2 to {len(sure)}, the images there are, got {n}")
    return bootstrap(sure[:n], f"mean largest class probability of {n} images")


def agreement(labels_by_judge: ArrayLike) -> Estimate:
    """Share of images that all judges give the same class, with Wilson's interval.

    Shapes    labels_by_judge (J, N) integer classes, J >= 2: one row per judge.
    Raises    ValueError for labels of another shape or type, or negative ones.
    Source    Wilson 1927 (interval).  Judges that guess agree too: `fleiss_kappa` takes that off.
    """
    labels = _panel(labels_by_judge)
    return share(_unanimous(labels), f"all {len(labels)} judges name the same class")


def majority(labels_by_judge: ArrayLike) -> NDArray[np.int64]:
    """The class that more judges name than any other; `NO_CLASS` where the first two are level.

    Two votes of four beat one and one: no absolute majority is asked for.

    Shapes    labels_by_judge (J, N) integer classes, J >= 2 -> (N,).
    Raises    ValueError as `agreement`.
    """
    labels = _panel(labels_by_judge)
    named, which = np.unique(labels, return_inverse=True)
    votes = _votes(which.reshape(labels.shape), len(named))
    most = votes.max(axis=1, keepdims=True)
    return np.where((votes == most).sum(axis=1) == 1, named[votes.argmax(axis=1)], NO_CLASS)


def fleiss_kappa(labels_by_judge: ArrayLike, k: int = 10) -> Estimate:
    r"""Agreement of pairs of judges beyond what the panel's own class shares would give by chance.

        kappa = (P - P_e) / (1 - P_e),   P = mean_i sum_c n_ic (n_ic - 1) / (J (J - 1)),   P_e = sum_c p_c^2

    n_ic judges of J name class c for image i; p_c is the share of all votes.  1: always agreed; 0: as by chance.
    Judges that guess all ten classes evenly have P_e = 1/10.

    Shapes    labels_by_judge (J, N) integer classes 0 .. k-1, J >= 2.
    Raises    ValueError as `agreement`, for classes of k and above, for fewer images than the jackknife has groups,
              and if every vote (of some jackknife group) is for one class, where kappa is 0 / 0.
    Source    Fleiss 1971, Psychological Bulletin 76, 378-382.
    """
    labels = _panel(labels_by_judge)
    if labels.max() >= k:
        raise ValueError(f"labels_by_judge must be classes 0 .. {k - 1}, got {labels.max()}")
    votes = _votes(labels, k)
    return jackknife(lambda used: _kappa(votes[used]), len(votes), f"Fleiss' kappa of {len(labels)} judges")


def legible(labels_by_judge: ArrayLike, calibrated_probabilities: ArrayLike, threshold: float = 0.5) -> Estimate:
    """Share of images that all judges read as the same class, in which a calibrated judge is confident.

    Its probability of the panel's class counts: a judge sure of another class does not read the image so.

    Shapes    labels_by_judge (J, N) integer classes 0 .. K-1, J >= 2; calibrated_probabilities (N, K).
    Raises    ValueError as `agreement`, for rows that are no distributions, another number of images, classes of K
              and above, or a threshold outside [0, 1).
    Source    this work; Wilson 1927 (interval).
    """
    labels = _panel(labels_by_judge)
    top_class(calibrated_probabilities)  # refuses what is no distribution
    p = doubles(calibrated_probabilities)
    if p.shape[0] != labels.shape[1] or p.shape[1] <= labels.max():
        raise ValueError(f"calibrated_probabilities {p.shape} do not fit labels_by_judge {labels.shape} of classes "
                         f"0 .. {labels.max()}: one row per image, one column per class")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold}")
    sure = p[np.arange(len(p)), labels[0]] > threshold
    return share(_unanimous(labels) & sure, f"all {len(labels)} judges name the same class, "
                                             f"of calibrated probability above {threshold}")


def by_class(values: ArrayLike, labels: ArrayLike, k: int = 10, minimum: int = 2,
             allow_empty: bool = False) -> list[tuple[int, Estimate]]:
    """Mean of one value per image, for each class, with the bootstrap interval.

    Shapes    values (N,), labels (N,) integer classes 0 .. k-1.
    Raises    ValueError for a class of fewer than `minimum` images, unless `allow_empty`, which leaves it out; for
              values that are not finite, labels that are no classes, or a minimum below 2.
    """
    x, y = doubles(values), as_classes(labels, k)
    if x.shape != y.shape or not np.isfinite(x).all():
        raise ValueError(f"need finite values of shape {y.shape}, one per label, got {x.shape}")
    if minimum < 2:
        raise ValueError(f"minimum must be at least 2, as an interval needs, got {minimum}")
    counts = np.bincount(y, minlength=k)
    small = np.flatnonzero(counts < minimum)
    if len(small) and not allow_empty:
        raise ValueError(f"classes {small.tolist()} have {counts[small].tolist()} images, fewer than minimum = "
                         f"{minimum}; measure more images, or leave these classes out with allow_empty=True")
    return [(c, bootstrap(x[y == c], f"mean over class {c}")) for c in range(k) if counts[c] >= minimum]


class ClassLoss(NamedTuple):
    """One class's share among reference images and among others, and how much of it is lost (negative: gained)."""

    label: int
    reference: Estimate
    share: Estimate
    loss: Estimate


def class_losses(labels: ArrayLike, reference_labels: ArrayLike, k: int = 10) -> list[ClassLoss]:
    r"""Which classes get lost: each class's share of the reference images less its share of the images.

        loss = p - q,   between  loss - sqrt((p - l_p)^2 + (u_q - q)^2)  and  loss + sqrt((u_p - p)^2 + (q - l_q)^2)

    with p in [l_p, u_p], q in [l_q, u_q] by Wilson.  The sets are taken as independent; of k intervals at 95 % one in
    twenty misses by chance.  Images of `NO_CLASS` count among the images and in no class: unread is lost.

    Shapes    labels (N,), reference_labels (M,) integer classes 0 .. k-1, or -1 -> k rows.
    Units     shares of images, 0..1.
    Raises    ValueError for no labels, or labels that are no classes.
    Source    Newcombe 1998, Statistics in Medicine 17, 873-890, method 10.
    """
    found = as_classes(labels, k, least=NO_CLASS)
    real = as_classes(reference_labels, k, "reference_labels", NO_CLASS)
    rows = []
    for c in range(k):
        q, p = (share(y == c, f"share of class {c}") for y in (found, real))
        low = np.hypot(p.value - p.low, q.high - q.value)
        high = np.hypot(p.high - p.value, q.value - q.low)
        loss, protocol = p.value - q.value, f"share of class {c} in {len(real)} reference images less that in {q.n}"
        rows.append(ClassLoss(c, p, q, Estimate(loss, float(loss - low), float(loss + high), q.n, protocol)))
    return rows


def _unanimous(labels: NDArray) -> NDArray[np.bool_]:
    return (labels == labels[0]).all(axis=0)


def _votes(labels: NDArray, k: int) -> NDArray[np.int64]:
    """How many judges name each class: (J, N) -> (N, k)."""
    return np.stack([(labels == c).sum(axis=0) for c in range(k)], axis=1)


def _kappa(votes: NDArray[np.int64]) -> float:
    judges = votes[0].sum()
    shares = votes.sum(axis=0) / votes.sum()
    observed = (votes * (votes - 1)).sum(axis=1).mean() / (judges * (judges - 1))
    chance = np.sum(shares**2)
    if np.count_nonzero(shares) == 1:
        raise ValueError("every vote is for one class, where kappa is 0 / 0; measure images of more classes")
    return float((observed - chance) / (1 - chance))


def _panel(labels_by_judge: ArrayLike) -> NDArray[np.int64]:
    labels = np.asarray(labels_by_judge)
    if labels.ndim != 2 or len(labels) < 2 or not labels.size or labels.dtype.kind not in "iu":
        raise ValueError(f"need integer labels_by_judge (J, N) with J >= 2 judges, got {labels.dtype} {labels.shape}")
    if (labels < 0).any():
        raise ValueError(f"labels_by_judge must be classes 0, 1, ..., got {labels.min()}")
    return labels.astype(np.int64)
