"""The claim ledger: what the sources claim, the rules that decide it, and one row per claim.

The claims are data (`claims.toml`); a verdict is always the result of one of the three rules, so that what is measured
decides and nobody's opinion of it.
"""

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from .metrics.estimate import Estimate
from .study import Run
from .study.results import training_entry

FILE = Path(__file__).with_name("claims.toml")
SOURCES = ("000", "001", "002", "003")
NOTEBOOKS = tuple(f"{n:02d}" for n in range(1, 10))
COMPARE = ("value", "ratio", "difference", "share", "sign", "text")
VERDICTS = ("reproduced", "direction only", "not reproduced", "contradicted", "not testable here")
REPRODUCED, DIRECTION_ONLY, NOT_REPRODUCED, CONTRADICTED, NOT_TESTABLE = VERDICTS
TOO_WIDE = f"{NOT_TESTABLE} (interval too wide)"
INFORMATIVE = 0.5  # of a published number: how wide, to either side, an interval may be to confirm it
COLUMNS = (
    "claim_id", "source", "claim", "published",
    "measured", "ci_low", "ci_high", "n_seeds", "verdict", "notebook", "runs",
)
MEASURED = ("measured", "ci_low", "ci_high", "n_seeds", "verdict", "runs")  # what a notebook adds to a claim


# The claims ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One claim of the sources; the fields are explained at the head of claims.toml.

    printed       the numbers as the source prints them: none, one, or two that are compared
    notebook      the notebook that decides it, or None
    out_of_reach  why nothing here can, or None
    """

    claim_id: str
    source: str
    where: str
    claim: str
    unit: str
    compare: str
    printed: tuple[float, ...] = ()
    notebook: str | None = None
    out_of_reach: str | None = None

    @property
    def published(self) -> float:
        """The number to compare with: the printed one, or the ratio or difference of two; NaN where there is none."""
        if len(self.printed) == 2:
            a, b = self.printed
            return a - b if self.compare == "difference" else a / b
        return self.printed[0] if self.printed else math.nan


def load(path: Path | None = None) -> dict[str, Claim]:
    """All claims by id, in the order of the file.

    Raises    ValueError, naming the claim and the file, for an unknown or missing field, an unknown source, notebook or
              kind of comparison, a `published` that is not one finite number or two, and a claim that has neither or
              both of `notebook` and `out_of_reach`; for a file that is not TOML, such as one with an id given twice.
    """
    path = path or FILE
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    claims = {}
    for claim_id, table in tables.items():
        try:
            claims[claim_id] = _claim(claim_id, table)
        except ValueError as error:
            raise ValueError(f"claim {claim_id} in {path}: {error}") from error
    return claims


def _claim(claim_id: str, table: Any) -> Claim:
    if not isinstance(table, dict):
        raise ValueError("a claim is a table of its own")
    fields = dict(table)
    texts = {name: fields.pop(name, None) for name in ("source", "where", "claim", "unit", "compare")}
    decided = {name: fields.pop(name) for name in ("notebook", "out_of_reach") if name in fields}
    claim = Claim(claim_id, **texts, printed=_printed(fields.pop("published", [])), **decided)
    if fields:
        raise ValueError(f"unknown field {', '.join(fields)}")
    for name, text in (texts | decided).items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} has to be text, got {text!r}")
    _check_names(claim)
    if len(decided) != 1:
        raise ValueError("say either which notebook decides it or why it is out_of_reach")
    if claim.compare in ("value", "ratio", "difference") and not claim.printed:
        raise ValueError(f"{claim.compare} compares with a published number; without one it is a sign or a text")
    if len(claim.printed) == 2 and claim.compare not in ("ratio", "difference", "share"):
        raise ValueError(f"two published numbers make a ratio, a difference or a share, no {claim.compare}")
    return claim


def _check_names(claim: Claim) -> None:
    sources = claim.source.split(", ")
    if sources != sorted(set(sources)) or not set(sources) <= set(SOURCES):
        raise ValueError(f"unknown source {claim.source!r}; valid: {', '.join(SOURCES)}, or several in this order")
    if claim.compare not in COMPARE:
        raise ValueError(f"unknown comparison {claim.compare!r}; valid: {', '.join(COMPARE)}")
    if claim.notebook is not None and claim.notebook not in NOTEBOOKS:
        raise ValueError(f"unknown notebook {claim.notebook!r}; valid: {', '.join(NOTEBOOKS)}")


def _printed(published: Any) -> tuple[float, ...]:
    numbers = tuple(published) if isinstance(published, list) else (published,)
    if len(numbers) > 2 or any(type(x) not in (int, float) or not math.isfinite(x) for x in numbers):
        raise ValueError(f"published has to be one finite number or two, got {published!r}")
    if len(numbers) == 2 and numbers[1] == 0:
        raise ValueError("the second published number is zero")
    return tuple(float(x) for x in numbers)


# The rules -----------------------------------------------------------------------------------------------------------


def by_value(measured: Estimate | float, published: float, tolerance: float = 0.2) -> str:
    """Is the published number what we measure?

        reproduced         |measured - published| <= tolerance * |published|, or the published number lies in the 95 %
                           interval, ends included, whose half width is at most half of |published|
        not testable here  without an interval (one seed), or when the published number lies in a wider one: an
                           interval that holds nearly everything confirms nothing
        not reproduced     otherwise

    A plain number is exact, a count for instance: its interval is the number itself.

    Raises    ValueError for a published number, a measured one or a tolerance that cannot be compared.
    """
    value, low, high = _interval(measured)
    _comparable(published, tolerance)
    if math.isnan(low):
        return _no_interval(measured)
    if abs(value - published) <= tolerance * abs(published):
        return REPRODUCED
    if not low <= published <= high:
        return NOT_REPRODUCED
    return REPRODUCED if (high - low) / 2 <= INFORMATIVE * abs(published) else TOO_WIDE


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
    value, low, high = _interval(measured)
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
    _, low, high = _interval(measured)
    if not at_least <= at_most or (at_least, at_most) == (-math.inf, math.inf):
        raise ValueError(f"say at_least, at_most or both in this order, got {at_least} and {at_most}")
    if math.isnan(low):
        return _no_interval(measured)
    if at_least <= low and high <= at_most:
        return REPRODUCED
    return CONTRADICTED if high < at_least or low > at_most else TOO_WIDE


def _interval(measured: Estimate | float) -> tuple[float, float, float]:
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


# The ledger ----------------------------------------------------------------------------------------------------------


def row(claim_id: str, measured: Estimate | float, verdict: str, runs: Iterable[Run] = (), notebook: str = "") -> dict:
    """The ledger's row for a claim that `notebook` has decided, as a dict of COLUMNS.

    Units     measured: as the claim's `unit`.  n_seeds: different training seeds among `runs`, or 1 for an estimate
              without an interval: of the runs of a notebook, a claim may rest on those of one seed.
    Raises    ValueError for an unknown claim, one that another notebook decides, a verdict that is none of VERDICTS
              (with or without a reason in brackets), or a measured number that is not finite.
    """
    claim = _known(claim_id)
    if notebook != claim.notebook:
        place = f"notebook {claim.notebook}" if claim.notebook else f"no notebook ({claim.out_of_reach})"
        raise ValueError(f"claim {claim_id} belongs to {place}, got {notebook!r}")
    value, low, high = _interval(measured)
    runs = list(runs)
    return _record(claim) | {
        "measured": value,
        "ci_low": low if isinstance(measured, Estimate) else math.nan,
        "ci_high": high if isinstance(measured, Estimate) else math.nan,
        "n_seeds": 1 if isinstance(measured, Estimate) and math.isnan(low) else len({run.seed for run in runs}),
        "verdict": _known_verdict(claim_id, verdict),
        "runs": " ".join(sorted({training_entry(run).name for run in runs})),
    }


def summary(decided: dict[str, list[tuple[str, Estimate | float, str]]]) -> pd.DataFrame:
    """The same claims under the same rules on other arms than the source's: one row per arm and claim.

    `decided` maps an arm to (claim_id, measured, verdict) each.  Raises ValueError as `row`.
    """
    rows = []
    for arm, one in decided.items():
        for claim_id, measured, verdict in one:
            claim, (value, low, high) = _known(claim_id), _interval(measured)
            rows.append({"arm": arm, "claim": claim.claim, "published": claim.published, "measured": value, "low": low,
                         "high": high, "verdict": _known_verdict(claim_id, verdict)})
    return pd.DataFrame(rows)


def assemble(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The whole ledger, every claim once and in the order of claims.toml, from the rows the notebooks have written.

    A claim out of reach, and one whose notebook has written no row yet, is "not testable here" with the reason. What a
    claim says is taken from claims.toml, not from the frames, so frames read back from CSV need no column types.

    Raises    ValueError for a frame without the columns of the ledger, a claim decided twice, an unknown claim,
              a row for a claim that is out of reach, and a verdict that is none of VERDICTS.
    """
    claims, decided = load(), {}
    for frame in frames:
        missing = [name for name in ("claim_id", *MEASURED) if name not in frame]
        if missing:
            raise ValueError(f"a frame of claims lacks the columns {', '.join(missing)}; its rows come from claims.row")
        for record in frame.to_dict("records"):
            claim = _known(record["claim_id"], claims)
            if claim.claim_id in decided:
                raise ValueError(f"claim {claim.claim_id} is decided twice")
            if claim.notebook is None:
                raise ValueError(f"claim {claim.claim_id} is out of reach in claims.toml, but a notebook decides it")
            _known_verdict(claim.claim_id, record["verdict"])
            decided[claim.claim_id] = {name: record[name] for name in MEASURED}
    rows = [_record(claim) | decided.get(claim.claim_id, {}) for claim in claims.values()]
    ledger = pd.DataFrame(rows, columns=COLUMNS)
    return ledger.astype({"n_seeds": int}).fillna({"runs": ""})  # CSV reads no runs as NaN


def _record(claim: Claim) -> dict:
    """A claim's row before anything is measured."""
    why = claim.out_of_reach or f"notebook {claim.notebook} has not measured it"
    return dict.fromkeys(COLUMNS, math.nan) | {
        "claim_id": claim.claim_id, "source": claim.source, "claim": claim.claim, "published": claim.published,
        "n_seeds": 0, "verdict": f"{NOT_TESTABLE} ({why})", "notebook": claim.notebook or "", "runs": "",
    }


def _known(claim_id: str, claims: dict[str, Claim] | None = None) -> Claim:
    claims = claims or load()
    if claim_id not in claims:
        raise ValueError(f"unknown claim {claim_id!r}; the claims are in {FILE.name}")
    return claims[claim_id]


def _known_verdict(claim_id: str, verdict: Any) -> str:
    if not isinstance(verdict, str) or not any(verdict == v or verdict.startswith(f"{v} (") for v in VERDICTS):
        raise ValueError(f"claim {claim_id}: {verdict!r} is no verdict; valid: {', '.join(VERDICTS)}")
    return verdict
