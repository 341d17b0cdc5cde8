"""What depends on what, how much it costs, and how it scales: against hand-made graphs, and what jobs really read."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from onebit import nets, paths
from onebit.study import Run, SampleSpec, Study, cache, costs, evaluation, graph, results
from onebit.study import plan as planning
from onebit.study.cache import Entry
from onebit.study.schedule import Task, critical_path, makespan
from onebit.study.speeds import Speeds
from onebit.study.study import Job

SMOKE = Study.named("smoke", "digits")
FLOAT = Run(dataset="digits", net="unet", width=4, steps=10, batch=32)

# the simulation ------------------------------------------------------------------------------------------------------

TEACHERS = {  # two teachers, the student of each, a long run that needs nobody, the evaluation of all
    "teacher": Task(4), "other": Task(2), "student": Task(3, ("teacher",)), "second": Task(3, ("other",)),
    "alone": Task(6), "evaluation": Task(1, ("student", "second", "alone")),
}


@pytest.mark.parametrize(("workers", "seconds"), [
    (1, 19),  # everything, one after another
    (2, 12),  # teacher 0-4, other 0-2, second 2-5, student 4-7, alone 5-11, evaluation 11-12
    (3, 8),  # teacher 0-4, other 0-2, alone 0-6, second 2-5, student 4-7, evaluation 7-8
    (1_000, 8),  # the chain
])
def test_a_graph_of_teachers_and_students_takes_what_it_takes_by_hand(workers, seconds):
    assert makespan(TEACHERS, workers) == seconds


def test_the_serial_part_is_the_chain_that_takes_longest():
    assert critical_path(TEACHERS) == (8, ["teacher", "student", "evaluation"])
    assert critical_path({"a": Task(1), "b": Task(5)}) == (5, ["b"]) and critical_path({}) == (0, [])


def test_more_workers_may_be_slower_as_graham_showed():
    """His example of an anomaly (1969): nine tasks in the order of the list, 12 on three machines, 15 on four."""
    graph = {"1": Task(3), "2": Task(2), "3": Task(2), "4": Task(2), "5": Task(4, ("4",)), "6": Task(4, ("4",)),
             "7": Task(4, ("4",)), "8": Task(4, ("4",)), "9": Task(9, ("1",))}
    assert makespan(graph, 3) == 12 and makespan(graph, 4) == 15


def test_every_schedule_keeps_grahams_bounds():
    """No faster than the work shared out, or than the chain; no slower than both together (1966)."""
    random = np.random.default_rng(0)
    for n, workers in itertools.product((1, 5, 30), (1, 2, 7, 100)):
        tasks = {str(i): Task(random.exponential(), tuple(str(j) for j in range(i) if random.random() < 2 / n))
                 for i in range(n)}
        total, (chain, names) = sum(task.seconds for task in tasks.values()), critical_path(tasks)
        assert sum(tasks[name].seconds for name in names) == pytest.approx(chain)
        seconds = makespan(tasks, workers)
        assert max(total / workers, chain) <= seconds * (1 + 1e-9)
        assert seconds <= (total / workers + (1 - 1 / workers) * chain) * (1 + 1e-9)


@pytest.mark.parametrize("function", [lambda tasks: makespan(tasks, 1), critical_path])
def test_a_graph_that_cannot_be_scheduled_is_refused(function):
    with pytest.raises(ValueError, match="b needs c, which is not in the list"):
        function({"a": Task(1), "b": Task(1, ("a", "c"))})
    with pytest.raises(ValueError, match="wait for each other"):
        function({"a": Task(1, ("b",)), "b": Task(1, ("a",))})


def test_nobody_computes_nothing():
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        makespan({}, 0)
    assert makespan({}, 1) == 0


# the graph -----------------------------------------------------------------------------------------------------------


def one_of_each():
    """The first job of every kind and family of the smoke study, of a student where only students have it."""
    found = {}
    for job in SMOKE.jobs():
        spec = job.entry.spec
        student = job.entry.kind == "train" and bool(spec.get("teacher"))
        found.setdefault((job.entry.kind, spec.get("family"), spec.get("kind_of_table"), student), job)
    return [job for (kind, *_), job in found.items() if kind != "timing"]


def test_prerequisites_are_what_jobs_really_read(home, monkeypatch):
    """Every kind and family is computed, and what it asks of the cache, directly or by way of an unlisted result, is
    what the graph says, no more and no less."""
    jobs = SMOKE.jobs()
    listed = {job.entry.name for job in jobs}
    read, stack, get = {}, [], cache.get

    def watched(entry, compute, wait=True):
        name = entry.name
        if stack and name in listed:
            read.setdefault(stack[-1], set()).add(name)
        if name not in listed:
            return get(entry, compute, wait)
        stack.append(name)
        try:
            return get(entry, compute, wait)
        finally:
            stack.pop()

    monkeypatch.setattr(cache, "get", watched)
    chosen = one_of_each()
    for job in chosen:
        job.compute()
    needs = graph.prerequisites(jobs)
    assert len(chosen) >= 18
    assert {name: read.get(name, set()) for name in read} == {name: set(needs[name]) for name in read}
    assert {job.entry.name for job in chosen if needs[job.entry.name]} <= read.keys()


def test_timed_networks_wait_for_their_training():
    jobs = SMOKE.jobs()
    needs = graph.prerequisites(jobs)
    timed = next(job.entry for job in jobs if job.entry.spec.get("kind_of_table") == "networks")
    assert len(needs[timed.name]) > 5 and all(name.startswith("train-") for name in needs[timed.name])


def test_a_measurement_of_samples_that_are_no_job_waits_for_their_training_unless_they_are_there(home):
    jobs = SMOKE.jobs()
    run, listed = SMOKE.solver_runs[0], {job.entry.name for job in jobs}
    source = next(one for one in SMOKE.solved(run) if results.samples_entry(run, one.request).name not in listed)
    trained = results.training_entry(run).name
    measured = evaluation.entry("headline", source, SMOKE.protocol).name
    assert trained in graph.prerequisites(jobs)[measured]
    cache.get(results.samples_entry(run, source.request), lambda work: (work / "samples.npz").touch())
    assert trained not in graph.prerequisites(jobs)[measured]


def test_what_no_notebook_reads_is_missing_only_while_something_made_from_it_is(home, monkeypatch):
    jobs = SMOKE.jobs()
    needs, gone = graph.prerequisites(jobs), {job.entry.name for job in jobs if not job.shown}
    assert gone and all(name.startswith(("samples-", "train-")) for name in gone)
    monkeypatch.setattr(cache, "find", lambda entry: None if entry.name in gone else home)
    assert graph.missing(jobs) == []
    reader = next(job.entry.name for job in jobs if gone & set(needs[job.entry.name]))
    drawn, = gone & set(needs[reader])
    gone.add(reader)
    assert [job.entry.name for job in graph.missing(jobs)] == [drawn, reader]


def test_a_result_that_is_shown_somewhere_is_shown(monkeypatch):
    """Rows whose packed twin is drawn are the grid's too, which shows some of their samples."""
    first, second = (Job(Entry("samples", "x", {}), print, shown) for shown in (True, False))
    for listed in ([first, second], [second, first]):
        monkeypatch.setattr(Study, "_jobs", lambda self, listed=listed: iter(listed))
        assert SMOKE.jobs() == [first]


def test_a_run_is_read_back_from_its_key():
    student = replace(FLOAT, recipe="xnor-w1a1", teacher=FLOAT, distill="lrm", distill_weight=0.1)
    assert graph.run_of(student.spec) == student and graph.run_of(FLOAT.spec) == FLOAT


def test_every_profile_has_a_graph_in_which_nothing_comes_before_what_it_needs():
    for profile in ("smoke", "laptop"):
        jobs = Study.named(profile, "mnist").jobs()
        place = {job.entry.name: i for i, job in enumerate(jobs)}
        assert all(place[need] < place[name] for name, needs in graph.prerequisites(jobs).items() for need in needs)


# costs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", nets.NETS)
def test_operations_are_those_that_torch_counts(net):
    model, x = nets.build(net, 4).eval(), torch.zeros(1, 1, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, torch.zeros(1, dtype=torch.long))
    assert costs.flops(net, 4, (1, 16, 16)) == counter.get_total_flops()
    assert costs.parameters(net, 4) == sum(p.numel() for p in model.parameters())


@pytest.fixture
def bench(home):
    """A bench.csv of two processors, in which a quantized step takes as long as `1 / ratio` float ones."""
    paths.FIGURES.mkdir(parents=True)
    here = torch.backends.cpu.get_cpu_capability()
    rows = [f'"quantized-step unet16 {name}",1,1,{1 / times},images/s,"{machine}, 2 threads"'
            for machine, factor in ((here, 1), ("ANOTHER", 100))
            for name, times in (("weights only", 1.25 * factor), ("weights only, two bases", 1.5 * factor),
                                ("W1A4 LSQ", 2 * factor), ("W1A1 XNOR", 4 * factor),
                                ("W1A1 BiDM, connections and SPD", 8 * factor))]
    (paths.FIGURES / "bench.csv").write_text("\n".join(["name,ours,baseline,ratio,unit,machine", *rows]) + "\n")


@pytest.mark.parametrize(("recipe", "distill", "times"), [
    ("fp16", "none", 1), ("strict-1bit", "none", 1.25), ("ptq-1bit", "none", 1), ("binarydm-w1a32", "none", 1.5),
    ("binarydm-w1a32", "lrm", 1.5 + 1 / 3), ("binarydm-base-w1a4", "none", 2), ("xnor-w1a1", "none", 4),
    ("xnor-w1a1", "spd", 8), ("bidm-w1a1", "none", 8),
])
def test_a_quantized_step_costs_what_the_bench_of_this_processor_says(bench, recipe, distill, times):
    more = {} if distill == "none" else {"distill": distill, "distill_weight": 0.1}
    run = replace(FLOAT, recipe=recipe, teacher=FLOAT if more else None, **more)
    assert costs.over_float(run) == pytest.approx(times)


def test_estimates_are_the_recorded_seconds_per_unit(home):
    """Of two released trainings, 1 and 3 s per million operations: the median is 2; of an unknown kind: a guess."""
    for i, seconds in enumerate((1.0, 3.0)):
        run = replace(FLOAT, seed=i)
        units = costs.work(results.training_entry(run))[1]
        folder = paths.RELEASED / f"train-{i}"
        folder.mkdir(parents=True)
        (folder / cache.MANIFEST).write_text(json.dumps({
            "kind": "train", "spec": run.spec, "facts": {"seconds": seconds * units / 1e6}, "elapsed_seconds": 1.0}))
    speeds = Speeds.released()
    wide = replace(FLOAT, width=8, steps=20)
    assert speeds.seconds["train", "unet", 4] == pytest.approx(2e-6)
    step = 32 * 3 * costs.flops("unet", 8, (1, 16, 16))
    assert speeds.estimate(results.training_entry(wide)) == pytest.approx(2e-6 * 20 * step)
    assert speeds.estimate(Entry("demo", "new", {})) == 5.0


def test_work_grows_with_what_is_asked(home):
    one, two = (results.samples_entry(FLOAT, SampleSpec("ddim", steps, n)) for steps, n in ((5, 10), (10, 30)))
    assert costs.work(two)[1] == pytest.approx(6 * costs.work(one)[1])
    most = {}
    for profile in ("smoke", "laptop"):
        for job in Study.named(profile, "mnist").jobs():
            group, units = costs.work(job.entry)
            kind = most.setdefault((*group[:2], group[2:] if group[0] == "evaluation" else ()), {})
            kind[profile] = max(units, kind.get(profile, 0))
    both = [kind for kind in most.values() if len(kind) == 2]  # some networks are trained in the larger profile alone
    assert len(both) >= 20 and all(kind["laptop"] >= kind["smoke"] > 0 for kind in both)


def test_calibration_times_the_networks_of_the_jobs(home):
    jobs = [Job(results.training_entry(FLOAT), None), Job(results.samples_entry(FLOAT, SampleSpec(n=10)), None)]
    speeds = Speeds.calibrated(jobs, budget=0.05)
    assert set(speeds.seconds) == {("train", "unet", 4), ("samples", "unet", 4)}
    assert all(1e-13 < seconds < 1e-5 for seconds in speeds.seconds.values())


# the text ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch):
    """A second of calibration, not twenty."""
    calibrated = Speeds.calibrated
    monkeypatch.setattr(Speeds, "calibrated", lambda jobs: calibrated(jobs, 0.1))


def test_the_plan_of_an_empty_home_counts_everything_as_missing(home, hurried):
    text, jobs = planning.plan(SMOKE), SMOKE.jobs()
    trainings = [job for job in jobs if job.entry.kind == "train"]
    assert text.startswith(f"digits/smoke: {len(jobs)} of {len(jobs)} results missing\n")
    row = next(line.split() for line in text.splitlines() if line.startswith("train "))
    assert row[1:3] == [str(len(trainings))] * 2
    assert "digits-unet4-xnor-w1a1" in text and "The serial part takes" in text and "MB of results" in text
    workers = [line.split()[0] for line in text.partition("workers ")[2].splitlines()[2:6]]
    assert workers == ["1", "2", "8", "1000"]


def test_the_plan_of_what_is_all_there_is_what_from_scratch_would_compute(home, hurried, monkeypatch):
    monkeypatch.setattr(cache, "find", lambda entry: home)
    text = planning.plan(SMOKE)
    assert text.startswith(f"digits/smoke: 0 of {len(SMOKE.jobs())} results missing; this is what FROM_SCRATCH=1 would")


def test_the_table_of_workers_shows_the_simulation_and_its_bounds():
    """19 s of work, a chain of 8 s: 2 workers take 12 s and could not take less than 9.5, a thousand take 8."""
    lines = [line.split() for line in planning.scaling(TEACHERS).splitlines()]
    assert lines[2] == ["1", "19", "s", "19", "s", "1.0", "100%"]
    assert lines[3] == ["2", "12", "s", "10", "s", "1.6", "79%"]
    assert lines[5] == ["1000", "8", "s", "8", "s", "2.4", "0%"]
    assert lines[-3:] == [["4", "s", "teacher"], ["3", "s", "student"], ["1", "s", "evaluation"]]


@pytest.mark.parametrize("text", ["{", "{}", '{"kind": "train", "spec": {"net": "other"}, "facts": {}}'])
def test_an_unreadable_manifest_among_released_results_is_named_and_passed_over(text, tmp_path):
    from onebit.study.speeds import _recorded

    (tmp_path / "train-x").mkdir()
    (tmp_path / "train-x/manifest.json").write_text(text)
    with pytest.warns(UserWarning, match=r"train-x/manifest.json is unreadable.*git checkout"):
        assert not _recorded(tmp_path).seconds


def test_a_family_that_nobody_has_recorded_is_estimated_by_others_of_its_unit():
    """Passes of a network by other passes: seconds per compared pair of images times passes would be years."""
    laptop = Study.named("laptop", "mnist")
    entry = next(job.entry for job in laptop.jobs() if job.entry.spec.get("family") == "handover")
    recorded = Speeds.released()
    known = {group: seconds for group, seconds in recorded.seconds.items() if "handover" not in group}
    assert 1 < replace(recorded, seconds=known).estimate(entry) < 3_600
