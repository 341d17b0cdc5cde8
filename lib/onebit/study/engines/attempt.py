"""What every worker does with a job, whatever the engine."""

import time
from dataclasses import dataclass

import torch

from ..cache import Busy
from ..study import Job


@dataclass(frozen=True)
class Outcome:
    """How a job went, in plain values that travel between processes.

    seconds    it took;  error: why it failed, "" if the result is there
    busy       another process, not one of this engine's, has it in hand: to be asked again later
    """

    seconds: float
    error: str = ""
    busy: bool = False


def attempt(job: Job, threads: int) -> Outcome:
    """Compute one job with so many torch threads.  A failure is an outcome: it must not cost the jobs after it."""
    torch.set_num_threads(threads)
    began = time.monotonic()
    error, busy = "", False
    try:
        job.compute(wait=False)
    except Busy:
        busy = True
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    return Outcome(time.monotonic() - began, error, busy)
