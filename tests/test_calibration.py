"""Temperature, reliability and calibration error against closed forms, autograd and hand computation."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onebit.metrics.calibration import (
    RELIABILITY,
    calibration_error,
    calibration_floor,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    softmax,
    top_class,
)


def honest(n, k=10, scale=2.0, seed=0):
    """Logits, and labels drawn from their softmax: calibrated by construction, T = 1."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, scale, (n, k))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return z, (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(max=k - 1)


def coins(right, wrong, margin):
    """Two classes, logits (margin, 0): the judge always says 0, which is right for `right` images."""
    return np.tile([margin, 0.0], (right + wrong, 1)), np.repeat([0, 1], [right, wrong])


# softmax and likelihood ----------------------------------------------------------------------------------------------


def test_softmax_divides_by_the_temperature_in_float64():
    """Guo Eq. 9 by hand: z = (2 log 3, 0), T = 2 gives (3, 1) / 4."""
    p = softmax(np.array([[2 * np.log(3), 0.0]], dtype=np.float32), 2)
    np.testing.assert_allclose(p, [[0.75, 0.25]], rtol=1e-7)
    assert p.dtype == np.float64
    z = torch.randn(50, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(softmax(z, 0.3), (z / 0.3).softmax(1), rtol=1e-12)
    np.testing.assert_allclose(softmax(z), z.softmax(1), rtol=1e-12)


def test_softmax_of_large_logits_does_not_overflow():
    np.testing.assert_allclose(softmax([[5000.0, 4999.0]]), [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]], rtol=1e-12)


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        softmax([[1.0, 2.0]], temperature)
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        negative_log_likelihood([[1.0, 2.0]], [0], temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_likelihood_is_torchs_cross_entropy(temperature):
    z, y = honest(100)
    want = F.cross_entropy(torch.tensor(z) / temperature, torch.tensor(y)).item()
    assert negative_log_likelihood(z, y, temperature) == pytest.approx(want, rel=1e-12)


# temperature ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "wrong", "margin"), [(30, 10, 3.0), (99, 1, 20.0), (21, 19, 0.5)])
def test_the_temperature_of_a_coin_in_closed_form(right, wrong, margin):
    """sigmoid(margin / T) must be the share that is right: T = margin / log(right / wrong)."""
    assert fit_temperature(*coins(right, wrong, margin)) == pytest.approx(margin / np.log(right / wrong), rel=1e-6)


@pytest.mark.parametrize("c", [0.25, 1.0, 40.0])
def test_an_overconfident_judges_temperature_is_recovered(c):
    """Labels drawn from softmax(z), judged on c z: T = c.  The standard error of T at N = 10,000 is about 1 %."""
    z, y = honest(10_000)
    assert fit_temperature(c * z, y) == pytest.approx(c, rel=0.04)


def test_the_likelihood_is_stationary_at_the_temperature():
    """Against autograd: d NLL / d T = 0 there, and not a per cent away."""
    z, y = honest(500, scale=5.0, seed=1)
    y[::7] = 3  # some noise, so that T is not 1

    def slope(temperature):
        t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(F.cross_entropy(torch.tensor(z) / t, torch.tensor(y)), t)[0].item()

    best = fit_temperature(z, y)
    assert best > 1.2
    assert abs(slope(best)) < 1e-6 < 1e-4 < min(-slope(0.99 * best), slope(1.01 * best))


def test_the_temperature_scales_with_the_logits_and_ignores_shifts_of_a_row():
    z, y = honest(200)
    best = fit_temperature(z, y)
    assert fit_temperature(7 * z, y) == pytest.approx(7 * best, rel=1e-6)
    assert fit_temperature(z + np.arange(200)[:, None], y) == pytest.approx(best, rel=1e-6)


def test_log_probabilities_serve_as_logits():
    z, y = honest(200)
    assert fit_temperature(np.log(softmax(3 * z)), y) == pytest.approx(3 * fit_temperature(z, y), rel=1e-6)


@pytest.mark.parametrize("margin", [1e-3, 2.0, 1e3, 1e300])
def test_a_judge_that_is_always_right_has_no_temperature(margin):
    """The surer, the better: the likelihood falls towards T = 0, or is 0 in float64 long before."""
    with pytest.raises(ValueError, match=r"no best temperature .* 100.0% of 40 labels"):
        fit_temperature(*coins(40, 0, margin))


def test_a_judge_that_is_worse_than_chance_has_no_temperature():
    """Right on 10 of 40: the likelihood falls all the way to T = infinity."""
    with pytest.raises(ValueError, match=r"no best temperature .* 25.0% of 40 labels"):
        fit_temperature(*coins(10, 30, 2.0))


def test_too_few_images_for_a_temperature_are_refused():
    with pytest.raises(ValueError, match="need at least 20 labelled images to fit a temperature, got 19"):
        fit_temperature(*coins(15, 4, 1.0))


def test_probabilities_in_place_of_logits_are_refused():
    z, y = honest(100)
    with pytest.raises(ValueError, match="logits are probabilities"):
        fit_temperature(softmax(z), y)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [softmax, lambda z: fit_temperature(z, np.zeros(len(z), int))])
def test_logits_that_are_not_finite_are_refused(value, function):
    z, _ = honest(100)
    z[17, 3] = value
    with pytest.raises(ValueError, match="logits hold NaN or infinity"):
        function(z)


@pytest.mark.parametrize("shape", [(10,), (0, 10), (30, 1), (3, 10, 2)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"need logits \(N, K\)"):
        softmax(np.zeros(shape))


@pytest.mark.parametrize(("labels", "message"), [
    ([0] * 99 + [10], "labels must be classes 0 .. 9, got 0 .. 10"),
    ([0] * 99 + [-1], "labels must be classes 0 .. 9, got -1 .. 0"),
    ([0] * 99, r"need labels of shape \(100,\).*\(99,\)"),
    ([[0]] * 100, r"need integer labels .*\(100, 1\)"),
    ([0.0] * 100, "need integer labels .* float64"),
    ([True] * 100, "need integer labels .* bool"),
])
def test_labels_that_are_no_classes_are_refused(labels, message):
    z, _ = honest(100)
    for function in (fit_temperature, lambda z, y: reliability(softmax(z), y),
                     lambda z, y: calibration_error(softmax(z), y), negative_log_likelihood):
        with pytest.raises(ValueError, match=message):
            function(z, labels)


# reliability ---------------------------------------------------------------------------------------------------------

BY_HAND = [[0.4, 0.35, 0.25], [0.5, 0.25, 0.25], [0.1, 0.3, 0.6], [0.7, 0.2, 0.1], [0.05, 0.9, 0.05]]
BY_HAND_LABELS = [0, 1, 2, 0, 0]


def test_reliability_by_hand():
    """Four bins: none in (0, 1/4]; 0.4 right and 0.5, on its bin's closed end, wrong; 0.6, 0.7 right; 0.9 wrong."""
    table = reliability(BY_HAND, BY_HAND_LABELS, bins=4)
    want = [[0, 0.25, 0, np.nan, np.nan], [0.25, 0.5, 2, 0.45, 0.5], [0.5, 0.75, 2, 0.65, 1], [0.75, 1, 1, 0.9, 0]]
    np.testing.assert_allclose(table, want, rtol=1e-12)
    assert table.shape == (4, len(RELIABILITY))


def test_reliability_loses_no_image():
    """Over any number of bins: counts add up, and count-weighted means are the overall confidence and accuracy."""
    z, y = honest(1_000, seed=3)
    p = softmax(z, 0.5)
    for bins in (1, 7, 15, 100):
        _, _, count, confidence, accuracy = reliability(p, y, bins).T
        assert count.sum() == 1_000
        assert np.nansum(count * confidence) / 1_000 == pytest.approx(p.max(axis=1).mean(), rel=1e-12)
        assert np.nansum(count * accuracy) / 1_000 == pytest.approx((p.argmax(axis=1) == y).mean(), rel=1e-12)


def test_certainty_falls_into_the_last_bin_even_if_rounded_above_one():
    p = np.array([[1.0, 0.0], [1 + 1e-7, 0.0]])
    assert reliability(p, [0, 0]).T[2].tolist() == [0] * 14 + [2]


def test_edges_of_bins_are_compared_as_they_are_reported():
    """A confidence equal to an edge belongs below it, for every edge of fifteen bins, though 15 * edge may round up."""
    edges = reliability([[0.5, 0.5]], [0]).T[1]
    for number in range(8, 14):
        count = reliability([[edges[number], 1 - edges[number]]], [0]).T[2]
        assert count[number] == 1 == count.sum()


@pytest.mark.parametrize("bins", [0, -3])
def test_no_bins_are_refused(bins):
    for function in (reliability, calibration_error):
        with pytest.raises(ValueError, match="bins must be at least 1"):
            function(BY_HAND * 20, BY_HAND_LABELS * 20, bins)


@pytest.mark.parametrize("p", [[0.5, 0.5], [[0.5, 0.6]], [[2.0, -1.0]], [[np.nan, 1.0]], np.zeros((0, 10)),
                               np.zeros((10, 0))])
def test_rows_that_are_no_distributions_are_refused(p):
    for function in (lambda p: reliability(p, [0]), lambda p: calibration_error(p, [0]), top_class):
        with pytest.raises(ValueError, match=r"need probabilities \(N, K\) whose rows sum to 1"):
            function(p)


def test_the_top_class_and_its_probability():
    labels, confidence = top_class([[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]])
    assert labels.tolist() == [1, 0]  # of equals, the smallest class
    assert confidence.tolist() == [0.7, 0.4]


# calibration error ---------------------------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    """Guo Eq. 3 on the table above: (2 * |0.5 - 0.45| + 2 * |1 - 0.65| + 1 * |0 - 0.9|) / 5 = 1.7 / 5."""
    estimate = calibration_error(BY_HAND * 20, BY_HAND_LABELS * 20, bins=4)
    assert estimate.value == pytest.approx(0.34, rel=1e-12)
    assert estimate.n == 100 and estimate.low < 0.34 < estimate.high
    assert "4 equal bins" in estimate.protocol


def test_calibration_error_is_the_weighted_gap_of_the_reliability_table():
    z, y = honest(2_000, seed=5)
    p = softmax(z, 0.3)
    _, _, count, confidence, accuracy = reliability(p, y).T
    want = np.nansum(count * np.abs(accuracy - confidence)) / 2_000
    assert calibration_error(p, y).value == pytest.approx(want, rel=1e-12)


def test_calibration_error_of_one_bin_is_the_gap_of_the_means():
    p = np.tile([0.8, 0.2], (50, 1))
    assert calibration_error(p, [0] * 30 + [1] * 20, bins=1).value == pytest.approx(0.8 - 0.6, rel=1e-12)


def test_an_honest_judge_is_calibrated_and_a_boastful_one_is_not():
    """Noise alone: each bin errs by about sqrt(p (1 - p) / n_b), in all below sqrt(15 / N) / 2 = 0.014."""
    z, y = honest(20_000)
    assert calibration_error(softmax(z), y).value < 0.014
    boast = calibration_error(softmax(z, 0.25), y)
    assert boast.low > 0.1


def test_the_fitted_temperature_calibrates_images_it_was_not_fitted_on():
    z, y = honest(20_000, seed=7)
    temperature = fit_temperature(4 * z[:10_000], y[:10_000])
    before = calibration_error(softmax(4 * z[10_000:]), y[10_000:])
    after = calibration_error(softmax(4 * z[10_000:], temperature), y[10_000:])
    assert after.value < 0.02 < before.low


def test_the_interval_covers_the_error_of_many_images():
    """A boastful judge's error, measured on 1,000 images forty times: about 95 % of intervals hold that of 100,000."""
    z, y = honest(100_000, seed=8)
    p = softmax(z, 0.4)
    truth = reliability(p, y)
    truth = np.nansum(truth[:, 2] * np.abs(truth[:, 4] - truth[:, 3])) / len(y)
    parts = [calibration_error(p[i : i + 1_000], y[i : i + 1_000]) for i in range(0, 40_000, 1_000)]
    assert sum(e.low < truth < e.high for e in parts) >= 34


def test_the_floor_of_one_bin_by_hand():
    """All at confidence 0.8: ECE is |hits / N - 0.8|, binomial; its mean is sqrt(2 / pi) sqrt(0.8 * 0.2 / N)."""
    floor = calibration_floor(np.tile([0.8, 0.2], (400, 1)))
    deviation = np.sqrt(0.8 * 0.2 / 400)
    assert floor.value == pytest.approx(np.sqrt(2 / np.pi) * deviation, rel=0.1)  # of 1,000 draws: 2.4 % on the mean
    assert floor.high == pytest.approx(2.24 * deviation, rel=0.1)  # |normal| exceeds 2.24 with probability 2.5 %
    assert floor.low < 0.1 * deviation and floor.n == 400


def test_the_floor_is_where_honest_judges_lie_and_boastful_ones_do_not():
    """Of forty honest judges' errors about 38 lie within the floor's interval; all of them lie above 0."""
    z, y = honest(20_000, seed=9)
    parts = [slice(i, i + 500) for i in range(0, 20_000, 500)]
    errors = [calibration_error(softmax(z[part]), y[part]).value for part in parts]
    floor = calibration_floor(softmax(z[parts[0]]))
    assert sum(floor.low < e < floor.high for e in errors) >= 33
    boast = softmax(z[parts[0]], 0.5)
    assert calibration_error(boast, y[parts[0]]).low > calibration_floor(boast).high


def test_the_floor_is_a_function_of_its_seed_and_sinks_with_more_images():
    z, _ = honest(2_000)
    p = softmax(z)
    assert calibration_floor(p) == calibration_floor(p) != calibration_floor(p, seed=1)
    assert calibration_floor(p).value == pytest.approx(calibration_floor(p[:500]).value / 2, rel=0.2)
    assert calibration_floor(np.eye(10)).high == 0  # certain and right


def test_the_floor_of_no_distributions_or_no_bins_is_refused():
    with pytest.raises(ValueError, match="rows sum to 1"):
        calibration_floor(np.ones((30, 10)))
    with pytest.raises(ValueError, match="bins must be at least 1"):
        calibration_floor(BY_HAND, bins=0)


def test_too_few_images_for_an_interval_are_refused():
    with pytest.raises(ValueError, match="at least 20 images"):
        calibration_error(BY_HAND, BY_HAND_LABELS)
