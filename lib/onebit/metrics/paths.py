"""How a walk from one image to another proceeds: by fading, by jumping, or by moving its ink.

Every metric maps frames to one float64 number per path: uint8 (P, F, 1, H, W) -> (P,), and (F, 1, H, W) -> (1,).
They raise ValueError for other shapes or dtypes, fewer than three frames, or a path on which they are undefined.
"""

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .estimate import doubles

Paths = NDArray[np.float64]  # (P, F, H, W) or, of numbers, (P,)
MIDDLE = (0.25, 0.75)  # grey levels that are neither background nor ink, as shares of 255
BIN = 0.5  # pixels, of projected ink


def fade_residual(frames: ArrayLike) -> Paths:
    r"""What of the inner frames no mixture of the two ends explains: their mean relative squared residual.

        mean_f  min_{a, b >= 0} |x_f - a A - b B|^2 / |x_f|^2

    0 for a cross-fade, up to the rounding of its grey levels (1e-5); 1 where no ink of the ends is left.  It is high
    for any image that is not a mixture, be it bent or another digit.  MNIST under `transport_morph`: 0.22.

    Raises    also for a blank inner frame.
    Source    this work, for source 000's "intensity interpolation"; the minimum is non-negative least squares.
    """
    x = as_paths(frames)
    _need_ink(x[:, 1:-1], "fade_residual")
    x = x.reshape(*x.shape[:2], -1)
    return np.array([_unexplained(path[1:-1], path[0], path[-1]).mean() for path in x])


def _unexplained(x: NDArray, a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """min over a, b >= 0 for rows of x (F, D): the best of the two axes, or the interior solution where it is inside.

    Images are >= 0, so that on an axis the unconstrained minimum is allowed.
    """
    aa, bb, ab, xa, xb = a @ a, b @ b, a @ b, x @ a, x @ b
    none = np.zeros_like(xa)
    candidates = [(xa / aa if aa else none, none), (none, xb / bb if bb else none)]
    if (determinant := aa * bb - ab * ab) > 1e-12 * aa * bb:
        inside = (bb * xa - ab * xb) / determinant, (aa * xb - ab * xa) / determinant
        allowed = (inside[0] >= 0) & (inside[1] >= 0)
        candidates.append(tuple(np.where(allowed, best, 0.0) for best in inside))  # elsewhere 0, which never wins
    rest = [((x - np.outer(s, a) - np.outer(t, b)) ** 2).sum(axis=1) for s, t in candidates]
    return np.min(rest, axis=0) / (x**2).sum(axis=1)


def mid_grey(frames: ArrayLike) -> Paths:
    """Share of the ink at grey levels in [0.25, 0.75], in the middle third of the path, above that of its two ends.

    Fading turns ink grey on the way; moving it does not, except where strokes get thinner.  MNIST: 0.44 for a
    cross-fade, 0.20 for `transport_morph`, 0.05 for a crisp one.

    Units     a difference of shares, -1..1: mean over frames in the middle third minus mean of the two end frames.
    Raises    also for a blank frame at an end or in the middle third.
    Source    this work, for source 000's "fading".
    """
    x = as_paths(frames)
    at = np.linspace(0, 1, x.shape[1])
    middle = (at > 1 / 3 - 1e-9) & (at < 2 / 3 + 1e-9)
    used = np.concatenate([x[:, [0, -1]], x[:, middle]], axis=1)  # ends first
    _need_ink(used, "mid_grey")
    grey = (used >= MIDDLE[0] * 255) & (used <= MIDDLE[1] * 255)
    share = (used * grey).sum(axis=(2, 3)) / used.sum(axis=(2, 3))
    return share[:, 2:].mean(axis=1) - share[:, :2].mean(axis=1)


def fade_mass(frames: ArrayLike) -> Paths:
    """Deepest dip of the total ink below the straight line between its two ends.

        max_f  1 - ink_f / ((1 - t_f) ink_0 + t_f ink_1)

    0 for a cross-fade and for a transport of ink, up to rounding; it is a dissolution before the new shape appears.

    Units     a share, 0..1; 0 also where the ink bulges.
    Raises    also for blank frames at both ends.
    Source    this work, for source 000's "segments dissolve".
    """
    ink = as_paths(frames).sum(axis=(2, 3))
    t = np.linspace(0, 1, ink.shape[1])
    line = np.outer(ink[:, 0], 1 - t) + np.outer(ink[:, -1], t)
    if not (ink[:, 0] + ink[:, -1]).all():
        raise ValueError("fade_mass needs ink in at least one end frame; leave out blank paths and say how many")
    inner = slice(1, -1)  # at a blank end the ratio is 0 / 0, and at any end there is no dip
    return (1 - ink[:, inner] / line[:, inner]).max(axis=1).clip(min=0)


def largest_jump(frames: ArrayLike) -> Paths:
    """Largest step between neighbouring frames over the mean step, in L2 norm.

    1 for uniform motion, frames - 1 where everything happens at once: it compares only for equal numbers of frames.

    Raises    also for a path that does not move.
    Source    this work, for source 000's "explosion".
    """
    steps = np.sqrt((np.diff(as_paths(frames), axis=1) ** 2).sum(axis=(2, 3)))
    if not steps.any(axis=1).all():
        raise ValueError("largest_jump is undefined on a path that does not move; leave it out and say how many")
    return steps.max(axis=1) / steps.mean(axis=1)


def transport_length(frames: ArrayLike, every: int = 4, directions: int = 32) -> Paths:
    """How far the ink travels along every s-th frame, in units of the way between the ends (`sliced_wasserstein`).

        sum_k SW(x_ks, x_(k+1)s) / SW(x_0, x_1) >= 1      (triangle inequality; the last frame always counts)

    1 for a straight move; detours, noise and fading add length, so that a long path says little about which.  A
    cross-fade of disjoint dots takes the root of the number of steps, so that values compare only for equal `every`
    and numbers of frames.  The projections of two digits overlap, which leaves a narrow scale: over 4 steps between
    MNIST images a cross-fade reads 1.11, `transport_morph` 1.04 (100 pairs), but a crisp one 1.12.

    Raises    also for a blank frame, ends with the same distribution of ink, or `every` outside 1 .. F - 1.
    Source    this work; displacement interpolation is the geodesic of W2 (McCann 1997).
    """
    x = as_paths(frames)
    if not 1 <= every < x.shape[1]:
        raise ValueError(f"every must be in 1..{x.shape[1] - 1} for {x.shape[1]} frames, got {every}")
    kept = [*range(0, x.shape[1] - 1, every), x.shape[1] - 1]
    way = sum(sliced_wasserstein(x[:, i], x[:, j], directions) for i, j in pairwise(kept))
    ends = sliced_wasserstein(x[:, 0], x[:, -1], directions)
    if (ends < 1e-6).any():
        raise ValueError("transport_length is undefined where both ends have the same ink; leave such paths out")
    return way / ends


def sliced_wasserstein(a: ArrayLike, b: ArrayLike, directions: int = 32) -> Paths:
    r"""Sliced 2-Wasserstein distance of images, read as densities of mass 1 that are constant on a pixel.

        SW^2 = 1/D sum_d int_0^1 (F_d^-1(u) - G_d^-1(u))^2 du

    F_d, G_d are the distribution functions of the projections on direction pi (d + 1/2) / D, exact at the edges of
    bins of half a pixel and linear within; the integral is exact.  Pixels as points would make every move by less
    than a pixel look like fading, at a distance that goes as its root.

    Shapes    a, b (N, H, W) or (N, 1, H, W), or one image (H, W), grey levels >= 0 -> (N,).
    Units     pixels.  An image moved by v is at |v| / sqrt(2), the root mean square of its projections.
    Raises    ValueError for other shapes, images of different sizes, blank, negative or not finite ones, or no
              directions.
    Source    Rabin et al. 2012, Bonneel et al. 2015 (sliced W2); Peyré & Cuturi 2019 (arXiv:1803.00567) section 2.6,
              W2 in one dimension.
    """
    if directions < 2:
        raise ValueError(f"directions must be at least 2, got {directions}")
    a, b = (_images(x, name) for x, name in ((a, "a"), (b, "b")))
    if a.shape != b.shape:
        raise ValueError(f"a and b must be as many images of one size, got {a.shape} and {b.shape}")
    projection = _projection(*a.shape[1:], directions)
    a, b = ((x.reshape(len(x), -1) @ projection).reshape(len(x), directions, -1) for x in (a, b))
    return BIN * np.sqrt([_quantile_distance(p, q).mean() for p, q in zip(a, b, strict=True)])


def _images(images: ArrayLike, name: str) -> NDArray[np.float64]:
    x = doubles(images)
    if x.ndim == 4 and x.shape[1] == 1:
        x = x[:, 0]
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"{name} must be images (N, H, W), (N, 1, H, W) or (H, W), got shape {x.shape}")
    if not np.isfinite(x).all() or (x < 0).any() or not x.any(axis=(1, 2)).all():
        raise ValueError(f"{name} must hold finite grey levels >= 0, not all 0: a blank image has no ink to move")
    return x


@lru_cache(maxsize=4)
def _projection(height: int, width: int, directions: int) -> NDArray[np.float64]:
    """Share of each pixel's mass in each bin of each direction: (H W, D bins), rows of a direction summing to 1.

    A unit square projects to the sum of two uniforms, of widths |cos| and |sin|, here at least a thousandth.  The
    distribution function of this trapezoid is a second difference of max(x, 0)^2 / 2.
    """
    angle = np.pi * (np.arange(directions) + 0.5) / directions
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    across, down = abs(cos).clip(min=1e-3), abs(sin).clip(min=1e-3)  # an odd number of directions holds an axis
    row, column = np.divmod(np.arange(height * width), width)
    centre = (column - (width - 1) / 2) * cos + (row - (height - 1) / 2) * sin  # (D, HW)
    reach = int(np.ceil(np.hypot(height, width) / 2 / BIN))
    edges = BIN * np.arange(-reach, reach + 1)
    wide, narrow = ((across + sign * down)[..., None] / 2 for sign in (1, -1))
    x = edges - centre[..., None]  # (D, HW, bins + 1)
    corners = ((1, wide), (-1, narrow), (-1, -narrow), (1, -wide))
    below = sum(sign * (x + at).clip(min=0) ** 2 / 2 for sign, at in corners) / (across * down)[..., None]
    return np.ascontiguousarray(np.diff(below, axis=2).transpose(1, 0, 2).reshape(height * width, -1))


def _quantile_distance(p: NDArray, q: NDArray) -> NDArray[np.float64]:
    """Squared W2 of histograms in rows (D, B), in units of bins, each normalised and spread evenly over its bins.

    Between two neighbouring values of either distribution function, both quantile functions are linear in u; a linear
    difference from x to y over a width w contributes w (x^2 + x y + y^2) / 3.
    """
    p, q = (np.concatenate([np.zeros((len(h), 1)), h.clip(min=0).cumsum(axis=1)], axis=1) for h in (p, q))
    p, q = p / p[:, -1:], q / q[:, -1:]
    both = np.concatenate([p, q], axis=1)
    order = both.argsort(axis=1, kind="stable")  # two sorted runs, which a stable sort merges
    u = np.take_along_axis(both, order, axis=1)
    of_p = (order < p.shape[1]).cumsum(axis=1)[:, :-1]  # how many values of p lie at or before each interval's start
    of_q = np.arange(1, u.shape[1]) - of_p
    gaps = [_quantiles(c, n, u[:, :-1], u[:, 1:]) for c, n in ((p, of_p), (q, of_q))]
    x, y = (first - second for first, second in zip(*gaps, strict=True))
    return (np.diff(u, axis=1) * (x * x + x * y + y * y) / 3).sum(axis=1)


def _quantiles(below: NDArray, count: NDArray, start: NDArray, end: NDArray) -> tuple[NDArray, NDArray]:
    """The quantile function at the ends of intervals that lie between values count - 1 and count of `below`."""
    bin_ = (count - 1).clip(0, below.shape[1] - 2)
    low, high = (np.take_along_axis(below, bin_ + i, axis=1) for i in (0, 1))
    width = np.where(high > low, high - low, 1.0)  # an empty bin meets intervals of width 0 only
    return bin_ + (start - low) / width, bin_ + (end - low) / width


def as_paths(frames: ArrayLike, least: int = 3) -> Paths:
    """Frames of one or more paths as float64 grey levels (P, F, H, W).

    Raises    ValueError for what is not uint8 (F, 1, H, W) or (P, F, 1, H, W), or has fewer than `least` frames.
    """
    x = np.asarray(frames)
    x = x[None] if x.ndim == 4 else x
    if x.dtype != np.uint8 or x.ndim != 5 or x.shape[2] != 1 or 0 in x.shape or x.shape[1] < least:
        raise ValueError(f"frames must be uint8 (F, 1, H, W) or (P, F, 1, H, W) with F >= {least}, got {x.dtype} "
                         f"{np.shape(frames)}")
    return x[:, :, 0].astype(np.float64)


def _need_ink(x: Paths, metric: str) -> None:
    blank = ~x.any(axis=(2, 3)).all(axis=1)
    if blank.any():
        raise ValueError(f"{metric} is undefined on blank frames: path {np.flatnonzero(blank)[0]} has one; leave such "
                         "paths out and say how many")
