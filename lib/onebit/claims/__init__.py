"""The claim ledger: what the sources claim, the rules that decide it, and one row per claim.

The claims are data (`claims.toml`); a verdict is always the result of one of a few rules, so that what is measured
decides and nobody's opinion of it.
"""

from .decide import LENIENCE, bounds, decide, sensitivity
from .ledger import COLUMNS, MEASURED, assemble, retake, row, summary
from .rules import (
    CONTRADICTED,
    DIRECTION_ONLY,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    REPRODUCED,
    TOO_WIDE,
    VERDICTS,
    by_count,
    by_ratio,
    by_threshold,
    by_value,
    explained,
    given,
    of_one_run,
    state,
)
from .source import SOURCES, Claim, load

__all__ = ["COLUMNS", "CONTRADICTED", "DIRECTION_ONLY", "LENIENCE", "MEASURED", "NOT_REPRODUCED", "NOT_TESTABLE",
           "REPRODUCED", "SOURCES", "TOO_WIDE", "VERDICTS", "Claim", "assemble", "bounds", "by_count", "by_ratio",
           "by_threshold", "by_value", "decide", "explained", "given", "load", "of_one_run", "retake", "row",
           "sensitivity", "state", "summary"]
