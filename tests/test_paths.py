"""Path metrics against hand computation, scipy and closed forms; fading and moving strokes are told apart."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from onebit.interpolation import cross_fade, transport_morph
from onebit.metrics import paths
from onebit.metrics.paths import (
    fade_mass,
    fade_residual,
    largest_jump,
    mid_grey,
    sliced_wasserstein,
    transport_length,
)

METRICS = [fade_residual, mid_grey, fade_mass, largest_jump, transport_length]


def path(*frames):
    """One path of 2 x 2 images, each given by its four levels."""
    return np.array(frames, dtype=np.uint8).reshape(len(frames), 1, 2, 2)


def stroke(angle, centre=(13.5, 13.5), length=16.0, width=3.0, size=28):
    """An antialiased bar: grey by its distance from a line segment, uint8 (1, 1, H, W)."""
    row, column = np.mgrid[:size, :size] - np.array(centre)[:, None, None]
    along = row * math.sin(angle) + column * math.cos(angle)
    across = row * math.cos(angle) - column * math.sin(angle)
    distance = np.hypot(across, np.maximum(abs(along) - length / 2, 0))
    return torch.from_numpy((255 * np.clip(width / 2 + 0.5 - distance, 0, 1)).round().astype(np.uint8))[None, None]


def blob(row, column, deviation, size=40):
    """A round Gaussian density on a grid, float64."""
    y, x = np.mgrid[:size, :size]
    return np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * deviation**2))


# fading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["random", "sparse", "like one end", "parallel ends", "one blank end"])
def test_fade_residual_is_non_negative_least_squares(case):
    """scipy's NNLS, frame by frame; the cases cover the inner minimum, both axes and the degenerate ends."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (4, 6, 1, 5, 5))
    if case == "sparse":
        x = x * (rng.random(x.shape) < 0.3)
    if case == "like one end":
        x[:, 2:4] = (x[:, :1] * 0.9).astype(int) + rng.integers(0, 20, (4, 2, 1, 5, 5))
    if case == "parallel ends":
        x[:, 0] = x[:, -1] // 2 * 2
        x[:, -1] = x[:, 0] // 2
    if case == "one blank end":
        x[:, 0] = 0
    x = x.astype(np.uint8)
    expected = []
    for frames in x.reshape(4, 6, 25).astype(float):
        ends = np.stack([frames[0], frames[-1]], axis=1)
        expected.append(np.mean([scipy.optimize.nnls(ends, f)[1] ** 2 / (f @ f) for f in frames[1:-1]]))
    np.testing.assert_allclose(fade_residual(x), expected, rtol=1e-9)


def test_a_cross_fade_leaves_no_residual():
    """Levels in multiples of 4 and 5 frames need no rounding; rounded ones leave its variance, 1/12 of a level^2."""
    a, b = (torch.randint(0, 64, (3, 1, 9, 9), generator=torch.Generator().manual_seed(i)).byte() * 4 for i in (0, 1))
    assert fade_residual(cross_fade(a, b, 5)).max() < 1e-25
    rounded = fade_residual(cross_fade(a, b, 8))
    assert (rounded > 0).all() and rounded.max() < 1e-4


def test_fade_residual_by_hand():
    """Frames off the ends' support (1), half on it (1 of 1 + 1), and on it (0); a negative share of an end is no
    mixture: for (3, 0) between (1, 1) and (0, 1) the best is 1.5 (1, 1), residual 4.5 of 9."""
    assert fade_residual(path([9, 0, 0, 0], [0, 0, 9, 0], [0, 9, 0, 0])) == pytest.approx([1])
    assert fade_residual(path([9, 0, 0, 0], [7, 0, 7, 0], [8, 3, 0, 0], [0, 9, 0, 0])) == pytest.approx([0.25])
    assert fade_residual(path([10, 10, 0, 0], [30, 0, 0, 0], [0, 10, 0, 0])) == pytest.approx([0.5])


def test_mid_grey_by_hand():
    """Of 7 frames the middle third are 2, 3, 4 (t = 1/3, 1/2, 2/3).  Shares 0, 1/2, 1 there; ends 1/2 and 0."""
    ends = [100, 100, 0, 0], [255, 255, 255, 0]
    first = [64, 192, 128, 0]  # 64 and 128 count, 192 does not
    got = mid_grey(path(first, [128] * 4, [255, 0, 0, 0], [190, 0, 0, 0], [95, 190, 0, 0], [128] * 4, ends[1]))
    share = (192 / 384, 0.0)
    assert got == pytest.approx([(0 + 1 + 1) / 3 - np.mean(share)])
    assert mid_grey(path(ends[0], ends[1], ends[1])) == pytest.approx([0 - 0.5])


@pytest.mark.parametrize(("level", "counts"), [(63, False), (64, True), (191, True), (192, False)])
def test_intermediate_levels_are_a_quarter_to_three_quarters_of_white(level, counts):
    assert mid_grey(path([255, 0, 0, 0], [level, 0, 0, 0], [0, 255, 0, 0])) == pytest.approx([float(counts)])


def test_fade_mass_is_the_deepest_dip_below_the_line_between_the_ends():
    """Ink 100, 60, 130, 190, 180 on the line 100, 120, 140, 160, 180: the dip is 1 - 60/120; a bulge is no dip."""
    rows = [[n, 0, 0, 0] for n in (100, 60, 130, 190, 180)]
    assert fade_mass(path(*rows)) == pytest.approx([0.5])
    assert fade_mass(path([100, 0, 0, 0], [0, 250, 0, 0], [0, 0, 100, 0])) == 0
    assert fade_mass(path([0, 0, 0, 0], [25, 0, 0, 0], [0, 0, 100, 0])) == pytest.approx([0.5])


def test_largest_jump_by_hand():
    """Steps 3, 4 (3-4-5 in two pixels: 5), 0: the largest, 5, over the mean (3 + 5 + 0) / 3."""
    assert largest_jump(path([0] * 4, [3, 0, 0, 0], [6, 4, 0, 0], [6, 4, 0, 0])) == pytest.approx([5 / (8 / 3)])
    assert largest_jump(path([0] * 4, [8, 0, 0, 0], [8, 8, 0, 0], [8, 8, 8, 0])) == pytest.approx([1])
    assert largest_jump(path([7] * 4, [7] * 4, [7] * 4, [99] * 4, [99] * 4)) == pytest.approx([4])


# sliced Wasserstein --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q", "expected"), [
    ([1, 0, 0], [0, 0, 1], 4.0),  # a move by two bins
    ([1, 0], [0.5, 0.5], 1 / 3),  # u against 2u
    ([0.5, 0, 0.5], [0, 1, 0], 7 / 12),  # 2 int_0^(1/2) (1 - u)^2
    ([0.25, 0.75], [0.25, 0.75], 0.0),
    ([0, 1, 0, 0], [0, 0.5, 0, 0.5], 0.5 * (1 / 3 * 1 / 4) + (2**3 - 1.5**3) / 3),  # 1 + u against 1 + 2u, 2 + 2u
])
def test_the_quantile_formula_by_hand(p, q, expected):
    got = paths._quantile_distance(np.array([p], dtype=float), np.array([q], dtype=float))
    assert got == pytest.approx([expected], abs=1e-14)


def test_the_quantile_formula_agrees_with_scipy_where_all_mass_moves_alike():
    """W1 and W2 of a translation are both its length; otherwise W1 <= W2."""
    rng = np.random.default_rng(0)
    p = rng.random(6)
    p, q = np.pad(p, (0, 5)) / p.sum(), np.pad(p, (5, 0)) / p.sum()
    one = scipy.stats.wasserstein_distance(np.arange(11), np.arange(11), p, q)
    assert one == pytest.approx(5)
    assert np.sqrt(paths._quantile_distance(p[None], q[None])) == pytest.approx([one])
    for other in (rng.permutation(p) for _ in range(20)):
        one = scipy.stats.wasserstein_distance(np.arange(11), np.arange(11), p, other)
        assert np.sqrt(paths._quantile_distance(p[None], other[None]))[0] > one - 0.01  # bins, and not their centres


def test_the_quantile_formula_against_a_fine_sum_over_u():
    rng = np.random.default_rng(1)
    p, q = rng.random((2, 5, 9)) * (rng.random((2, 5, 9)) < 0.6) + 1e-3
    p, q = (h / h.sum(axis=1, keepdims=True) for h in (p, q))
    u = (np.arange(200_000) + 0.5) / 200_000
    for row, got in enumerate(paths._quantile_distance(p, q)):
        x, y = (np.interp(u, np.concatenate([[0], h[row].cumsum()]), np.arange(10)) for h in (p, q))
        assert got == pytest.approx(np.mean((x - y) ** 2), rel=1e-5)


@pytest.mark.parametrize(("shift", "widths"), [
    ((0, 6), (3, 3)), ((5, -8), (3, 3)), ((0, 0), (2, 4)), ((-4, 3), (4, 2)),
])
def test_sliced_wasserstein_of_round_gaussians(shift, widths):
    """Every projection of N(m, s^2 I) is normal: SW^2 = |m - k|^2 / 2 + (s - t)^2."""
    a, b = blob(19, 20, widths[0]), blob(19 + shift[0], 20 + shift[1], widths[1])
    expected = math.sqrt((shift[0] ** 2 + shift[1] ** 2) / 2 + (widths[0] - widths[1]) ** 2)
    assert sliced_wasserstein(a, b, directions=8) == pytest.approx([expected], rel=0.01)


@pytest.mark.parametrize("shift", [(1, 0), (0, -3), (4, 7)])
def test_a_moved_image_is_at_the_root_mean_square_of_its_projected_shift(shift):
    image = np.pad(np.random.default_rng(0).random((9, 9)), 10)
    assert sliced_wasserstein(image, np.roll(image, shift, (0, 1))) == pytest.approx(
        [math.hypot(*shift) / math.sqrt(2)], rel=2e-3)


def test_sliced_wasserstein_against_points_that_fill_the_pixels():
    """20 x 20 points in every pixel, projected and sorted: the quantile function of the density, without bins."""
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 5, 7)) ** 3 * np.array([np.linspace(1, 0, 7), np.linspace(0, 1, 7)])[:, None]
    fine = (np.arange(20) + 0.5) / 20 - 0.5
    row, column = (np.arange(n)[:, None] + fine for n in (5, 7))
    row, column = np.broadcast_arrays(row.reshape(-1, 1), column.reshape(1, -1))
    u, squared = (np.arange(20_000) + 0.5) / 20_000, []
    for d in range(8):
        angle = np.pi * (d + 0.5) / 8
        position = (column * np.cos(angle) + row * np.sin(angle)).ravel()
        order = position.argsort()
        quantiles = []
        for image in (a, b):
            mass = np.kron(image, np.ones((20, 20))).ravel()[order].cumsum()
            quantiles.append(position[order][np.searchsorted(mass / mass[-1], u).clip(max=position.size - 1)])
        squared.append(np.mean((quantiles[0] - quantiles[1]) ** 2))
    assert sliced_wasserstein(a, b, directions=8) == pytest.approx([math.sqrt(np.mean(squared))], rel=5e-3)


def test_sliced_wasserstein_is_a_distance_of_mass_normalised_images():
    rng = np.random.default_rng(3)
    x, y, z = rng.integers(0, 256, (3, 6, 1, 8, 8), dtype=np.uint8)
    xy, yz, xz = sliced_wasserstein(x, y), sliced_wasserstein(y, z), sliced_wasserstein(x, z)
    assert xy.shape == (6,) and (xy > 0.05).all()
    np.testing.assert_allclose(sliced_wasserstein(y, x), xy, rtol=1e-12)
    np.testing.assert_allclose(sliced_wasserstein(x, x), 0, atol=1e-12)
    np.testing.assert_allclose(sliced_wasserstein(3.0 * x, y / 7), xy, rtol=1e-9)
    np.testing.assert_allclose(sliced_wasserstein(x[2, 0], y[2, 0]), xy[2:3], rtol=1e-12)
    assert (xz <= xy + yz + 1e-12).all()


def test_projections_keep_the_mass_and_the_centre_of_a_pixel():
    """Rows sum to 1; the trapezoid's mean is the pixel's projection, from the image's centre."""
    made = paths._projection(6, 9, 5).reshape(54, 5, -1)
    np.testing.assert_allclose(made.sum(axis=2), 1, rtol=1e-10)
    assert made.min() > -1e-10
    edges = 0.5 * (np.arange(made.shape[2] + 1) - made.shape[2] // 2)
    centre = made @ ((edges[1:] + edges[:-1]) / 2)
    row, column = np.divmod(np.arange(54), 9)
    for d in range(5):
        angle = np.pi * (d + 0.5) / 5
        expected = (column - 4) * np.cos(angle) + (row - 2.5) * np.sin(angle)
        np.testing.assert_allclose(centre[:, d], expected, atol=0.06)


@pytest.mark.parametrize(("a", "b", "options", "message"), [
    (np.zeros((4, 4)), np.ones((4, 4)), {}, "a must hold"), (np.ones((4, 4)), -np.eye(4), {}, "b must hold"),
    (np.full((4, 4), np.nan), np.ones((4, 4)), {}, "a must hold finite"),
    (np.ones(4), np.ones(4), {}, "a must be images"),
    (np.ones((2, 3, 4, 4)), np.ones((2, 3, 4, 4)), {}, "a must be images"),
    (np.ones((2, 4, 4)), np.ones((3, 4, 4)), {}, "as many images of one size"),
    (np.ones((4, 4)), np.ones((4, 5)), {}, "one size"),
    (np.ones((4, 4)), np.ones((4, 4)), {"directions": 1}, "directions must be at least 2"),
])
def test_images_without_a_distance_are_refused(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(a, b, **options)


# transport length ----------------------------------------------------------------------------------------------------


def test_transport_length_is_the_way_along_every_sth_frame_over_the_way_between_the_ends():
    """Frames 0, 4, 8 and the last, 10, which counts whatever s is."""
    x = np.random.default_rng(0).integers(0, 256, (11, 1, 6, 6), dtype=np.uint8)
    steps = [sliced_wasserstein(x[i], x[j])[0] for i, j in ((0, 4), (4, 8), (8, 10))]
    assert transport_length(x) == pytest.approx([sum(steps) / sliced_wasserstein(x[0], x[10])[0]])
    steps = [sliced_wasserstein(x[i], x[i + 5], 7)[0] for i in (0, 5)]
    assert transport_length(x, every=5, directions=7) == pytest.approx(
        [sum(steps) / sliced_wasserstein(x[0], x[10], 7)[0]])


def test_a_moving_image_takes_the_shortest_way_and_a_detour_its_length():
    """Nine shifts by (1, 2) are a geodesic; six there and three back are three times as long as the ends are apart."""
    image = np.pad(np.random.default_rng(0).integers(0, 256, (5, 5)), ((2, 11), (2, 20))).astype(np.uint8)
    shifted = [np.roll(image, (k, 2 * k), (0, 1))[None] for k in range(10)]
    assert transport_length(np.stack(shifted), every=3) == pytest.approx([1], abs=5e-3)
    detour = np.stack([shifted[k] for k in (0, 6, 3)])
    assert transport_length(detour, every=1) == pytest.approx([3], rel=5e-3)


def test_fading_between_disjoint_dots_is_longer_by_the_root_of_the_number_of_steps():
    """1/n of the ink goes the whole way in each of n steps: W2 = L / sqrt(n) each, less where projections overlap."""
    dots = torch.zeros(2, 1, 30, 30, dtype=torch.uint8)
    dots[0, 0, 5, 5], dots[1, 0, 24, 24] = 240, 240
    fade = cross_fade(dots[:1], dots[1:], 17)
    assert transport_length(fade, every=4) == pytest.approx([2], rel=0.05)
    assert transport_length(fade, every=1) == pytest.approx([4], rel=0.05)


def test_no_path_is_shorter_than_the_way_between_its_ends():
    x = np.random.default_rng(1).integers(0, 256, (8, 7, 1, 6, 6), dtype=np.uint8)
    assert (transport_length(x, every=1) > 1).all()
    assert (transport_length(x, every=6) == 1).all()


# fading against moving -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strokes():
    """A cross-fade and a morph of the same three pairs of strokes: turned, moved, both."""
    a = torch.cat([stroke(0.2), stroke(1.4, (9, 9)), stroke(-0.6, (12, 16))])
    b = torch.cat([stroke(1.1), stroke(1.4, (17, 18)), stroke(0.4, (18, 12))])
    return cross_fade(a, b, 17), transport_morph(a, b, 17)


def test_fading_and_moving_strokes_are_told_apart(strokes):
    fade, morph = strokes
    assert fade_residual(fade).max() < 1e-4 and fade_residual(morph).min() > 0.2
    assert (mid_grey(fade) > mid_grey(morph) + 0.2).all() and mid_grey(fade).min() > 0.5
    assert (transport_length(fade) > transport_length(morph) + 0.05).all()
    assert transport_length(morph).max() < 1.1
    assert max(largest_jump(fade).max(), largest_jump(morph).max()) < 1.5
    assert max(fade_mass(fade).max(), fade_mass(morph).max()) < 0.03


def test_a_crisp_morph_has_no_more_grey_than_its_ends():
    a, b = stroke(0.2), stroke(1.1)
    assert abs(mid_grey(transport_morph(a, b, 9, crisp=True))[0]) < 0.1 < mid_grey(transport_morph(a, b, 9))[0]


def test_an_explosion_is_a_jump_and_a_dissolution_is_a_dip(strokes):
    """The first half of the path stays at one end, then everything happens at once; or all ink goes and comes back."""
    fade, morph = (x.clone() for x in strokes)
    at_once = torch.cat([fade[:, :1].expand(-1, 9, -1, -1, -1), fade[:, -1:].expand(-1, 8, -1, -1, -1)], dim=1)
    assert largest_jump(at_once) == pytest.approx([16.0] * 3)
    morph[:, 8] //= 4
    assert fade_mass(morph).min() > 0.7


# what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_one_path_is_a_batch_of_one_and_paths_do_not_mix(metric):
    x = np.random.default_rng(0).integers(0, 256, (3, 7, 1, 6, 6), dtype=np.uint8)
    whole = metric(x)
    assert whole.shape == (3,) and whole.dtype == np.float64 and len(set(whole)) == 3
    np.testing.assert_allclose(metric(x[1]), whole[1:2], rtol=1e-12)
    np.testing.assert_allclose(metric(torch.from_numpy(x)), whole, rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("frames", [
    np.ones((5, 1, 4, 4)), np.ones((5, 4, 4), np.uint8), np.ones((2, 5, 3, 4, 4), np.uint8),
    np.ones((2, 1, 4, 4), np.uint8), np.ones((0, 5, 1, 4, 4), np.uint8), np.full((5, 1, 4, 4), np.nan),
])
def test_frames_of_another_kind_are_refused(metric, frames):
    """Floats, no channel axis, three channels, two frames, no paths, NaN."""
    with pytest.raises(ValueError, match="frames must be uint8"):
        metric(frames)


@pytest.mark.parametrize(("metric", "frames", "message"), [
    (fade_residual, path([9] * 4, [0] * 4, [9] * 4), "path 0 has one"),
    (mid_grey, path([9] * 4, [0] * 4, [9] * 4), "blank frames"), (mid_grey, path([0] * 4, [9] * 4, [9] * 4), "blank"),
    (fade_mass, path([0] * 4, [9] * 4, [0] * 4), "at least one end"),
    (largest_jump, path([9] * 4, [9] * 4, [9] * 4), "does not move"),
    (transport_length, path([0] * 4, [9] * 4, [9] * 4), "blank image"),
    (transport_length, path([8] * 4, [9, 0, 0, 0], [9] * 4), "same ink"),
])
def test_paths_on_which_a_metric_is_undefined_are_refused(metric, frames, message):
    with pytest.raises(ValueError, match=message):
        metric(frames) if metric is not transport_length else metric(frames, every=1)


@pytest.mark.parametrize("every", [0, 7, -1])
def test_a_step_that_skips_the_path_is_refused(every):
    with pytest.raises(ValueError, match=r"every must be in 1\.\.6"):
        transport_length(np.random.default_rng(0).integers(0, 256, (7, 1, 6, 6), dtype=np.uint8), every=every)


def test_the_blank_path_is_named():
    x = np.full((4, 3, 1, 4, 4), 9, np.uint8)
    x[2, 1] = 0
    with pytest.raises(ValueError, match="path 2 has one"):
        fade_residual(x)
