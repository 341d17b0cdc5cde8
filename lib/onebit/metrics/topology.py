"""Components and holes of grey images, at one threshold and at all (persistence), and how they change along a walk.

An image at threshold t is {x >= t}, grey levels as shares of 255, 0 < t <= 1.  Components are 8-connected; holes are
the 4-connected components of the complement other than the outside, which surrounds the image.
"""

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray

from .paths import as_paths

EIGHT = np.ones((3, 3), dtype=bool)
FLOOR = 0.2  # of persistence: a fifth of the grey scale; fainter features are sampling noise


def betti(image: ArrayLike, threshold: float = 0.5) -> tuple[int, int]:
    """Numbers of components and of holes at one threshold.

    Shapes    image (H, W) or (1, H, W) uint8.
    Raises    ValueError for other images, or a threshold outside (0, 1].
    """
    _check_threshold(threshold)
    ink = _grey(image) / 255 >= threshold
    outside = np.pad(~ink, 1, constant_values=True)
    return scipy.ndimage.label(ink, EIGHT)[1], scipy.ndimage.label(outside)[1] - 1


def persistence(image: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Birth and death of every component and every hole as the threshold falls from 1 to 0.

    A feature is alive at threshold t if death < t <= birth, so birth > death, and the numbers alive are `betti`'s at
    every t.  Where two meet, the one born first (at the higher threshold) lives on: the elder rule.  Components that
    never meet above background die at 0; a hole dies at the level of its darkest pixel, which fills it.

    Shapes    image (H, W) or (1, H, W) uint8 -> (K, 2), (M, 2) float64, the most persistent first.
    Units     shares of 255.
    Raises    ValueError for other images.
    Source    Edelsbrunner & Harer 2010, Computational Topology, VII.1 (elder rule); holes are components of the
              complement, with the other connectivity, by duality (arXiv:2102.11397).
    """
    grey = np.pad(_grey(image), 1).astype(np.int64)  # the frame is the outside, as dark as can be: elder than any hole
    width, grey = grey.shape[1], grey.ravel()
    # bright first; background pixels belong to no component at any threshold > 0
    components = _merge_tree(-grey, (-grey).argsort(kind="stable")[: np.count_nonzero(grey)],
                             (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1), end=0)
    holes = _merge_tree(grey, grey.argsort(kind="stable"), (-width, -1, 1, width), end=None)
    return _bars([(-birth, -death) for birth, death in components]), _bars([(late, early) for early, late in holes])


def _merge_tree(value: NDArray, order: NDArray, neighbours: tuple[int, ...], end: int | None) -> list[tuple[int, int]]:
    """(first, last) value of every component of the growing set {value <= v}, by union-find.

    Pixels join in `order`.  Components of one value are no features: they are dropped.  The last ones standing end at
    `end`, or are dropped too if that is None.
    """
    values = value.tolist()
    parent = [-1] * len(values)  # -1: not yet in the set; a root is the first pixel of its component
    bars = []
    for pixel in order.tolist():
        parent[pixel] = pixel
        now, mine = values[pixel], pixel
        for step in neighbours:
            other = pixel + step
            if not 0 <= other < len(parent) or parent[other] < 0:  # the frame's own neighbours can lie outside
                continue
            while parent[other] != other:
                parent[other] = other = parent[parent[other]]
            if other == mine:
                continue
            elder, younger = (other, mine) if values[other] <= values[mine] else (mine, other)
            if values[younger] < now:
                bars.append((values[younger], now))
            parent[younger] = mine = elder
    if end is not None:
        bars += [(values[root], end) for root in order.tolist() if parent[root] == root]
    return bars


def _bars(levels: list[tuple[int, int]]) -> NDArray[np.float64]:
    return np.array(sorted(levels, key=lambda bar: bar[1] - bar[0]), dtype=np.float64).reshape(-1, 2) / 255


def betti_curve(frames: ArrayLike, threshold: float = 0.5, persistence_at_least: float = FLOOR) -> NDArray[np.int64]:
    """Components and holes of every frame that are alive at the threshold and persist; a grey speck does not.

    Shapes    frames uint8 (P, F, 1, H, W) -> (P, F, 2); (F, 1, H, W) -> (1, F, 2).
    Units     persistence_at_least: birth - death, a share of 255; 0 gives `betti` of every frame.
    Raises    ValueError for other frames, a threshold outside (0, 1], or a floor outside [0, 1].
    """
    _check_threshold(threshold)
    if not 0 <= persistence_at_least <= 1:
        raise ValueError(f"persistence_at_least must be in [0, 1], got {persistence_at_least}")
    as_paths(frames, least=1)
    x = np.asarray(frames)
    x = x.reshape(-1, *x.shape[-4:])  # (P, F, 1, H, W)
    return np.array([[[_alive(bars, threshold, persistence_at_least) for bars in persistence(frame)]
                      for frame in path] for path in x])


def _alive(bars: NDArray, threshold: float, floor: float) -> int:
    birth, death = bars.T
    return int(((death < threshold) & (threshold <= birth) & _reaches(birth - death, floor)).sum())


def _reaches(persistence: NDArray, floor: float) -> NDArray:
    """persistence >= floor, in whole grey levels: differences of shares of 255 fall to either side of it."""
    return np.round(persistence * 255) >= floor * 255 - 1e-9


def topology_changes(frames: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """How often the topology of a path changes from frame to frame, and how far it falls to pieces on its way.

    component_births, component_deaths, hole_opens, hole_closes   sums of the rises and of the falls of `betti_curve`:
        lower bounds, as a birth and a death between the same two frames cancel
    fragmentation   mean over inner frames of the components beyond the larger number at the two ends

    A cohesive solid that bends scores 0 on all five.

    Shapes    frames uint8 (P, F, 1, H, W) -> (P,) each; (F, 1, H, W) -> (1,).
    Raises    ValueError as `betti_curve`, or for fewer than three frames.
    Source    this work, for source 000's "topologically cohesive solid".
    """
    as_paths(frames)
    curve = betti_curve(frames)
    rises, falls = (np.clip(s * np.diff(curve, axis=1), 0, None).sum(axis=1).astype(np.float64) for s in (1, -1))
    parts = curve[..., 0]
    ends = np.maximum(parts[:, :1], parts[:, -1:])
    return {
        "component_births": rises[:, 0], "component_deaths": falls[:, 0],
        "hole_opens": rises[:, 1], "hole_closes": falls[:, 1],
        "fragmentation": (parts[:, 1:-1] - ends).clip(min=0).mean(axis=1),
    }


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")


def _grey(image: ArrayLike) -> NDArray[np.uint8]:
    x = np.asarray(image)
    x = x[0] if x.ndim == 3 and len(x) == 1 else x
    if x.dtype != np.uint8 or x.ndim != 2 or not x.size:
        raise ValueError(f"image must be uint8 (H, W) or (1, H, W), got {x.dtype} {np.shape(image)}")
    return x
