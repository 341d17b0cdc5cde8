"""Fréchet curves, KID, inception score and class counts by hand, by loops, in expectation, and on controls."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from onebit.metrics import kernel
from onebit.metrics.classes import class_entropy, class_shares, inception_score, uniformity_test
from onebit.metrics.estimate import jackknife
from onebit.metrics.frechet import (
    Gaussian,
    curve_sizes,
    frechet,
    frechet_curve,
    frechet_distance,
    frechet_infinity,
)
from onebit.metrics.kernel import kid

DIM = 8
STANDARD = Gaussian(np.zeros(DIM), np.eye(DIM), 10_000)
BIAS = DIM + (DIM**2 + DIM) / 4  # of N(0, I): E |mean|^2 = D / n, E |C^(1/2) - I|^2 = E |C - I|^2 / 4 = (D^2 + D) / 4n


def cloud(n, dim=DIM, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, dim)) + shift


# Fréchet distance ----------------------------------------------------------------------------------------------------


def test_frechet_is_the_distance_of_the_fitted_gaussian_with_its_sizes_in_the_protocol():
    x = cloud(300, shift=0.3)
    got = frechet(torch.from_numpy(x), STANDARD, "judge A")
    assert got.value == frechet_distance(Gaussian.fit(x), STANDARD) and got.n == 300
    assert got.low < got.value < got.high
    assert all(part in got.protocol for part in ("judge A", "300 features", "8 dimensions", "10000"))


def test_the_interval_of_frechet_is_the_scatter_of_fresh_samples():
    """Half-width over t_19 against the standard deviation over 40 samples, both of N(1/2, I)."""
    got = [frechet(cloud(200, 3, seed, 0.5), Gaussian(np.zeros(3), np.eye(3), 10_000)) for seed in range(40)]
    error = np.mean([(e.high - e.low) / 2 for e in got]) / scipy.stats.t.ppf(0.975, 19)
    assert error == pytest.approx(np.std([e.value for e in got], ddof=1), rel=0.3)


def test_frechet_needs_enough_features_to_leave_some_out():
    """25 features less two are 23: enough for 22 dimensions, too few for 23."""
    assert frechet(cloud(25, 22), Gaussian.fit(cloud(100, 22))).n == 25
    with pytest.raises(ValueError, match="too few to leave out"):
        frechet(cloud(25, 23), Gaussian.fit(cloud(100, 23)))


@pytest.mark.parametrize("measure", [
    frechet, frechet_infinity, lambda x, real: frechet_curve(x, real, (50,)),
])
def test_a_reference_that_is_not_fitted_yet_is_refused(measure):
    with pytest.raises(ValueError, match=r"must be a Gaussian, got ndarray: fit it first: Gaussian\.fit\(real\)"):
        measure(cloud(300), cloud(300, seed=1))


@pytest.mark.parametrize("measure", [
    frechet, frechet_infinity, lambda x, real: frechet_curve(x, real, (50,)),
], ids=["frechet", "infinity", "curve"])
def test_features_that_do_not_fit_the_reference_are_refused(measure):
    broken = cloud(100)
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"features \(N, 8\) as the reference's, got \(100, 5\)"):
        measure(cloud(100, 5), STANDARD)
    with pytest.raises(ValueError, match="as the reference's"):
        measure(np.ones(100), STANDARD)
    with pytest.raises(ValueError, match="NaN or infinity"):
        measure(broken, STANDARD)


def test_the_curve_falls_like_the_known_bias():
    """Subsets of N(0, I) against N(0, I): b / n with b = 26, here from 20,000 images that are 26 / 20,000 off."""
    for n, mean, sd in frechet_curve(cloud(20_000), STANDARD, (400, 800, 1_600), draws=10):
        assert mean == pytest.approx(BIAS / n + BIAS / 20_000, rel=0.1)
        assert 0 < sd < mean / 2


def test_the_curve_is_drawn_without_replacement_and_by_seed():
    """All images are one subset: no spread, the plain distance.  Two of three are one of three subsets."""
    x = cloud(50)
    ((n, mean, sd),) = frechet_curve(x, STANDARD, [50])
    assert (n, mean, sd) == (50, pytest.approx(frechet(x, STANDARD).value, rel=1e-12), pytest.approx(0, abs=1e-12))
    assert frechet_curve(x, STANDARD, [20]) == frechet_curve(x, STANDARD, [20])
    assert frechet_curve(x, STANDARD, [20]) != frechet_curve(x, STANDARD, [20], seed=1)
    three = np.array([[0.0], [1.0], [5.0]])
    point = Gaussian(np.zeros(1), np.zeros((1, 1)), 10)  # distance to it: mean^2 + variance of the pair
    pairs = [0.25 + 0.5, 6.25 + 12.5, 9 + 8]
    ((_, mean, sd),) = frechet_curve(three, point, [2], draws=600)
    assert mean == pytest.approx(np.mean(pairs), rel=0.1) and sd == pytest.approx(np.std(pairs), rel=0.1)


@pytest.mark.parametrize(("sizes", "draws"), [([8], 5), ([50, 8], 5), ([101], 5), ([], 5), ([50], 1)])
def test_subsets_that_cannot_be_drawn_are_refused(sizes, draws):
    """No more features than dimensions, more than there are, no size, one draw without a spread."""
    with pytest.raises(ValueError, match=r"sizes in 9\.\.100"):
        frechet_curve(cloud(100), STANDARD, sizes, draws)


def test_curve_sizes_are_even_in_one_over_n():
    sizes = curve_sizes(10_000, 128)
    assert (sizes[0], sizes[-1], len(sizes)) == (2_000, 10_000, 6)
    np.testing.assert_allclose(np.diff(1 / np.array(sizes)), -(1 / 2_000 - 1 / 10_000) / 5, rtol=1e-3)


@pytest.mark.parametrize(("n", "smallest"), [(2_000, 400), (1_000, 384), (300, 214), (160, 144)])
def test_curve_sizes_stay_above_the_dimension(n, smallest):
    """A fifth of n, but three times the dimension 128, but half-way between it and n."""
    assert curve_sizes(n, 128)[0] == smallest
    assert curve_sizes(n, 128)[-1] == n


@pytest.mark.parametrize("n", [128, 129, 130, 20, 0])
def test_too_few_features_for_three_sizes_are_refused(n):
    with pytest.raises(ValueError, match="leave no three sizes"):
        curve_sizes(n, 128)


def test_infinity_is_the_intercept_of_the_curve_with_the_jackknife_of_the_whole_extrapolation():
    """Every group is taken out of all subsets: se^2 = 19/20 sum (theta_(g) - mean)^2, half-width t_19 se."""
    x, sizes = cloud(300, shift=0.2), (50, 80, 130, 300)
    got = frechet_infinity(x, STANDARD, sizes, draws=4, seed=3)
    mean = np.array([row[1] for row in frechet_curve(x, STANDARD, sizes, draws=4, seed=3)])
    assert got.value == pytest.approx(np.polyfit(1 / np.array(sizes), mean, 1)[1], rel=1e-9)
    rng, group = np.random.default_rng(3), np.empty(300, int)
    group[np.random.default_rng(0).permutation(300)] = np.arange(300) % 20
    subsets = [rng.choice(300, n, replace=False) for n in sizes for _ in range(4)]
    theta = []
    for g in range(20):
        left = [x[subset[group[subset] != g]] for subset in subsets]
        distances = [frechet_distance(Gaussian.fit(part), STANDARD) for part in left]
        theta.append(np.polyfit([1 / len(part) for part in left], distances, 1)[1])
    half = math.sqrt(19 / 20 * np.sum((np.array(theta) - np.mean(theta)) ** 2)) * scipy.stats.t.ppf(0.975, 19)
    assert (got.low, got.high) == pytest.approx((got.value - half, got.value + half), rel=1e-9)
    assert got.n == 300 and "50 to 300 of 300" in got.protocol and "jackknife" in got.protocol


def test_the_interval_of_infinity_holds_the_true_distance_about_95_times_in_100():
    """N(0.5, 0.6 I) against N(0, I) in 16 dimensions: d = 16 (0.5^2 + (sqrt(0.6) - 1)^2).  Half of it would not do."""
    truth, real = 16 * (0.25 + (math.sqrt(0.6) - 1) ** 2), Gaussian(np.zeros(16), np.eye(16), 10_000)
    got = [frechet_infinity(cloud(400, 16, seed) * math.sqrt(0.6) + 0.5, real, (80, 130, 400), draws=2)
           for seed in range(100)]
    half = np.array([(e.high - e.low) / 2 for e in got])
    far = np.abs([e.value - truth for e in got])
    assert np.mean(far <= half) >= 0.9 and np.mean(far <= half / 2) < 0.85
    error = np.mean(half) / scipy.stats.t.ppf(0.975, 19)
    assert error == pytest.approx(np.std([e.value for e in got], ddof=1), rel=0.3)


def test_infinity_needs_subsets_that_can_lose_a_twentieth():
    with pytest.raises(ValueError, match="subsets of 9 features in 8 dimensions are too few"):
        frechet_infinity(cloud(100), STANDARD, (9, 30, 100))


def test_infinity_removes_the_bias_of_finite_n():
    """Held-out images of the same distribution: the plain distance is 26 / n, the extrapolated one 0 in the mean.

    So it is negative about as often as positive, and must not be clipped.
    """
    plain, extrapolated = [], []
    for seed in range(20):
        x = cloud(400, seed=seed)
        plain.append(frechet_distance(Gaussian.fit(x), STANDARD))
        extrapolated.append(frechet_infinity(x, STANDARD, seed=seed).value)
    assert np.mean(plain) == pytest.approx(BIAS / 400, rel=0.1)
    assert abs(np.mean(extrapolated)) < 3 * scipy.stats.sem(extrapolated) < BIAS / 400 / 4
    assert 2 < np.sum(np.array(extrapolated) < 0) < 18


def test_infinity_keeps_a_real_difference():
    """N(1, I) is D = 8 away."""
    got = frechet_infinity(cloud(2_000, shift=1.0), STANDARD)
    assert got.value == pytest.approx(DIM, rel=0.05) and got.low < DIM < got.high


@pytest.mark.parametrize("sizes", [(50, 100), (50, 50, 100)])
def test_infinity_needs_three_different_sizes(sizes):
    with pytest.raises(ValueError, match="three different sizes"):
        frechet_infinity(cloud(100), STANDARD, sizes)


# KID -----------------------------------------------------------------------------------------------------------------


def kid_by_loops(x, y):
    """The U-statistic, pair by pair."""

    def k(a, b):
        return (sum(u * v for u, v in zip(a, b, strict=True)) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    within = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    reals = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within + reals - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize("block", [1_000, 7, 1])
def test_kid_is_the_double_loop_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", block)
    x, y = cloud(23, 3, 0, 0.3), cloud(31, 3, 1)
    got = kid(x, torch.from_numpy(y))
    assert got.value == pytest.approx(kid_by_loops(x, y), rel=1e-11)
    assert got.n == 23 and "23 generated and 31 real" in got.protocol


def test_kid_is_that_of_sklearns_kernel():
    x, y = cloud(60, 5, 0, 0.2), cloud(90, 5, 1)
    within, reals, across = (polynomial_kernel(a, b, degree=3, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    want = ((within.sum() - np.trace(within)) / (60 * 59) + (reals.sum() - np.trace(reals)) / (90 * 89)
            - 2 * across.mean())
    assert kid(x, y).value == pytest.approx(want, rel=1e-11)


def test_kid_of_two_points_by_hand():
    """All x = 1, all y = 2 in one dimension: k = 2^3, 5^3 and 3^3, so 8 + 125 - 54.  Leaving some out is no change."""
    got = kid(np.ones((20, 1)), np.full((2, 1), 2.0))
    assert (got.value, got.low, got.high) == pytest.approx((79, 79, 79), rel=1e-12)


def test_the_interval_of_kid_is_the_jackknife_of_the_double_loop():
    x, y = cloud(24, 2, 0, 0.5), cloud(12, 2, 1)
    got, want = kid(x, y), jackknife(lambda keep: kid_by_loops(x[keep], y), 24, "")
    assert (got.low, got.high) == pytest.approx((want.low, want.high), rel=1e-9)


def test_kid_is_unbiased_and_never_clipped():
    """Splits of one distribution into 20 and 30: 0 within three standard errors, often negative.

    The mean over all pairs, each with itself, is not: k(x, x) is larger than k(x, y).
    """
    unbiased, biased = [], []
    for seed in range(150):
        x, y = np.split(cloud(50, 3, seed), [20])
        unbiased.append(kid(x, y).value)
        within, reals, across = (polynomial_kernel(a, b, coef0=1).mean() for a, b in ((x, x), (y, y), (x, y)))
        biased.append(within + reals - 2 * across)
    assert abs(np.mean(unbiased)) < 3 * scipy.stats.sem(unbiased)
    assert np.mean(biased) > 10 * scipy.stats.sem(biased)
    assert 0.2 < np.mean(np.array(unbiased) < 0) < 0.9


def test_kid_compares_moments_up_to_the_third():
    """(x y + 1)^3 = sum_k c_k x^k y^k with c = 1, 3, 3, 1, so in one dimension the pairs are sums of powers.

    Two values with the mean 0 and variance 1 of the reals but skewness 8/3 are (8/3)^2 away; fresh reals are not.
    """
    reals, fresh = cloud(1_000, 1, 1), cloud(500, 1)
    skewed = np.where(np.arange(500) % 10 < 1, 3.0, -1 / 3)[:, None]

    def by_powers(x, y):
        def pairs(z, k):
            return (np.sum(z**k) ** 2 - np.sum(z ** (2 * k))) / (len(z) * (len(z) - 1))

        return sum(c * (pairs(x, k) + pairs(y, k) - 2 * np.mean(x**k) * np.mean(y**k))
                   for k, c in ((1, 3), (2, 3), (3, 1)))  # k = 0 cancels

    for x in (skewed, fresh):
        assert kid(x, reals).value == pytest.approx(by_powers(x, reals), rel=1e-9)
    assert 0 < kid(skewed, reals).low < 64 / 9 < kid(skewed, reals).high
    assert kid(fresh, reals).low < 0


@pytest.mark.parametrize(("x", "y", "message"), [
    (np.ones(30), np.ones((30, 1)), r"features: need \(N, D\)"),
    (np.ones((30, 1)), np.ones((1, 1)), "real: need .* at least two rows"),
    (np.ones((30, 0)), np.ones((30, 0)), r"features: need \(N, D\)"),
    (np.full((30, 2), np.inf), np.ones((30, 2)), "features hold NaN"),
    (np.ones((30, 2)), np.full((30, 2), np.nan), "real hold NaN"),
    (np.ones((30, 2)), np.ones((30, 3)), "different dimensions"),
    (np.ones((19, 2)), np.ones((30, 2)), "at least 20 images"),
])
def test_kid_refuses_bad_features(x, y, message):
    with pytest.raises(ValueError, match=message):
        kid(x, y)


# inception score -----------------------------------------------------------------------------------------------------


def score(p):
    """exp(mean KL(p(y|x) || p(y))) with scipy's relative entropy."""
    return np.exp(scipy.special.rel_entr(p, p.mean(axis=0)).sum(axis=1).mean())


def test_inception_score_is_the_mean_relative_entropy_with_its_jackknife():
    p = np.random.default_rng(0).dirichlet(np.full(5, 0.3), 60)
    got, want = inception_score(p), jackknife(lambda keep: score(p[keep]), 60, "")
    assert (got.value, got.low, got.high) == pytest.approx((want.value, want.low, want.high), rel=1e-9)
    assert got.n == 60 and "5 classes" in got.protocol


def test_inception_score_lies_between_one_and_the_number_of_classes():
    """Sure and even: K.  Sure of one class: 1.  Never sure: 1.  Two of ten classes, 3 to 1: exp of their entropy."""
    assert inception_score(np.tile(np.eye(10), (4, 1))).value == pytest.approx(10, rel=1e-12)
    assert inception_score(np.tile(np.eye(10)[3], (40, 1))).value == pytest.approx(1, rel=1e-12)
    assert inception_score(np.full((40, 10), 0.1)).value == pytest.approx(1, rel=1e-12)
    two = np.eye(10)[[0] * 30 + [1] * 10]
    assert inception_score(two).value == pytest.approx(4 / 3**0.75, rel=1e-12)


def test_inception_score_takes_the_softmax_of_a_network():
    p = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    assert p.dtype == torch.float32
    assert inception_score(p).value == pytest.approx(score(p.double().numpy()), rel=1e-6)


@pytest.mark.parametrize("p", [
    np.full(20, 0.05), np.full((20, 2), 0.6), np.tile([2.0, -1.0], (20, 1)), np.full((20, 2), np.nan), np.ones((0, 10)),
])
def test_inception_score_refuses_rows_that_are_no_distributions(p):
    with pytest.raises(ValueError, match=r"probabilities \(N, K\) whose rows sum to 1"):
        inception_score(p)


def test_inception_score_needs_twenty_images():
    with pytest.raises(ValueError, match="at least 20 images"):
        inception_score(np.eye(10))


# classes -------------------------------------------------------------------------------------------------------------


def test_class_shares_are_counts_over_all():
    assert class_shares([3, 0, 3, 1], k=5).tolist() == [0.25, 0.25, 0, 0.5, 0]
    assert class_shares(torch.tensor([1, 1]), k=2).tolist() == [0, 1]
    assert class_shares(np.array([9], dtype=np.uint8)).tolist() == [0] * 9 + [1]


def test_class_entropy_by_hand():
    """Counts 2, 1, 1 of 4: 1/2 log 2 + 2 / 4 log 4 = 1.5 log 2, and (3 - 1) / 8 of Miller and Madow."""
    got = class_entropy([7, 7, 0, 2])
    assert got.value == pytest.approx(1.5 * math.log(2) + 0.25, rel=1e-12)
    assert got.n == 4 and "nats" in got.protocol


def test_class_entropy_is_scipys_plus_the_correction_and_the_basic_bootstrap():
    """Interval: twice the plug-in value less the quantiles of resampled histograms, here drawn as multinomials."""
    x = np.random.default_rng(0).choice(4, 300, p=[0.6, 0.2, 0.15, 0.05])
    shares = np.bincount(x) / 300
    plug_in, got = scipy.stats.entropy(shares), class_entropy(x)
    resampled = scipy.stats.entropy(np.random.default_rng(1).multinomial(300, shares, 20_000), axis=1)
    high, low = 2 * plug_in - np.quantile(resampled, [0.025, 0.975])
    assert got.value == pytest.approx(plug_in + 3 / 600, rel=1e-12)
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_class_entropy_of_even_classes_is_unbiased_and_covered():
    """The plug-in value is 9 / 2n too low, and percentiles of resampled histograms are mostly below the truth."""
    rng, truth, n = np.random.default_rng(0), math.log(10), 60
    draws = [rng.integers(10, size=n) for _ in range(50)]
    got, plug_in = [class_entropy(x) for x in draws], [scipy.stats.entropy(class_shares(x)) for x in draws]
    resampled = [scipy.stats.entropy(rng.multinomial(n, class_shares(x), 300), axis=1) for x in draws]
    assert np.mean(plug_in) == pytest.approx(truth - 9 / (2 * n), abs=0.02)
    assert np.mean([e.value for e in got]) == pytest.approx(truth, abs=0.02)
    assert np.mean([e.low <= truth <= e.high for e in got]) > 0.9
    assert all(e.low <= e.value <= e.high for e in got)
    assert np.mean([np.quantile(r, 0.975) >= truth for r in resampled]) < 0.5


def test_a_single_class_has_no_entropy():
    got = class_entropy(np.full(50, 4))
    assert (got.value, got.low, got.high) == (0, 0, 0)


def test_uniformity_by_hand():
    """Counts 30, 20, 10 against 20: (100 + 0 + 100) / 20 = 10, whose chance with two degrees of freedom is e^-5."""
    statistic, p = uniformity_test(np.repeat([0, 1, 2], [30, 20, 10]), k=3)
    assert (statistic, p) == pytest.approx((10, math.exp(-5)), rel=1e-12)


def test_uniformity_against_given_shares():
    labels = np.repeat([0, 1, 2], [30, 20, 10])
    assert uniformity_test(labels, [1 / 2, 1 / 3, 1 / 6], k=3) == pytest.approx((0, 1), abs=1e-12)
    assert uniformity_test(labels, torch.tensor([0.25, 0.5, 0.25]), k=3)[0] == pytest.approx(15 + 10 / 3 + 5 / 3)


def test_an_empty_class_is_a_count_of_zero():
    """20 of each of three classes, none of the fourth, against 15: (3 * 25 + 225) / 15 = 20."""
    assert uniformity_test(np.repeat([0, 1, 2], 20), k=4)[0] == pytest.approx(20)


def test_even_classes_are_rarely_called_uneven():
    rng = np.random.default_rng(0)
    p = np.array([uniformity_test(rng.integers(10, size=200))[1] for _ in range(150)])
    assert 0 < np.mean(p < 0.05) < 0.12 and 0.42 < p.mean() < 0.58  # p is uniform in 0..1
    assert uniformity_test(rng.choice(10, 2_000, p=[0.15] + [0.85 / 9] * 9))[1] < 1e-6


@pytest.mark.parametrize("measure", [class_shares, class_entropy, uniformity_test])
@pytest.mark.parametrize(("labels", "message"), [
    ([0, 10], "labels must be classes 0 .. 9, got 0 .. 10"), ([-1, 3], "labels must be classes 0 .. 9, got -1 .. 3"),
    ([0.0, 1.0], "integer labels"), ([[0, 1]], "integer labels"), (np.zeros(0, int), "at least one"),
    ([True, False], "integer labels"),
])
def test_labels_that_are_none_are_refused(measure, labels, message):
    with pytest.raises(ValueError, match=message):
        measure(labels)


def test_entropy_of_one_label_has_no_interval_and_is_refused():
    with pytest.raises(ValueError, match="at least two labels"):
        class_entropy([3])


@pytest.mark.parametrize(("expected", "message"), [
    ([0.5, 0.5], "need 3 shares"), ([0.5, 0.4, 0.2], "sum 1.1"), ([1.5, -0.5, 0.0], "need 3 shares"),
    ([np.nan, 0.5, 0.5], "need 3 shares"), ([0.5, 0.5, 0.0], "only 0 images expected of class 2"),
    ([0.06, 0.44, 0.5], "only 3.6 images expected of class 0"),
])
def test_expected_shares_that_cannot_be_tested_are_refused(expected, message):
    with pytest.raises(ValueError, match=message):
        uniformity_test(np.repeat([0, 1, 2], 20), expected, k=3)


def test_too_few_images_for_the_chi_square_distribution_are_refused():
    with pytest.raises(ValueError, match=r"only 4\.9 images expected"):
        uniformity_test(np.arange(49) % 10)
