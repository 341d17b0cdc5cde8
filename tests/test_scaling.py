"""Float and 1-bit networks at several widths: what is trained, how far apart they are, and which are as good."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from onebit import nets
from onebit.metrics import Estimate, geometric_over_seeds
from onebit.study import Study, evaluation, narrow, results, scaling
from onebit.study.evaluation import Measured
from onebit.study.network_costs import file_bytes
from onebit.study.profiles import PROFILES
from onebit.study.scaling import MEASURES, ONE_BIT, equals, gaps, reached

FLOAT = scaling.FLOAT


def frame(value, widths=((FLOAT, (1, 2, 4, 8, 16)), (ONE_BIT, (8, 16))), seeds=(0, 1, 2)):
    """A table whose measures are all `value(recipe, width, seed)`."""
    return pd.DataFrame([
        {"recipe": recipe, "width": width, "seed": seed, "parameters": 10 * width**2, "bytes":
         20 * width**2 if recipe == FLOAT else 2 * width**2, **dict.fromkeys(MEASURES, value(recipe, width, seed))}
        for recipe, sizes in widths for width, seed in product(sizes, seeds)])


def law(recipe, width, seed):
    """Distances that fall as 1 / width; 1 bit is worth a quarter of the channels, a little more at later seeds."""
    share = 1 if recipe == FLOAT else 0.25 * 1.1 ** (seed - 1)
    return 1000 / (share * width)


@pytest.mark.parametrize("profile", PROFILES)
def test_both_networks_share_steps_batches_and_seeds_at_every_width(profile):
    study = Study.named(profile, "mnist")
    usual = {run.seed: run for run in study.unet(recipes=(FLOAT,))}
    for run in scaling.runs(study):
        assert (run.steps, run.batch, run.lr, run.ema) == (
            usual[run.seed].steps, usual[run.seed].batch, usual[run.seed].lr, usual[run.seed].ema)
    trained = scaling.runs(study)
    assert len(set(trained)) == len(trained) and {run.recipe for run in trained} == {FLOAT, ONE_BIT}
    at = {recipe: [run.width for run in trained if run.recipe == recipe] for recipe in (FLOAT, ONE_BIT)}
    assert set(at[ONE_BIT]) <= set(at[FLOAT]) and all(widths == sorted(widths) for widths in at.values())
    assert study.profile.unet_width in at[ONE_BIT] and min(at[FLOAT]) <= min(at[ONE_BIT])


def test_the_usual_networks_and_the_narrow_one_are_not_trained_again():
    study = Study.named("laptop", "mnist")
    shared = {*study.strict_pair, *narrow.runs(study)}
    assert shared < {*scaling.runs(study)}


def test_the_table_has_a_row_per_training_and_reads_what_the_jobs_compute(monkeypatch):
    asked = []

    def evaluate(study, family, source):
        asked.append(evaluation.entry(family, source, study.protocol).name)
        return Measured({name: Estimate(1.0, 1.0, 1.0, 2, "") for _, name, _ in MEASURES.values()}, {})

    monkeypatch.setattr(Study, "evaluate", evaluate)
    study = Study.named("smoke", "digits")
    found = scaling.table(study)
    assert [tuple(row) for row in found[["recipe", "width", "seed"]].itertuples(index=False)] == [
        (run.recipe, run.width, run.seed) for run in scaling.runs(study)]
    assert {*asked} <= {job.entry.name for job in scaling.jobs(study)}


def test_sizes_are_those_of_the_audit_and_of_the_files_whatever_was_trained():
    run = next(run for run in scaling.runs(Study.named("smoke", "digits")) if run.recipe == ONE_BIT)
    found = narrow.sizes(run, results.new_model(run))
    other = results.new_model(run)
    for parameter in other.parameters():
        parameter.data.normal_()
    assert found == narrow.sizes(run, other)
    assert found["bytes"] == file_bytes(run, other)["packed_bytes"]
    assert found["parameters"] == sum(p.numel() for p in nets.build("unet", run.width).parameters())


@pytest.mark.parametrize(("wanted", "size"), [
    (400, 1), (200, 2), (100, 4), (200 * 2**-0.5, 2 * 2**0.5), (25, 8), (6.25, 16),
])
def test_a_value_is_reached_on_the_line_between_its_neighbours_in_logarithms(wanted, size):
    """100 (4 / size)^2 from size 4 to 16, 400 / size below."""
    assert reached((1, 2, 4, 16), (400, 200, 100, 6.25), wanted) == pytest.approx(size, rel=1e-12)


def test_the_smallest_size_counts_and_what_is_beyond_both_ends_is_not_a_number():
    wavy = ((1, 2, 4, 8), (100, 50, 80, 20))  # 60 is passed on the way down, up and down again
    assert 1 < reached(*wavy, 60) < 2
    assert math.isnan(reached(*wavy, 101)) and math.isnan(reached(*wavy, 19))
    rising = ((1, 2, 4), (0.1, 0.2, 0.4))  # agreement grows with size
    assert reached(*rising, 0.3) == pytest.approx(2 * 1.5, rel=1e-12)


def test_a_network_worth_a_quarter_of_its_channels_is_found_to_be():
    found = equals(frame(law)).set_index(["width", "size", "measure"])
    for measure, width in product(MEASURES, (8, 16)):
        channels, parameters, size = (found.loc[width, kind, measure] for kind in scaling.SIZES)
        assert channels.ratio == pytest.approx(4, rel=1e-9)
        assert channels.low < 4 < channels.high
        by_hand = geometric_over_seeds([4 * 1.1**x for x in (1, 0, -1)], "")
        assert (channels.low, channels.high) == pytest.approx((by_hand.low, by_hand.high), rel=1e-9)
        assert parameters.ratio == pytest.approx(16, rel=1e-9)
        assert size.ratio == pytest.approx(16 / 10, rel=1e-9)  # a tenth of the bytes per parameter
        assert channels.seeds == 3


def test_a_network_beyond_the_float_ones_at_one_seed_has_no_row():
    values = frame(law)
    values.loc[(values.recipe == ONE_BIT) & (values.width == 8) & (values.seed == 2), "frechet"] = 1e6
    found = equals(values)
    assert not ((found.width == 8) & (found.measure == "frechet")).any()
    assert ((found.width == 16) & (found.measure == "frechet")).any()
    assert ((found.width == 8) & (found.measure == "held_out_loss")).any()
    nowhere = equals(frame(lambda *_: 1.0, ((FLOAT, (2,)), (ONE_BIT, (8,)))).assign(
        **{name: [1.0] * 3 + [5.0] * 3 for name in MEASURES}))
    assert nowhere.empty and "ratio" in nowhere.columns


def test_gaps_are_paired_by_seed_and_compared_with_those_of_the_width_before():
    def value(recipe, width, seed):
        return (seed + 1) * (1 if recipe == FLOAT else {8: 3, 16: 2}[width] * (1 + 0.1 * seed))

    found = gaps(frame(value)).set_index(["measure", "compared"])
    for measure in MEASURES:
        assert len(found.loc[measure]) == 3  # widths 2 and 4 have no 1-bit network
        at_8 = found.loc[measure, "1 bit over float, width 8"]
        assert at_8.ratio == pytest.approx(3 * np.exp(np.mean(np.log([1, 1.1, 1.2]))), rel=1e-12) and at_8.seeds == 3
        narrowing = found.loc[measure, "that at width 16 over that at 8"]
        assert (narrowing.ratio, narrowing.low, narrowing.high) == pytest.approx((2 / 3,) * 3, rel=1e-9)


def test_a_measure_that_is_zero_somewhere_is_left_out_and_no_other():
    values = frame(law)
    values.loc[0, "panel_agreement"] = 0
    for found in (gaps(values), equals(values)):
        assert {*found.measure} == {*MEASURES} - {"panel_agreement"}
    assert gaps(values.assign(**dict.fromkeys(MEASURES, 0.0))).empty


def test_a_gap_of_one_seed_has_no_interval():
    one = pd.concat([frame(law, seeds=(0, 1)), frame(law, ((FLOAT, (32,)), (ONE_BIT, (32,))), seeds=(0,))])
    found = gaps(one).set_index(["measure", "compared"]).loc["frechet"]
    assert found.loc["1 bit over float, width 32"].seeds == 1
    alone = found.loc[["1 bit over float, width 32", "that at width 32 over that at 16"], ["low", "high"]]
    assert alone.isna().all(axis=None)
