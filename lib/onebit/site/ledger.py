"""The claim ledger as the site shows it: states, counts, and each notebook's answer."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .. import claims
from ..plots import VERDICT_COLOURS
from ..publish import measured_text, published_text

STATES = tuple(VERDICT_COLOURS)  # every state a claim can be in, in the order of the figures
TOLD = ("contradicted", "reproduced", "direction only", "not reproduced")  # what an answer says first
SOURCES = {
    "000": ("1-bit ResUNet on MNIST", "https://github.com/nihal-gazi/1-bit-diffusion-full-mnist"),
    "001": ("BiDM", "https://arxiv.org/abs/2412.05926"),
    "002": ("Bonsai Image", ""),
    "003": ("BinaryDM", "https://arxiv.org/abs/2404.05662"),
}


@dataclass(frozen=True)
class Row:
    """One claim.  `state` is its verdict, or why it has none; `reason` says more, if there is more to say."""

    claim_id: str
    claim: str
    source: str
    published: str
    measured: str
    interval: str
    sort_published: float
    sort_measured: float
    seeds: int
    state: str
    reason: str
    notebook: str

    @property
    def slug(self) -> str:
        return slug(self.state)


@dataclass(frozen=True)
class Answer:
    """What the ledger answers to a notebook: claims by verdict, the most telling first, then those without one."""

    decided: tuple[tuple[str, tuple[Row, ...]], ...]
    undecided: tuple[tuple[str, int], ...]


def slug(state: str) -> str:
    """A state as the style sheet and the page's address spell it."""
    return state.replace(" ", "-")


def load(path: Path) -> list[Row]:
    """The rows of a claims.csv.  Raises FileNotFoundError if there is none."""
    if not path.exists():
        raise FileNotFoundError(f"no ledger of claims at {path}; notebook 09 writes it: run make paper first")
    frame = pd.read_csv(path, dtype={"notebook": str, "source": str}).fillna({"notebook": ""})
    return [_row(record) for record in frame.itertuples()]


def counts(rows: list[Row]) -> list[tuple[str, int]]:
    """How many claims are in each state, empty states left out."""
    numbers = {state: sum(row.state == state for row in rows) for state in STATES}
    return [(state, n) for state, n in numbers.items() if n]


def answer(rows: list[Row], notebook: str) -> Answer:
    """What the claims of one notebook add up to."""
    mine = [row for row in rows if row.notebook == notebook]
    told = {state: tuple(row for row in mine if row.state == state) for state in TOLD}
    return Answer(tuple((state, some) for state, some in told.items() if some),
                  tuple((state, n) for state, n in counts(mine) if state not in TOLD))


def _row(record) -> Row:
    state = claims.state(record.verdict)
    reason = record.verdict.partition(" (")[2].removesuffix(")") if "has not measured" not in record.verdict else ""
    measured, _, interval = measured_text(record).partition(" ")
    return Row(record.claim_id, record.claim[:1].upper() + record.claim[1:], record.source, published_text(record),
               measured, interval, record.published, record.measured, int(record.n_seeds), state, reason,
               record.notebook)
