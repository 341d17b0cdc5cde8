"""The three rules that decide a claim: by value, by ratio or difference, by threshold."""

import math

from ..metrics.estimate import Estimate

VERDICTS = ("reproduced", "direction only", "not reproduced", "contradicted", "not testable here")
REPRODUCED, DIRECTION_ONLY, NOT_REPRODUCED, CONTRADICTED, NOT_TESTABLE = VERDICTS
UNDECIDED = ("interval too wide", "one seed", "no interval")  # why a measurement decides nothing
TOO_WIDE = f"{NOT_TESTABLE} ({UNDECIDED[0]})"
TOO_FEW, WAITING = "too few seeds", "not measured yet"
INFORMATIVE = 0.5  # of a published number: how wide, to either side, an interval may be to confirm it


def by_value(measured: Estimate | float, published: float, tolerance: float = 0.2) -> str:
    """Is the published number what we measure?

        reproduced         |measured - published| <= tolerance * |published|, with a 95 % interval whose half width is
                           at most half of |published|
        not testable here  without an interval (one seed); within the tolerance, with a wider interval: one that holds
                           nearly everything confirms nothing; or outside it, when the interval, ends included, holds
                           the published number: one that is off by more than the tolerance and cannot rule it out
        not reproduced     otherwise

    A plain number is exact, a count for instance: its interval is the number itself.

    Raises    ValueError for a published number, a measured one or a tolerance that cannot be compared.
    """
    value, low, high = interval(measured)
    _comparable(published, tolerance)
    if math.isnan(low):
        return _no_interval(measured)
    if abs(value - published) <= tolerance * abs(published):
        return REPRODUCED if (high - low) / 2 <= INFORMATIVE * abs(published) else TOO_WIDE
    return TOO_WIDE if low <= published <= high else NOT_REPRODUCED


def by_ratio(measured: Estimate | float, published: float, null: float = 1.0, tolerance: float = 0.2) -> str:
    """Do two arms differ as published?  `measured` is their ratio (null = 1) or their difference (null = 0).

        contradicted       the 95 % interval lies wholly on the other side of null than the published number
        not reproduced     the interval holds null, ends included, and not the published number
        reproduced         the interval lies wholly on the published side of null, and the measured number is within
                           tolerance of the published one, both as a number and as a distance from null:
                           |measured - published| <= tolerance * min(|published|, |published - null|)
        direction only     the interval lies wholly on the published side, and the size differs by more than that
        not testable here  without an interval (one seed), or when it holds null and the published number alike

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
        return TOO_WIDE if low <= published <= high else NOT_REPRODUCED
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


def given(premise: Estimate | float, at_least: float, verdict: str, why: str) -> str:
    """A verdict that means something only if the control has what the claim says is reduced.

    Returns `verdict` if the premise's 95 % interval lies above `at_least`, else "not testable here" with the reason.
    """
    _, low, _ = interval(premise)
    return verdict if low > at_least else f"{NOT_TESTABLE} ({why})"


def state(verdict: str) -> str:
    """A ledger's verdict as figures and pages count it: one of VERDICTS, or, of what is not testable here, "too few
    seeds" (measured, with an interval too wide to decide, or none) and "not measured yet".

    Raises    ValueError for what is none of VERDICTS, with or without a reason in brackets.
    """
    name, _, reason = verdict.partition(" (")
    if name not in VERDICTS:
        raise ValueError(f"{verdict!r} is no verdict; valid: {', '.join(VERDICTS)}")
    if reason.removesuffix(")") in UNDECIDED:
        return TOO_FEW
    return WAITING if "has not measured" in reason else name


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
