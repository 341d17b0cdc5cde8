"""What another seed does, told from all rows of a grid at once: few seeds each, many rows together."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats

from .estimate import CONFIDENCE, Estimate

ROUNDING = 1e-12  # of logarithms: what differs by less is equal


@dataclass(frozen=True)
class Spread:
    """Standard deviation over seeds, in logarithms, that all rows share, and the degrees of freedom behind it.

    Both are NaN and 0 where no row was trained at more than one seed.
    """

    sd: float
    degrees: int

    def interval(self, log: float, variance: float, n: int, protocol: str, comparisons: int = 1) -> Estimate:
        """exp(log) with its 95 % interval, exp(log -+ t sd sqrt(variance)).

        variance      of the mean `log`, in units of sd^2: 1/n for a mean of n seeds, 2/n for a difference of two
        comparisons   among which this one was picked by its size: Bonferroni's correction
        """
        if not self.degrees:
            return Estimate(float(np.exp(log)), float("nan"), float("nan"), n, protocol)
        tail = (1 - CONFIDENCE) / comparisons / 2
        half = scipy.stats.t.ppf(1 - tail, self.degrees) * self.sd * np.sqrt(variance)
        return Estimate(float(np.exp(log)), float(np.exp(log - half)), float(np.exp(log + half)), n, protocol)

    def p_value(self, log: float, variance: float) -> float:
        """Of the hypothesis that the true mean is 0, two-sided: Student's t for log / (sd sqrt(variance)).

        NaN without degrees of freedom, or for a log that is none; where nothing is spread 1 for log = 0, else 0.
        `variance` as of `interval`.
        """
        if not self.degrees or np.isnan(log):
            return float("nan")
        if self.sd == 0:
            return float(log == 0)
        return float(2 * scipy.stats.t.sf(abs(log) / (self.sd * np.sqrt(variance)), self.degrees))

    def seeds_needed(self, ratio: float, power: float = 0.8) -> float:
        """Common seeds at which two rows that differ by `ratio` are told apart, at the 5 % level, with this power:

            n = 2 ((z[0.975] + z[power]) sd / log ratio)^2,   z: quantiles of the normal distribution

        Raises    ValueError for a ratio that is not positive and finite, or is 1, and for a power outside of 0.05..1,
                  the ends excluded: the test itself calls that share of equal rows different.
        Source    Cochran & Cox 1957, chapter 2, on the number of replications.
        """
        if not 0 < ratio < np.inf or ratio == 1:
            raise ValueError(f"need a positive ratio other than 1, got {ratio}")
        if not 1 - CONFIDENCE < power < 1:
            raise ValueError(f"power must be between {1 - CONFIDENCE:g} and 1, got {power}")
        z = scipy.stats.norm.ppf((1 + CONFIDENCE) / 2) + scipy.stats.norm.ppf(power)
        return 2 * (z * self.sd / np.log(ratio)) ** 2


def common_spread(values: pd.DataFrame, paired: bool = True) -> Spread:
    """The residual standard deviation of log(value) about a mean for each row and, where `paired`, one for each seed.

        log x[s, m] = mu[m] (+ beta[s]) + e[s, m],   e ~ N(0, sd^2) for all rows m alike

    Paired residuals are those of a randomized block design whose blocks are seeds: what two rows of one seed share (the
    teacher, batches, noise) is taken out, and a difference of two rows over n common seeds has the variance 2 sd^2 / n.
    Unpaired ones belong to the mean of a row over any seeds, whose variance is sd^2 / n.  Rows of one seed add nothing.

    Shapes    values: one line per seed, one column per row, NaN where there is no training.
    Raises    ValueError for values that are not positive or not finite.
    Source    Cochran & Cox 1957, Experimental Designs, chapter 4, randomized blocks; missing plots by least squares.
    """
    seed, row = np.nonzero(values.notna().to_numpy())
    x = values.to_numpy(dtype=np.float64)[seed, row]
    _check_positive(x)
    design = np.eye(values.shape[1])[row]
    if paired:
        design = np.hstack([design, np.eye(values.shape[0])[seed]])
    solution, _, rank, _ = np.linalg.lstsq(design, np.log(x), rcond=None)
    degrees = len(x) - int(rank)
    if degrees <= 0:
        return Spread(float("nan"), 0)
    residual = np.log(x) - design @ solution
    return Spread(float(np.sqrt(residual @ residual / degrees)), degrees)


def _check_positive(x: np.ndarray) -> None:
    if not len(x) or not (np.isfinite(x).all() and (x > 0).all()):
        raise ValueError("values have to be positive and finite to have logarithms, at least one of them")


def equal_spreads(values: pd.DataFrame, paired: bool = True) -> float:
    """Bartlett's p value of the hypothesis that log(value) scatters alike in every row of two seeds or more.

    A small one speaks against `common_spread` of the same `paired`: what a seed does to all rows alike is taken out
    first, or adds to the scatter of each and hides differences.  NaN where fewer than two rows have two different
    values, and paired where fewer than three do: what is left of two rows scatters alike by construction.

    Shapes    values: as `common_spread`.
    Error     Bartlett's degrees of freedom are those of unpaired rows.  Paired, p is at most 0.05 for 3 % of sets of 26
              rows of two or three seeds that do scatter alike (by simulation).
    Raises    ValueError as `common_spread`.
    Source    Bartlett 1937; scipy.stats.bartlett.
    """
    seed, row = np.nonzero(values.notna().to_numpy())
    x = values.to_numpy(dtype=np.float64)[seed, row]
    _check_positive(x)
    logs = np.log(x)
    residuals = _unshared(logs[None], seed, row)[0] if paired else logs
    groups = [residuals[row == one] for one in np.unique(row)]
    groups = [group for group in groups if len(group) > 1 and np.ptp(group) > ROUNDING]
    return float(scipy.stats.bartlett(*groups).pvalue) if len(groups) > 1 + paired else float("nan")


def _unshared(logs: np.ndarray, seed: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Logarithms (draws, trainings) without what each seed does to all rows alike, beta of `common_spread`."""
    of_row, of_seed = np.eye(row.max() + 1)[row], np.eye(seed.max() + 1)[seed]
    fit = np.linalg.pinv(np.hstack([of_row, of_seed]))[of_row.shape[1] :]
    return logs - logs @ (of_seed @ fit).T


def spread_power(
    values: pd.DataFrame, times: float = 3.0, share: float = 0.25, draws: int = 2000, paired: bool = True
) -> float:
    """How often Bartlett's test (`equal_spreads`, at 5 %) would see that `share` of the rows scatter `times` as much as
    the others do, with the seeds that these rows have; by simulation of normal logarithms.

    NaN where fewer than two rows have two seeds, or paired three.

    Shapes    values: as `common_spread`.
    Raises    ValueError for a share outside of 0..1, 0 excluded; of any other at least one row is loud.  For `times`
              that are not positive and finite, and no draws.
    Error     sqrt(power (1 - power) / draws), at most 0.011 by default.
    Source    Bartlett 1937; scipy.stats.bartlett; this work.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in 0..1, 0 excluded, got {share}")
    if not 0 < times < np.inf or draws < 1:
        raise ValueError(f"times must be positive and finite, and draws at least 1, got {times} and {draws}")
    seed, row = np.nonzero(values.notna().to_numpy())
    several = [one for one in np.unique(row) if (row == one).sum() > 1]
    if len(several) < 2 + paired:
        return float("nan")
    random = np.random.default_rng(0)
    loud = np.zeros((draws, row.max() + 1), bool)
    loud[:, several] = random.permuted(
        np.tile(np.arange(len(several)) < max(1, round(share * len(several))), (draws, 1)), axis=1)
    logs = random.standard_normal((draws, len(row))) * np.where(loud, times, 1.0)[:, row]
    logs = _unshared(logs, seed, row) if paired else logs
    return float((scipy.stats.bartlett(*[logs[:, row == one] for one in several], axis=1).pvalue <= 0.05).mean())
