"""Confidence, agreement, kappa and losses by class against hand computation, published tables and brute force."""

import itertools

import numpy as np
import pytest
import torch

from onebit.metrics.legibility import (
    NO_CLASS,
    agreement,
    by_class,
    class_losses,
    confidence,
    fleiss_kappa,
    legible,
    majority,
)

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


def wilson(hits, n):
    """Wilson 1927: the p with |hits / n - p| <= Z sqrt(p (1 - p) / n), from the quadratic's roots."""
    p = np.roots([1 + Z**2 / n, -(2 * hits / n + Z**2 / n), (hits / n) ** 2])
    return sorted(p.real)


def guesses(judges=3, n=3_000, k=10, seed=0):
    return np.random.default_rng(seed).integers(0, k, (judges, n))


def distributions(n, k=10, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(k), n)


# confidence ----------------------------------------------------------------------------------------------------------


def test_confidence_is_the_mean_of_the_rows_maxima():
    """(0.7 + 0.5 + 0.8) / 3, whichever class holds the maximum; the columns' maxima would give another mean."""
    p = [[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]
    assert confidence(p).value == pytest.approx(2 / 3, rel=1e-15)
    assert confidence(torch.tensor(p)).value == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize("k", [2, 10])
def test_confidence_lies_between_one_kth_and_one(k):
    assert confidence(np.full((7, k), 1 / k)).value == pytest.approx(1 / k)
    assert confidence(np.eye(k)).value == 1.0


def test_the_interval_of_confidence_is_that_of_a_mean():
    """The normal interval, to a fifth of its half width: the bootstrap has a thousand draws."""
    p = distributions(500)
    estimate, half = confidence(p), Z * p.max(axis=1).std() / np.sqrt(500)
    want = [estimate.value - half, estimate.value + half]
    np.testing.assert_allclose([estimate.low, estimate.high], want, atol=half / 5)
    assert estimate.n == 500


def test_confidence_as_published_is_that_of_the_first_images():
    p = np.concatenate([distributions(30), np.tile(np.eye(10)[3], (70, 1))])
    estimate = confidence(p, n=30)
    assert estimate.value == pytest.approx(p[:30].max(axis=1).mean(), rel=1e-12)
    assert estimate.n == 30 and "30 images" in estimate.protocol


@pytest.mark.parametrize("n", [0, 1, -5, 101])
def test_more_images_than_there_are_or_fewer_than_two_are_refused(n):
    with pytest.raises(ValueError, match=f"n must be 2 to 100, the images there are, got {n}"):
        confidence(distributions(100), n)


def test_confidence_of_no_distributions_is_refused():
    with pytest.raises(ValueError, match="rows sum to 1"):
        confidence(np.ones((5, 10)))


# agreement -----------------------------------------------------------------------------------------------------------

THREE = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 9, 6], [0, 1, 7, 8, 9, 7]])  # all, all, 2, 2, 2 and 1 vote(s)


def test_agreement_is_the_share_of_unanimous_images_with_wilsons_interval():
    estimate = agreement(THREE)
    assert estimate.value == pytest.approx(2 / 6, rel=1e-15) and estimate.n == 6
    np.testing.assert_allclose([estimate.low, estimate.high], wilson(2, 6), rtol=1e-9)


def test_agreement_of_all_images_keeps_an_interval_below_one():
    """Forty of forty: Wilson's lower end is n / (n + z^2)."""
    estimate = agreement(np.zeros((2, 40), int))
    assert estimate.value == 1 == pytest.approx(estimate.high)
    assert estimate.low == pytest.approx(40 / (40 + Z**2), rel=1e-9)


def test_three_judges_that_guess_agree_on_a_hundredth():
    estimate = agreement(guesses(n=20_000))
    assert estimate.low < 0.01 < estimate.high and estimate.high < 0.02


def test_majority_by_hand():
    """Unanimous, unanimous, then two of three for the first, the first, the second; the last image is a tie."""
    assert majority(THREE).tolist() == [0, 1, 2, 3, 9, NO_CLASS]
    assert majority([[1], [1], [2], [3]]).tolist() == [1]  # no absolute majority is needed
    assert majority([[1], [1], [2], [2]]).tolist() == [NO_CLASS]
    assert majority([[2], [2], [1], [1], [3]]).tolist() == [NO_CLASS]


def test_majority_by_counting_all_votes_of_four_judges():
    votes = np.array(list(itertools.product(range(3), repeat=4))).T
    for image, found in zip(votes.T.tolist(), majority(votes), strict=True):
        ranked = sorted({c: image.count(c) for c in range(3)}.items(), key=lambda item: -item[1])
        assert found == (ranked[0][0] if ranked[0][1] > ranked[1][1] else NO_CLASS)


# kappa ---------------------------------------------------------------------------------------------------------------

FLEISS = [  # votes of 14 raters for 5 classes, ten subjects: a worked example whose kappa is 0.210 (P 0.378, P_e 0.213)
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]


def test_kappa_of_a_worked_example():
    """Twice each subject (an interval needs twenty), which leaves every share, and so kappa, as it is."""
    labels = np.array([np.repeat(np.arange(5), row) for row in FLEISS * 2]).T
    estimate = fleiss_kappa(labels, k=5)
    assert estimate.value == pytest.approx((0.378022 - 0.212755) / (1 - 0.212755), abs=1e-5)
    assert round(estimate.value, 3) == 0.21
    assert estimate.n == 20 and estimate.low < 0.21 < estimate.high
    assert fleiss_kappa(labels, k=10).value == pytest.approx(estimate.value, rel=1e-12)  # unused classes count nothing


def test_kappa_by_counting_pairs():
    """P over all ordered pairs of judges; P_e as the agreement of two votes drawn from all votes, with replacement."""
    labels = guesses(4, 60, k=3)
    labels[1:, :20] = labels[0, :20]
    same = np.mean([labels[a] == labels[b] for a, b in itertools.permutations(range(4), 2)])
    votes = labels.ravel()
    chance = np.mean(votes[:, None] == votes[None])
    assert fleiss_kappa(labels).value == pytest.approx((same - chance) / (1 - chance), rel=1e-12)


def test_kappa_is_one_for_judges_that_agree_and_zero_for_judges_that_guess():
    same = np.tile(guesses(1, 200), (3, 1))
    assert fleiss_kappa(same).value == pytest.approx(1, rel=1e-12)
    assert fleiss_kappa(same).low == pytest.approx(1, rel=1e-12)
    guessed = fleiss_kappa(guesses())
    assert guessed.low < 0 < guessed.high and guessed.high < 0.05


def test_kappa_takes_off_the_agreement_of_lopsided_guesses():
    """Two judges that say 1 nine times in ten, each on its own: they agree on 82 %, and kappa is 0."""
    labels = (np.random.default_rng(0).random((2, 5_000)) < 0.9).astype(int)
    assert agreement(labels).value > 0.8
    kappa = fleiss_kappa(labels)
    assert kappa.low < 0 < kappa.high < 0.1


def test_kappa_covers_the_truth_as_often_as_it_says():
    """Judges that see the class with probability 0.7 and guess else: kappa = 0.7^2.  Sixty panels of 400 images."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(60):
        truth = rng.integers(0, 10, 400)
        labels = np.where(rng.random((3, 400)) < 0.7, truth, rng.integers(0, 10, (3, 400)))
        estimate = fleiss_kappa(labels)
        held += estimate.low < 0.49 < estimate.high
    assert held >= 53


def test_kappa_without_a_second_class_is_refused():
    with pytest.raises(ValueError, match="every vote is for one class"):
        fleiss_kappa(np.full((3, 40), 7))


def test_kappa_of_classes_beyond_k_or_of_too_few_images_is_refused():
    with pytest.raises(ValueError, match=r"labels_by_judge must be classes 0 .. 9, got 10"):
        fleiss_kappa(np.full((3, 40), 10))
    with pytest.raises(ValueError, match="at least 20 images"):
        fleiss_kappa(guesses(n=19))


@pytest.mark.parametrize("function", [
    agreement, majority, fleiss_kappa, lambda labels: legible(labels, distributions(30)),
])
@pytest.mark.parametrize(("labels", "message"), [
    (np.zeros((1, 30), int), "J >= 2 judges"), (np.zeros(30, int), "J >= 2 judges"),
    (np.zeros((3, 0), int), "J >= 2 judges"), (np.zeros((3, 30)), "float64"), (np.zeros((3, 30, 1), int), "J >= 2"),
    (np.full((3, 30), -1), "must be classes 0, 1, ..., got -1"),
])
def test_labels_that_are_no_panels_are_refused(function, labels, message):
    """One judge, a single row, no images, floats, probabilities' shape, an image that has no class."""
    with pytest.raises(ValueError, match=message):
        function(labels)


# legible -------------------------------------------------------------------------------------------------------------


def test_legible_by_hand():
    """Unanimous and sure; unanimous, unsure; unanimous, the judge sure of another class; torn and sure; just at 0.5."""
    labels = [[1, 1, 1, 1, 1], [1, 1, 1, 2, 1]]
    p = [[0.1, 0.9, 0.0], [0.3, 0.4, 0.3], [0.9, 0.1, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]
    estimate = legible(labels, p)
    assert estimate.value == pytest.approx(1 / 5, rel=1e-15) and estimate.n == 5
    np.testing.assert_allclose([estimate.low, estimate.high], wilson(1, 5), rtol=1e-9)
    assert legible(labels, p, threshold=0.4).value == pytest.approx(2 / 5, rel=1e-15)
    assert legible(labels, p, threshold=0.3).value == pytest.approx(3 / 5, rel=1e-15)


def test_legible_never_exceeds_agreement_and_falls_with_the_threshold():
    labels = guesses(2, 300, k=3)
    p = distributions(300, k=3)
    shares = [legible(labels, p, threshold).value for threshold in (0, 0.3, 0.6, 0.9)]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]
    assert shares[0] == agreement(labels).value


@pytest.mark.parametrize("threshold", [-0.1, 1, 1.5, np.nan])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\)"):
        legible(guesses(n=30), distributions(30), threshold)


@pytest.mark.parametrize(("n", "k"), [(29, 10), (30, 9)])
def test_probabilities_that_do_not_fit_the_labels_are_refused(n, k):
    with pytest.raises(ValueError, match=r"do not fit labels_by_judge \(3, 30\) of classes 0 .. 9"):
        legible(np.full((3, 30), 9), distributions(n, k))


def test_legible_refuses_logits():
    with pytest.raises(ValueError, match="rows sum to 1"):
        legible(guesses(n=30), 5 * distributions(30))


# by class ------------------------------------------------------------------------------------------------------------


def test_by_class_is_the_mean_of_each_classs_values():
    labels, values = np.tile(np.arange(10), 50), np.random.default_rng(0).normal(size=500)
    rows = by_class(torch.tensor(values), torch.tensor(labels))
    assert [c for c, _ in rows] == list(range(10))
    for c, estimate in rows:
        mine = values[c::10]
        assert estimate.value == pytest.approx(mine.mean(), rel=1e-12) and estimate.n == 50
        half = Z * mine.std() / np.sqrt(50)
        assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.2)
        assert f"class {c}" in estimate.protocol


def test_an_empty_class_is_refused_and_left_out_on_request():
    values, labels = np.arange(5.0), np.array([0, 0, 2, 2, 3])
    with pytest.raises(ValueError, match=r"classes \[1, 3\] have \[0, 1\] images, fewer than minimum = 2"):
        by_class(values, labels, k=4)
    rows = by_class(values, labels, k=4, allow_empty=True)
    assert [(c, e.value) for c, e in rows] == [(0, 0.5), (2, 2.5)]
    assert by_class(values, labels, k=4, minimum=3, allow_empty=True) == []


@pytest.mark.parametrize(("values", "labels", "options", "message"), [
    ([1.0, np.nan], [0, 0], {}, "need finite values"),
    ([1.0, 2.0, 3.0], [0, 0], {}, r"need finite values of shape \(2,\).*\(3,\)"),
    ([1.0, 2.0], [0, 10], {}, "labels must be classes 0 .. 9, got 0 .. 10"),
    ([1.0, 2.0], [0, NO_CLASS], {}, "got -1 .. 0; leave out images without a class first"),
    ([1.0, 2.0], [0.0, 0.0], {}, "need integer labels"),
    ([[1.0]], [[0]], {}, "need integer labels"),
    ([], [], {}, "need integer labels"),
    ([1.0, 2.0], [0, 0], {"minimum": 1}, "minimum must be at least 2"),
])
def test_values_and_labels_that_do_not_fit_are_refused(values, labels, options, message):
    with pytest.raises(ValueError, match=message):
        by_class(values, labels, **options)


# losses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "m", "b", "n", "low", "high"), [
    (56, 70, 48, 80, 0.0524, 0.3339),
    (9, 10, 3, 10, 0.1705, 0.8090),
    (5, 56, 0, 29, -0.0381, 0.1926),
])
def test_the_interval_of_a_loss_is_newcombes(a, m, b, n, low, high):
    """Newcombe 1998, Table II, method 10: a of m against b of n."""
    reference, labels = np.repeat([0, 1], [a, m - a]), np.repeat([0, 1], [b, n - b])
    lost, gained = class_losses(labels, reference, k=2)
    assert lost.loss.value == pytest.approx(a / m - b / n, rel=1e-12)
    np.testing.assert_allclose([lost.loss.low, lost.loss.high], [low, high], atol=5.1e-5)
    np.testing.assert_allclose([gained.loss.low, gained.loss.high], [-high, -low], atol=5.1e-5)  # the other class


def test_shares_come_with_wilsons_intervals():
    row = class_losses([0] * 3 + [1] * 17, [0] * 40 + [1] * 10, k=2)[0]
    assert row.label == 0 and row.reference.value == 0.8 and row.share.value == 0.15
    np.testing.assert_allclose([row.reference.low, row.reference.high], wilson(40, 50), rtol=1e-9)
    np.testing.assert_allclose([row.share.low, row.share.high], wilson(3, 20), rtol=1e-9)
    assert (row.reference.n, row.share.n, row.loss.n) == (50, 20, 20)
    assert "50 reference images" in row.loss.protocol and "20" in row.loss.protocol


def test_a_lost_digit_is_found_and_a_fair_sample_loses_none():
    """Nines turned into fours, against a fair draw: the interval leaves 0 for these two classes alone."""
    rng = np.random.default_rng(0)
    real, fair = rng.integers(0, 10, 4_000), rng.integers(0, 10, 2_000)
    lossy = np.where(fair == 9, 4, fair)
    far = [row.label for row in class_losses(lossy, real) if not row.loss.low < 0 < row.loss.high]
    assert far == [4, 9]
    rows = class_losses(lossy, real)
    assert rows[9].loss.low > 0.07 and rows[4].loss.high < -0.07
    assert len(rows) == 10 and sum(row.loss.value for row in rows) == pytest.approx(0, abs=1e-12)


def test_images_without_a_class_are_lost():
    """Half of the ones cannot be read: they stay in the denominator."""
    rows = class_losses([1] * 20 + [NO_CLASS] * 20 + [0] * 40, [1] * 40 + [0] * 40, k=2)
    assert rows[1].loss.value == pytest.approx(0.25) and rows[0].loss.value == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(("labels", "reference", "message"), [
    ([], [0], r"need integer labels \(N,\)"), ([0], [], r"need integer reference_labels \(N,\)"),
    ([10], [0], "labels must be classes -1 .. 9, got 10"), ([0], [-2], "reference_labels must be classes -1 .. 9"),
    ([0.5], [0], "need integer labels"), ([[0]], [0], "need integer labels"),
])
def test_label_sets_that_are_no_classes_are_refused(labels, reference, message):
    with pytest.raises(ValueError, match=message):
        class_losses(labels, reference)


def test_classes_may_have_any_number_for_a_name():
    assert majority([[10**9, 5, 1], [10**9, 7, 3], [3, 5, 2]]).tolist() == [10**9, 5, NO_CLASS]
