"""What the sources claim, as data: claims.toml."""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("claims.toml")
SOURCES = ("000", "001", "002", "003")
NOTEBOOKS = tuple(f"{n:02d}" for n in range(1, 10))
COMPARE = ("value", "ratio", "difference", "share", "sign", "text")


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
