"""The spread that rows share: against paired t tests, the sums of squares of a block design, and by simulation."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats

from onebit.metrics import Spread, common_spread, equal_spreads, spread_power

RNG = np.random.default_rng


def frame(logs) -> pd.DataFrame:
    return pd.DataFrame(np.exp(np.asarray(logs, dtype=float)))


def test_two_rows_are_compared_as_by_a_paired_t_test():
    """With two rows the block design is the paired t test: residuals are half the differences, degrees are n - 1."""
    logs = RNG(0).normal(size=(5, 2))
    spread = common_spread(frame(logs))
    found = spread.interval((logs[:, 0] - logs[:, 1]).mean(), 2 / 5, 5, "p")
    wanted = scipy.stats.ttest_rel(logs[:, 0], logs[:, 1]).confidence_interval(0.95)
    assert spread.degrees == 4
    assert spread.p_value((logs[:, 0] - logs[:, 1]).mean(), 2 / 5) == pytest.approx(
        scipy.stats.ttest_rel(logs[:, 0], logs[:, 1]).pvalue, rel=1e-9)
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((wanted.low, wanted.high), rel=1e-9)
    assert (found.n, found.protocol) == (5, "p")


@pytest.mark.filterwarnings("error")
def test_rows_without_any_spread_differ_or_do_not():
    assert [Spread(0.0, 4).p_value(log, 2 / 3) for log in (0.0, 1.0, -1e-9)] == [1, 0, 0]
    assert math.isnan(Spread(0.0, 0).p_value(0.0, 1))
    assert math.isnan(Spread(0.0, 4).p_value(math.nan, 1))  # a failed measurement is no finding


def test_a_full_grid_has_the_residual_sum_of_squares_of_a_block_design():
    """S_res = S_total - S_rows - S_blocks over (rows - 1)(blocks - 1), the textbook's decomposition."""
    logs = RNG(1).normal(size=(3, 4)) + np.array([[0], [2], [5]])
    total, rows, blocks = (((x - logs.mean()) ** 2).sum() for x in (logs, logs.mean(0), logs.mean(1)))
    rest = total - 3 * rows - 4 * blocks
    spread = common_spread(frame(logs))
    assert (spread.sd, spread.degrees) == (pytest.approx(math.sqrt(rest / 6), rel=1e-9), 6)


def test_unpaired_is_the_pooled_deviation_within_rows():
    logs = RNG(2).normal(size=(3, 4))
    spread = common_spread(frame(logs), paired=False)
    assert (spread.sd, spread.degrees) == (pytest.approx(math.sqrt(logs.var(0, ddof=1).mean()), rel=1e-9), 8)


def test_what_a_seed_does_to_all_rows_alike_is_no_spread_between_paired_rows():
    logs = RNG(3).normal(size=(2, 5))
    moved = logs + np.array([[0.0], [7.0]])
    assert common_spread(frame(moved)).sd == pytest.approx(common_spread(frame(logs)).sd, rel=1e-9)
    assert common_spread(frame(moved), paired=False).sd > 4


def test_rows_of_one_seed_add_nothing():
    logs = RNG(4).normal(size=(2, 4))
    more = np.hstack([logs, [[3.0, 9.0], [np.nan, np.nan]]])
    full, with_singles = common_spread(frame(logs)), common_spread(frame(more))
    assert with_singles.degrees == full.degrees == 3
    assert with_singles.sd == pytest.approx(full.sd, rel=1e-9)


def test_one_seed_each_leaves_a_value_without_an_interval():
    spread = common_spread(frame([[0.0, 1.0, 2.0]]))
    found = spread.interval(1.0, 2, 1, "p")
    assert spread.degrees == 0 and found.value == pytest.approx(math.e)
    assert math.isnan(spread.sd) and math.isnan(found.low) and math.isnan(found.high)


def test_the_interval_is_students_and_bonferronis():
    found = Spread(0.5, 6).interval(0.0, 2.0, 1, "p")
    assert math.log(found.high) == pytest.approx(2.446912 * 0.5 * math.sqrt(2), rel=1e-6) == -math.log(found.low)
    wider = Spread(0.5, 6).interval(0.0, 2.0, 1, "p", comparisons=2)
    assert math.log(wider.high) == pytest.approx(scipy.stats.t.ppf(0.9875, 6) * 0.5 * math.sqrt(2), rel=1e-9)


def test_ratios_of_rows_of_one_seed_are_covered_as_often_as_it_says():
    """600 grids of eight rows of two seeds and two of one, sd 0.2: the ratio of the two is held in 95 % +- 3."""
    rng, hits = RNG(5), 0
    for _ in range(600):
        logs = rng.normal(0, 0.2, size=(2, 10)) + rng.normal(0, 1, size=(2, 1))
        logs[1, 8:] = np.nan
        found = common_spread(frame(logs)).interval(logs[0, 8] - logs[0, 9], 2, 1, "p")
        hits += found.low <= 1 <= found.high
    assert 0.92 < hits / 600 < 0.98


def test_the_seeds_needed_give_the_power_asked_for():
    """sd 0.2, ratio 1.2: 2 (2.8016 x 0.2 / 0.18232)^2 = 18.9; of 4,000 draws of 19 seeds, 80 % +- 3 are told from 1."""
    n = Spread(0.2, 50).seeds_needed(1.2)
    assert n == pytest.approx(18.89, abs=0.01) == Spread(0.2, 50).seeds_needed(1 / 1.2)
    means = RNG(7).normal(math.log(1.2), 0.2 * math.sqrt(2 / 19), size=4_000)
    assert 0.77 < (means > 1.96 * 0.2 * math.sqrt(2 / 19)).mean() < 0.83
    for ratio in (1, 0, -2, math.inf):
        with pytest.raises(ValueError, match="positive ratio"):
            Spread(0.2, 50).seeds_needed(ratio)
    for power in (0.01, 1, 1.5, math.nan):
        with pytest.raises(ValueError, match="power must be"):
            Spread(0.2, 50).seeds_needed(1.2, power)


def test_rows_that_scatter_differently_are_told():
    logs = RNG(6).normal(size=(6, 12))
    assert equal_spreads(frame(logs)) > 0.05
    logs[:, 0] *= 100
    assert equal_spreads(frame(logs)) < 1e-4
    assert math.isnan(equal_spreads(frame([[1.0, 2.0]])))
    assert math.isnan(equal_spreads(frame(logs[:, :2]))) and math.isnan(spread_power(frame(logs[:, :2])))


def test_what_a_seed_does_to_all_rows_hides_no_difference_from_the_paired_test():
    logs = RNG(6).normal(size=(4, 20)) * np.array([8.0] * 2 + [1.0] * 18)
    moved = logs + np.array([[0.0], [30.0], [-20.0], [9.0]])
    assert equal_spreads(frame(logs), paired=False) < 0.05 < equal_spreads(frame(moved), paired=False)
    assert equal_spreads(frame(moved)) < 0.05
    assert equal_spreads(frame(moved)) == pytest.approx(equal_spreads(frame(logs)))


def test_paired_residuals_are_those_of_a_block_design():
    """On a full grid by hand: every row less its seeds' means over rows; with missing trainings by least squares."""
    logs = RNG(7).normal(size=(3, 5))
    logs[:, 0] *= 5
    wanted = scipy.stats.bartlett(*(logs - logs.mean(1, keepdims=True)).T).pvalue
    assert equal_spreads(frame(logs)) == pytest.approx(wanted, rel=1e-9)
    full = equal_spreads(frame(logs))
    single = np.hstack([logs, [[1.0], [np.nan], [np.nan]]])  # a row of one seed says nothing of the seeds
    assert equal_spreads(frame(single)) == pytest.approx(full, rel=1e-9)


def test_the_paired_test_raises_few_false_alarms_and_has_nearly_the_unpaired_power():
    logs = RNG(8).normal(size=(3, 26))
    logs[2, 6:] = np.nan
    alarms, paired, unpaired = (spread_power(frame(logs), times, paired=how)
                                for times, how in ((1, True), (3, True), (3, False)))
    assert 0.01 < alarms < 0.05 and paired < unpaired < paired + 0.1


def test_bartletts_power_is_that_of_its_formula():
    """Two rows of two seeds: with r the ratio of variances T = (2 log((1 + r) / 2) - log r) / 1.5, which exceeds
    chi2(1)'s 95th percentile outside of 1/b..b; r is F(1, 1) distributed, times 9 or 1/9, and P(F < x) is
    2 atan(sqrt(x)) / pi."""
    logs = frame([[1.0, 2.0], [3.0, 5.0]])
    least = scipy.stats.chi2.ppf(0.95, 1)
    edge = scipy.optimize.brentq(lambda r: (2 * math.log((1 + r) / 2) - math.log(r)) / 1.5 - least, 1, 1e6)
    below = [2 * math.atan(math.sqrt(x / 9)) / math.pi for x in (1 / edge, edge)]
    assert spread_power(logs, share=0.5, paired=False) == pytest.approx(below[0] + 1 - below[1], abs=0.02)


def test_bartletts_power_without_a_difference_is_the_tests_level_and_grows_with_it():
    logs = frame([[1.0, 2.0, 3.0]] * 8)
    found = [spread_power(logs, times, paired=False) for times in (1, 3, 30)]
    assert found[0] == pytest.approx(0.05, abs=0.02) and found[0] + 0.1 < found[1] < found[2] - 0.1
    with pytest.raises(ValueError, match=r"share must be in 0\.\.1"):
        spread_power(logs, share=0.0)
    for bad in ({"times": 0}, {"times": -3.0}, {"times": math.nan}, {"draws": 0}):
        with pytest.raises(ValueError, match="times must be positive"):
            spread_power(logs, **bad)
    assert math.isnan(spread_power(frame([[1.0, 2.0]])))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf])
@pytest.mark.parametrize("spread", [common_spread, equal_spreads])
def test_values_without_a_logarithm_are_refused(spread, bad):
    with pytest.raises(ValueError, match="positive and finite"):
        spread(pd.DataFrame([[1.0, bad, 1.0], [1.0, 2.0, 9.0]]))
    with pytest.raises(ValueError, match="at least one"):
        common_spread(pd.DataFrame({"a": [np.nan]}))
