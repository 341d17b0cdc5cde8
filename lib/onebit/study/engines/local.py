"""Several processes of this machine, which share its cores or its GPU."""

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from ...errors import WorkerLost
from ..study import Job
from .attempt import Outcome, attempt

LIVES = 3  # workers that may die over one job before it counts as failed
WATCH_SECONDS = 1.0  # between two looks of a worker at its parent
DIED = (EOFError, BrokenPipeError, pickle.UnpicklingError)  # what the broken pipe of a dead process looks like


class Local(contextlib.AbstractContextManager):
    """Hands jobs to worker processes, one at a time to each, and starts a dead one anew."""

    greedy = False

    def __init__(self, processes: int, threads: int):
        self.processes, self.threads = processes, threads
        self.idle: SimpleQueue[_Worker] = SimpleQueue()

    def __enter__(self) -> "Local":
        self.all = [_Worker(self.threads, position) for position in range(1, self.processes + 1)]
        for worker in self.all:
            self.idle.put(worker)
        self.pool = ThreadPoolExecutor(self.processes)
        return self

    def __exit__(self, *error) -> None:
        for worker in self.all:
            worker.stop()
        self.pool.shutdown(cancel_futures=True)

    def __str__(self) -> str:
        return f"{self.processes} processes, threads of each: {self.threads}"

    def workers(self) -> int:
        return self.processes

    def submit(self, job: Job, place: int) -> "Future[Outcome]":
        """Raises (in the future) WorkerLost after as many deaths as a job is allowed."""
        return self.pool.submit(self._hand_over, job)

    def _hand_over(self, job: Job) -> Outcome:
        worker = self.idle.get()
        try:
            for _ in range(LIVES):
                with contextlib.suppress(*DIED):
                    return worker.attempt(job)
                worker.restart()
            raise WorkerLost(f"{LIVES} processes died over it (the last with status {worker.status}; -9: killed, "
                             f"perhaps for want of memory)")
        finally:
            self.idle.put(worker)


class _Worker:
    """A child process that reads jobs from its standard input and writes outcomes to its standard output."""

    def __init__(self, threads: int, position: int):
        # numpy's threads too: twice as many as cores spin instead of working; each worker's progress bar has a line
        self.environment = {"OMP_NUM_THREADS": str(threads), "TQDM_POSITION": str(position)}
        self.command = [sys.executable, "-c",
                        f"from onebit.study.engines import local; local.serve({threads}, {os.getpid()})"]
        self.stopped, self.status, self.turn = False, 0, threading.Lock()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env=os.environ | self.environment)

    def attempt(self, job: Job) -> Outcome:
        self.process.stdin.write(pickle.dumps(job))  # whole or not at all: half a job would spoil the pipe
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def restart(self) -> None:
        self.status = self.process.wait()
        with self.turn:  # else stop() ends the dead process, and not the new one that it cannot know of yet
            if not self.stopped:
                self._close()
                self.start()

    def stop(self) -> None:
        with self.turn:
            self.stopped = True
            self.process.terminate()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def serve(threads: int, parent: int) -> None:
    """The life of a worker process: it ends when its standard input does, or when `parent`, a process id, does."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    jobs, outcomes = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the outcomes
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            pickle.dump(attempt(pickle.load(jobs), threads), outcomes)
            outcomes.flush()


def _end_with(parent: int) -> None:
    """End this process once it has another parent: in the midst of a job, which may take hours and is resumable."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)
