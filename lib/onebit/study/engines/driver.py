"""What jobs may begin, what became of them, and what is to be told: the same for every engine."""

import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from heapq import heapify, heappop, heappush
from typing import NamedTuple, Protocol

from ...errors import WorkerLost
from ..graph import prerequisites
from ..study import Job
from .attempt import Outcome
from .progress import Progress

POLL_SECONDS = 2.0  # until a result that a stranger has in hand is asked for again
TICK_SECONDS = 1.0  # between two looks at the clock of the progress line


class Engine(Protocol):
    """Where jobs are computed."""

    greedy: bool  # whether it wants every job that may begin at once, to order them itself and to ask for more workers

    def workers(self) -> int:
        """How many jobs it computes at a time, at the moment."""

    def submit(self, job: Job, place: int) -> "Future[Outcome]":
        """Begin a job; `place` in the list, so that of two waiting ones the earlier goes first.

        Raises    (in the future) WorkerLost if workers keep dying over it.
        """


class Failure(NamedTuple):
    """A job that was not computed, and why."""

    job: Job
    error: str


def drive(jobs: Sequence[Job], engine: Engine, progress: Progress) -> list[Failure]:
    """Have every job computed as soon as its prerequisites are; earlier ones of the list first.

    A failing job is reported and does not stop the others, except those that need its result, which fail with it.
    A job whose worker dies is given to another; what the dead one had checkpointed is resumed.
    """
    board = _Board(jobs)
    finished: queue.SimpleQueue[tuple[int, Future]] = queue.SimpleQueue()
    while board.open:
        while board.ready and (engine.greedy or board.running < engine.workers()):
            place = board.take()
            engine.submit(jobs[place], place).add_done_callback(partial(_announce, finished, place))
        progress.show(board.running)
        try:
            place, future = finished.get(timeout=TICK_SECONDS)
        except queue.Empty:
            board.wake()
            continue
        outcome = _outcome(future)
        if outcome.busy:
            board.put_off(place, POLL_SECONDS)
        else:
            _report(jobs[place], outcome, board.close(place, outcome.error), progress)
        board.wake()
    return board.failures


def _announce(finished: queue.SimpleQueue, place: int, future: Future) -> None:
    finished.put((place, future))


def _outcome(future: Future) -> Outcome:
    try:
        return future.result()
    except WorkerLost as error:
        return Outcome(0.0, f"{type(error).__name__}: {error}")


def _report(job: Job, outcome: Outcome, dragged: list[Job], progress: Progress) -> None:
    if outcome.error:
        progress.failed(job, outcome.error, dragged)
    else:
        progress.done(job, outcome.seconds)


class _Board:
    """Where each job of the list stands, by its place in it."""

    def __init__(self, jobs: Sequence[Job]):
        self.jobs, self.failures = jobs, []
        places = {job.entry.name: place for place, job in enumerate(jobs)}
        needs = prerequisites(jobs)
        self.needs = [{places[name] for name in needs[job.entry.name]} for job in jobs]
        self.followers: list[list[int]] = [[] for _ in jobs]
        for place, wanted in enumerate(self.needs):
            for need in wanted:
                self.followers[need].append(place)
        self.ready = [place for place, wanted in enumerate(self.needs) if not wanted]
        heapify(self.ready)
        self.open, self.running = set(range(len(jobs))), 0
        self.later: list[tuple[float, int]] = []

    def take(self) -> int:
        """The first job that may begin."""
        self.running += 1
        return heappop(self.ready)

    def put_off(self, place: int, seconds: float) -> None:
        """A job that may begin again after a while."""
        self.running -= 1
        heappush(self.later, (time.monotonic() + seconds, place))

    def wake(self) -> None:
        """Jobs that were put off long enough may begin."""
        while self.later and self.later[0][0] <= time.monotonic():
            heappush(self.ready, heappop(self.later)[1])

    def close(self, place: int, error: str) -> list[Job]:
        """A job is done, or failed; returns the jobs that fail with it."""
        self.running -= 1
        self.open.discard(place)
        if error:
            self.failures.append(Failure(self.jobs[place], error))
            return [self._drop(other, place) for other in self._downstream(place)]
        for other in self.followers[place]:
            self.needs[other].discard(place)
            if not self.needs[other] and other in self.open:
                heappush(self.ready, other)
        return []

    def _drop(self, place: int, cause: int) -> Job:
        self.open.discard(place)
        self.failures.append(Failure(self.jobs[place], f"needs {self.jobs[cause].entry.name}, which failed"))
        return self.jobs[place]

    def _downstream(self, place: int) -> list[int]:
        """Open jobs that need this one, directly or not."""
        found, stack = set(), [place]
        while stack:
            for other in self.followers[stack.pop()]:
                if other in self.open and other not in found:
                    found.add(other)
                    stack.append(other)
        return sorted(found)
