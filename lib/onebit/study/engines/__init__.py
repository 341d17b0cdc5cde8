"""Computing many results, by any of several engines: whichever it is, the same results.

A result is named by the hash of what decides it, is written once and atomically, and a job that finds it there is done:
so an engine decides only where and when.  `serial` computes one after another in this process, `local` in several
processes of this machine, `dask` on the workers of a dask.distributed cluster, on any number of machines.
"""

import os
import sys
from collections.abc import Sequence

import torch

from ...errors import unknown
from ..study import Job
from .driver import Engine, Failure, drive
from .local import Local
from .progress import Progress
from .serial import Serial

ENGINES = ("serial", "local", "dask")

__all__ = ["ENGINES", "Failure", "cores", "default_processes", "run"]


def run(jobs: Sequence[Job], engine: str = "serial", processes: int = 0, threads: int = 0) -> list[Failure]:
    """Compute jobs, prerequisites first, and tell of it on stderr.  Returns what could not be computed.

    A job that is in the list twice is computed once.

    processes    of `local` and of `dask` on this machine; 0: as many as pay
    threads      of torch in each of them (results depend on it in their last bits); 0: this machine's cores shared
                 out; on the workers of somebody's own scheduler, one
    Raises       ValueError for an unknown engine or a negative number; EngineUnavailable for an engine that cannot be
                 started, or whose workers cannot take part.
    """
    if engine not in ENGINES:
        unknown("engine", engine, ENGINES)
    if min(processes, threads) < 0:
        raise ValueError(f"processes and threads must be at least 0, got {processes} and {threads}")
    jobs = list({job.entry.name: job for job in jobs}.values())
    with _engine(engine, processes, threads) as started, Progress(jobs, started.workers) as progress:
        print(f"computing {len(jobs)} results: {started}", file=sys.stderr, flush=True)
        return drive(jobs, started, progress)


def _engine(name: str, processes: int, threads: int) -> Engine:
    if name == "serial":
        return Serial(threads or cores())
    processes = processes or default_processes()
    shared = threads or max(1, cores() // processes)
    if name == "local":
        return Local(processes, shared)
    from .cluster import Cluster  # an optional extra

    return Cluster(os.environ.get("DASK_SCHEDULER", ""), processes, threads, shared)


def default_processes() -> int:
    """How many pay.

    On a CPU one per core, up to four: two single-threaded processes train a quarter more images per second than one
    with two threads.  On a GPU up to eight: alone, a small network waits for its kernels to be launched, and side by
    side eight train eight times as much (figures/bench.csv, under CUDA's multi-process service).
    """
    return min(8 if torch.cuda.is_available() else 4, cores())


def cores() -> int:
    """How many this process may use: fewer than there are under taskset, in a container, or in a job of a cluster."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
