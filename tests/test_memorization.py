"""Memorization and diversity against hand computation and loops; on training copies and on held-out digits."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import cdist, pdist

from onebit.data import load
from onebit.metrics.memorization import (
    authenticity,
    closer_than,
    distance_ratio,
    diversity,
    memorized,
    nearer_seen,
    nn_distance,
    other_gap,
    published_diversity,
    published_memorization,
    share,
)
from onebit.metrics.neighbours import nearest


def grey(n, side=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 1, side, side), dtype=np.uint8)


def pixels(x):
    return x.reshape(len(x), -1) / 255


@pytest.fixture(scope="module")
def digits():
    """Training images in two halves, of which one is trained on; they are by the same writers."""
    images = load("digits").draw(1400).images
    return images[:700], images[700:]


# as published --------------------------------------------------------------------------------------------------------


def test_published_memorization_over_the_whole_training_set_is_the_mean_nearest_distance():
    """With all samples and all training images in every draw, nothing is random."""
    x, train = grey(6), grey(30, seed=1)
    want = cdist(pixels(x), pixels(train)).min(1).mean()
    got = published_memorization(x, train, n=6, subset=30, draws=3)
    assert (got.value, got.low, got.high) == pytest.approx((want, want, want), rel=1e-12)
    assert got.n == 6


def test_published_memorization_draws_samples_and_subset_anew():
    """One sample against one training image: a draw is one entry of the distance matrix, each equally likely."""
    x, train = grey(3), grey(4, seed=1)
    matrix = cdist(pixels(x), pixels(train))
    got = published_memorization(x, train, n=1, subset=1, draws=600)
    assert (got.low, got.high) == pytest.approx((matrix.min(), matrix.max()), rel=1e-12)
    assert got.value == pytest.approx(matrix.mean(), abs=4 * matrix.std() / np.sqrt(600))


def test_published_memorization_of_training_copies_is_not_zero(digits):
    """The published subset misses most originals: copies score like fresh images of the same writers, not 0."""
    trained, fresh = digits
    copies, unseen = (published_memorization(x, trained, n=50, subset=70) for x in (trained, fresh))
    everything = published_memorization(trained, trained, n=50, subset=700)
    assert everything.value == 0
    assert 0.8 * unseen.value < copies.value < unseen.value
    assert "70 random training images" in copies.protocol and "20 draws" in copies.protocol
    assert "of single draws" in copies.protocol


def test_published_interval_is_that_of_single_draws(digits):
    """More draws settle the mean and leave the width: it is the spread of the published protocol."""
    trained, fresh = digits
    widths = [np.subtract(e.high, e.low) for e in
              (published_memorization(fresh, trained, n=20, subset=70, draws=d, seed=1) for d in (20, 200))]
    assert 0.5 < widths[1] / widths[0] < 2


def test_published_numbers_are_functions_of_their_seed(digits):
    trained, fresh = digits
    first, again, other = (published_memorization(fresh, trained, 20, 70, draws=3, seed=s) for s in (0, 0, 1))
    assert first == again and first != other
    first, again, other = (published_diversity(fresh, 20, draws=3, seed=s) for s in (0, 0, 1))
    assert first == again and first != other


def test_published_diversity_is_the_mean_over_pairs_of_drawn_samples():
    """All samples: the mean over pairs.  Two of five: each of ten pairs in a tenth of the draws, ends included."""
    x = grey(5)
    whole = published_diversity(x, n=5, draws=2)
    assert whole.value == pytest.approx(pdist(pixels(x)).mean(), rel=1e-12)
    pairs = published_diversity(x, n=2, draws=600)
    every = pdist(pixels(x))
    assert (pairs.low, pairs.high) == pytest.approx((every.min(), every.max()), rel=1e-12)
    assert pairs.value == pytest.approx(every.mean(), abs=4 * every.std() / np.sqrt(600))
    assert pairs.n == 2


@pytest.mark.parametrize(("changes", "message"), [
    (dict(samples=grey(9)), "samples: need at least 10 images, got 9"),
    (dict(train=grey(19)), "train: need at least 20 images, got 19"),
    (dict(samples=pixels(grey(10))), "samples: need uint8 images"),
    (dict(train=np.zeros(20, np.uint8)), "train: need uint8 images"),
    (dict(draws=1), "at least 2 draws"),
    (dict(train=grey(20, side=5)), "samples and train differ in size"),
])
def test_what_the_published_memorization_cannot_measure_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        published_memorization(**dict(samples=grey(10), train=grey(20), n=10, subset=20, draws=2) | changes)


@pytest.mark.parametrize(("changes", "message"), [
    (dict(samples=grey(9)), "samples: need at least 10 images"),
    (dict(samples=grey(10).astype(int)), "samples: need uint8 images"),
    (dict(n=1), "n must be at least 2"),
    (dict(draws=1), "at least 2 draws"),
])
def test_what_the_published_diversity_cannot_measure_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        published_diversity(**dict(samples=grey(10), n=10, draws=2) | changes)


# nearest training images ---------------------------------------------------------------------------------------------


def test_memorized_counts_what_is_less_than_a_third_as_far_from_the_nearest():
    got = memorized([[0.0, 1.0], [1.0, 3.0], [0.9, 3.0], [2.0, 2.0], [0.0, 0.0]])  # a third is no less than a third
    assert (got.value, got.n) == (0.4, 5)
    want = scipy.stats.binomtest(2, 5).proportion_ci(0.95, "wilson")
    assert (got.low, got.high) == pytest.approx((want.low, want.high))


@pytest.mark.parametrize("distances", [[1.0, 2.0], [[1.0]], [[2.0, 1.0]], [[-1.0, 1.0]], [[0.0, np.nan]]])
def test_memorized_refuses_what_are_no_two_sorted_distances(distances):
    with pytest.raises(ValueError, match="distances"):
        memorized(distances)


def test_nearer_seen_counts_sets_that_are_farther_and_ties_by_half():
    got = nearer_seen([1.0, 2.0], [[2.0, 0.5, 3.0, 1.0], [3.0, 2.0, 2.0, 1.0]])
    assert got.value == pytest.approx(np.mean([(1 + 0 + 1 + 0.5) / 4, (1 + 0.5 + 0.5 + 0) / 4]), rel=1e-12)
    assert (got.n, got.low, got.high) == (2, pytest.approx(0.5), pytest.approx(0.625))


def test_nearer_seen_is_the_share_of_a_loop_over_samples_and_sets(digits):
    trained, fresh = digits
    sets = trained[:200].split(50)
    x = fresh[:40]
    near = [cdist(pixels(x.numpy()), pixels(part.numpy())).min(1) for part in sets]
    want = np.mean([(near[0] < other) + 0.5 * (near[0] == other) for other in near[1:]])
    got = nearer_seen(nearest(x, sets[0])[0], np.stack([nearest(x, part)[0][:, 0] for part in sets[1:]], axis=1))
    assert got.value == pytest.approx(want, abs=1e-12)


def test_noise_hides_copies_from_every_measure_but_nearer_seen(digits):
    """What it is for: noise moves a copy away from the images trained on and from all others alike."""
    trained, _ = digits
    sets = trained.split(100)
    noise = torch.randn(sets[0].shape, generator=torch.Generator().manual_seed(0))
    copies = (sets[0] / 255 + 0.3 * noise).clamp(0, 1).mul(255).byte()
    distances = nearest(copies, sets[0], k=2)[0]
    others = np.stack([nearest(copies, part)[0][:, 0] for part in sets[1:]], axis=1)
    assert nearer_seen(distances, others).value > 0.95
    assert memorized(distances).value < 0.05


@pytest.mark.parametrize(("seen", "others", "message"), [
    ([1.0, 2.0], [1.0, 2.0], "others: need finite distances"),
    ([1.0, 2.0], [[1.0], [2.0], [3.0]], "others: need finite distances"),
    ([1.0, 2.0], np.empty((2, 0)), "others: need finite distances"),
    ([1.0, 2.0], [[1.0], [np.inf]], "others: need finite distances"),
    ([1.0, -2.0], [[1.0], [1.0]], "seen: need finite distances"),
    ([1.0], [[1.0]], "need shape|at least|values"),
])
def test_nearer_seen_refuses_what_are_no_distances(seen, others, message):
    with pytest.raises(ValueError, match=message):
        nearer_seen(seen, others)


def test_nn_distance_is_the_mean_of_the_first_column():
    got = nn_distance([[1.0, 9.0], [2.0, 9.0], [6.0, 9.0]], against="9 images")
    assert got.value == pytest.approx(3.0) and 1 <= got.low < 3 < got.high <= 6
    assert got.n == 3 and "9 images" in got.protocol
    assert nn_distance([1.0, 2.0, 6.0]).value == pytest.approx(3.0)


def test_distance_ratio_by_hand():
    """1/2, 3/3, a copy 0/5 and a copy of a duplicated image 0/0 := 0; the third column is ignored."""
    got = distance_ratio([[1, 2, 7], [3, 3, 7], [0, 5, 7], [0, 0, 7]])
    assert got.value == pytest.approx(1.5 / 4, rel=1e-15)


def test_closer_than_counts_strictly_and_has_wilsons_interval():
    """Of 1, 2, 3, 4 one is below 2.  Wilson: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    got = closer_than([1.0, 2.0, 3.0, 4.0], 2.0)
    z, p, n = scipy.stats.norm.ppf(0.975), 0.25, 4
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    want = [(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert got.value == 0.25 and [got.low, got.high] == pytest.approx(want, rel=1e-12)


def test_other_gap_by_hand_with_a_duplicated_image():
    """Single pixels 0, 51, 51, 255 (51 = 0.2): the gaps are 0.2, 0, 0 and 0.8."""
    train = np.array([0, 51, 51, 255], np.uint8)[:, None]
    np.testing.assert_allclose(other_gap([3, 0, 1, 2, 3], train), [0.8, 0.2, 0, 0, 0.8], rtol=1e-15)
    np.testing.assert_allclose(other_gap([[3, 0], [0, 1]], torch.from_numpy(train)), [0.8, 0.2], rtol=1e-15)


def test_other_gap_is_the_smallest_entry_off_the_diagonal():
    train = grey(40)
    matrix = cdist(pixels(train), pixels(train))
    np.fill_diagonal(matrix, np.inf)
    winners = np.random.default_rng(0).integers(0, 40, 100)
    np.testing.assert_allclose(other_gap(winners, train), matrix.min(1)[winners], rtol=1e-12)


def test_authenticity_by_hand():
    """Farther than the gap: authentic.  Nearer or as near: not, so a copy of a duplicated image (0, 0) is not."""
    got = authenticity([0.5, 0.1, 0.3, 0.0], [0.2, 0.2, 0.3, 0.0])
    assert got.value == 0.25 and 0 < got.low < 0.25 < got.high < 1


def test_copies_are_flagged_and_held_out_images_are_not(digits):
    """The threshold is held-out data's 1st percentile, so 1 % of held-out images fall below it by construction."""
    trained, fresh = digits
    slightly = (trained.float() + 3 * torch.randn(trained.shape, generator=torch.Generator().manual_seed(0)))
    arms = dict(copies=trained, noisy=slightly.clamp(0, 255).to(torch.uint8), fresh=fresh)
    found = {name: nearest(images, trained, k=2) for name, images in arms.items()}
    threshold = np.quantile(found["fresh"][0][:, 0], 0.01)
    below = {name: closer_than(d, threshold).value for name, (d, _) in found.items()}
    authentic = {name: authenticity(d, other_gap(i, trained)).value for name, (d, i) in found.items()}
    ratio = {name: distance_ratio(d).value for name, (d, _) in found.items()}
    assert below["copies"] == 1 and below["noisy"] > 0.99 and below["fresh"] == pytest.approx(0.01, abs=0.001)
    assert authentic["copies"] == 0 and authentic["noisy"] < 0.01 and authentic["fresh"] > 0.4
    assert ratio["copies"] == 0 and ratio["noisy"] < 0.2 and ratio["fresh"] > 0.85
    assert nn_distance(found["copies"][0]).value == 0


@pytest.mark.parametrize("distances", [[-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0], [], [[[1.0]]], 1.0, [[], []]])
def test_distances_that_are_none_are_refused_by_all(distances):
    for metric in (nn_distance, lambda d: closer_than(d, 1.0), lambda d: authenticity(d, [1.0, 1.0])):
        with pytest.raises(ValueError, match="distances: need finite distances >= 0"):
            metric(distances)


def test_a_single_distance_has_no_bootstrap():
    with pytest.raises(ValueError, match="at least 2 values"):
        nn_distance([1.0])


@pytest.mark.parametrize("distances", [[1.0, 2.0], [[1.0], [2.0]], [[2.0, 1.0], [1.0, 2.0]]])
def test_ratios_need_two_sorted_columns(distances):
    with pytest.raises(ValueError, match="call nearest with k=2"):
        distance_ratio(distances)


@pytest.mark.parametrize("distances", [[[-1.0, 1.0]] * 2, [[1.0, np.inf]] * 2, [[np.nan, 1.0]] * 2])
def test_ratios_of_no_distances_are_refused(distances):
    with pytest.raises(ValueError, match="finite distances"):
        distance_ratio(distances)


@pytest.mark.parametrize("threshold", [-0.1, np.nan, np.inf])
def test_a_threshold_that_is_no_distance_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be a distance"):
        closer_than([1.0], threshold)


@pytest.mark.parametrize("winners", [[0.0, 1.0], [], 3, [[[0]]], [True, False]])
def test_winners_that_are_no_indices_are_refused(winners):
    with pytest.raises(ValueError, match="winners: need integer indices"):
        other_gap(winners, grey(5))


@pytest.mark.parametrize(("winners", "n"), [([5], 5), ([-1], 5), ([0], 1)])
def test_winners_outside_the_training_set_and_lonely_images_are_refused(winners, n):
    with pytest.raises(ValueError, match="winners must index train"):
        other_gap(winners, grey(n))


def test_gaps_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="one gap per sample, got 1 for 2"):
        authenticity([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="gap: need finite distances"):
        authenticity([1.0], [np.nan])


# diversity -----------------------------------------------------------------------------------------------------------


def test_diversity_is_the_mean_over_all_pairs():
    x = grey(25)
    loop = np.mean([np.sqrt(((a - b) ** 2).sum()) for a, b in itertools.combinations(pixels(x), 2)])
    got = diversity(torch.from_numpy(x))
    assert got.value == pytest.approx(loop, rel=1e-12) and got.low < loop < got.high and got.n == 25


def test_diversity_of_two_kinds_of_images_by_hand():
    """12 black and 8 white images of one pixel: 12 * 8 of 190 pairs lie 1 apart.  Equal images: 0, with no width."""
    x = np.array([0] * 12 + [255] * 8, np.uint8)[:, None]
    assert diversity(x).value == pytest.approx(96 / 190, rel=1e-12)
    alike = diversity(np.full((20, 2, 2), 7, np.uint8))
    assert (alike.value, alike.low, alike.high) == (0, 0, 0)


def test_the_interval_of_diversity_covers_its_expectation_about_as_often_as_it_says():
    """Images uniform on one pixel: E|a - b| = (256^2 - 1) / (3 * 256) / 255.  200 sets: 95 % +- 4 standard errors."""
    rng = np.random.default_rng(0)
    want = (256**2 - 1) / (3 * 256) / 255
    sets = [diversity(rng.integers(0, 256, (60, 1), dtype=np.uint8)) for _ in range(200)]
    hits = np.mean([e.low <= want <= e.high for e in sets])
    assert abs(hits - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 200)


def test_diversity_needs_twenty_uint8_images():
    with pytest.raises(ValueError, match="at least 20 images"):
        diversity(grey(19))
    with pytest.raises(ValueError, match="samples: need uint8 images"):
        diversity(pixels(grey(20)))


# shares --------------------------------------------------------------------------------------------------------------


def test_a_share_of_none_or_all_still_has_a_width():
    """Wilson at 0 of n: the upper end is z^2 / (n + z^2)."""
    z2 = scipy.stats.norm.ppf(0.975) ** 2
    none, every = share(np.zeros(30, bool), "p"), share(np.ones(30, bool), "p")
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(z2 / (30 + z2), rel=1e-12)
    assert (every.value, every.high) == (1, 1) and every.low == pytest.approx(30 / (30 + z2), rel=1e-12)


@pytest.mark.parametrize("hits", [[], [0, 1], [[True]], [0.5]])
def test_hits_that_are_not_boolean_are_refused(hits):
    with pytest.raises(ValueError, match="need boolean hits"):
        share(hits, "p")
