"""One job after another in this process: the engine all others have to agree with."""

from concurrent.futures import Future
from contextlib import AbstractContextManager

from ..study import Job
from .attempt import Outcome, attempt


class Serial(AbstractContextManager):
    """Computes a job while it is submitted."""

    greedy = False

    def __init__(self, threads: int):
        self.threads = threads

    def __str__(self) -> str:
        return f"one after another, threads: {self.threads}"

    def __exit__(self, *error) -> None:
        pass

    def workers(self) -> int:
        return 1

    def submit(self, job: Job, place: int) -> "Future[Outcome]":
        """A future that is done."""
        future = Future()
        future.set_result(attempt(job, self.threads))
        return future
