"""How long a list of jobs takes on any number of workers: a simulation on paper, and the bound of its serial part."""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple


class Task(NamedTuple):
    """Seconds of one job, and the names of the jobs whose results it reads."""

    seconds: float
    needs: tuple[str, ...] = ()


def makespan(tasks: Mapping[str, Task], workers: int) -> float:
    """Seconds until the last task ends, if every idle worker takes the first task of the list that may begin.

    That is what our engines do, which start jobs in the order of the list.  Such a schedule takes at most twice as
    long as the best one (R. L. Graham, Bounds for certain multiprocessing anomalies, 1966).

    Raises    ValueError for less than one worker, a prerequisite that is not in the list, or a cycle.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    order, followers = {name: i for i, name in enumerate(tasks)}, _followers(tasks)
    open_needs = {name: len(set(task.needs)) for name, task in tasks.items()}
    ready = [(order[name], name) for name in tasks if not open_needs[name]]
    heapify(ready)
    running, now, done = [], 0.0, 0
    while ready or running:
        while ready and len(running) < workers:
            _, name = heappop(ready)
            heappush(running, (now + tasks[name].seconds, order[name], name))
        now, _, name = heappop(running)
        done += 1
        for other in followers[name]:
            open_needs[other] -= 1
            if not open_needs[other]:
                heappush(ready, (order[other], other))
    if done < len(tasks):
        raise ValueError(f"these wait for each other: {', '.join(name for name, n in open_needs.items() if n)}")
    return now


def critical_path(tasks: Mapping[str, Task]) -> tuple[float, list[str]]:
    """The chain of prerequisites that takes longest, and its seconds: no number of workers is faster.

    Raises    ValueError for a prerequisite that is not in the list, or a cycle.
    """
    _followers(tasks)  # checks the names
    ends: dict[str, float] = {}
    before: dict[str, str] = {}
    for name in _sorted(tasks):
        needs = tasks[name].needs
        if needs:
            before[name] = max(needs, key=ends.__getitem__)
        ends[name] = tasks[name].seconds + (ends[before[name]] if needs else 0.0)
    if not ends:
        return 0.0, []
    chain = [max(ends, key=ends.__getitem__)]
    while chain[-1] in before:
        chain.append(before[chain[-1]])
    return max(ends.values()), chain[::-1]


def _followers(tasks: Mapping[str, Task]) -> dict[str, list[str]]:
    """Name -> the tasks that wait for it."""
    found = {name: [] for name in tasks}
    for name, task in tasks.items():
        for need in dict.fromkeys(task.needs):
            if need not in found:
                raise ValueError(f"{name} needs {need}, which is not in the list")
            found[need].append(name)
    return found


def _sorted(tasks: Mapping[str, Task]) -> list[str]:
    """Prerequisites before what needs them."""
    from graphlib import CycleError, TopologicalSorter

    try:
        return list(TopologicalSorter({name: task.needs for name, task in tasks.items()}).static_order())
    except CycleError as error:
        raise ValueError(f"these wait for each other: {', '.join(error.args[1])}") from None
