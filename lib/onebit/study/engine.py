"""Computing many results: processes that share a list of jobs through the cache's locks, and nothing else."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable

import torch

from .cache import Busy
from .profiles import Job, Study

POLL_SECONDS = 2.0


def work(jobs: Iterable[Job]) -> list[tuple[Job, Exception]]:
    """Compute every job that is nowhere yet, skipping what another process has in hand until it is done.

    A failing job is reported and does not stop the others.  Returns the failures.
    """
    pending, failures = list(jobs), []
    while pending:
        job = _first_free(pending, failures)
        if job is None:
            time.sleep(POLL_SECONDS)
    return failures


def _first_free(pending: list[Job], failures: list[tuple[Job, Exception]]) -> Job | None:
    """Compute the first job that no other process holds; remove it from the list and return it."""
    for job in list(pending):
        began = time.monotonic()
        try:
            job.compute(wait=False)
        except Busy:
            continue
        except Exception as error:  # a failed result must not cost the ones after it; all failures are reported
            print(f"FAILED {job.entry.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failures.append((job, error))
        pending.remove(job)
        seconds = time.monotonic() - began
        if seconds > 1:  # what was there already needs no line
            print(f"{job.entry.name}: {seconds:.0f} s, {len(pending)} to go", file=sys.stderr, flush=True)
        return job
    return None


def processes() -> int:
    """How many to run by default: one per core up to four on a CPU (two single-threaded processes train a quarter
    more images per second than one with two threads), one on a GPU."""
    return 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)


def run(study: Study, jobs: int) -> int:
    """Compute the study's missing results in `jobs` processes.  Returns the number of processes that had failures."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    print(f"computing in {jobs} processes of {threads} threads", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "onebit.study", "work", "--profile", study.profile.name, "--dataset",
               study.dataset, "--threads", str(threads)]
    one = {"OMP_NUM_THREADS": str(threads)}  # numpy's threads too: twice as many as cores spin instead of working
    workers = [subprocess.Popen(command, stdout=sys.stderr, env=os.environ | one | _bars(i)) for i in range(jobs)]
    try:
        return sum(worker.wait() != 0 for worker in workers)
    except KeyboardInterrupt:
        for worker in workers:
            worker.terminate()
        raise


def _bars(i: int) -> dict[str, str]:
    """Each process has a progress bar of its own line; in a log file bars are drawn rarely."""
    return {"TQDM_POSITION": str(i)} if sys.stderr.isatty() else {"TQDM_MININTERVAL": "60"}
