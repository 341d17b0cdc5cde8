"""Released metrics computed again from released samples, with the released judge and the data set's own images."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

from ..study import Study, cache, evaluation, families, judging, published, results
from ..study.sources import Samples, Source
from .verdict import Verdict

FAMILIES = ("headline", "manifold", "texture")
# Relative, by name of the estimate; the first pattern that fits counts.  Judges are released in half precision, which
# moves Fréchet distances by up to 2e-4, shares of nearest neighbours by up to 7e-4 and the confidence by up to 1e-5 of
# themselves; what looks at pixels alone does not move.
TOLERANCES = {"frechet*": 5e-4, "judge_confidence": 1e-4, "precision": 2e-3, "recall": 2e-3, "density": 2e-3,
              "coverage": 2e-3, "*": 1e-6}


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
    released = evaluation.read(cache.released(evaluation.entry(family, source, study.protocol))).estimates
    with _from_released():
        again = getattr(families, family)(source, study.protocol, True).estimates
    worst = max(released, key=lambda one: _distance(released, again, one) / _tolerance(one))
    apart, allowed = _distance(released, again, worst), _tolerance(worst)
    return Verdict(name, apart <= allowed, f"{len(released)} numbers; {worst} {released[worst].value:.6g} released, "
                   f"{again[worst].value:.6g} found, {apart:.1e} apart, {allowed:.0e} allowed")


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


def _distance(released: dict, again: dict, name: str) -> float:
    a, b = released[name].value, again[name].value
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    return abs(a - b) / max(abs(a), abs(b)) if math.isfinite(a - b) else math.inf
