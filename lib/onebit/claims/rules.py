"""The rules that decide a claim: by value, by ratio or difference, by threshold, by count."""

import inspect
import math
import re
from collections.abc import Callable

from ..metrics.estimate import Estimate

VERDICTS = ("reproduced", "direction only", "not reproduced", "contradicted", "not testable here")
REPRODUCED, DIRECTION_ONLY, NOT_REPRODUCED, CONTRADICTED, NOT_TESTABLE = VERDICTS
OPEN = ("interval too wide", "one seed", "no interval")  # why a measurement decides nothing
TOO_WIDE = f"{NOT_TESTABLE} ({OPEN[0]})"
UNDECIDED, WAITING = "undecided", "not measured yet"
SYMMETRIC = 1e-6  # relative: by how much an interval in logarithms is off its middle, by rounding
INFORMATIVE = 0.5  # of a published number: how wide, to either side, an interval may be to confirm it


def by_value(
    measured: Estimate | float, published: float, rival: float | None = None, tolerance: float = 0.2
) -> str:
    """Is the published number what we measure?

        reproduced         |measured - published| <= tolerance * |published|, and no more than half the way from there
                           to `rival`, if there is one: the number that the source sets this one against; with a 95 %
                           interval whose half width is at most half of |published|, and that does not hold `rival`
        not testable here  without an interval (one seed); within that distance, with a wider interval: one that holds
                           the rival too, or nearly everything, confirms nothing; or farther off, when one more run
                           could print the published number: it lies in the interval of a single run, ends included
        not reproduced     otherwise

    The interval of a single run is sqrt(n + 1) times as wide as that of a mean over n (`of_one_run`).  A plain number
    is exact, a count for instance: both intervals are the number itself.

    Raises    ValueError for a published number, a measured one or a tolerance that cannot be compared.
    """
    value, low, high = interval(measured)
    _comparable(published, tolerance)
    if math.isnan(low):
        return _no_interval(measured)
    reach = tolerance * abs(published)
    if abs(value - published) <= (reach if rival is None else min(reach, abs(rival - published) / 2)):
        known = (high - low) / 2 <= INFORMATIVE * abs(published) and (rival is None or not low <= rival <= high)
        return REPRODUCED if known else TOO_WIDE
    return TOO_WIDE if _holds(of_one_run(measured), published) else NOT_REPRODUCED


def by_ratio(measured: Estimate | float, published: float, null: float = 1.0, tolerance: float = 0.2) -> str:
    """Do two arms differ as published?  `measured` is their ratio (null = 1) or their difference (null = 0).

        contradicted       the 95 % interval lies wholly on the other side of null than the published number
        not reproduced     the interval holds null, ends included, and one more pair of runs would not print the
                           published number: it lies outside the interval of a single pair (`of_one_run`)
        reproduced         the interval lies wholly on the published side of null, and the measured number is within
                           tolerance of the published one, both as a number and as a distance from null:
                           |measured - published| <= tolerance * min(|published|, |published - null|)
        direction only     the interval lies wholly on the published side, and the size differs by more than that
        not testable here  without an interval (one seed), or when it holds null, and that of a single pair the
                           published number

    The distance from null matters for ratios near 1: 0.80 is within 20 % of a published 0.96, but five times its gap.
    A plain number is exact, a count for instance: its interval is the number itself.

    Raises    ValueError for numbers that cannot be compared, and for a published number that equals null.
    """
    value, low, high = interval(measured)
    _comparable(published, tolerance)
    if published == null or not math.isfinite(null):
        raise ValueError(f"published {published} does not differ from null {null}: there is no direction to test")
    if math.isnan(low):
        return _no_interval(measured)
    if low <= null <= high:
        return TOO_WIDE if _holds(of_one_run(measured), published) else NOT_REPRODUCED
    if (low > null) != (published > null):
        return CONTRADICTED
    near = abs(value - published) <= tolerance * min(abs(published), abs(published - null))
    return REPRODUCED if near else DIRECTION_ONLY


def by_threshold(measured: Estimate | float, *, at_least: float = -math.inf, at_most: float = math.inf) -> str:
    """Does the measured number keep the bound that the claim's words stand for?  With both bounds: is it between them?

        reproduced         the 95 % interval lies wholly on the right side of the bound, the bound included
        contradicted       the interval lies wholly on the wrong side
        not testable here  without an interval (one seed), or when it straddles the bound

    A plain number is exact, a count for instance: its interval is the number itself.

    Raises    ValueError for no bound, bounds in the wrong order, and a measured number that cannot be compared.
    """
    _, low, high = interval(measured)
    if not at_least <= at_most or (at_least, at_most) == (-math.inf, math.inf):
        raise ValueError(f"say at_least, at_most or both in this order, got {at_least} and {at_most}")
    if math.isnan(low):
        return _no_interval(measured)
    if at_least <= low and high <= at_most:
        return REPRODUCED
    return CONTRADICTED if high < at_least or low > at_most else TOO_WIDE


def by_count(measured: Estimate | float, claimed: int) -> str:
    """Of several signs that a claim names, how many hold?  `measured` counts them: `tables.tally`.

        reproduced         all of them, for sure: the interval begins at `claimed`
        direction only     some of them for sure, and not all: it begins at 1 or more, and ends below `claimed`
        contradicted       none: it ends below 1
        not testable here  without an interval (one seed), or otherwise

    Raises    ValueError for fewer than two claimed, and a measured number that cannot be compared.
    """
    _, low, high = interval(measured)
    if claimed < 2:
        raise ValueError(f"claimed has to be two or more, got {claimed}: a single sign is decided by_threshold")
    if math.isnan(low):
        return _no_interval(measured)
    if low >= claimed:
        return REPRODUCED
    if high < 1:
        return CONTRADICTED
    return DIRECTION_ONLY if low >= 1 and high < claimed else TOO_WIDE


def given(premise: Estimate | float, at_least: float, verdict: str, why: str) -> str:
    """A verdict that means something only if the control has what the claim says is reduced.

    Returns `verdict` if the premise's 95 % interval lies above `at_least`; "not testable here" with the reason `why` if
              it lies below, the bound included, and because of the interval if it holds the bound or there is none.
    """
    _, low, high = interval(premise)
    if math.isnan(low):
        return _no_interval(premise)
    if low > at_least:
        return verdict
    return f"{NOT_TESTABLE} ({why})" if high <= at_least else TOO_WIDE


def state(verdict: str) -> str:
    """A ledger's verdict as figures and pages count it: one of VERDICTS, or, of what is not testable here, "undecided"
    (measured, with an interval too wide to decide, or none) and "not measured yet".

    Raises    ValueError for what is none of VERDICTS, with or without a reason in brackets.
    """
    name, _, reason = verdict.partition(" (")
    if name not in VERDICTS:
        raise ValueError(f"{verdict!r} is no verdict; valid: {', '.join(VERDICTS)}")
    if reason.removesuffix(")") in OPEN:
        return UNDECIDED
    return WAITING if "has not measured" in reason else name


def of_one_run(measured: Estimate | float) -> tuple[float, float]:
    """Where one more run, or pair of runs, would come to lie, with 95 % confidence: a published number is one.

        sd^2 (1 + 1 / n) is the variance of its distance from a mean over n, sd^2 / n that of the mean: sqrt(n + 1)

    An interval that is symmetric in logarithms, as those of ratios are, is widened in logarithms.

    Shapes    measured: an estimate whose n counts runs or pairs.  A plain number is exact.
    Source    the prediction interval of a normal sample: Hahn & Meeker 1991, Statistical Intervals, section 4.7.
    """
    value, low, high = interval(measured)
    factor = math.sqrt(measured.n + 1) if isinstance(measured, Estimate) else 1.0
    if low > 0 and math.isclose(low * high, value**2, rel_tol=SYMMETRIC):
        return value * (low / value) ** factor, value * (high / value) ** factor
    return value - factor * (value - low), value + factor * (high - value)


def _holds(ends: tuple[float, float], number: float) -> bool:
    return ends[0] <= number <= ends[1]


def interval(measured: Estimate | float) -> tuple[float, float, float]:
    """Value, low and high; both ends NaN where there is no interval."""
    if not isinstance(measured, Estimate):
        measured = Estimate(float(measured), float(measured), float(measured), 1, "exact")
    value, low, high = measured.value, measured.low, measured.high
    if not math.isfinite(value):
        raise ValueError(f"measured is {value}: a failed measurement is no measurement")
    if math.isnan(low) != math.isnan(high) or low > high:
        raise ValueError(f"measured has no proper interval: [{low}, {high}]")
    return value, low, high


def _no_interval(measured: Estimate) -> str:
    return f"{NOT_TESTABLE} ({'one seed' if measured.n == 1 else 'no interval'})"


def _comparable(published: float, tolerance: float) -> None:
    if not math.isfinite(published):
        raise ValueError(f"published is {published}: use by_threshold where the source prints no number")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance has to be zero or more, got {tolerance}")


def explained(rule: Callable) -> str:
    """What the docstring of a rule says, in Markdown: its question, a table of verdicts, and its remarks."""
    before, rows, after = [], [], []
    for line in inspect.getdoc(rule).split("\nRaises")[0].splitlines():
        text = line.strip().replace("|", r"\|")
        if found := re.match(r"    (\S.*?)  +(.*)", line.replace("|", r"\|")):
            rows.append([f"*{found[1]}*", found[2]])
        elif line.startswith("    "):
            rows[-1][1] += f" {text}"
        else:
            (after if rows else before).append(line)
    table = [["verdict", "when"], ["---", "---"], *rows]
    return "\n".join([*before, *(f"| {verdict} | {when} |" for verdict, when in table), *after]).strip()
