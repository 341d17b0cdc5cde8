"""What the sources claim, as data: claims.toml."""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("claims.toml")
SOURCES = ("000", "001", "002", "003")
NOTEBOOKS = tuple(f"{n:02d}" for n in range(1, 10))
NUMBERS = ("at_least", "at_most", "count", "tolerance", "null", "premise")
COMPARE = ("value", "ratio", "difference", "share", "sign", "text")


@dataclass(frozen=True)
class Claim:
    """One claim of the sources; the fields are explained at the head of claims.toml.

    printed       the numbers as the source prints them: none, one, or two that are compared
    notebook      the notebook that decides it, or None
    out_of_reach  why nothing here can, or None
    at_least, at_most, count, tolerance, rival, null, premise, without: of the rule, see there; infinite or None where
    there is none
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
    at_least: float = -math.inf
    at_most: float = math.inf
    count: int | None = None
    tolerance: float = 0.2
    rival: str | None = None
    null: float = 1.0
    premise: float | None = None
    without: str | None = None

    @property
    def published(self) -> float:
        """The number to compare with: the printed one, or the ratio or difference of two; NaN where there is none."""
        if len(self.printed) == 2:
            a, b = self.printed
            return a - b if self.compare == "difference" else a / b
        return self.printed[0] if self.printed else math.nan

    @property
    def bounded(self) -> bool:
        """Whether the claim is held against bounds, and not against the published number."""
        return math.isfinite(self.at_least) or math.isfinite(self.at_most)

    @property
    def words(self) -> str:
        """What decides the claim, in a few words: "at most 1.25", "1.76 within 20 %"."""
        if self.count is not None:
            return f"{self.count} of {self.count} signs"
        if self.bounded:
            ends = (("at least", self.at_least), ("at most", self.at_most))
            return ", ".join(f"{word} {bound:g}" for word, bound in ends if math.isfinite(bound))
        return f"{self.published:.4g} within {100 * self.tolerance:g} %"


def load(path: Path | None = None) -> dict[str, Claim]:
    """All claims by id, in the order of the file.

    Raises    ValueError, naming the claim and the file, for an unknown or missing field, an unknown source, notebook,
              rival or kind of comparison, a `published` that is not one finite number or two, a claim that has neither
              or both of `notebook` and `out_of_reach`, and a rule that does not fit the kind of comparison; for a file
              that is not TOML, such as one with an id given twice.
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
    for claim_id, claim in claims.items():
        if claim.rival is not None and not (claim.rival in claims and claims[claim.rival].printed):
            raise ValueError(f"claim {claim_id} in {path}: no claim with a number is its rival, {claim.rival!r}")
    return claims


def known(claim_id: str, claims: dict[str, Claim] | None = None) -> Claim:
    """The claim of that id.  Raises ValueError if there is none."""
    claims = claims or load()
    if claim_id not in claims:
        raise ValueError(f"unknown claim {claim_id!r}; the claims are in {FILE.name}")
    return claims[claim_id]


def _claim(claim_id: str, table: Any) -> Claim:
    if not isinstance(table, dict):
        raise ValueError("a claim is a table of its own")
    fields = dict(table)
    texts = {name: fields.pop(name, None) for name in ("source", "where", "claim", "unit", "compare")}
    decided = {name: fields.pop(name) for name in ("notebook", "out_of_reach") if name in fields}
    printed = _printed(fields.pop("published", []))
    numbers = {name: _number(name, fields.pop(name)) for name in NUMBERS if name in fields}
    words = {name: fields.pop(name) for name in ("rival", "without") if name in fields}
    numbers.setdefault("null", 0.0 if texts["compare"] == "difference" else 1.0)
    claim = Claim(claim_id, **texts, printed=printed, **decided, **numbers, **words)
    if fields:
        raise ValueError(f"unknown field {', '.join(fields)}")
    for name, text in (texts | decided | words).items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} has to be text, got {text!r}")
    _check_names(claim)
    if len(decided) != 1:
        raise ValueError("say either which notebook decides it or why it is out_of_reach")
    if claim.compare in ("value", "ratio", "difference") and not claim.printed:
        raise ValueError(f"{claim.compare} compares with a published number; without one it is a sign or a text")
    if len(claim.printed) == 2 and claim.compare not in ("ratio", "difference", "share"):
        raise ValueError(f"two published numbers make a ratio, a difference or a share, no {claim.compare}")
    _check_rule(claim)
    return claim


def _check_rule(claim: Claim) -> None:
    """One rule, and one that fits: see the head of claims.toml."""
    against_published = claim.compare in ("value", "ratio", "difference")
    if claim.count is not None and (type(claim.count) is not int or claim.count < 2):
        raise ValueError(f"count has to be a whole number of signs, two or more, got {claim.count}")
    if claim.bounded and claim.count is not None:
        raise ValueError("say either bounds or a count")
    if against_published and (claim.bounded or claim.count is not None):
        raise ValueError(f"{claim.compare} is held against the published number: no bounds, no count")
    if claim.notebook and not (claim.printed or claim.bounded or claim.count is not None):
        raise ValueError(f"{claim.compare} without a published number needs at_least, at_most or count")
    if claim.rival is not None and claim.compare != "value":
        raise ValueError("only a value has a rival")
    if claim.null not in (0, 1) or not claim.at_least <= claim.at_most or claim.tolerance < 0:
        raise ValueError("null is 0 or 1, at_least no more than at_most, and tolerance zero or more")
    if claim.null == 1 and any(bound <= 0 for bound in (claim.at_least, claim.at_most) if math.isfinite(bound)):
        raise ValueError("the bounds of a ratio are above zero; those of a difference need null = 0")
    if (claim.premise is None) != (claim.without is None):
        raise ValueError("a premise needs a number and, as `without`, the words for its lack")


def _check_names(claim: Claim) -> None:
    sources = claim.source.split(", ")
    if sources != sorted(set(sources)) or not set(sources) <= set(SOURCES):
        raise ValueError(f"unknown source {claim.source!r}; valid: {', '.join(SOURCES)}, or several in this order")
    if claim.compare not in COMPARE:
        raise ValueError(f"unknown comparison {claim.compare!r}; valid: {', '.join(COMPARE)}")
    if claim.notebook is not None and claim.notebook not in NOTEBOOKS:
        raise ValueError(f"unknown notebook {claim.notebook!r}; valid: {', '.join(NOTEBOOKS)}")


def _number(name: str, number: Any) -> float:
    if type(number) not in (int, float) or not math.isfinite(number):
        raise ValueError(f"{name} has to be a finite number, got {number!r}")
    return number


def _printed(published: Any) -> tuple[float, ...]:
    numbers = tuple(published) if isinstance(published, list) else (published,)
    if len(numbers) > 2 or any(type(x) not in (int, float) or not math.isfinite(x) for x in numbers):
        raise ValueError(f"published has to be one finite number or two, got {published!r}")
    if len(numbers) == 2 and numbers[1] == 0:
        raise ValueError("the second published number is zero")
    return tuple(float(x) for x in numbers)
