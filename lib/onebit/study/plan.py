"""What a study would compute, what that costs on this machine, and how it scales: the text of `make plan`."""

import re
from collections.abc import Sequence

import torch
from tabulate import tabulate

from ..train import CHECKPOINT_SECONDS
from . import costs
from .engines.progress import duration
from .graph import missing as lacking
from .graph import prerequisites, run_of
from .schedule import Task, critical_path, makespan
from .speeds import Speeds
from .study import Job, Study

WORKERS = (1, 2, 8, 1_000)
STATES = 4  # copies of the weights in a checkpoint: model, Adam's two moments, average


def plan(study: Study, threads: int = 0) -> str:
    """The whole text; takes about half a minute, most of it to time training and sampling steps.

    threads    of torch in each worker; 0: as many as there are
    """
    if threads:
        torch.set_num_threads(threads)
    jobs = study.jobs()
    missing = lacking(jobs)
    title = f"{study.dataset}/{study.profile.name}: {len(missing)} of {len(jobs)} results missing"
    if not missing:
        title += "; this is what FROM_SCRATCH=1 would compute"
    chosen = missing or jobs
    speeds = Speeds.calibrated(chosen)
    parts = [title, _calibrated(chosen, speeds), by_kind(jobs, chosen, speeds), by_row(chosen, speeds),
             _disk(chosen, speeds), scaling(tasks(chosen, speeds))]
    return "\n\n".join(parts)


def tasks(jobs: Sequence[Job], speeds: Speeds) -> dict[str, Task]:
    """The jobs as the simulation sees them."""
    needs = prerequisites(jobs)
    return {job.entry.name: Task(speeds.estimate(job.entry), needs[job.entry.name]) for job in jobs}


def by_kind(jobs: Sequence[Job], chosen: Sequence[Job], speeds: Speeds) -> str:
    """A table: results of each kind, how many of them are to be computed, and how long that takes one worker."""
    rows = {_kind(job): [0, 0, 0.0] for job in jobs}
    for job in jobs:
        rows[_kind(job)][0] += 1
    for job in chosen:
        rows[_kind(job)][1] += 1
        rows[_kind(job)][2] += speeds.estimate(job.entry)
    lines = [(kind, count, todo, duration(seconds)) for kind, (count, todo, seconds) in rows.items()]
    total = (*(sum(row[i] for row in rows.values()) for i in (0, 1)), duration(sum(row[2] for row in rows.values())))
    return _table(["kind", "results", "to compute", "one worker"], [*lines, ("all", *total)])


def by_row(chosen: Sequence[Job], speeds: Speeds) -> str:
    """A table: what would be trained, a row for all seeds of an arm."""
    rows: dict[tuple, list[float]] = {}
    for job in chosen:
        if job.entry.kind == "train":
            run = run_of(job.entry.spec)
            arm = re.sub(r"-s\d+$", "", run.label)
            rows.setdefault((arm, run.steps, costs.over_float(run)), []).append(speeds.estimate(job.entry))
    if not rows:
        return "nothing to train"
    lines = [(arm, len(seconds), steps, f"{ratio:.2f}", duration(seconds[0]), duration(sum(seconds)))
             for (arm, steps, ratio), seconds in rows.items()]
    return _table(["training", "runs", "steps", "over float", "each", "all"], lines)


def scaling(work: dict[str, Task]) -> str:
    """A table: simulated time on several numbers of workers, and the two bounds that nothing can beat."""
    longest, chain = critical_path(work)
    total = sum(task.seconds for task in work.values())
    lines = []
    for workers in WORKERS:
        seconds, bound = makespan(work, workers), max(total / workers, longest)
        lines.append((workers, duration(seconds), duration(bound), f"{total / seconds:.1f}",
                      f"{total / seconds / workers:.0%}"))
    table = _table(["workers", "simulated", "at least", "times faster", "efficiency"], lines)
    path = "\n".join(f"  {duration(work[name].seconds):>10}  {name}" for name in chain)
    enough = total / longest if longest else 1.0
    return (f"{table}\n\nThe serial part takes {duration(longest)}, whatever the number of workers; beyond some "
            f"{enough:.0f} of them it is the bound:\n{path}")


def _kind(job: Job) -> str:
    spec = job.entry.spec
    return f"evaluation: {spec['family']}" if job.entry.kind == "evaluation" else job.entry.kind


def _calibrated(chosen: Sequence[Job], speeds: Speeds) -> str:
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    trained = {(job.entry.spec["net"], job.entry.spec["width"]): job for job in chosen if job.entry.kind == "train"}
    rates = [f"{net} of width {width}: {_rate(job, speeds):.0f}" for (net, width), job in sorted(trained.items())]
    return (f"A worker: {place}, threads: {torch.get_num_threads()}.  Timed now, float training steps in images/s: "
            f"{'; '.join(rates) or 'nothing to train'}.\n"
            "Quantized steps by their ratios in figures/bench.csv; evaluations as recorded in data/released, scaled\n"
            "by this machine's training step.  It is as fast as it was these 20 seconds: idle, or not.")


def _rate(job: Job, speeds: Speeds) -> float:
    run = run_of(job.entry.spec)
    return run.steps * run.batch / speeds.estimate(job.entry) * costs.over_float(run)


def _disk(chosen: Sequence[Job], speeds: Speeds) -> str:
    results = sum(speeds.size(job.entry) for job in chosen)
    states = [4 * STATES * costs.parameters(job.entry.spec["net"], job.entry.spec["width"])
              for job in chosen if job.entry.kind == "train"]
    largest = max(states, default=0) / 1e6
    return (f"Disk: {results / 1e6:,.0f} MB of results, and for each worker up to {largest:,.0f} MB of checkpoint, "
            f"written every {CHECKPOINT_SECONDS:.0f} s.")


def _table(headers: list[str], rows: list[tuple]) -> str:
    return tabulate(rows, headers, disable_numparse=True, colalign=["left", *["right"] * (len(headers) - 1)])
