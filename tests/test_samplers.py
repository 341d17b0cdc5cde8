"""Samplers compared at every seed: which samples, and what is made of them."""

import math

import pytest

from onebit.metrics import Estimate
from onebit.study import Study, samplers
from onebit.study.evaluation import Measured

LAPTOP = Study.named("laptop", "mnist")


def test_samplers_differ_in_nothing_but_noise_and_steps():
    run = LAPTOP.strict_pair[-1]
    drawn = samplers.by_sampler(LAPTOP, run)
    assert list(drawn) == ["ddim, 50", "ddim-eta1, 50", "sde-dpm-solver++, 20"]
    usual, *others = [dict(source.request.spec) for source in drawn.values()]
    for other in others:
        assert {name for name in usual if usual[name] != other[name]} <= {"sampler", "steps"}
    assert usual["reestimated"] and {source.run for source in drawn.values()} == {run}


def test_every_sampler_is_measured_at_every_seed_of_both_networks():
    names = [job.entry.name for job in samplers.jobs(LAPTOP)]
    assert len(names) == len(set(names)) == len(LAPTOP.strict_pair) * 3 * 3 == 54


def test_ratios_are_paired_by_seed(monkeypatch):
    """By hand: 1 bit at two seeds 4 and 9 times 2; the geometric mean is what the seeds' ratios have in common."""
    def told(self, family, source):
        base = 2.0 * (source.run.seed + 1)
        faster = {"ddim": 1.0, "ddim-eta1": 2.0}.get(source.request.sampler, [4.0, 9.0, 6.0][source.run.seed])
        return Measured({name: Estimate(base * faster, 0, 1e9, 5, "") for name in ("frechet", "panel_agreement")}, {})

    monkeypatch.setattr(Study, "evaluate", told)
    frame = samplers.table(LAPTOP)
    assert len(frame) == 18 and set(frame.recipe) == {"fp16", "strict-1bit"}
    found = samplers.ratios(frame).set_index(["recipe", "measure", "sampler", "against"])
    assert len(found) == 2 * 2 * 3 and (found.seeds == 3).all()
    row = found.loc["strict-1bit", "frechet", "sde-dpm-solver++, 20", "ddim, 50"]
    assert row.ratio == pytest.approx(math.prod((4, 9, 6)) ** (1 / 3)) and row.low < row.ratio < row.high
    assert found.loc["fp16", "panel_agreement", "ddim-eta1, 50", "ddim, 50"].ratio == pytest.approx(2)
    last = found.loc["fp16", "frechet", "sde-dpm-solver++, 20", "ddim-eta1, 50"]
    assert last.ratio == pytest.approx(row.ratio / 2)
