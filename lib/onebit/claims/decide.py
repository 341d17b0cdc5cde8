"""A verdict for a claim: the rule, and what it may depend on, are the claim's own, written down in claims.toml."""

import math

import pandas as pd

from ..metrics.estimate import Estimate
from .rules import NOT_TESTABLE, by_count, by_ratio, by_threshold, by_value, given, state
from .source import Claim, known

LENIENCE = {"strict": 0.5, "stated": 1.0, "lenient": 2.0}


def decide(claim_id: str, measured: Estimate | float, premise: Estimate | float | None = None) -> str:
    """The verdict on a claim, by the rule that its entry in claims.toml asks for.

    premise   what the control scores, for a claim that something falls: it has to be above the claim's `premise`.
    Raises    ValueError for an unknown claim or one out of reach, for a premise that the claim does not ask for or the
              lack of one that it does, and as the rules do.
    """
    claim = known(claim_id)
    if claim.notebook is None:
        raise ValueError(f"claim {claim_id} is out of reach: {claim.out_of_reach}")
    if (premise is None) != (claim.premise is None):
        raise ValueError(f"claim {claim_id} has {'no' if claim.premise is None else 'a'} premise in claims.toml")
    verdict = _verdict(claim, measured, 1.0)
    return verdict if premise is None else given(premise, claim.premise, verdict, claim.without)


def sensitivity(ledger: pd.DataFrame) -> pd.DataFrame:
    """How much of a ledger hangs on the bounds and tolerances that claims.toml chose: one row per measured claim.

    Tolerances are halved (strict) and doubled (lenient); so is the distance of a bound from what would be no effect,
    or the other way round where a bound farther away asks for more.  Of ratios it is taken in logarithms: at most 1.25
    becomes 1.12 and 1.56; at least 4, 16 and 2.  A bound at no effect itself, and a count of signs, stay.  Premises are
    not varied: a verdict for want of one is the same in all three columns, as is every undecided one of a claim that
    has a premise, since a ledger does not say which of the two intervals was too wide.

    Columns   claim_id, source, rule (in words), strict, stated, lenient (verdicts)
    Raises    ValueError for a row whose verdict the claim's rule does not give: of another version of claims.toml.
    """
    rows = []
    for entry in ledger[ledger.measured.notna()].itertuples():
        claim = known(entry.claim_id)
        verdicts = dict.fromkeys(LENIENCE, entry.verdict)
        if not _settled(entry, claim):
            measured = _measured(entry)
            verdicts = {name: _verdict(claim, measured, factor) for name, factor in LENIENCE.items()}
            if verdicts["stated"] != entry.verdict:
                raise ValueError(f"claim {entry.claim_id} is {entry.verdict!r} in this ledger, and by claims.toml "
                                 f"{verdicts['stated']!r}: run its notebook again")
        rows.append({"claim_id": claim.claim_id, "source": claim.source, "rule": claim.words} | verdicts)
    return pd.DataFrame(rows, columns=["claim_id", "source", "rule", *LENIENCE])


def _settled(entry, claim: Claim) -> bool:
    """Without an interval, or for a reason that is not, or need not be, the interval's: no bound changes that."""
    undecided = entry.verdict.startswith(NOT_TESTABLE)
    other_reason = state(entry.verdict) == NOT_TESTABLE or claim.premise is not None
    return undecided and (math.isnan(entry.ci_low) or other_reason)


def _measured(entry) -> Estimate | float:
    if math.isnan(entry.ci_low):  # an exact number
        return entry.measured
    return Estimate(entry.measured, entry.ci_low, entry.ci_high, entry.n_seeds, "of the ledger")


def _verdict(claim: Claim, measured: Estimate | float, lenience: float) -> str:
    if claim.count is not None:
        return by_count(measured, claim.count)
    if claim.bounded:
        return by_threshold(measured, **bounds(claim, lenience))
    tolerance = claim.tolerance * lenience
    if claim.compare in ("ratio", "difference"):
        return by_ratio(measured, claim.published, claim.null, tolerance)
    rival = None if claim.rival is None else known(claim.rival).published
    return by_value(measured, claim.published, rival, tolerance)


def bounds(claim: Claim, lenience: float = 1.0) -> dict[str, float]:
    """A claim's `at_least` and `at_most`, with so much lenience: see `sensitivity`."""
    away, back = (math.log, math.exp) if claim.null == 1 else (float, float)
    moved = {}
    for name, bound, sign in (("at_least", claim.at_least, -1), ("at_most", claim.at_most, 1)):
        if math.isfinite(bound):
            farther = sign * away(bound) > 0  # away from no effect is the lenient side
            factor = lenience if farther else 1 / lenience
            moved[name] = bound if lenience == 1 else back(away(bound) * factor)
    return moved
