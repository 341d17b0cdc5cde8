"""Trained longer: what is compared with what, and by how much."""

from dataclasses import replace

import pytest

from onebit.metrics import Estimate
from onebit.study import Study, longer, release, results
from onebit.study.evaluation import Measured
from onebit.study.profiles import PROFILES

LAPTOP = Study.named("laptop", "mnist")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dataset", ["mnist", "digits"])
def test_long_trainings_differ_from_the_usual_ones_in_their_steps_alone(profile, dataset):
    study = Study.named(profile, dataset)
    long, usual = longer.runs(study), study.profile.unet_steps
    assert {run.seed for run in long} == set(range(study.profile.long_seeds))
    assert {run.steps for run in long} == {study.profile.long_steps} and study.profile.long_steps >= 2 * usual
    first = [run for run in study.strict_pair if run.seed < study.profile.long_seeds]
    assert [replace(run, steps=usual) for run in long] == first
    assert {run.recipe for run in long} == {"fp16", "strict-1bit"}


def test_every_training_of_either_length_is_measured_by_two_samplers_and_its_loss():
    names = [job.entry.name for job in longer.jobs(LAPTOP)]
    trained, long = len(LAPTOP.strict_pair) + 2, 2
    assert sum(name.startswith("train-") for name in names) == long
    assert sum(name.startswith("evaluation-headline") for name in names) == 2 * trained
    assert sum(name.startswith("evaluation-denoising") for name in names) == trained
    assert {name for name in names if name.startswith("train-")} <= {job.entry.name for job in LAPTOP.jobs()}


def test_weights_of_long_trainings_are_not_released():
    plan = release.trainings(LAPTOP)
    assert {plan[results.training_entry(run).name].weights for run in longer.runs(LAPTOP)} == {release.LEFT_OUT}


def test_ratios_are_taken_over_the_seeds_that_both_have(monkeypatch):
    """By hand: a 1-bit loss of 3, 6, 12 over a float one of 1 at three seeds; at the first one alone 2 over 1/2."""
    def told(self, family, source):
        run = source.run
        one_bit, long = run.recipe == "strict-1bit", run.steps == LAPTOP.profile.long_steps
        value = {(False, False): 1.0, (True, False): 3.0 * 2**run.seed, (False, True): 0.5, (True, True): 2.0}
        fast = 5.0 if source.request.sampler != "ddim" else 1.0
        return Measured({name: Estimate(value[one_bit, long] * fast, 0, 1e9, 5, "")
                         for name in ("frechet", "panel_agreement", "held_out_loss")}, {})

    monkeypatch.setattr(Study, "evaluate", told)
    frame = longer.table(LAPTOP)
    assert len(frame) == 8 and (frame.frechet_fast == 5 * frame.frechet).all()
    found = longer.ratios(frame).set_index(["measure", "network", "against"])
    for measure in longer.MEASURES:
        short = found.loc[measure, "strict-1bit, 6,000 steps", "fp16, 6,000 steps"]
        assert short.ratio == pytest.approx(6) and short.low < 6 < short.high and short.seeds == 3
        long = found.loc[measure, "strict-1bit, 24,000 steps", "fp16, 24,000 steps"]
        assert long.ratio == pytest.approx(4) and long.seeds == 1
        assert found.loc[measure, "fp16, 24,000 steps", "fp16, 6,000 steps"].ratio == pytest.approx(0.5)
        assert found.loc[measure, "strict-1bit, 24,000 steps", "strict-1bit, 6,000 steps"].ratio == pytest.approx(2 / 3)
