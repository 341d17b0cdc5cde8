"""Texture: spectra, grey levels and stroke widths of images, without any network's opinion."""

from typing import TypeVar

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, from_numpy

from .estimate import Estimate, bootstrap

INK = 0.1  # grey level above which a pixel is ink; below lies the noise of a background that is not quite 0
Images = TypeVar("Images", NDArray[np.uint8], Tensor)

# spectra -------------------------------------------------------------------------------------------------------------


def power_spectrum(images: ArrayLike | Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    r"""Radially averaged power spectrum of each image.

        P(f) = |sum_x image(x) exp(-2 pi i f.x)|^2 / (H W),    so sum_f P(f) = sum_x image(x)^2   (Parseval)

    Averaged over the rings of frequencies nearest to |f| = 0, 1/s, 2/s, .. (s // 2)/s, s the shorter side.  The corners
    beyond the last ring (directions in which both axes oscillate fast) are in no ring.  No window: images are taken
    as periodic, which is harmless where the border is background.

    Shapes    images (N, 1, H, W) uint8 -> frequency (F,), power (N, F), F = s // 2 + 1.
    Units     frequency in cycles per pixel; power of grey levels in [0, 1].  power[:, 0] is that of the mean, DC.
    Raises    ValueError for images that are not uint8 (N, 1, H, W).
    """
    x = _grey(images)
    side = min(x.shape[1:])
    ring = np.round(_radius(*x.shape[1:]) * side).astype(int).ravel()
    count = np.bincount(ring)[: side // 2 + 1]
    spectrum = _spectrum(x).reshape(len(x), -1)
    power = np.stack([spectrum[:, ring == r].sum(axis=1) for r in range(len(count))], axis=1) / count
    return np.arange(len(count)) / side, power


def high_share(images: ArrayLike | Tensor, cutoff: float) -> Estimate:
    """Mean share of an image's spectral energy, without DC, above a frequency; bootstrap over the images.

    Shapes    images (N, 1, H, W) uint8.  Images of one grey level have no such energy: they do not count, nor in n.
    Units     cutoff in cycles per pixel, 0..0.5, as |f|; frequencies of exactly the cut-off count as below.
    Raises    ValueError for images that are not uint8 (N, 1, H, W), fewer than two that vary, or another cut-off.
    """
    if not 0 <= cutoff <= 0.5:
        raise ValueError(f"cutoff must be in 0..0.5 cycles per pixel, got {cutoff}")
    x = _grey(images)
    spectrum = _spectrum(x)
    spectrum[:, 0, 0] = 0
    varies = np.ptp(x, axis=(1, 2)) > 0
    high = spectrum[:, _radius(*x.shape[1:]) > cutoff + 1e-9].sum(axis=1)  # 1e-9: k / H is not exact
    shares = high[varies] / spectrum[varies].sum(axis=(1, 2))
    return _average(shares, len(x), f"share of spectral energy above {cutoff:g} cycles per pixel, without DC")


def low_pass(images: Images, cutoff: float) -> Images:
    r"""Images blurred by the discrete Gaussian that halves the power at the cut-off.

        out = sum_n g(n) image(x - n),    g(n) = e^(-2t) I_n1(t) I_n2(t),    I the modified Bessel functions;
        G(f) = exp(-t (2 - cos 2 pi f1 - cos 2 pi f2)),                       t = log 2 / (2 (1 - cos 2 pi cutoff))

    So |G|^2 = 1/2 at the cut-off along either axis (0.48 along the diagonal for 0.2, 0.33 for 0.5).  The end is soft:
    at twice the cut-off 7 % of the power are left for 0.05, 16 % for 0.2.  An ideal filter is sharp, but answers
    strokes with ripples and, once these are clipped at black and white, with new frequencies above its cut-off: texture
    that no model made.  So does a Gaussian of f that is cut off at the finest frequency.  This one has weights g >= 0
    that sum to 1: no grey level leaves the range of the image's own, nothing is clipped, and the filter stays linear.

    Shapes    images (N, 1, H, W) uint8 -> the same, rounded; an array gives an array, a tensor a tensor.
    Units     cutoff in cycles per pixel, above 0 and up to 0.5, the finest along an axis; infinity changes nothing.
              Images are taken as periodic.  Rounding adds white noise of 1/12 squared grey level.
    Raises    ValueError for images that are not uint8 (N, 1, H, W), or another cut-off.
    Source    Lindeberg 1990, Scale-space for discrete signals, PAMI 12(3).
    """
    if not (0 < cutoff <= 0.5 or cutoff == np.inf):
        raise ValueError(f"cutoff must be above 0 and up to 0.5 cycles per pixel, or infinity, got {cutoff}")
    x = _grey(images)
    if cutoff == np.inf:
        return images.clone() if isinstance(images, Tensor) else np.array(images)
    blurred = np.fft.ifft2(np.fft.fft2(x) * _response(*x.shape[1:], cutoff)).real
    levels = (blurred * 255).round().astype(np.uint8)[:, None]  # in 0..255 already, see above
    return from_numpy(levels) if isinstance(images, Tensor) else levels


# grey levels ---------------------------------------------------------------------------------------------------------


def grey_histogram(images: ArrayLike | Tensor, bins: int = 32) -> NDArray[np.float64]:
    """Share of all pixels in each of equal bins of grey levels.

    Shapes    images (N, 1, H, W) uint8 -> (bins,), summing to 1.
    Units     bin b holds the levels from 256 b / bins up to the next bin's first.
    Raises    ValueError for images that are not uint8 (N, 1, H, W), or bins that do not divide 256: they would hold
              different numbers of levels, which shows as a comb.
    """
    if bins < 1 or 256 % bins:
        raise ValueError(f"bins must divide 256, got {bins}")
    levels = np.bincount(_levels(images).ravel(), minlength=256)
    return levels.reshape(bins, -1).sum(axis=1) / levels.sum()


def grey_share(images: ArrayLike | Tensor, low: float = 0.25, high: float = 0.75) -> Estimate:
    """Mean share of an image's ink pixels that are neither light nor dark: near 0 for stencils; bootstrap over images.

    Shapes    images (N, 1, H, W) uint8.  Images without ink do not count, nor in n.
    Units     ink: grey above 0.1 of [0, 1]; in between: from `low` to `high`, both included.
    Raises    ValueError for images that are not uint8 (N, 1, H, W), fewer than two with ink, or limits that are not
              0.1 <= low < high <= 1.
    """
    if not INK <= low < high <= 1:
        raise ValueError(f"need {INK} <= low < high <= 1, got {low} and {high}")
    x = _grey(images)
    ink = (x > INK).sum(axis=(1, 2))
    between = ((x > INK) & (x >= low) & (x <= high)).sum(axis=(1, 2))
    return _average(between[ink > 0] / ink[ink > 0], len(x), f"share of ink pixels with grey {low:g} to {high:g}")


# strokes -------------------------------------------------------------------------------------------------------------


def stroke_widths(images: ArrayLike | Tensor, threshold: float = 0.5) -> NDArray[np.float64]:
    r"""Mean stroke width of each image, from the distance of its ink to the background.

        width = 4 mean_ink(d) - 2,    d the distance of an ink pixel's centre to the nearest background pixel's

    Across a long strip of even width w, d is 1, 2 .. w/2, w/2 .. 2, 1, its mean (w + 2) / 4: the width is w.  For odd
    w the mean is (w + 1)^2 / (4 w), the width w + 1/w (a line of one pixel counts as 2).  Ends make it less.

    Shapes    images (N, 1, H, W) uint8 -> (N,); NaN for an image without ink.  Beyond the border is background.
    Units     pixels; ink: grey above `threshold` of [0, 1].
    Raises    ValueError for images that are not uint8 (N, 1, H, W), or a threshold not in 0..1.
    Source    this work; d is scipy.ndimage.distance_transform_edt.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in 0..1, got {threshold}")
    ink = np.pad(_grey(images) > threshold, ((0, 0), (1, 1), (1, 1)))
    widths = [4 * scipy.ndimage.distance_transform_edt(i)[i].mean() - 2 if i.any() else np.nan for i in ink]
    return np.array(widths)


def stroke_width(images: ArrayLike | Tensor) -> Estimate:
    """Mean over images of `stroke_widths`, ink above 0.5; bootstrap over the images.

    Shapes    images (N, 1, H, W) uint8.  Images without ink do not count, nor in n.
    Units     pixels.
    Raises    ValueError as `stroke_widths`, and for fewer than two images with ink.
    """
    widths = stroke_widths(images)
    return _average(widths[np.isfinite(widths)], len(widths), "stroke width in pixels, ink above 0.5")


# building blocks -----------------------------------------------------------------------------------------------------


def _average(values: NDArray[np.float64], n: int, what: str) -> Estimate:
    """Mean over the images that have a value, which the protocol counts."""
    if len(values) < 2:
        raise ValueError(f"{what}: {len(values)} of {n} images have one (the others are blank), two are needed")
    return bootstrap(values, f"{what}, mean of {len(values)} images" + f", {n - len(values)} blank" * (len(values) < n))


def _spectrum(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """|F|^2 / (H W) of images (N, H, W), frequencies in the order of np.fft.fftfreq."""
    return np.abs(np.fft.fft2(x)) ** 2 / (x.shape[1] * x.shape[2])


def _radius(h: int, w: int) -> NDArray[np.float64]:
    """|f| of every frequency, (H, W), in cycles per pixel."""
    return np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))


def _response(h: int, w: int, cutoff: float) -> NDArray[np.float64]:
    """G of `low_pass`, (H, W)."""
    decay = [1 - np.cos(2 * np.pi * np.fft.fftfreq(side)) for side in (h, w)]
    return np.exp(-np.log(2) / 2 * (decay[0][:, None] + decay[1]) / (1 - np.cos(2 * np.pi * cutoff)))


def _levels(images: ArrayLike | Tensor) -> NDArray[np.uint8]:
    x = images.cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] != 1 or not x.size:
        raise ValueError(f"need uint8 images (N, 1, H, W), at least one, got {x.dtype} {x.shape}")
    return x


def _grey(images: ArrayLike | Tensor) -> NDArray[np.float64]:
    """Images as (N, H, W) in [0, 1]."""
    return _levels(images)[:, 0] / 255
