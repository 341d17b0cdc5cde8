"""What the user sees: a line per finished job and, in a terminal, a line that is kept up to date."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from tqdm import tqdm

from ..graph import prerequisites
from ..schedule import Task, makespan
from ..speeds import Speeds
from ..study import Job

QUIET_SECONDS = 1.0  # faster jobs need no line
TRUST_SECONDS = 60.0  # of work after which measured times weigh as much as the estimates


class Progress(AbstractContextManager):
    """Counts jobs done, running and failed, and says how long the rest will take.

    Estimates are those of the machine that made the released results; what jobs have taken so far corrects them.
    """

    def __init__(self, jobs: Sequence[Job], workers: Callable[[], int]):
        needs, speeds = prerequisites(jobs), Speeds.released()
        self.left = {job.entry.name: Task(speeds.estimate(job.entry), needs[job.entry.name]) for job in jobs}
        self.total, self.finished, self.failures, self.running = len(jobs), 0, 0, 0
        self.spent = self.expected = TRUST_SECONDS
        self.workers, self.updated, self.seconds_left = workers, time.monotonic(), 0.0
        self.bar = tqdm(total=self.total, disable=not sys.stderr.isatty(), bar_format="{desc}", position=0)
        self._look_ahead()

    def __exit__(self, *error) -> None:
        self.bar.close()

    def done(self, job: Job, seconds: float) -> None:
        self.spent, self.expected = self.spent + seconds, self.expected + self.left[job.entry.name].seconds
        self.finished += 1
        self._strike(job)
        if seconds > QUIET_SECONDS:
            self._say(f"{job.entry.name}: {seconds:.0f} s; {self}")

    def failed(self, job: Job, error: str, dragged: Sequence[Job]) -> None:
        """`dragged`: the jobs that need its result, and fail with it."""
        self.failures += 1 + len(dragged)
        self._strike(job, *dragged)
        also = f" (and with it {len(dragged)} that need it)" if dragged else ""
        self._say(f"FAILED {job.entry.name}: {error}{also}; {self}")

    def show(self, running: int) -> None:
        """Bring the line up to date; `running`: jobs given to the engine, of which it may be computing fewer."""
        self.running = min(running, self.workers())
        self.bar.set_description_str(str(self))

    def __str__(self) -> str:
        failed = f", {self.failures} failed" if self.failures else ""
        left = self.seconds_left - (time.monotonic() - self.updated)
        ahead = f", about {duration(max(0.0, left))} left" if self.left else ""
        running = min(self.running, len(self.left))  # of a job that has just ended, the next takes the place
        return f"{self.finished} of {self.total} done, {running} running{failed}{ahead}"

    def _strike(self, *jobs: Job) -> None:
        for job in jobs:
            del self.left[job.entry.name]
        self._look_ahead()

    def _look_ahead(self) -> None:
        open_tasks = {name: Task(task.seconds, tuple(need for need in task.needs if need in self.left))
                      for name, task in self.left.items()}
        self.seconds_left = makespan(open_tasks, max(1, self.workers())) * self.spent / self.expected
        self.updated = time.monotonic()

    def _say(self, line: str) -> None:
        self.bar.write(line, file=sys.stderr)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """For people: "40 s", "12 min", "3 h 05 min", "12 days 4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 100 else f"{hours // 24} days {hours % 24} h"
