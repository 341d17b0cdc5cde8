"""Few training images: which are compared with which, and what copying measures on images one knows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from onebit import data
from onebit.study import Control, JudgeSpec, Protocol, Study, graph, narrow, scarce
from onebit.study.copying import OTHERS, _sets, copying
from onebit.study.profiles import PROFILES

PROTOCOL = Protocol(JudgeSpec("digits", 0, 1, 0))


def measured(kind, level=0.0):
    return copying(Control("digits@40", kind, 200, level), PROTOCOL, True)


def test_sets_are_the_images_trained_on_and_others_of_which_none_is_in_two():
    seen, others = _sets("digits@40")
    assert torch.equal(seen, data.load("digits@40").images)
    assert len(others) == OTHERS and {len(other) for other in others} == {40}
    everything = torch.cat([seen, *others]).flatten(1)
    whole = data.load("digits").images.flatten(1)
    twice = len(whole) - len(whole.unique(dim=0))  # of the data set's own
    assert len(everything.unique(dim=0)) >= len(everything) - twice


def test_as_many_sets_as_there_are_images_for():
    _, others = _sets("digits@400")  # of 1,437
    assert [len(other) for other in others] == [400, 400]
    assert len(_sets("digits@718")[1]) == 1


@pytest.mark.parametrize("dataset", ["digits", "digits@719", "digits:01"])
def test_a_data_set_without_as_many_others_is_refused(dataset):
    with pytest.raises(ValueError, match="copying needs a data set of few images"):
        copying(Control(dataset, "held-out", 20), PROTOCOL, True)


def test_copies_are_known_from_held_out_images_and_noise_hides_them_from_ratios_alone():
    held_out, copies, noisy = measured("held-out"), measured("training"), measured("noisy-copies", 0.3)
    assert 0.3 < held_out.estimates["nearer_seen"].value < 0.7
    assert held_out.estimates["memorized"].value == 0
    assert [copies.estimates[name].value for name in ("nearer_seen", "memorized", "distance_ratio")] == [1, 1, 0]
    assert noisy.estimates["nearer_seen"].value > 0.9
    assert noisy.estimates["memorized"].value < 0.1
    assert np.array_equal(copies.arrays["pair_samples"], copies.arrays["pair_train"])


def test_noisy_copies_are_the_training_images_with_the_noise_of_the_noisy_held_out_ones():
    copies = Control("digits@40", "noisy-copies", 40, 0.1).images().float()
    clean = Control("digits@40", "training", 40).images().float()
    inner = (clean > 77) & (clean < 178)  # three deviations from either end: never clipped
    assert ((copies - clean)[inner] / 255).std().item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dataset", ["mnist", "digits"])
def test_networks_on_few_images_differ_from_each_other_in_what_their_names_say(profile, dataset):
    study = Study.named(profile, dataset)
    for images, steps, seeds in study.profile.scarce:
        wide, one_bit, small = scarce.arms(study, images, steps, seeds).values()
        assert [run.seed for run in wide] == list(range(seeds))
        assert {(run.dataset, run.steps) for run in wide} == {(f"{dataset}@{images}", steps)}
        assert [replace(run, recipe="fp16") for run in one_bit] == wide
        assert [replace(run, width=study.profile.unet_width) for run in small] == wide
        assert {run.recipe for run in one_bit} == {"strict-1bit"}
        assert {run.width for run in small} == {narrow.runs(study)[0].width}
        assert all(run.warmup <= run.steps // 4 for run in wide)
        assert study.profile.scarce_batch <= images <= data.train_size(dataset) // 2


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dataset", ["mnist", "digits"])
def test_the_first_case_has_the_fewest_images_and_several_seeds_for_the_claims(profile, dataset):
    (images, steps, seeds), *others = Study.named(profile, dataset).profile.scarce
    assert seeds >= 2 and all(more >= images and (more, longer) != (images, steps) for more, longer, _ in others)


def test_every_training_is_measured_from_its_own_samples():
    study = Study.named("smoke", "digits")
    jobs = {job.entry.name: job for job in study.jobs()}
    needs = graph.prerequisites(jobs.values())
    for run in scarce.runs(study):
        drawn = scarce.source(study, run)
        copied = next(name for name in needs if name.startswith(f"evaluation-copying-{drawn.label}"))
        assert any(name.startswith(f"samples-{run.label}") for name in needs[copied])
