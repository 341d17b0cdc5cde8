"""Walks between the same digits: which pairs are kept, and the three scales, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from onebit.study import Measured, Study, Walk, matched


@pytest.fixture
def study():
    return Study.named("smoke", "digits")


def control_and_one_bit(study):
    """The first two walkers of one net: the float network and a 1-bit one."""
    control = next(run for run in study.walkers if run.net == "resunet" and run.recipe == "fp16")
    return control, next(run for run in study.walkers if run.net == "resunet" and run.recipe == "strict-1bit")


def test_walks_with_new_statistics_are_other_results_and_the_old_ones_keep_their_names(study):
    run = study.walkers[0]
    old, new = study.walk(run), matched.walk(study, run)
    assert "reestimated" not in old.spec and new.spec["reestimated"] is True
    assert (new.pairs, new.frames, new.steps) == (study.profile.matched_pairs, study.profile.matched_frames, 5)
    assert Walk(run, 4, 9, 5).spec == old.spec


def test_every_walker_and_a_morph_of_its_ends_are_asked_for(study):
    names = [job.entry.name.split("-digits-")[0] for job in matched.jobs(study)]
    assert names == ["evaluation-crossing", "evaluation-calibrator"] * len(study.walkers)
    assert {job.entry.name for job in matched.jobs(study)} <= {job.entry.name for job in study.jobs()}


def test_pairs_with_the_same_classes_at_both_ends_are_kept_and_scales_divide_by_morphs_of_these(study, monkeypatch):
    control, one_bit = control_and_one_bit(study)
    ends = {control: [[1, 2], [3, 4], [5, 6]], one_bit: [[1, 2], [3, 5], [5, 6]]}  # the second pair ends elsewhere
    residual = {(control, "latent"): [0.2, 0.9, 0.4], (one_bit, "latent"): [0.1, 0.7, 0.3],
                (control, "transport"): [0.3, 0.9, 0.5], (one_bit, "transport"): [0.6, 0.9, 1.0]}

    def evaluate(self, family, source, wait=True):
        arrays = {"fade_residual": np.array(residual[source.run, source.path])}
        return Measured({}, arrays | ({"ends": np.array(ends[source.run])} if family == "crossing" else {}))

    monkeypatch.setattr(Study, "evaluate", evaluate)
    monkeypatch.setattr(Study, "walkers", property(lambda _: [control, one_bit]))
    study = replace(study, profile=replace(study.profile, walk_pairs=2))
    rows = matched.table(study).set_index("pairs")
    assert rows.paths.to_dict() == {"first": 2, "all": 3, "matched": 2}
    assert rows.loc["first", "1 bit, the residual itself"] == pytest.approx(0.4)
    assert rows.loc["all", "16 bit, the residual itself"] == pytest.approx(0.5)
    kept = rows.loc["matched"]
    assert kept["the residual itself"] == pytest.approx(0.2 - 0.3)
    assert kept["1 bit, own ends"] == pytest.approx(0.2 / 0.8)
    assert kept["own ends"] == pytest.approx(0.2 / 0.8 - 0.3 / 0.4)
    assert kept["the float network's ends"] == pytest.approx(0.2 / 0.4 - 0.3 / 0.4)


def test_a_network_without_a_matched_pair_has_no_such_row(study, monkeypatch):
    control, one_bit = control_and_one_bit(study)

    def evaluate(self, family, source, wait=True):
        return Measured({}, {"fade_residual": np.ones(2), "ends": np.full((2, 2), source.run == one_bit)})

    monkeypatch.setattr(Study, "evaluate", evaluate)
    monkeypatch.setattr(Study, "walkers", property(lambda _: [control, one_bit]))
    assert matched.table(study).pairs.tolist() == ["first", "all"]
