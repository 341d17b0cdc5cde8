"""Intervals against closed forms, coverage by simulation, and pairing by hand."""

import numpy as np
import pytest
import scipy.stats

from onebit.metrics.estimate import (
    GROUPS,
    Estimate,
    bootstrap,
    difference,
    geometric_over_seeds,
    hull,
    jackknife,
    over_seeds,
)
from onebit.metrics.legibility import NO_CLASS
from onebit.metrics.pairing import chance_agreement, label_agreement, paired_distance


def test_the_bootstrap_interval_of_a_mean_is_about_the_normal_one():
    """mean +- 1.96 sd / sqrt(N), from 500 normal values; the percentile interval differs by a few per cent."""
    x = np.random.default_rng(0).normal(3, 2, 500)
    found = bootstrap(x, "p")
    half = 1.96 * x.std() / np.sqrt(500)
    assert found.value == pytest.approx(x.mean(), rel=1e-12) and found.n == 500 and found.protocol == "p"
    assert found.low == pytest.approx(x.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.15 * half)
    assert bootstrap(x, "p") == found != bootstrap(x, "p", seed=1)


def test_equal_values_have_an_interval_of_no_width():
    found = bootstrap([2.0] * 5, "p")
    assert (found.value, found.low, found.high) == (2, 2, 2)


def test_the_jackknife_of_a_mean_has_the_error_of_a_mean():
    """For group means theta_(g) - mean = (mean - mean_g) / (G - 1), so se^2 = var(group means) / G."""
    x = np.arange(200.0)
    found = jackknife(lambda keep: x[keep].mean(), 200, "p")
    order = np.random.default_rng(0).permutation(200)
    groups = np.array([x[order[g::GROUPS]].mean() for g in range(GROUPS)])
    half = groups.std(ddof=1) / np.sqrt(GROUPS) * scipy.stats.t.ppf(0.975, GROUPS - 1)
    assert found.value == pytest.approx(99.5, rel=1e-12)
    assert found.high - found.value == pytest.approx(half, rel=1e-9) == found.value - found.low


def test_the_jackknife_interval_covers_a_variance_about_as_often_as_it_says():
    """200 draws of 400 normal values, variance 1: the 95 % interval holds 1 in at least 88 % (it is approximate)."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        x = rng.normal(size=400)
        found = jackknife(lambda keep, x=x: x[keep].var(), 400, "p")
        hits += found.low <= 1 <= found.high
    assert 0.88 <= hits / 200 < 1


def test_a_difference_has_welchs_interval_by_hand():
    """a = 1, 3 (mean 2, variance 2), b = 0, 0, 3 (mean 1, variance 3): se^2 = 2/2 + 3/3 = 2, df = 4 / (1/1 + 1/2)."""
    found = difference([1, 3], [0, 0, 3], "p")
    assert found.value == pytest.approx(1) and found.n == 5
    half = np.sqrt(2) * scipy.stats.t.ppf(0.975, 4 / 1.5)
    assert found.high - 1 == pytest.approx(half, rel=1e-9) == 1 - found.low


def test_seeds_have_students_interval_by_hand():
    """1, 2, 3: mean 2, sd 1, t(2) = 4.302653: half = 4.302653 / sqrt(3)."""
    found = over_seeds([1, 2, 3], "p")
    assert (found.value, found.n) == (2, 3)
    assert found.high - 2 == pytest.approx(4.302652729911275 / np.sqrt(3), rel=1e-9) == 2 - found.low


def test_factors_over_seeds_have_students_interval_of_their_logarithms():
    """1, 10, 100: decades 0, 1, 2, mean 1, sd 1: half = 4.302653 / sqrt(3) decades."""
    found, half = geometric_over_seeds([1, 10, 100], "p"), 4.302652729911275 / np.sqrt(3)
    assert (found.value, found.n) == (pytest.approx(10), 3)
    assert (found.low, found.high) == (pytest.approx(10 ** (1 - half)), pytest.approx(10 ** (1 + half)))
    assert np.isnan(geometric_over_seeds([2.0], "p").low)


def test_one_seed_has_a_value_and_no_interval():
    found = over_seeds([1.5], "p")
    assert found.value == 1.5 and np.isnan(found.low) and np.isnan(found.high)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: bootstrap([1.0], "p"), "at least 2 values"),
    (lambda: bootstrap([1.0, np.nan], "p"), "no measurement"),
    (lambda: bootstrap([[1.0, 2.0]], "p"), "one dimension"),
    (lambda: over_seeds([], "p"), "at least 1 values"),
    (lambda: over_seeds([np.inf], "p"), "no measurement"),
    (lambda: geometric_over_seeds([1.0, 0.0], "p"), "must be positive"),
    (lambda: jackknife(lambda keep: 0.0, GROUPS - 1, "p"), "at least 20 images"),
])
def test_what_cannot_be_estimated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# pairing -------------------------------------------------------------------------------------------------------------


def test_paired_distance_by_hand():
    """a = 0, 3, 9 and b = 1, 3, 5 on a line: 1/mean(3, 5), 0/mean(2, 2), 4/mean(8, 6)."""
    found = paired_distance([[0], [3], [9]], [[1], [3], [5]])
    assert found.value == pytest.approx((1 / 4 + 0 + 4 / 7) / 3, rel=1e-12)


def test_paired_distance_is_zero_for_the_same_images_and_one_for_unrelated_ones():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 400, 50))
    assert paired_distance(a, a).value == 0
    unrelated = paired_distance(a, b)
    assert unrelated.low < 1 < unrelated.high and unrelated.value == pytest.approx(1, abs=0.02)


def test_agreement_and_chance_by_hand():
    assert label_agreement([1, 2, 3, 4], [1, 2, 0, 0]).value == 0.5
    everywhere = label_agreement([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert (everywhere.low, everywhere.high) == pytest.approx((0.5655, 1), abs=1e-4)  # Wilson: n / (n + z^2)
    assert chance_agreement([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx(0.5 * 0.25 + 0.5 * 0.75)


def test_images_without_a_class_agree_with_none_and_count_among_the_images():
    """Of four pairs one agrees, (3, 3), and not (-1, -1).  By chance: shares of class 3 are 1/2 and 1/4."""
    a, b = [3, NO_CLASS, NO_CLASS, 3], [3, NO_CLASS, 5, 0]
    assert label_agreement(a, b).value == 0.25
    assert chance_agreement(a, b) == 0.5 * 0.25
    assert chance_agreement([NO_CLASS], b) == 0


@pytest.mark.parametrize("labels, message", [
    ([0, 10], "labels {} must be classes -1 .. 9, got 0 .. 10"), ([-2, 3], "labels {} must be classes -1 .. 9, got -2"),
    ([0.0, 1.0], "need integer labels {}"), ([], "need integer labels {}"), ([[0, 1]], "need integer labels {}"),
])
@pytest.mark.parametrize("measure", [label_agreement, chance_agreement])
def test_labels_that_are_no_classes_are_refused_by_name(measure, labels, message):
    with pytest.raises(ValueError, match=message.format("a")):
        measure(labels, [1, 2])
    with pytest.raises(ValueError, match=message.format("b")):
        measure([1, 2], labels)


@pytest.mark.parametrize("call", [
    lambda: paired_distance(np.zeros((3, 2)), np.zeros((4, 2))),
    lambda: paired_distance(np.zeros((2, 2)), np.zeros((2, 2))),
    lambda: paired_distance(np.ones((4, 2)), np.ones((4, 2))),
    lambda: paired_distance(*[np.full((5, 784), 0.1, np.float32)] * 2),  # alike but for rounding
    lambda: paired_distance(np.full((4, 2), np.nan), np.ones((4, 2))),
    lambda: label_agreement([1, 2], [1, 2, 3]),
])
def test_what_cannot_be_paired_is_refused(call):
    with pytest.raises(ValueError, match=r"need two|all alike|NaN"):
        call()


def test_the_hull_of_analyses_holds_all_their_intervals_around_the_first_ones_value():
    one, other = Estimate(1.0, 0.5, 1.5, 4, "a"), Estimate(0.8, 0.2, 1.4, 3, "b")
    assert hull([one, other]) == Estimate(1.0, 0.2, 1.5, 3, "a; interval over 2 analyses")
    assert hull([one]).low == one.low and hull([other, one]).value == other.value
    assert np.isnan(hull([one, Estimate(1.0, np.nan, np.nan, 1, "one seed")]).low)
    with pytest.raises(ValueError, match="at least one"):
        hull([])


def test_channels_first_and_channels_last_are_no_pair():
    """The same images: flattened, their distances would be those of others."""
    first = np.random.default_rng(0).random((4, 3, 6, 6))
    last = first.transpose(0, 2, 3, 1)
    with pytest.raises(ValueError, match=r"a and b differ in size or in the order of their axes: \(4, 3, 6, 6\) and"):
        paired_distance(first, last)
    assert paired_distance(first, first).value == 0
    grey = first[:, :1]
    for other in (grey[:, 0], grey.reshape(4, -1)):
        assert paired_distance(grey, other).value == 0
