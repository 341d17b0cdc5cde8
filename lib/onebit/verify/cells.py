"""Two tables, cell by cell: which digits must agree, and which were measured by a clock."""

import csv
import io
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

# Largest relative difference on another type of machine, by "table.column"; the first pattern that fits counts.
# Text and whole numbers must be equal.  Numbers that a notebook reads from released results differ by the order of
# their last summation alone; those below pass through a network or a fit within the notebook.
TOLERANCES = {
    "01_rule_errors.*": 1e-4,  # rules fitted to weights by iteration
    "01_ebb.*": 1e-3,
    "01_claims.*": 1e-3,
    "04_*.*": 1e-4,
    "05_*.*": 1e-4,  # judges look at blends
    "06_*.*": 1e-4,
    "*.*": 1e-6,
}
ABSOLUTE = 1e-9  # numbers closer than this are equal, whatever their size

# What a clock or the system measured: equal when read from released results, different in every new execution.
# Column, or None for whole rows (of claims, by claim_id).
MEASURED = {
    "02_costs": {"seconds", "images_per_second", "peak_memory_mib"},
    "08_convolutions": {"float32", "bfloat16", "W1A1", "W1A1, XNOR map", "W1A4", "W1A1, two bases", "packing of W1A1",
                        "packing of W1A4"},
    "08_split": {"packing", "product", "scale map"},
    "08_peak": {"*_gwords", "share_of_peak"},
    "08_networks": {"*batch*", "*MiB"},
    "08_sampling": {"*_seconds"},
    "08_wide": {"float_seconds", "packed_seconds", "times_faster"},
    "08_training": {"milliseconds", "over_float"},
}
MEASURED_CLAIMS = {"all-binary-faster", "002-throughput", "001-training-cost"}
MEASURED_OF_A_CLAIM = {"measured", "ci_low", "ci_high", "verdict"}


@dataclass(frozen=True)
class Difference:
    """What two tables with the same columns and rows do not agree on.

    worst    largest relative difference of numbers, and where;  wrong: cells beyond their tolerance, in words
    """

    worst: float
    where: str
    wrong: tuple[str, ...]


def parse(text: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a CSV file, every cell as it is written.

    Raises    ValueError for an empty file or a row of another length.
    """
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("not a table: it is empty, or its rows differ in length")
    return rows[0], rows[1:]


def measured(table: str, column: str, row: dict[str, str]) -> bool:
    """Whether a cell was measured by a clock."""
    if row.get("claim_id") in MEASURED_CLAIMS:
        return column in MEASURED_OF_A_CLAIM
    return any(fnmatchcase(column, pattern) for pattern in MEASURED.get(table, ()))


def compare(table: str, expected: str, found: str, exact: bool, clocked: bool = True) -> Difference:
    """Two CSV texts of the same table.

    exact     every cell must be the same text, else TOLERANCES say how far numbers may be apart
    clocked   compare also what was measured by a clock
    Raises    ValueError if columns or the number of rows differ.
    """
    (columns, rows), (others, found_rows) = parse(expected), parse(found)
    if columns != others:
        raise ValueError(f"columns differ: {', '.join(sorted(set(columns) ^ set(others))) or 'their order'}")
    if len(rows) != len(found_rows):
        raise ValueError(f"{len(found_rows)} rows, {len(rows)} are committed")
    worst, where, wrong = 0.0, "", []
    for i, pair in enumerate(zip(rows, found_rows, strict=True)):
        named = dict(zip(columns, pair[0], strict=True))
        for column, a, b in zip(columns, *pair, strict=True):
            if a == b or (not clocked and measured(table, column, named)):
                continue
            apart, place = distance(a, b), f"{column}, row {i + 1}"
            if exact or apart > tolerance(table, column):
                wrong.append(f"{place}: {a or 'nothing'} committed, {b or 'nothing'} found")
            if apart > worst:
                worst, where = apart, place
    return Difference(worst, where, tuple(wrong))


def tolerance(table: str, column: str) -> float:
    """How far numbers of a column may be apart on another type of machine, relative to the larger."""
    return next(limit for pattern, limit in TOLERANCES.items() if fnmatchcase(f"{table}.{column}", pattern))


def distance(a: str, b: str) -> float:
    """Relative difference of two numbers; 0 within ABSOLUTE; infinite for text and whole numbers."""
    try:
        x, y = float(a), float(b)
    except ValueError:
        return math.inf
    whole = a.lstrip("-").isdigit() and b.lstrip("-").isdigit()
    if whole or not (math.isfinite(x) and math.isfinite(y)):
        return 0.0 if x == y else math.inf
    return 0.0 if abs(x - y) <= ABSOLUTE else abs(x - y) / max(abs(x), abs(y))
