"""Engines: the same results whichever computes them, also when workers are killed, jobs fail, or nothing answers."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from onebit import paths
from onebit.errors import EngineUnavailable, WorkerLost
from onebit.study import Run, SampleSpec, Study, cache, engines, results
from onebit.study.__main__ import main
from onebit.study.cache import Entry
from onebit.study.engines import cluster, driver, local
from onebit.study.engines.attempt import attempt
from onebit.study.engines.driver import drive
from onebit.study.engines.progress import Progress, duration
from onebit.study.engines.serial import Serial
from onebit.study.study import Job

# long enough to be killed on the way
TEACHER = Run(dataset="digits", net="unet", width=4, steps=100, batch=32, ema=0.9, precision="float32")
OTHER = replace(TEACHER, net="resunet", seed=1, steps=50)
STUDENT = replace(TEACHER, recipe="strict-1bit", teacher=TEACHER, steps=5, ema=0.0)
BROKEN = replace(TEACHER, batch=5_000)  # more than there are images
FEW = SampleSpec("ddim", 2, 10)


def training(run):
    return Job(results.training_entry(run), partial(results.training, run))


def sampling(run):
    return Job(results.samples_entry(run, FEW), partial(results.samples, run, FEW))


def study():
    """Five results, of which some need others, and two that cannot be had."""
    return [training(TEACHER), training(OTHER), training(BROKEN), sampling(BROKEN), training(STUDENT),
            sampling(TEACHER), sampling(STUDENT)]


def checksums():
    """Of every file of every training and set of samples that is there: weights, loss logs, snapshots, images."""
    return {folder.name: cache.manifest(folder)["files"] for folder in paths.RUNS.glob("[st]*")}


def check(failures):
    """What every engine has to say of the list above."""
    broken, dragged = failures
    assert broken.job.entry == training(BROKEN).entry and "fewer than one batch of 5000" in broken.error
    assert dragged.job.entry == sampling(BROKEN).entry
    assert dragged.error == f"needs {broken.job.entry.name}, which failed"
    left = {job.entry.name for job in study() if cache.find(job.entry) is None}
    assert left == {failure.job.entry.name for failure in failures}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What the serial engine makes of the list."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", tmp_path_factory.mktemp("serial") / "runs")
        patch.setattr(paths, "RELEASED", paths.RUNS / "none")
        check(engines.run(study(), "serial", threads=1))
        return checksums()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The engine's own cluster of two worker processes, whose results go to a folder of their own."""
    home = tmp_path_factory.mktemp("dask")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEBIT_HOME", str(home))
        patch.setattr(paths, "RUNS", home / "data/runs")
        with cluster.Cluster("", processes=2, threads=1, shared=1) as engine:
            yield SimpleNamespace(engine=engine, home=home, address=engine.client.scheduler.address)


def kill_one_that_trains(client, over):
    """Wait for a training to begin and kill the process that has it in hand; returns its pid, None once it is over."""
    names = [job.entry.name for job in study() if job.entry.kind == "train"]
    while not over.wait(0.02):
        for name in names:
            busy = [address for address, keys in client.processing().items() if any(name in key for key in keys)]
            begun = (paths.RUNS / ".partial" / name).exists() and not (paths.RUNS / name).exists()
            if begun and busy and (pid := client.run(os.getpid).get(busy[0])):
                os.kill(pid, signal.SIGKILL)
                if not (paths.RUNS / name).exists():
                    return pid
    return None


def test_a_cluster_whose_worker_is_killed_makes_the_same_bits_as_the_serial_engine(reference, own, home, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", own.home / "data/runs")
    monkeypatch.setenv("DASK_SCHEDULER", own.address)
    client, killed, over = own.engine.client, [], threading.Event()
    killer = threading.Thread(target=lambda: killed.append(kill_one_that_trains(client, over)), daemon=True)
    killer.start()
    try:
        check(engines.run(study(), "dask", threads=1))
    finally:
        over.set()  # it must not kill a worker of a later test
        killer.join(60)
    assert not killer.is_alive() and len(killed) == 1
    assert killed[0] is not None and killed[0] not in client.run(os.getpid).values()
    assert checksums() == reference


def test_nothing_of_the_own_cluster_listens_beyond_this_machine(own):
    pids = [os.getpid(), *own.engine.client.run(os.getpid).values()]
    sockets = [c for pid in pids for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(sockets) >= 3 and {c.laddr.ip for c in sockets} <= {"127.0.0.1", "::1"}


def test_a_worker_with_another_folder_is_refused(own, home, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER", own.address)
    with pytest.raises(EngineUnavailable, match=r"not the driver's folder.*share the repository"):
        engines.run([training(TEACHER)], "dask")


def test_a_token_that_anybody_can_lock_is_refused(home):
    with cluster._token() as name:
        cluster.check_token(name)
    cluster._token_path("open.token").touch()
    with pytest.raises(EngineUnavailable, match=r"locks .* do not hold"):
        cluster.check_token("open.token")


def test_a_worker_of_several_threads_is_refused(monkeypatch):
    worker = SimpleNamespace(state=SimpleNamespace(nthreads=4))
    monkeypatch.setattr(cluster.distributed, "get_worker", lambda: worker)
    with pytest.raises(EngineUnavailable, match="--nthreads 1"):
        cluster.remote(training(TEACHER), cluster.Order(1, "none", ""))


def test_a_scheduler_that_does_not_answer_is_named(home, monkeypatch):
    with socket.socket() as taken:  # bound and not listening: nobody else answers there either
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("DASK_SCHEDULER", address)
        monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
        with pytest.raises(EngineUnavailable, match=f"no scheduler answers at DASK_SCHEDULER={address}"):
            engines.run([training(TEACHER)], "dask")


def test_an_encrypted_address_without_certificates_is_named(home, monkeypatch):
    monkeypatch.setenv("DASK_SCHEDULER", "tls://127.0.0.1:8786")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(EngineUnavailable, match=r"DASK_SCHEDULER=tls://127\.0\.0\.1:8786 .*TLS"):
        engines.run([training(TEACHER)], "dask")


def test_without_the_extra_its_name_is_said(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "onebit.study.engines.cluster")
    monkeypatch.delattr(engines, "cluster")
    with pytest.raises(EngineUnavailable, match=r"onebit\[cluster\]"):
        engines.run([training(TEACHER)], "dask")


def test_every_job_of_the_study_travels_between_processes():
    for job in Study.named("smoke", "digits").jobs():
        assert pickle.loads(pickle.dumps(job)).entry == job.entry


def test_an_unknown_engine_is_refused_with_the_names_of_all(home):
    with pytest.raises(ValueError, match="unknown engine 'threads'; valid: serial, local, dask"):
        engines.run([], "threads")


def die_once(wait=True):
    """Killed half-way by the kernel, as it were; the second time what the first has left is found."""

    def compute(work):
        if not (work / "half").exists():
            (work / "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    cache.get(Entry("demo", "mortal", {}), compute, wait)


def chatter(wait=True):
    print("a library that talks")
    os.write(1, b"and C code that does")


def test_a_process_that_dies_is_replaced_and_its_job_resumed(home, monkeypatch, capfd):
    monkeypatch.setenv("ONEBIT_HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the jobs above are in this file
    jobs = [Job(Entry("demo", "mortal", {}), die_once), Job(Entry("demo", "chatty", {}), chatter)]
    assert engines.run(jobs, "local", processes=1) == []
    assert sorted(path.name for path in paths.RUNS.glob("demo-mortal-*/*")) == ["half", "manifest.json"]
    said = capfd.readouterr()
    assert "and C code that does" in said.err and said.out == ""


def outlast(wait=True):
    """Says which process it is in, and takes its time."""
    Path(os.environ["ONEBIT_HOME"], "pid").write_text(f"{os.getpid()}\n")
    time.sleep(120)


def test_a_process_ends_in_the_midst_of_its_job_when_the_one_that_handed_it_out_is_killed(tmp_path):
    script = ("import test_engines as t; from onebit.study import engines\n"
              "engines.run([t.Job(t.Entry('demo', 'long', {}), t.outlast)], 'local', processes=1)")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    driving = subprocess.Popen([sys.executable, "-c", script],
                               env=os.environ | {"ONEBIT_HOME": str(tmp_path), "PYTHONPATH": path})
    told, deadline = tmp_path / "pid", time.monotonic() + 120
    while not (told.exists() and told.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.1)
    driving.kill()
    driving.wait()
    worker = psutil.Process(int(told.read_text()))
    try:
        worker.wait(30)
    finally:
        if worker.is_running():
            worker.kill()


def test_a_process_that_is_replaced_while_all_are_stopped_does_not_stay(monkeypatch):
    """An interrupt stops the processes from one thread while another finds one dead and starts it anew."""
    replacing, stopped = threading.Event(), threading.Event()

    class Idle(local._Worker):
        def start(self):
            self.process = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def _close(self):
            super()._close()
            replacing.set()
            stopped.wait(0.5)

    worker = Idle(1, 1)
    worker.process.kill()
    other = threading.Thread(target=worker.restart)
    other.start()
    try:
        assert replacing.wait(30)
        worker.stop()
        stopped.set()
        other.join(30)
        assert worker.process.poll() is not None
    finally:
        worker.process.kill()


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert engines.cores() == engines.default_processes() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert engines.cores() == 64


def test_a_job_over_which_processes_keep_dying_fails_and_the_others_are_computed(home, monkeypatch):
    class Frail:
        """A worker process that a deadly job kills, every time."""

        def __init__(self, threads, position):
            self.status, self.starts = -9, 1

        def attempt(self, job):
            if job.entry.label == "deadly":
                raise EOFError
            return attempt(job, 1)

        def restart(self):
            self.starts += 1

        def stop(self):
            pass

    monkeypatch.setattr(local, "_Worker", Frail)
    done = []
    failure, = engines.run([demo("deadly", done), demo("harmless", done)], "local", processes=1)
    assert failure.job.entry.label == "deadly" and done == ["harmless"]
    assert failure.error.startswith(f"{WorkerLost.__name__}: 3 processes died over it (the last with status -9")


def demo(name, done, error=None):
    def compute(wait=True):
        if error:
            raise error
        done.append(name)

    return Job(Entry("demo", name, {"name": name}), compute)


def test_a_failure_is_reported_and_the_rest_is_still_computed(home, capsys):
    done = []
    failures = engines.run([demo("a", done), demo("b", done, RuntimeError("boom")), demo("c", done)])
    assert done == ["a", "c"] and [failure.error for failure in failures] == ["RuntimeError: boom"]
    assert "FAILED demo-b" in (said := capsys.readouterr().err) and "1 of 3 done, 1 running, 1 failed" in said


def test_what_a_stranger_has_in_hand_is_asked_for_again_after_the_others(home, monkeypatch):
    monkeypatch.setattr(driver, "POLL_SECONDS", 0.01)
    done, busy = [], iter([True, True, False])

    def first(wait=True):
        if next(busy):
            raise cache.Busy("elsewhere")
        done.append("first")

    assert engines.run([Job(Entry("demo", "first", {}), first), demo("second", done)]) == []
    assert done == ["second", "first"]


def test_a_job_that_is_listed_twice_is_computed_once(home):
    entry, calls = Entry("demo", "twice", {"x": 1}), []

    def compute(wait):
        calls.append(wait)
        return cache.get(entry, lambda work: (work / "one.txt").write_text("1") and None, wait)

    assert engines.run([Job(entry, compute)] * 2, "serial", threads=1) == [] and len(calls) == 1


def test_an_interrupt_is_no_failure_of_a_job(home):
    with pytest.raises(KeyboardInterrupt):
        engines.run([demo("a", [], KeyboardInterrupt())])


def test_torch_has_the_threads_that_were_asked_for(home, one_thread):
    import torch

    seen = []

    def compute(wait=True):
        seen.append(torch.get_num_threads())

    engines.run([Job(Entry("demo", "threads", {}), compute)], threads=2)
    assert seen == [2]


def test_the_time_left_is_a_schedule_of_what_is_left_at_the_measured_speed(home, monkeypatch):
    """Six jobs of unknown kind, 5 s each, on two workers: 15 s.  One that took 70 s: (60 + 70) / (60 + 5) as slow."""
    monkeypatch.setattr("onebit.study.engines.progress.time", SimpleNamespace(monotonic=lambda: clock[0]))
    jobs, clock = [demo(str(i), []) for i in range(6)], [100.0]
    with Progress(jobs, lambda: 2) as progress:
        assert progress.seconds_left == 15
        progress.done(jobs[0], 70.0)
        assert progress.seconds_left == 15 * 130 / 65
        progress.failed(jobs[1], "boom", jobs[2:4])
        assert progress.seconds_left == 5 * 2
        progress.show(running=5)
        assert str(progress) == "1 of 6 done, 2 running, 3 failed, about 10 s left"
        clock[0] += 4
        assert str(progress) == "1 of 6 done, 2 running, 3 failed, about 6 s left"


@pytest.mark.parametrize(("seconds", "text"), [
    (0.4, "0 s"), (99, "99 s"), (100, "2 min"), (7_140, "119 min"), (11_100, "3 h 05 min"), (1_000_000, "11 days 13 h"),
])
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_the_serial_engine_computes_in_the_order_of_the_list_but_prerequisites_first(home):
    """A student that stands before its teacher in the list waits for it."""
    order = []
    jobs = [Job(results.training_entry(run), lambda wait=True, name=name: order.append(name))
            for name, run in (("student", STUDENT), ("teacher", TEACHER), ("other", OTHER))]
    with Serial(1) as engine, Progress(jobs, engine.workers) as progress:
        drive(jobs, engine, progress)
    assert order == ["teacher", "student", "other"]


@pytest.mark.parametrize("asked", [{"processes": -1}, {"threads": -2}])
@pytest.mark.parametrize("engine", engines.ENGINES)
def test_negative_numbers_are_refused(engine, asked):
    with pytest.raises(ValueError, match="at least 0"):
        engines.run([], engine, **asked)


@pytest.mark.parametrize("option", ["--threads=-1", "--jobs=-1", "--jobs=two"])
def test_the_command_says_which_number_it_wants(option, capsys):
    with pytest.raises(SystemExit):
        main(["prepare", option])
    assert "a whole number, 0 or more" in capsys.readouterr().err
