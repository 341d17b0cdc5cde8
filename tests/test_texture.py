"""Spectra, filters, grey levels and stroke widths against closed forms, direct sums and synthetic images."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.special
import torch

from onebit.metrics.texture import (
    grey_histogram,
    grey_share,
    high_share,
    low_pass,
    power_spectrum,
    stroke_width,
    stroke_widths,
)


def wave(k1, k2=0, amplitude=100, size=28, mean=128):
    """mean + amplitude cos(2 pi (k1 y + k2 x) / size) in grey levels, rounded to uint8, (1, 1, size, size)."""
    y, x = np.mgrid[:size, :size]
    return (mean + amplitude * np.cos(2 * np.pi * (k1 * y + k2 * x) / size)).round().astype(np.uint8)[None, None]


def noise(n, size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, size, size), dtype=np.uint8)


def blank(n=1, size=28, level=0):
    return np.full((n, 1, size, size), level, dtype=np.uint8)


def strip(width, length=24, size=28):
    """A vertical bar of full ink."""
    image = blank(1, size)
    image[:, :, 2 : 2 + length, 3 : 3 + width] = 255
    return image


def ring(k1, k2, size):
    """Number of the ring of a frequency given in cycles per image, negative ones beyond half the size."""
    return round(math.hypot(min(k1, size - k1), min(k2, size - k2)))


def ring_counts(size):
    """How many frequencies lie nearest to each ring, by loops."""
    count = [0] * (size // 2 + 1)
    for k1 in range(size):
        for k2 in range(size):
            if ring(k1, k2, size) < len(count):
                count[ring(k1, k2, size)] += 1
    return np.array(count)


# spectra -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [6, 7])
def test_power_spectrum_is_the_direct_fourier_sum_averaged_over_rings(size):
    image = noise(1, size)
    wanted = np.zeros(size // 2 + 1)
    y, x = np.mgrid[:size, :size]
    for k1 in range(size):
        for k2 in range(size):
            if ring(k1, k2, size) < len(wanted):
                term = np.sum(image[0, 0] / 255 * np.exp(-2j * np.pi * (k1 * y + k2 * x) / size))
                wanted[ring(k1, k2, size)] += abs(term) ** 2 / size**2
    frequency, power = power_spectrum(image)
    np.testing.assert_allclose(frequency, np.arange(size // 2 + 1) / size, rtol=1e-15)
    np.testing.assert_allclose(power[0], wanted / ring_counts(size), rtol=1e-9)


def test_power_spectrum_obeys_parseval():
    """Stripes have frequencies along one axis only, none in the corners: all rings together hold the sum of squares."""
    stripes = np.repeat(noise(5, 28)[:, :, :1], 28, axis=2)
    _, power = power_spectrum(stripes)
    np.testing.assert_allclose(power @ ring_counts(28), np.sum((stripes / 255) ** 2, axis=(1, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("k", [1, 4, 7, 13])
def test_a_wave_lands_in_its_own_ring(k):
    """a cos: |F| = a H W / 2 at +-k, so P = a^2 H W / 4 twice, over the frequencies of the ring.  Rounding: 1 %."""
    frequency, power = power_spectrum(wave(k))
    assert frequency[k] == pytest.approx(k / 28)
    assert power[0, k] == pytest.approx(2 * (100 / 255) ** 2 * 28**2 / 4 / ring_counts(28)[k], rel=1e-2)
    others = np.delete(power[0], [0, k])
    assert others.max() < 1e-4 * power[0, k]
    assert power[0, 0] == pytest.approx((128 / 255) ** 2 * 28**2, rel=1e-3)


def test_white_noise_has_the_same_power_in_every_ring():
    """The variance of a pixel, (256^2 - 1) / 12 grey levels squared."""
    _, power = power_spectrum(torch.from_numpy(noise(2_000)))
    np.testing.assert_allclose(power.mean(axis=0)[1:], (256**2 - 1) / 12 / 255**2, rtol=0.05)


def test_power_spectrum_of_oblong_images_goes_by_the_shorter_side():
    """A wave of 2 cycles along 20 pixels: 0.1 cycles per pixel, ring 1 of 12 pixels (1/12), not 2."""
    image = np.repeat(wave(2, size=20)[..., :1], 12, axis=3)
    frequency, power = power_spectrum(image)
    assert image.shape == (1, 1, 20, 12) and len(frequency) == 7
    assert power[0, 1:].argmax() == 0


def test_high_share_of_two_waves_is_that_of_their_squares():
    """Amplitudes 80 at 4/28 and 40 at 10/28: the second has a fifth of the energy.  The cut-off itself is below."""
    both = wave(4, amplitude=80, mean=64) + wave(0, 10, amplitude=40, mean=64)
    assert both.min() == 16 and both.max() == 248  # as without overflow: no phase has both waves lowest
    images = np.concatenate([both, both])
    assert high_share(images, 0.2).value == pytest.approx(0.2, abs=3e-3)
    assert high_share(images, 4 / 28).value == pytest.approx(0.2, abs=3e-3)
    assert high_share(images, 10 / 28).value == pytest.approx(0, abs=3e-3)
    assert high_share(images, 0.1).value == pytest.approx(1, abs=3e-3)
    assert high_share(images, 0).value == pytest.approx(1, rel=1e-12)


def test_high_share_of_noise_is_the_share_of_frequencies():
    k = np.minimum(np.arange(16), 16 - np.arange(16)) / 16
    wanted = np.sum(np.hypot(k[:, None], k) > 0.3) / (16**2 - 1)
    got = high_share(torch.from_numpy(noise(500)), 0.3)
    assert got.low < wanted < got.high and got.high - got.low < 0.02
    assert got.n == 500 and "0.3" in got.protocol


def test_images_of_one_level_do_not_count_for_high_share():
    with_blank = np.concatenate([noise(5), blank(2, 16), blank(1, 16, 200)])
    got, without = high_share(with_blank, 0.2), high_share(noise(5), 0.2)
    assert (got.value, got.n) == (without.value, 5) and "3 blank" in got.protocol and "blank" not in without.protocol
    with pytest.raises(ValueError, match="0 of 3 images"):
        high_share(blank(3), 0.2)


@pytest.mark.parametrize("cutoff", [-0.1, 0.51, np.nan, np.inf])
def test_high_share_refuses_other_cutoffs(cutoff):
    with pytest.raises(ValueError, match="cutoff must be in"):
        high_share(noise(3), cutoff)


# low-pass ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k1", "k2", "cutoff"), [(7, 0, 0.25), (3, 0, 0.1), (2, 5, 0.2), (4, 4, 0.3), (14, 0, 0.5)])
def test_low_pass_shrinks_a_wave_by_its_response(k1, k2, cutoff):
    """|G|^2 = 2^-r, r = (2 - cos f1 - cos f2) / (1 - cos cutoff): one half at the cut-off.  Both are rounded."""
    decay = 2 - math.cos(2 * np.pi * k1 / 28) - math.cos(2 * np.pi * k2 / 28)
    gain = 2 ** (-decay / (1 - math.cos(2 * np.pi * cutoff)) / 2)
    if k2 == 0 and k1 / 28 == cutoff:
        assert gain == pytest.approx(math.sqrt(0.5))
    wanted = 128 + gain * (wave(k1, k2)[0, 0] - 128.0)
    got = low_pass(wave(k1, k2), cutoff)[0, 0]
    assert np.abs(got - wanted).max() <= 1.01


@pytest.mark.parametrize("cutoff", [0.07, 0.15, 0.3, 0.5])
def test_low_pass_is_a_convolution_with_the_discrete_gaussian(cutoff):
    """Weights e^-t I_n(t) from scipy's Bessel functions, at full spatial extent; no FFT."""
    t = math.log(2) / (2 * (1 - math.cos(2 * math.pi * cutoff)))
    size, image = 33, blank(1, 33)
    image[0, 0, 14:19, 10:23], image[0, 0, 16, 16] = 255, 40
    n = np.arange(-16, 17)
    weights = scipy.special.ive(n, t)
    across = np.stack([np.convolve(row, weights, "same") for row in image[0, 0].astype(float)])
    wanted = np.stack([np.convolve(column, weights, "same") for column in across.T]).T
    assert weights.sum() == pytest.approx(1, abs=1e-6) and wanted.shape == (size, size)
    assert np.abs(low_pass(image, cutoff)[0, 0] - wanted).max() <= 0.501


@pytest.mark.parametrize("cutoff", [0.02, 0.1, 0.3, 0.5, np.inf])
def test_low_pass_of_a_constant_image_is_itself(cutoff):
    images = np.concatenate([blank(level=v) for v in (0, 1, 77, 254, 255)])
    assert (low_pass(images, cutoff) == images).all()


def test_low_pass_without_a_limit_is_a_copy():
    array, tensor = noise(3), torch.from_numpy(noise(3))
    for images in (array, tensor):
        got = low_pass(images, math.inf)
        assert type(got) is type(images) and (got == images).all()
        got[:] = 0
    assert array.any() and tensor.any()


def test_low_pass_gives_what_it_is_given():
    got, array = low_pass(torch.from_numpy(noise(3)), 0.2), low_pass(noise(3), 0.2)
    assert got.dtype == torch.uint8 and got.shape == (3, 1, 16, 16) and array.dtype == np.uint8
    assert (got.numpy() == array).all()


@pytest.mark.parametrize("cutoff", [0.05, 0.2, 0.35, 0.5])
def test_low_pass_never_overshoots_where_an_ideal_filter_rings(cutoff):
    """Levels between 60 and 180 stay there; without the frequencies above the cut-off a bar leaves them by far."""
    bar = np.where(strip(5) > 0, 180, 60).astype(np.uint8)
    got = low_pass(bar, cutoff)
    assert got.min() >= 60 and got.max() <= 180 and got.astype(float).mean() == pytest.approx(bar.mean(), abs=0.5)
    radius = np.hypot(np.fft.fftfreq(28)[:, None], np.fft.fftfreq(28))
    ideal = np.fft.ifft2(np.fft.fft2(bar[0, 0]) * (radius <= cutoff)).real
    assert ideal.min() < 58


def test_low_pass_lowers_the_share_of_high_frequencies_the_more_the_lower_it_is():
    images = np.concatenate([strip(w) for w in (2, 3, 4, 5)])
    shares = [high_share(low_pass(images, cutoff), 0.15).value for cutoff in (np.inf, 0.4, 0.2, 0.1, 0.05)]
    assert all(after < before for before, after in pairwise(shares))
    assert shares[0] > 0.2 and shares[-1] < 0.01


@pytest.mark.parametrize("cutoff", [0, -0.1, 0.6, np.nan, -np.inf])
def test_low_pass_refuses_other_cutoffs(cutoff):
    with pytest.raises(ValueError, match="cutoff must be above 0"):
        low_pass(noise(3), cutoff)


# grey levels ---------------------------------------------------------------------------------------------------------


def pixels(*levels):
    """One image (1, 1, 1, W) of the given grey levels."""
    return np.array(levels, dtype=np.uint8)[None, None, None]


def test_grey_histogram_by_hand():
    """Four bins of 64 levels."""
    assert grey_histogram(pixels(0, 63, 64, 127, 128, 255, 255, 255), bins=4).tolist() == [0.25, 0.25, 0.125, 0.375]


@pytest.mark.parametrize("bins", [1, 32, 256])
def test_grey_histogram_is_numpys(bins):
    images = noise(20)
    wanted = np.histogram(images, bins=bins, range=(0, 256))[0] / images.size
    np.testing.assert_allclose(grey_histogram(torch.from_numpy(images), bins), wanted, rtol=1e-12)


@pytest.mark.parametrize("bins", [0, 10, 512, -4])
def test_grey_histogram_refuses_bins_of_unequal_size(bins):
    with pytest.raises(ValueError, match="bins must divide 256"):
        grey_histogram(noise(2), bins)


def test_grey_share_by_hand():
    """25 and less is no ink; 63.75 and 191.25 are a quarter and three: of 26, 63, 64, 191, 192, 255 two are between."""
    first, second = pixels(0, 25, 26, 63, 64, 191, 192, 255), pixels(0, 0, 0, 0, 0, 0, 100, 255)
    got = grey_share(np.concatenate([first, second]))
    assert got.value == pytest.approx((2 / 6 + 1 / 2) / 2, rel=1e-15) and got.n == 2
    limits = grey_share(np.concatenate([first, first]), 64 / 255, 192 / 255)
    assert limits.value == pytest.approx(3 / 6, rel=1e-15)  # both limits are in between


def test_stencils_have_no_grey_and_blurred_ones_have():
    stencils = np.concatenate([strip(w) for w in (2, 4, 6)])
    assert grey_share(stencils).value == 0
    assert grey_share(low_pass(stencils, 0.15)).low > 0.05


def test_images_without_ink_do_not_count_for_grey_share():
    images = np.concatenate([noise(4), blank(3, 16, 25)])
    got, without = grey_share(torch.from_numpy(images)), grey_share(noise(4))
    assert (got.value, got.n) == (without.value, 4) and "3 blank" in got.protocol
    with pytest.raises(ValueError, match="0 of 3 images"):
        grey_share(blank(3))


@pytest.mark.parametrize("limits", [(0.75, 0.25), (0.5, 0.5), (0.05, 0.5), (0.25, 1.1), (np.nan, 0.5)])
def test_grey_share_refuses_other_limits(limits):
    with pytest.raises(ValueError, match="low < high"):
        grey_share(noise(3), *limits)


# strokes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", range(1, 9))
def test_stroke_width_of_a_long_strip(width):
    """Even w: mean distance (w + 2) / 4, so w.  Odd w: (w + 1)^2 / (4 w), so w + 1/w.  Ends of 1 in 4,000 pixels."""
    image = np.zeros((1, 1, 4_000, 12), dtype=np.uint8)
    image[..., 2 : 2 + width] = 255
    wanted = width if width % 2 == 0 else width + 1 / width
    assert stroke_widths(image)[0] == pytest.approx(wanted, abs=0.02)
    turned = np.ascontiguousarray(image.transpose(0, 1, 3, 2))
    assert stroke_widths(turned)[0] == pytest.approx(stroke_widths(image)[0], rel=1e-12)


def test_stroke_widths_are_four_mean_distances_less_two_by_brute_force():
    """The nearest background pixel of each ink pixel by comparing with all; beyond the border is background."""
    images = (np.random.default_rng(0).random((4, 1, 9, 11)) < 0.8) * np.uint8(255)
    for image, got in zip(images, stroke_widths(torch.from_numpy(images)), strict=True):
        padded = np.pad(image[0], 1) > 0
        ink, ground = np.argwhere(padded), np.argwhere(~padded)
        distance = [min(math.dist(i, g) for g in ground) for i in ink]
        assert got == pytest.approx(4 * np.mean(distance) - 2, rel=1e-12)


def test_a_full_image_ends_at_its_border():
    """3 x 3 pixels of ink: eight at distance 1, the middle at 2, so 4 * 10 / 9 - 2."""
    assert stroke_widths(blank(1, 3, 255))[0] == pytest.approx(22 / 9, rel=1e-15)


def test_ink_is_above_the_threshold():
    """127 / 255 is below one half, 128 / 255 above; at 127 / 255 itself it is not above."""
    assert np.isnan(stroke_widths(blank(1, 3, 127))[0]) and stroke_widths(blank(1, 3, 128))[0] > 2
    assert np.isnan(stroke_widths(blank(1, 3, 127), 127 / 255)[0]) and stroke_widths(blank(1, 3, 127), 0.4)[0] > 2


def test_stroke_width_is_the_mean_over_images_with_ink():
    images = np.concatenate([strip(2), blank(), strip(4), blank(level=100), strip(6)])
    widths = stroke_widths(images)
    assert np.isnan(widths).tolist() == [False, True, False, True, False]
    assert widths[0] < widths[2] < widths[4]
    got = stroke_width(images)
    assert got.value == pytest.approx(widths[[0, 2, 4]].mean(), rel=1e-12) and got.n == 3
    assert widths[0] <= got.low < got.value < got.high <= widths[4]
    assert "2 blank" in got.protocol and "above 0.5" in got.protocol


def test_stroke_width_of_images_without_ink_is_an_error_and_no_width():
    with pytest.raises(ValueError, match="0 of 4 images"):
        stroke_width(blank(4))
    with pytest.raises(ValueError, match="1 of 2 images"):
        stroke_width(np.concatenate([blank(), strip(3)]))


@pytest.mark.parametrize("threshold", [-0.1, 1, 1.5, np.nan])
def test_thresholds_that_leave_nothing_or_everything_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be in"):
        stroke_widths(noise(3), threshold)


# images --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [
    power_spectrum, lambda x: high_share(x, 0.2), lambda x: low_pass(x, 0.2), lambda x: low_pass(x, np.inf),
    grey_histogram, grey_share, stroke_widths, stroke_width,
])
@pytest.mark.parametrize("images", [
    np.ones((3, 1, 8, 8)), np.ones((3, 8, 8), np.uint8), np.ones((3, 3, 8, 8), np.uint8),
    np.ones((0, 1, 8, 8), np.uint8), torch.ones(3, 1, 8, 8),
], ids=["float", "no channel", "colour", "none", "float tensor"])
def test_what_are_no_grey_images_are_refused(measure, images):
    with pytest.raises(ValueError, match=r"need uint8 images \(N, 1, H, W\)"):
        measure(images)
