"""The ledger: one row per claim, of what a notebook has decided, or why none has."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from ..metrics.estimate import Estimate
from ..study import Run
from ..study.results import training_entry
from .decide import decide
from .rules import NOT_TESTABLE, VERDICTS, interval
from .source import Claim, known, load

COLUMNS = (
    "claim_id", "source", "claim", "published",
    "measured", "ci_low", "ci_high", "n_seeds", "verdict", "notebook", "runs",
)
MEASURED = ("measured", "ci_low", "ci_high", "n_seeds", "verdict", "runs")  # what a notebook adds to a claim


def row(
    claim_id: str, measured: Estimate | float, runs: Iterable[Run] = (), notebook: str = "",
    premise: Estimate | float | None = None,
) -> dict:
    """The ledger's row for a claim that `notebook` has measured, as a dict of COLUMNS; the verdict is `decide`'s.

    Units     measured: as the claim's `unit`.  n_seeds: different training seeds among `runs`, or 1 for an estimate
              without an interval: of the runs of a notebook, a claim may rest on those of one seed.
    Raises    ValueError for an unknown claim, one that another notebook decides, a measured number that is not finite,
              and as `decide`.
    """
    claim = known(claim_id)
    if notebook != claim.notebook:
        place = f"notebook {claim.notebook}" if claim.notebook else f"no notebook ({claim.out_of_reach})"
        raise ValueError(f"claim {claim_id} belongs to {place}, got {notebook!r}")
    value, low, high = interval(measured)
    runs = list(runs)
    return _record(claim) | {
        "measured": value,
        "ci_low": low if isinstance(measured, Estimate) else math.nan,
        "ci_high": high if isinstance(measured, Estimate) else math.nan,
        "n_seeds": 1 if isinstance(measured, Estimate) and math.isnan(low) else len({run.seed for run in runs}),
        "verdict": decide(claim_id, measured, premise),
        "runs": " ".join(sorted({training_entry(run).name for run in runs})),
    }


def summary(measured: dict[str, list[tuple[str, Estimate | float]]]) -> pd.DataFrame:
    """The same claims under the same rules on other arms than the source's: one row per arm and claim.

    `measured` maps an arm to (claim_id, measured) each.  Raises ValueError as `row`.
    """
    rows = []
    for arm, pairs in measured.items():
        for claim_id, one in pairs:
            claim, (value, low, high) = known(claim_id), interval(one)
            rows.append({"arm": arm, "claim": claim.claim, "published": claim.published, "measured": value, "low": low,
                         "high": high, "verdict": decide(claim_id, one)})
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
            claim = known(record["claim_id"], claims)
            if claim.claim_id in decided:
                raise ValueError(f"claim {claim.claim_id} is decided twice")
            if claim.notebook is None:
                raise ValueError(f"claim {claim.claim_id} is out of reach in claims.toml, but a notebook decides it")
            _known_verdict(claim.claim_id, record["verdict"])
            decided[claim.claim_id] = {name: record[name] for name in MEASURED}
    rows = [_record(claim) | decided.get(claim.claim_id, {}) for claim in claims.values()]
    ledger = pd.DataFrame(rows, columns=COLUMNS)
    return ledger.astype({"n_seeds": int}).fillna({"runs": ""})  # CSV reads no runs as NaN


def retake(ledger: pd.DataFrame, rows: Iterable[dict], notebook: str) -> pd.DataFrame:
    """The ledger with some of its claims decided by `notebook` instead, on runs that come nearer to the source's.

    `rows` come from `row`, under the notebook that decided the claim first.  Raises ValueError for a claim that no
    notebook has measured: there is nothing to retake.
    """
    found = ledger.set_index("claim_id")
    for record in rows:
        claim_id = record["claim_id"]
        if claim_id not in found.index or math.isnan(found.at[claim_id, "measured"]):
            raise ValueError(f"claim {claim_id} has not been measured before")
        for name in MEASURED:
            found.at[claim_id, name] = record[name]
        found.at[claim_id, "notebook"] = notebook
    return found.reset_index()[list(ledger.columns)]


def _record(claim: Claim) -> dict:
    """A claim's row before anything is measured."""
    why = claim.out_of_reach or f"notebook {claim.notebook} has not measured it"
    return dict.fromkeys(COLUMNS, math.nan) | {
        "claim_id": claim.claim_id, "source": claim.source, "claim": claim.claim, "published": claim.published,
        "n_seeds": 0, "verdict": f"{NOT_TESTABLE} ({why})", "notebook": claim.notebook or "", "runs": "",
    }


def _known_verdict(claim_id: str, verdict: Any) -> str:
    if not isinstance(verdict, str) or not any(verdict == v or verdict.startswith(f"{v} (") for v in VERDICTS):
        raise ValueError(f"claim {claim_id}: {verdict!r} is no verdict; valid: {', '.join(VERDICTS)}")
    return verdict
