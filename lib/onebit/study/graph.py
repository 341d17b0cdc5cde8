"""Which results a result is made from, read from what its key is a hash of."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import fields, replace

from . import cache, evaluation, judging, results
from .cache import Entry
from .evaluation import Protocol
from .judging import JudgeSpec
from .results import SampleSpec
from .run import Run
from .study import Job

OF_THE_IMAGES = ("packing", "copying")  # families that no judge looks at
# families that need the weights, and no samples
OF_THE_NETWORK = ("overfitting", "denoising", "handover", "walking", "crossing", "calibrator", "activity",
                  "mimicry")


def prerequisites(jobs: Iterable[Job]) -> dict[str, tuple[str, ...]]:
    """For each job, by name, those others of the list whose results it reads, in the order of the list.

    What is not in the list is there already, or the job computes it itself, and reads what that is made from.
    """
    listed = {job.entry.name: job.entry for job in jobs}
    order = {name: i for i, name in enumerate(listed)}
    reads = {name: _needed(entry, order) - {name} for name, entry in listed.items()}
    return {name: tuple(sorted(found, key=order.__getitem__)) for name, found in reads.items()}


def missing(jobs: Iterable[Job]) -> list[Job]:
    """Those whose results are nowhere and are wanted: shown by a notebook, or read by one of those that are."""
    nowhere = {job.entry.name: job for job in jobs if cache.find(job.entry) is None}
    needs = prerequisites(nowhere.values())
    wanted = [name for name, job in nowhere.items() if job.shown]
    for name in wanted:  # which grows meanwhile
        wanted += [need for need in needs[name] if need not in wanted]
    return [job for name, job in nowhere.items() if name in wanted]


def run_of(spec: dict) -> Run:
    """The run whose `spec` this is."""
    known = {f.name: spec[f.name] for f in fields(Run) if f.name in spec}
    return Run(**known | ({"teacher": run_of(spec["teacher"])} if spec.get("teacher") else {}))


def _needed(entry: Entry, listed: Container[str]) -> set[str]:
    found = set()
    for other in _reads(entry):
        if other.name in listed:
            found.add(other.name)
        elif (behind := _needed(other, listed)) and cache.find(other) is None:  # looked for only where it matters
            found |= behind
    return found


def _reads(entry: Entry) -> Iterator[Entry]:
    spec = entry.spec
    if entry.kind == "train":
        yield from _trainings(spec.get("teacher"))
    elif entry.kind == "samples":
        yield from _trainings(spec["run"])
    elif entry.kind == "calibration":
        yield judging.judge_entry(JudgeSpec(**{f.name: spec[f.name] for f in fields(JudgeSpec)}))
    elif entry.kind == "timing":
        for run in spec.get("runs", {}).values():
            yield from _trainings(run)
    elif entry.kind == "evaluation":
        yield from _evaluated(spec)


def _trainings(spec: dict | None) -> Iterator[Entry]:
    if spec:
        yield results.training_entry(run_of(spec))


def _evaluated(spec: dict) -> Iterator[Entry]:
    family, source, protocol = spec["family"], spec["source"], _protocol(spec["protocol"])
    if family in OF_THE_NETWORK:
        yield from _trainings(source["run"])
        if family == "mimicry":
            yield from _trainings(source["run"].get("teacher"))
        if family in ("walking", "crossing", "handover"):
            yield judging.judge_entry(protocol.judge)
        return
    if "run" in source:
        run, request = run_of(source["run"]), SampleSpec(**source["samples"])
        yield results.samples_entry(run, request, "kernels" in source)
        if family in ("packing", "rounding"):
            yield results.samples_entry(run, replace(request, precision="float32"))
    if family in OF_THE_IMAGES:
        return
    yield judging.judge_entry(protocol.judge)
    if family == "distribution":
        yield from map(judging.judge_entry, protocol.more_judges)
    if family == "memorization":
        yield evaluation.entry("neighbours", protocol.control, protocol)
    if family == "legibility":
        yield judging.calibration_entry(protocol.judge)
        yield judging.logistic_entry(protocol.dataset)


def _protocol(spec: dict) -> Protocol:
    judges = tuple(JudgeSpec(**judge) for judge in spec["more_judges"])
    return Protocol(**spec | {"judge": JudgeSpec(**spec["judge"]), "more_judges": judges})
