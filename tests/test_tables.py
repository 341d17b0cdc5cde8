"""Arms against arms: paired by seed, on the whole data set, by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from onebit import claims
from onebit.metrics import Estimate
from onebit.study import Control, Run, Samples, SampleSpec, Study, Walk, tables
from onebit.study.evaluation import Measured


def frame(**values):
    """Rows as `tables.measured` gives them; values: (recipe, seed) -> value of metric d on one net."""
    rows = [{"net": "unet", "recipe": recipe, "protocol": "modern", "subset": "all", "seed": seed, "metric": "d",
             "value": value} for recipe, by_seed in values.items() for seed, value in enumerate(by_seed)]
    return pd.DataFrame(rows)


def test_a_ratio_is_averaged_in_logarithms_over_pairs_of_one_seed():
    """2/1 and 8/1: the geometric mean 4; the interval of log2 ratios 1 and 3 is 2 +- t(1) * 1."""
    measured = frame(fp16=[1.0, 1.0], one=[2.0, 8.0])
    e = tables.compare(measured, "d", "unet", "one")
    half = stats.t.ppf(0.975, 1)
    assert e.value == pytest.approx(4) and e.n == 2
    assert np.log2([e.low, e.high]) == pytest.approx([2 - half, 2 + half])
    back = tables.compare(measured, "d", "unet", "fp16", control="one")
    assert back.value == pytest.approx(1 / e.value) and back.low == pytest.approx(1 / e.high)


def test_seeds_that_one_arm_lacks_do_not_count_and_a_failed_measurement_does():
    measured = frame(fp16=[1.0, 1.0], one=[2.0, 8.0, 100.0])
    assert tables.compare(measured, "d", "unet", "one").value == pytest.approx(4)
    apart = measured[(measured.recipe == "fp16") | (measured.seed == 2)]
    with pytest.raises(ValueError, match="no seed of d in common"):
        tables.compare(apart, "d", "unet", "one")
    with pytest.raises(ValueError, match="NaN"):
        tables.compare(frame(fp16=[1.0, 1.0], one=[2.0, np.nan]), "d", "unet", "one")


def test_a_difference_is_paired_by_seed_whatever_the_order_of_rows():
    """5 - 1 and 2 - 0: mean 3; seeds swapped in one arm would give the same mean and another spread."""
    measured = frame(fp16=[1.0, 0.0], one=[5.0, 2.0])
    e = tables.compare(measured.iloc[::-1], "d", "unet", "one", ratio=False)
    assert e.value == 3 and e.high - 3 == pytest.approx(stats.t.ppf(0.975, 1) * 1.0)
    assert tables.seed_values(measured.iloc[::-1], "d", "unet", "one").tolist() == [5, 2]
    assert tables.arm_mean(measured, "d", "unet", "one").value == 3.5
    values = tables.seed_values(measured, "d", "unet", "one")
    assert tables.arm_mean(measured, "d", "unet", "one", geometric=True).value == pytest.approx(np.sqrt(values.prod()))


def test_other_nets_metrics_subsets_and_later_protocols_do_not_count():
    measured = frame(fp16=[1.0], one=[2.0])
    others = [measured.assign(value=99.0, **{column: value}) for column, value in
              (("net", "resunet"), ("metric", "e"), ("subset", "@200"), ("protocol", "published"))]
    e = tables.compare(pd.concat([measured, *others]), "d", "unet", "one")
    assert e.value == pytest.approx(2) and np.isnan(e.low)


@pytest.mark.parametrize("measure", [tables.compare, tables.seed_values, tables.arm_mean])
@pytest.mark.parametrize("metric, net, arm", [("d", "unet", "two"), ("e", "unet", "one"), ("d", "vit", "one")])
def test_an_arm_that_was_not_measured_is_an_error_that_names_it(measure, metric, net, arm):
    with pytest.raises(KeyError, match=f"no {metric} of {net} {arm} on subset all"):
        measure(frame(fp16=[1.0], one=[2.0]), metric, net, arm)


def test_a_control_that_was_not_measured_is_an_error_that_names_it():
    with pytest.raises(KeyError, match="no d of unet two on subset all"):
        tables.compare(frame(fp16=[1.0], one=[2.0]), "d", "unet", "one", control="two")


def test_an_arm_that_the_first_protocol_lacks_is_an_error():
    """fp16 is there by two protocols, the other arm by the second alone: pairs would be of different ones."""
    control = frame(fp16=[1.0])
    later = frame(fp16=[1.0], one=[2.0]).assign(protocol="published")
    with pytest.raises(KeyError, match="no d of unet one"):
        tables.compare(pd.concat([control, later]), "d", "unet", "one")
    assert tables.seed_values(pd.concat([control, later]), "d", "unet", "one").tolist() == [2]


def test_a_share_of_none_has_a_ratio_once_two_images_are_added():
    """0 of 8 becomes 1/10, 4 of 8 a half: a fifth.  Other metrics are left as they were."""
    measured = frame(fp16=[0.5], one=[0.0]).assign(n=8)
    assert tables.compare(tables.counted(measured, "d"), "d", "unet", "one").value == pytest.approx(0.2)
    assert tables.counted(measured, "share").equals(measured)
    with pytest.raises(ValueError, match="must be positive"):
        tables.compare(measured, "d", "unet", "one")


def test_arms_of_unequal_seeds_are_paired_by_those_that_both_have():
    unequal = pd.concat([frame(fp16=[1.0, 2.0, 4.0]), frame(one=[3.0, 8.0])])
    mine, other = tables.paired(unequal, "d", "unet", "one")
    assert mine.tolist() == [3, 8] and other.tolist() == [1, 2]
    assert tables.compare(unequal, "d", "unet", "one", ratio=False).value == pytest.approx(4)


def test_a_subset_is_compared_within_itself():
    whole, ones = frame(fp16=[1.0], one=[2.0]), frame(fp16=[1.0], one=[3.0]).assign(subset="1")
    both = pd.concat([whole, ones])
    assert tables.compare(both, "d", "unet", "one", subset="1").value == pytest.approx(3)
    assert tables.compare(both, "d", "unet", "one").value == pytest.approx(2)
    assert tables.arm_mean(both, "d", "unet", "one", subset="1").value == 3


def test_a_tally_counts_parts_that_keep_all_bounds_by_value_for_sure_and_possibly():
    """Sure; by value but not for sure; possible although the value is below; impossible by its second bound."""
    def e(value, low, high, n=2):
        return Estimate(value, low, high, n, "")

    sure, likely, possible = e(1.5, 1.2, 1.8), e(1.1, 0.8, 1.4), e(0.9, 0.7, 1.1)
    parts = [[(sure, 1), (sure, 1.2)], [(sure, 1), (likely, 1)], [(possible, 1)], [(sure, 1), (possible, 1.2)]]
    counted = tables.tally(parts, "parts")
    assert (counted.value, counted.low, counted.high, counted.n) == (2, 1, 3, 2)
    assert claims.by_threshold(tables.tally(parts[:1], ""), at_least=1) == claims.REPRODUCED
    assert claims.by_threshold(tables.tally(parts[1:2], ""), at_least=1) == claims.TOO_WIDE
    assert claims.by_threshold(tables.tally(parts[3:], ""), at_least=1) == claims.CONTRADICTED
    once = tables.tally([[(sure, 1)], [(e(2.0, np.nan, np.nan, 1), 1)]], "parts")
    assert once.value == 2 and claims.by_threshold(once, at_least=2) == "not testable here (one seed)"


def test_ranges_are_the_least_and_the_largest_of_each_group_in_the_order_of_the_frame():
    frame = pd.DataFrame({"net": ["u", "r", "u"], "recipe": ["b", "a", "b"], "x": [1.5, 2.0, 1.25]})
    assert tables.ranges(frame, ["net", "recipe"], "x") == "u b **1.25** to **1.50**; r a **2.00** to **2.00**"
    assert tables.ranges(frame, ["net"], "x") == "u **1.25** to **1.50**; r **2.00** to **2.00**"


def test_rows_of_a_subset_name_it_for_arms_and_controls(monkeypatch):
    study = Study.named("smoke", "mnist")
    monkeypatch.setattr(Study, "evaluate", lambda *_: Measured({"d": Estimate(1.0, 0.5, 2.0, 9, "p")}, {}))
    sources = [study.subset_controls(":01")[0], study.evaluation(study.resunet(":01")[0]), study.control("training")]
    rows = tables.measured(study, "subset", sources)
    assert rows.subset.tolist() == ["01", "01", tables.WHOLE]
    assert rows.arm.tolist() == ["held-out", "resunet fp16", "training"]


def test_rows_name_runs_controls_paths_and_the_memorizer(monkeypatch):
    study = Study.named("smoke", "digits")
    monkeypatch.setattr(Study, "evaluate", lambda *_: Measured({"d": Estimate(1.0, 0.5, 2.0, 9, "p")}, {}))
    run = study.unet(recipes=("strict-1bit",))[0]
    sources = [Control("digits", "noisy", 5, 0.2), study.evaluation(run), study.evaluation(study.memorizer),
               study.walk(run, "transport")]
    rows = tables.measured(study, "headline", sources)
    assert rows.arm.tolist() == ["noisy 0.2", "unet strict-1bit", "memorizer", "unet strict-1bit"]
    assert rows.loc[0, ["control", "level"]].tolist() == ["noisy", 0.2]
    assert rows.control.isna().tolist() == [False, True, True, True]
    assert rows.loc[2, "subset"] == "@200" and rows.loc[3, "path"] == "transport"
    assert rows.loc[1, ["value", "low", "high", "n"]].tolist() == [1.0, 0.5, 2.0, 9]


def test_the_memorizer_differs_from_the_control_in_its_images_alone():
    from dataclasses import asdict

    study = Study.named("laptop", "mnist")
    control, memorizer = study.unet(recipes=("fp16",))[0], study.memorizer
    assert {k for k in asdict(control) if asdict(control)[k] != asdict(memorizer)[k]} == {"dataset"}
    assert memorizer.dataset == "mnist@200" and memorizer in study.arms and memorizer not in study.ten_class
    assert isinstance(study.walk(control), Walk) and isinstance(study.evaluation(control), Samples)
    assert Samples(Run(), SampleSpec()).dataset == "mnist"


def test_arms_are_named_by_their_protocol_where_there_are_several(monkeypatch):
    """Else rows of two networks would fall together in tables by arm and seed."""
    study = Study.named("paper", "mnist")
    monkeypatch.setattr(Study, "evaluate", lambda *_: Measured({"m": Estimate(1.0, 0.9, 1.1, 10, "p")}, {}))
    frame = tables.measured(study, "headline", map(study.evaluation, study.ten_class))
    assert not frame.duplicated(["arm", "seed"]).any()
    assert {"resunet fp16 published", "resunet fp16 modern", "unet fp16"} <= set(frame.arm)
