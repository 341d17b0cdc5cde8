"""The workers of a dask.distributed cluster: on this machine, or anybody's, on any number of machines.

    make train ENGINE=dask                                           a cluster of this machine, bound to loopback
    make train ENGINE=dask DASK_SCHEDULER=tcp://10.0.0.1:8786        your own

dask gives the jobs of a lost worker to another, three times at most.  Of your own cluster three things are asked, and
checked before every job:

- Workers see the same repository folder (or the same ONEBIT_HOME), with the same environment: results travel through
  `data/runs`, not through dask.
- File locks work there across machines, so that two workers never compute one result: NFS 4, mounted with
  `lookupcache=positive` (a worker must see at once what another has finished) and `local_lock=none` (the default);
  Lustre with `flock`.  A machine that vanishes keeps its locks until its NFS lease ends, some 90 s.
- One job at a time in each worker process (`--nthreads 1`), since torch's threads and random state are the process's.

How many threads torch gets in each is THREADS=n, and 1 if nothing is said.  The last bits of results depend on it.

Slurm, with dask-jobqueue: eight workers, a GPU and four cores each.  `make train` runs beside it, on the same node.

    from dask_jobqueue import SLURMCluster
    cluster = SLURMCluster(cores=1, processes=1, job_cpu=4, memory="16GB", walltime="12:00:00",
                           job_extra_directives=["--gres=gpu:1"],
                           job_script_prologue=["export OMP_NUM_THREADS=4"],
                           scheduler_options={"dashboard": False})
    cluster.scale(jobs=8)
    print(cluster.scheduler_address); input("enter ends it")

Kubernetes, with dask-kubernetes and its operator: an image with the environment of requirements.lock, and the
repository on a volume that many pods may write to.  `make train` runs in a pod with the same volume.

    from dask_kubernetes.operator import KubeCluster, make_cluster_spec
    spec = make_cluster_spec(name="onebit", image="onebit", n_workers=8,
                             worker_command=["dask", "worker", "--nthreads", "1"],
                             env={"ONEBIT_HOME": "/study", "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0"},
                             resources={"limits": {"nvidia.com/gpu": "1"}})
    for pod in (spec["spec"]["worker"]["spec"], spec["spec"]["scheduler"]["spec"]):
        pod["volumes"] = [{"name": "study", "persistentVolumeClaim": {"claimName": "study"}}]
        pod["containers"][0]["volumeMounts"] = [{"name": "study", "mountPath": "/study"}]
    cluster = KubeCluster(custom_cluster_spec=spec)
    print(cluster.scheduler_address); input("enter ends it")
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ... import paths
from ...errors import EngineUnavailable, WorkerLost
from ..study import Job
from .attempt import Outcome, attempt

try:
    import dask
    import distributed
except ImportError as error:
    raise EngineUnavailable("ENGINE=dask needs dask.distributed, an optional extra: pip install 'onebit[cluster]' "
                            "(make's own environment has it)") from error

CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Order:
    """What a worker must know besides the job: torch threads, the driver's token, and its FROM_SCRATCH."""

    threads: int
    token: str
    from_scratch: str


class Cluster(contextlib.AbstractContextManager):
    """Submits every job that may begin, the earlier in the list the more urgent.

    address      of a scheduler; "": a cluster of this machine, with `processes` workers
    threads      of torch in each worker, 0: one; `shared`: the same for a cluster of this machine
    """

    greedy = True

    def __init__(self, address: str, processes: int, threads: int, shared: int):
        self.address, self.processes = address, processes
        self.threads = (threads or 1) if address else shared
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "Cluster":
        with contextlib.ExitStack() as stack:
            token = stack.enter_context(_token())
            self.client = stack.enter_context(_client(self.address) if self.address else self._own(stack))
            self.order = Order(self.threads, token, os.environ.get("FROM_SCRATCH", ""))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self.stack.close()

    def __str__(self) -> str:
        where = f"the workers of {self.address}" if self.address else f"{self.processes} dask workers of this machine"
        return f"{where}, threads of each: {self.threads}"

    def _own(self, stack: contextlib.ExitStack) -> "distributed.Client":
        """Loopback only, no dashboard: nothing of it can be reached from another machine."""
        numeric = {f"{library}_NUM_THREADS": str(self.threads) for library in ("OMP", "MKL", "OPENBLAS")}
        stack.enter_context(_environment(numeric | {"TQDM_MININTERVAL": "60"}))  # workers' bars would share a line
        # a job waits in the scheduler, where a more urgent one may overtake it, and not at a worker
        stack.enter_context(dask.config.set({"distributed.scheduler.worker-saturation": 1.0}))
        cluster = distributed.LocalCluster(n_workers=self.processes, threads_per_worker=1, host="127.0.0.1",
                                           dashboard_address=None, worker_dashboard_address=None, memory_limit=None)
        return distributed.Client(stack.enter_context(cluster))

    def workers(self) -> int:
        return len(self.client.nthreads())

    def submit(self, job: Job, place: int) -> "Future[Outcome]":
        """Raises (in the future) WorkerLost if a job outlives more workers than dask allows; EngineUnavailable if a
        worker cannot take part, or the scheduler is gone."""
        key = ("job", job.entry.name, uuid.uuid4().hex)  # one group, all of which wait in the scheduler by priority
        sent = self.client.submit(remote, job, self.order, key=key, priority=-place, pure=False)
        answer: Future[Outcome] = Future()
        sent.add_done_callback(lambda done: _pass_on(done, answer))
        return answer


def _pass_on(done: "distributed.Future", answer: "Future[Outcome]") -> None:
    try:
        answer.set_result(done.result())
    except distributed.KilledWorker as error:
        answer.set_exception(WorkerLost(str(error)))
    except (distributed.CancelledError, distributed.comm.core.CommClosedError) as error:
        answer.set_exception(EngineUnavailable(f"the scheduler is gone ({error}); finished results are kept, start it "
                                               f"and this command again"))
    except Exception as error:
        answer.set_exception(error)


def _client(address: str) -> "distributed.Client":
    try:
        return distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, TypeError, ValueError) as error:  # time is up; tls:// without certificates; no address at all
        raise EngineUnavailable(f"no scheduler answers at DASK_SCHEDULER={address} ({error}); start one (dask "
                                f"scheduler), or leave it out for a cluster of this machine") from error


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that child processes start with; all of them put back in the end, dask's own changes too."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def remote(job: Job, order: Order) -> Outcome:
    """A job on a worker, once it is certain that the worker may take part."""
    if distributed.get_worker().state.nthreads != 1:
        raise EngineUnavailable(f"a worker computes {distributed.get_worker().state.nthreads} jobs at a time in one "
                                f"process, which share torch's threads and random state: start it with --nthreads 1")
    check_token(order.token)
    os.environ["FROM_SCRATCH"] = order.from_scratch
    return attempt(job, order.threads)


@contextlib.contextmanager
def _token() -> Iterator[str]:
    """A file beside the results, locked as long as the driver lives; workers look for it, and try its lock."""
    path = _token_path(f"driver-{uuid.uuid4().hex}.token")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        try:
            yield path.name
        finally:
            path.unlink(missing_ok=True)


def check_token(name: str) -> None:
    """Raises EngineUnavailable if this process has its results in another folder than the driver, or if file locks do
    not hold across their machines."""
    path = _token_path(name)
    if not path.exists():
        raise EngineUnavailable(f"a worker has its results in {paths.RUNS}, which is not the driver's folder (or the "
                                f"driver has ended): share the repository between the machines, or point ONEBIT_HOME "
                                f"of the workers at it")
    with contextlib.suppress(Timeout), FileLock(path, timeout=0):
        raise EngineUnavailable(f"file locks in {paths.RUNS} do not hold between driver and worker, so two workers "
                                f"could compute one result: mount NFS 4 with local_lock=none, Lustre with flock")


def _token_path(name: str) -> Path:
    return paths.RUNS / ".partial" / name
