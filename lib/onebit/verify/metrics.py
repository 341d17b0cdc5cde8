"""Released metrics computed again from released samples, with the released judge and the data set's own images."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

from ..metrics import Estimate
from ..study import Study, cache, evaluation, families, judging, published, results
from ..study.sources import Samples, Source
from .verdict import Verdict

FAMILIES = ("headline", "manifold", "texture")
# Relative, by name of the estimate; the first pattern that fits counts.  Judges are released in half precision, which
# moves Fréchet distances by up to 2e-4, shares of nearest neighbours by up to 7e-4 and the confidence by up to 1e-5 of
# themselves; what looks at pixels alone does not move.
# The ends of an interval, which may lie near 0, count in shares of the number between them where that is larger.
TOLERANCES = {"frechet*": 5e-4, "judge_confidence": 1e-4, "precision": 2e-3, "recall": 2e-3, "density": 2e-3,
              "coverage": 2e-3, "*": 1e-6}
PARTS = ("value", "low", "high", "n")


def metrics(study: Study) -> Iterator[Verdict]:
    """A verdict per family and source: held-out images, and the first seed of float and 1-bit arms."""
    for source in sources(study):
        for family in FAMILIES:
            yield metric(study, family, source)


def sources(study: Study) -> list[Source]:
    """What is measured again."""
    arms = [*study.unet(("fp16", "strict-1bit")), *study.resunet(recipes=("published-1bit",))]
    full = published.sources(study) if published.at_hand(study) else []
    first = study.profile.unet_seeds[0]
    return [study.protocol.control, *(source for source in [*map(study.evaluation, arms), *full]
                                      if source.run.seed == first)]


def metric(study: Study, family: str, source: Source) -> Verdict:
    """The verdict on one family of one source."""
    name = f"{family} of {source.label}"
    missing = [entry.name for entry in _needed(study, family, source) if cache.released(entry) is None]
    if missing:
        return Verdict(name, False, f"{missing[0]} is not released, or damaged")
    try:
        released = evaluation.read(cache.released(evaluation.entry(family, source, study.protocol))).estimates
    except (AttributeError, TypeError, ValueError) as error:
        return Verdict(name, False, f"the released numbers are unreadable ({error}): restore data/released/")
    with _from_released():
        again = getattr(families, family)(source, study.protocol, True).estimates
    return compare(name, released, again)


def compare(what: str, released: dict[str, Estimate], again: dict[str, Estimate]) -> Verdict:
    """The verdict on the estimates of one family of one source: values, intervals, and on how many things."""
    unpaired = sorted(released.keys() ^ again.keys())
    if unpaired:
        return Verdict(what, False, "; ".join(f"{one} is not {'found' if one in released else 'released'}"
                                              for one in unpaired))
    apart = {(one, part): _distance(released[one], again[one], part) for one in released for part in PARTS}
    one, part = worst = max(apart, key=lambda number: apart[number] / _tolerance(number[0]))
    said = one if part == "value" else f"{part} of {one}"
    return Verdict(what, apart[worst] <= _tolerance(one), f"{len(released)} numbers; {said} "
                   f"{getattr(released[one], part):.6g} released, {getattr(again[one], part):.6g} found, "
                   f"{apart[worst]:.1e} apart, {_tolerance(one):.0e} allowed")


def _needed(study: Study, family: str, source: Source) -> list[cache.Entry]:
    drawn = [results.samples_entry(source.run, source.request)] if isinstance(source, Samples) else []
    return [evaluation.entry(family, source, study.protocol), judging.judge_entry(study.judges[0]), *drawn]


@contextmanager
def _from_released() -> Iterator[None]:
    """Within it judge and samples are the released ones, whatever FROM_SCRATCH says."""
    asked = os.environ.pop("FROM_SCRATCH", None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ["FROM_SCRATCH"] = asked


def _tolerance(name: str) -> float:
    return next(limit for pattern, limit in TOLERANCES.items() if fnmatchcase(name, pattern))


def _distance(released: Estimate, again: Estimate, part: str) -> float:
    a, b = getattr(released, part), getattr(again, part)
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if part == "n" or not math.isfinite(a - b):
        return math.inf
    size = abs(again.value) if math.isfinite(again.value) else 0.0
    return abs(a - b) / max(abs(a), abs(b), size)
