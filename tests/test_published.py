"""Source 000's networks as published: which runs they are, how they are drawn, and when they are part of a study."""

from dataclasses import replace

import pandas as pd
import torch

from onebit import paths
from onebit.study import Run, Samples, Study, cache, published
from onebit.study.evaluation import Measured

SMOKE, LAPTOP = Study.named("smoke", "digits"), Study.named("laptop", "mnist")


def test_the_runs_are_those_of_the_published_protocol():
    """methods.md 8.2: width 64, Adam at 1e-3, no decay, no averaging, 20 epochs of 468 batches."""
    runs = published.runs(LAPTOP)
    assert {run.seed for run in runs} == {0, 1, 2} and {run.recipe for run in runs} == {"fp16", "published-1bit"}
    for run in runs:
        assert run == Run(dataset="mnist", net="resunet", width=64, recipe=run.recipe, steps=9_360, batch=128, lr=1e-3,
                          warmup=0, decay="constant", ema=0.0, seed=run.seed)
    assert set(runs) <= set(Study.named("paper", "mnist").resunet())  # the same keys there


def test_a_run_is_drawn_three_ways_from_the_same_noise():
    run = published.runs(LAPTOP)[0]
    how, ours, anew = published.ways(LAPTOP, run).values()
    assert (how.request.sampler, how.request.steps, how.request.n) == ("ddpm", 1_000, 2_000)
    assert ours == LAPTOP.evaluation(run) and anew == LAPTOP.reestimated(run)
    assert {source.request.seed for source in (how, ours, anew)} == {0}


def test_without_a_gpu_a_large_profile_has_them_only_where_every_result_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    there = {job.entry.name for job in published._jobs(LAPTOP) if job.shown}
    assert len(there) == 2 + 6 * (len(published.FAMILIES) + 2)
    monkeypatch.setattr(cache, "find", lambda entry: tmp_path if entry.name in there else None)
    monkeypatch.setattr(paths, "RELEASED", tmp_path)
    assert published.at_hand(LAPTOP) and list(published.jobs(LAPTOP))
    lost = there.pop()
    assert not published.at_hand(LAPTOP) and not list(published.jobs(LAPTOP))
    (tmp_path / lost).mkdir()  # released, and damaged: that is a result to be missed, not one that nobody has
    assert published.at_hand(LAPTOP)
    (tmp_path / lost).rmdir()
    assert published.at_hand(SMOKE)  # small enough for any machine
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert published.at_hand(LAPTOP)


def test_distances_name_recipe_seed_and_way(monkeypatch):
    def measure(self, family: str, source: Samples) -> Measured:
        assert family == "headline"
        score = 100 * source.run.seed + 10 * (source.run.recipe == "fp16") + source.request.reestimated
        return Measured({"frechet": replace(NUMBER, value=float(score))}, {})

    from onebit.metrics import Estimate

    NUMBER = Estimate(0.0, 0.0, 0.0, 1, "test")
    monkeypatch.setattr(Study, "evaluate", measure)
    frame = published.distances(SMOKE)
    assert isinstance(frame, pd.DataFrame) and len(frame) == 2 * 3
    one = frame.set_index(["recipe", "seed", "how"]).frechet
    assert one["fp16", 0, published.HOW] == 10 and one["published-1bit", 0, "study's sampler, new statistics"] == 1
