"""Precision, recall, density, coverage and Vendi by hand, by loops, in expectation, and on controls."""

import itertools

import numpy as np
import pytest
import torch

from onebit.metrics.manifold import (
    coverage,
    density,
    kernel_scale,
    manifold,
    precision,
    radii,
    recall,
    vendi,
    vendi_score,
)

METRICS = dict(precision=precision, recall=recall, density=density, coverage=coverage)


def cloud(n, dim=3, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, dim)) + shift


def line(*values):
    return np.array(values, dtype=float)[:, None]


def by_loops(real, fake, k_precision=3, k_density=5):
    """The four definitions, written out over pairs."""

    def radius(x, i, k):
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]

    def distance(i, j):
        return np.linalg.norm(real[i] - fake[j])

    n, m = range(len(real)), range(len(fake))
    near = [radius(real, i, k_precision) for i in n]
    wide = [radius(real, i, k_density) for i in n]
    fakes = [radius(fake, j, k_precision) for j in m]
    return dict(
        precision=np.mean([any(distance(i, j) <= near[i] for i in n) for j in m]),
        recall=np.mean([any(distance(i, j) <= fakes[j] for j in m) for i in n]),
        density=np.mean([sum(distance(i, j) < wide[i] for i in n) / k_density for j in m]),
        coverage=np.mean([any(distance(i, j) < wide[i] for j in m) for i in n]),
    )


# balls ---------------------------------------------------------------------------------------------------------------


def test_radii_on_a_line_by_hand():
    """0, 1, 3, 7: the nearest others are 1, 1, 2, 4 away, the second nearest 3, 2, 3, 6.  A twin is another."""
    assert radii(line(0, 1, 3, 7), 2).tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]
    assert radii(line(0, 0, 5), 1).tolist() == [[0], [0], [5]]


def test_radii_of_more_rows_than_one_part_holds():
    """On the numbers 0..2500 every inner point has both neighbours 1 away, the ends theirs 1 and 2."""
    got = radii(np.arange(2501.0)[:, None], 2)
    assert got.shape == (2501, 2) and (got[1:-1] == 1).all() and got[[0, -1]].tolist() == [[1, 2], [1, 2]]


def test_the_four_on_a_line_by_hand():
    """Reals 0, 1, 4 with k = 1: balls |x| 1, |x - 1| 1, |x - 4| 3.  Fakes 2, 6.5, 9, 9 with k = 1: 4.5, 2.5, 0, 0.

    Precision: 2 touches the second ball (1) and lies in the third, 6.5 lies in the third, both 9s in none: 2/4.
    Recall: 0, 1, 4 lie in the ball of 2: 3/3.
    Density: open balls hold 2 once (the third), 6.5 once, 9 never: 2/4.  Coverage: the third of three.
    """
    real, fake = line(0, 1, 4), line(2, 6.5, 9, 9)
    got = {name: metric(real, fake, k=1) for name, metric in METRICS.items()}
    assert {n: e.value for n, e in got.items()} == pytest.approx(dict(precision=.5, recall=1, density=.5, coverage=1/3))
    assert [e.n for e in got.values()] == [4, 3, 4, 3]


def test_precision_and_recall_have_closed_balls_and_density_and_coverage_open_ones():
    """Reals 0 and 1, k = 1: a fake at 2 lies on the sphere around 1."""
    real, fake = line(0, 1), line(2, 2)
    assert precision(real, fake, 1).value == recall(fake, real, 1).value == 1
    assert density(real, fake, 1).value == coverage(real, fake, 1).value == 0


@pytest.mark.parametrize(("dim", "shift"), [(2, 0.0), (2, 1.5), (6, 0.5)])
def test_the_four_are_their_definitions_written_as_loops(dim, shift):
    real, fake = cloud(30, dim), cloud(25, dim, seed=1, shift=shift)
    want = by_loops(real, fake)
    together = manifold(real, fake)
    assert list(together) == list(METRICS)
    for name, metric in METRICS.items():
        assert together[name] == metric(real, fake)
        assert together[name].value == pytest.approx(want[name], rel=1e-12)
    assert manifold(torch.from_numpy(real), torch.from_numpy(fake)) == together


def test_ties_on_a_grid_are_decided_as_the_loops_decide_them():
    """Integer points have many equal distances, all computed exactly."""
    rng = np.random.default_rng(0)
    real, fake = rng.integers(0, 6, (30, 2)).astype(float), rng.integers(0, 8, (20, 2)).astype(float)
    assert {n: e.value for n, e in manifold(real, fake).items()} == pytest.approx(by_loops(real, fake), rel=1e-12)


def test_expected_density_is_one_and_expected_coverage_is_its_closed_form():
    """Naeem et al.: for equal distributions E density = 1 and E coverage = 1 - prod (N-i) / (N+M-i), i = 1..k.

    Whatever the distribution: a fake is as likely as a real to be among the nearest.  60 pairs of sets, four standard
    errors.
    """
    n, m, k = 60, 40, 5
    sets = [(cloud(n, seed=s), cloud(m, seed=1000 + s)) for s in range(60)]
    dens = [density(*pair).value for pair in sets]
    cover = [coverage(*pair).value for pair in sets]
    closed = 1 - np.prod([(n - i) / (n + m - i) for i in range(1, k + 1)])
    for values, want in ((dens, 1.0), (cover, closed)):
        assert np.mean(values) == pytest.approx(want, abs=4 * np.std(values) / np.sqrt(60))
        assert np.std(values) / np.sqrt(60) < 0.02


def test_intervals_are_wilsons_for_shares_and_the_bootstraps_for_density():
    got = manifold(cloud(200), cloud(200, seed=1))
    for name in ("precision", "recall", "coverage"):
        p, e = got[name].value, got[name]
        assert (e.high - e.low) / 2 == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 200), rel=0.1)
    fake = cloud(200, seed=1)
    per_fake = (np.linalg.norm(cloud(200)[:, None] - fake, axis=2) < radii(cloud(200), 5)[:, -1:]).sum(0) / 5
    e = got["density"]
    assert (e.high - e.low) / 2 == pytest.approx(1.96 * per_fake.std() / np.sqrt(200), rel=0.15)


# controls ------------------------------------------------------------------------------------------------------------


def test_identical_sets_are_perfect():
    """Each open ball of 5 neighbours holds the point itself and 4 others: density (1 + 4) / 5."""
    x = cloud(50)
    assert {n: e.value for n, e in manifold(x, x.copy()).items()} == dict.fromkeys(METRICS, pytest.approx(1.0))


def test_disjoint_sets_score_zero():
    got = manifold(cloud(50), cloud(50, seed=1, shift=100.0))
    assert {e.value for e in got.values()} == {0.0}
    assert got["precision"].high > 0  # 0 of 50 is not never


def test_collapse_to_one_image_is_precise_and_covers_nothing():
    """All fakes are one real image: recall finds that image alone; its ball and those around it are all that is hit."""
    real = cloud(100)
    got = manifold(real, np.repeat(real[:1], 100, axis=0))
    assert got["precision"].value == 1 and got["recall"].value == pytest.approx(0.01)
    assert got["coverage"].value <= 0.2
    assert vendi(np.repeat(real[:1], 100, axis=0), 1.0).value == pytest.approx(1, abs=1e-9)


def test_a_dropped_mode_lowers_recall_and_coverage_and_an_invented_one_precision_and_density():
    real = np.concatenate([cloud(100), cloud(100, seed=1, shift=50)])
    dropped, invented = cloud(200, seed=2), np.concatenate([real, cloud(200, seed=3, shift=-50)])
    got = manifold(real, dropped)
    assert got["recall"].value <= 0.5 and got["coverage"].value <= 0.5 and got["precision"].value > 0.8
    got = manifold(real, invented)
    assert got["precision"].value == 0.5 and got["density"].value == 0.5 and got["recall"].value == 1


def test_an_outlier_among_the_reals_fools_precision_and_not_density():
    """Naeem et al., section 3.1: the outlier's ball covers the invented mode; density counts one ball in N."""
    real, fake = np.append(cloud(60, 2), [[40.0, 0.0]], axis=0), cloud(60, 2, seed=1) + np.array([40.0, 0.0])
    assert precision(real, fake).value == 1 and density(real, fake).value == pytest.approx(1 / 5)


# Vendi score ---------------------------------------------------------------------------------------------------------


def textbook_vendi(k):
    """exp(-tr(K/n log K/n)) by the matrix logarithm's definition: eigenvalues one by one."""
    values = np.linalg.eigvals(k / len(k)).real
    values = values[values > 1e-12]
    return np.exp(-(values * np.log(values)).sum())


def gaussian(x, scale):
    return np.array([[np.exp(-((a - b) ** 2).sum() / scale**2) for b in x] for a in x])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_vendi_of_unlike_groups_is_their_number(k):
    """Groups of 8 equal images, the groups having nothing in common."""
    kernel = np.kron(np.eye(k), np.ones((8, 8)))
    assert vendi_score(kernel) == pytest.approx(k, rel=1e-12)


@pytest.mark.parametrize("c", [0.0, 0.3, 1.0])
def test_vendi_of_two_images_by_hand(c):
    """K = [[1, c], [c, 1]]: eigenvalues of K / 2 are (1 +- c) / 2; 0 log 0 = 0."""
    values = [v for v in ((1 + c) / 2, (1 - c) / 2) if v]
    assert vendi_score([[1, c], [c, 1]]) == pytest.approx(np.exp(-sum(v * np.log(v) for v in values)), rel=1e-9)


def test_vendi_of_unequal_groups_is_the_exponential_of_shannons_entropy():
    """12, 6 and 2 images in three far corners."""
    x, p = np.repeat(100 * np.eye(3), [12, 6, 2], axis=0), np.array([0.6, 0.3, 0.1])
    assert vendi(x, 1.0).value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


def test_vendi_is_the_textbook_form_of_the_gaussian_kernel():
    x = cloud(25, 4)
    assert vendi(x, 1.3).value == pytest.approx(textbook_vendi(gaussian(x, 1.3)), rel=1e-9)


def test_vendis_interval_is_the_jackknife_over_images():
    """Against the formula with the 20 groups of one image each."""
    x = cloud(20, 4)
    left = np.array([textbook_vendi(gaussian(np.delete(x, i, axis=0), 2.0)) for i in range(20)])
    error = np.sqrt(19 / 20 * ((left - left.mean()) ** 2).sum())
    got = vendi(x, 2.0)
    assert (got.high - got.low) / 2 == pytest.approx(2.093024 * error, rel=1e-6) and got.n == 20


def test_the_scale_is_half_the_median_distance_by_hand():
    """0, 1, 3: distances 1, 2, 3."""
    assert kernel_scale([[0.0], [1.0], [3.0]]) == 1.0


@pytest.mark.parametrize(("call", "message"), [
    (lambda: vendi_score(np.ones((2, 3))), r"\(N, N\)"),
    (lambda: vendi_score([[1, 0.2], [0.3, 1]]), "symmetric"),
    (lambda: vendi_score([[2, 0], [0, 2]]), "ones on its diagonal"),
    (lambda: vendi_score([[1, np.nan], [np.nan, 1]]), "finite"),
    (lambda: vendi(cloud(30), 0.0), "positive"),
    (lambda: vendi(cloud(19), 1.0), "at least 20 images"),
    (lambda: vendi(np.full((30, 2), np.nan), 1.0), "NaN"),
    (lambda: kernel_scale(np.ones((5, 2))), "no scale"),
    (lambda: kernel_scale([[1.0]]), "need"),
])
def test_what_has_no_vendi_score_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*METRICS.values(), manifold])
@pytest.mark.parametrize("argument", [0, 1])
def test_features_that_cannot_be_compared_are_refused(metric, argument):
    bad = cloud(10)
    bad[2, 1] = np.nan
    cases = [(bad, "NaN or infinity"), (np.zeros(10), "need"), (np.zeros((0, 3)), "need"),
             (np.zeros((10, 0)), "need"), (cloud(10, 2), "one dimension")]
    for x, message in cases:
        pair = [cloud(10), cloud(10)]
        pair[argument] = x
        with pytest.raises(ValueError, match=message):
            metric(*pair)


@pytest.mark.parametrize(("metric", "sizes", "named"), [
    (precision, (3, 9), "real"), (recall, (9, 3), "fake"), (density, (5, 9), "real"), (coverage, (5, 9), "real"),
    (manifold, (5, 9), "real"), (manifold, (9, 5), "fake"),
])
def test_too_few_features_for_a_ball_are_refused_by_name(metric, sizes, named):
    with pytest.raises(ValueError, match=rf"{named}: need \(N, D\) with N >= [46], got"):
        metric(cloud(sizes[0]), cloud(sizes[1]))


def test_single_fakes_are_enough_for_a_share_and_not_for_a_bootstrap():
    assert precision(cloud(10), np.zeros((1, 3))).n == 1
    with pytest.raises(ValueError, match="at least 2 values"):
        density(cloud(10), np.zeros((1, 3)))


@pytest.mark.parametrize("call", [lambda: radii(cloud(5), 0), lambda: precision(cloud(5), cloud(5), 0)])
def test_balls_need_a_neighbour(call):
    with pytest.raises(ValueError, match="k must be at least 1"):
        call()


def test_every_combination_of_small_sets_agrees_with_the_loops():
    """All ways to place 3 of 5 points as fakes against 6 fixed reals, k = 2."""
    real = line(0, 1, 2, 4, 7, 11)
    for places in itertools.combinations((-2, 0, 3, 6, 20), 3):
        fake = line(*places)
        want = by_loops(real, fake, 2, 2)
        assert {n: metric(real, fake, 2).value for n, metric in METRICS.items()} == pytest.approx(want)
