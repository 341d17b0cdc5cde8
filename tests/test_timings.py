"""Timed tables and what is concluded from them: keys, the cache, the Pareto front, memory."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from onebit import nets, recipes
from onebit.metrics import Estimate
from onebit.study import Study, agreement, evaluation, fitted, narrow, results, timings, tradeoff
from onebit.study.evaluation import Measured
from onebit.study.network_costs import file_bytes, raised_by
from onebit.study.post_training import quantize_trained
from onebit.study.sources import PackedSamples

STUDY = Study.named("smoke", "digits")


def test_the_front_is_what_no_other_point_beats():
    """By the definition, pair by pair, on a grid with ties."""
    points = np.random.default_rng(0).integers(0, 6, (40, 2)).astype(float)

    def beats(a, b):
        return all(a <= b) and any(a < b)

    expected = [not any(beats(other, point) for other in points) for point in points]
    assert tradeoff.front(*points.T).tolist() == expected and 1 <= sum(expected) < 40


def test_the_front_of_a_hand_made_example():
    cost, loss = [1, 2, 3, 3, 4], [9, 5, 7, 5, 1]
    assert tradeoff.front(np.array(cost), np.array(loss)).tolist() == [True, True, False, False, True]
    assert tradeoff.front(np.array([1, 2, 3]), np.array([5, np.nan, 1])).tolist() == [True, False, True]


@pytest.mark.parametrize(("budget", "label"), [(5, "c"), (3, "b"), (2, "b"), (1, "a")])
def test_a_budget_buys_the_best_of_what_it_can_pay_for(budget, label):
    frame = pd.DataFrame({"label": list("abc"), "bytes": [1, 2, 4], "frechet": [9.0, 5.0, 1.0]})
    assert tradeoff.best_within(frame, budget).label == label


def test_a_budget_that_pays_for_nothing_buys_nothing():
    assert tradeoff.best_within(pd.DataFrame({"bytes": [2], "frechet": [1.0]}), 1) is None


@pytest.mark.parametrize("profile", ["laptop", "paper"])
def test_the_narrow_network_is_the_widest_whose_file_takes_no_more_bytes_than_the_1_bit_one(profile):
    study = Study.named(profile, "mnist")
    one_bit, run = study.unet(recipes=("strict-1bit",))[0], narrow.runs(study)[0]
    model = nets.build("unet", one_bit.width)
    recipes.quantize(model, one_bit.recipe)
    allowed = file_bytes(one_bit, model)["packed_bytes"]
    narrower, wider = (file_bytes(replace(run, width=width), nets.build("unet", width))["float16_bytes"]
                       for width in (run.width, run.width + 1))
    assert narrower <= allowed < wider


@pytest.mark.parametrize(("profile", "dataset"), [("smoke", "digits"), ("laptop", "mnist"), ("laptop", "digits")])
def test_four_bit_networks_are_the_widest_whose_files_take_no_more_bytes_than_the_1_bit_ones(profile, dataset):
    study = Study.named(profile, dataset)
    for recipe, width in zip(("strict-1bit", narrow.PLAIN), study.profile.four_bit_widths, strict=True):
        allowed = _packed_bytes(study, study.profile.unet_width, recipe)
        sizes = [_packed_bytes(study, wide, fitted.recipe("nearest", 4)) for wide in (width, width + 1)]
        assert sizes[0] <= allowed < sizes[1], recipe


@pytest.mark.parametrize(("profile", "dataset"), [("smoke", "digits"), ("laptop", "mnist"), ("laptop", "digits")])
def test_the_three_bit_network_is_the_widest_whose_file_takes_no_more_bytes_than_the_plain_one(profile, dataset):
    study = Study.named(profile, dataset)
    allowed = _packed_bytes(study, study.profile.unet_width, narrow.PLAIN)
    width = study.profile.three_bit_width
    sizes = [_packed_bytes(study, wide, fitted.recipe("nearest", 3)) for wide in (width, width + 1)]
    assert sizes[0] <= allowed < sizes[1]


def _packed_bytes(study, width, recipe):
    run = replace(study.unet()[0], width=width, recipe=recipe)
    model, generator = nets.build("unet", width).eval(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # zeros, which the last layers of blocks begin with, have no scale
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    quantize_trained(model, run)
    return file_bytes(run, model.eval())["packed_bytes"]


def test_the_narrow_networks_differ_from_the_float_one_in_their_width_alone():
    laptop = Study.named("laptop", "mnist")
    float_one, strict, plain, narrow_one, *four_bit = narrow.arms(laptop).values()
    assert float_one == laptop.unet()[:3] and len(plain) == len(four_bit[1]) == 3
    assert narrow_one == [replace(run, width=5) for run in float_one]
    assert strict == [replace(run, recipe="strict-1bit") for run in float_one]
    assert plain == [replace(run, recipe="binarydm-base-w1a32") for run in float_one[: len(plain)]]
    for rounded, width in zip(four_bit, (10, 8), strict=True):
        assert [run.trained for run in rounded] == [replace(run, width=width) for run in float_one[: len(rounded)]]


def test_the_plain_rule_is_taken_a_part_at_a_time():
    """First the weight rule; then which layers are quantized, and how the ends are."""
    laptop = Study.named("laptop", "mnist")
    strict, scaled, plain = narrow.parts(laptop).values()
    assert [len(strict), *map(len, narrow.arms(laptop).values())] == [3] * 7
    assert scaled == [replace(run, recipe="strict-1bit weights=learned-scale") for run in strict]
    a, b, c = (recipes.recipe(trained[0].recipe) for trained in (strict, scaled, plain))
    assert a.weights != b.weights and replace(a, weights=b.weights) == b
    assert b.weights == c.weights and replace(b, keep=c.keep, ends=c.ends) == c


def test_at_the_plain_ones_bytes_networks_differ_in_bits_and_width_alone():
    laptop = Study.named("laptop", "mnist")
    (name, plain), *rounded = narrow.by_bits(laptop).items()
    assert plain == narrow.plain(laptop) and name == "1 bit (plain), width 16"
    assert [name for name, _ in rounded] == ["3 bits, width 9", "4 bits, width 8"]
    for (_, runs), width in zip(rounded, (9, 8), strict=True):
        assert [run.trained for run in runs] == [replace(run, width=width) for run in laptop.unet()[:3]]
    three, four = (runs for _, runs in rounded)
    assert four == narrow.four_bit(laptop)[1] and three[0].recipe == fitted.recipe("calibrated", 3)


def test_the_first_network_is_compared_with_every_other():
    frame = _networks({"one": (1, 79), "two": (2, 75), "four": (4, 76)}, one=(1, 4), two=(2, 2), four=(1, 2))
    assert narrow.over_first(frame) == [("one", "two"), ("one", "four")]
    found = narrow.ratios(frame, narrow.over_first(frame)).set_index(["rival", "measure"]).ratio
    assert found["two", "frechet"] == pytest.approx(1) and found["four", "frechet"] == pytest.approx(math.sqrt(2))


def test_networks_in_turn_are_compared_with_the_one_before():
    frame = _networks({"strict": (1, 104), "scaled": (1, 104), "plain": (1, 79)}, strict=(4, 4), scaled=(2, 1))
    assert narrow.in_turn(frame) == [("scaled", "strict"), ("plain", "scaled")]
    found = narrow.ratios(frame, narrow.in_turn(frame)).set_index(["network", "measure"])
    assert found.ratio["scaled", "frechet"] == pytest.approx(math.sqrt(1 / 8))
    assert found.ratio["plain", "frechet"] == pytest.approx(math.sqrt(1 / 2))
    assert found.bytes["plain", "kid"] == 79 / 104


def test_every_arm_of_equal_bytes_is_measured_alike_and_from_its_own_samples():
    laptop = Study.named("laptop", "mnist")
    jobs = {job.entry.name for job in narrow.jobs(laptop)}
    measured = [*list(narrow.arms(laptop).values())[1:], *narrow.parts(laptop).values(),
                *narrow.by_bits(laptop).values()]
    for run in (run for trained in measured for run in trained):
        for source in (laptop.reestimated(run), laptop.stochastic(run)):
            assert results.samples_entry(run, source.request).name in jobs
            for family in ("headline", "divergence", "legibility"):
                assert evaluation.entry(family, source, laptop.protocol).name in jobs
    assert laptop.stochastic(run).request.sampler == "ddim-eta1" != laptop.reestimated(run).request.sampler


def _networks(sizes, **measured):
    """A table of networks, {name: (bits, bytes)}, at two seeds; `measured`: {name: distances}, the rest is 1."""
    columns = dict.fromkeys(["loss", *narrow.MEASURES], 1.0)
    return pd.DataFrame([{"network": name, "bits": bits, "bytes": size, "seed": seed} | columns
                         | {"frechet": measured.get(name, (1.0, 1.0))[seed]}
                         for name, (bits, size) in sizes.items() for seed in (0, 1)])


def test_rivals_are_the_largest_networks_of_no_more_bytes():
    frame = _networks({"wide": (16, 900), "strict": (1, 100), "plain": (1, 80), "float": (16, 90), "four": (4, 100),
                       "small": (4, 70), "large": (4, 101)})
    assert narrow.pairs(frame) == [("strict", "plain"), ("strict", "four"), ("strict", "float"), ("plain", "small")]


def test_of_networks_with_unequal_seeds_the_common_ones_are_compared():
    frame = _networks({"wide": (16, 900), "one": (1, 100), "four": (4, 95)}, one=(4.0, 9.0), four=(2.0, 3.0))
    more = frame[frame.network == "one"].assign(seed=[2, 3], frechet=1e6)
    found = narrow.ratios(pd.concat([frame, more]), [("one", "four")]).set_index("measure").loc["frechet"]
    assert found.seeds == 2 and found.ratio == pytest.approx(math.sqrt(6))


def test_ratios_at_equal_bytes_are_paired_by_seed():
    """1/2 and 2/1: a geometric mean of 1, whatever the seeds' own level."""
    frame = _networks({"wide": (16, 900), "one": (1, 100), "narrow": (16, 90), "four": (4, 95)},
                      wide=(9, 9), one=(1, 200), narrow=(2, 100), four=(0.5, 100))
    frame.loc[frame.network == "four", "loss"] = math.nan
    by_rival = narrow.ratios(frame, narrow.pairs(frame)).set_index(["network", "rival", "measure"]).loc["one"]
    assert list(by_rival.loc["four"].index) == list(narrow.MEASURES)
    assert by_rival.ratio["four", "frechet"] == pytest.approx(2) and by_rival.bytes["four", "frechet"] == 100 / 95
    found = by_rival.loc["narrow"]
    assert list(found.index) == ["loss", *narrow.MEASURES]
    assert found.ratio["frechet"] == pytest.approx(1) and found.ratio["kid"] == 1 and (found.seeds == 2).all()
    half = 12.706204736 * math.log(2)  # t(1) times the deviation of -log 2 and log 2, sqrt(2) log 2, over sqrt(2)
    assert math.log(found.high["frechet"]) == pytest.approx(half, rel=1e-6)


def test_q_allows_for_the_number_of_ratios_that_scatter():
    """t = mean / (deviation / sqrt(2)) of two logarithms; with one degree of freedom p = 1 - 2 atan(t) / pi."""
    frame = _networks({"one": (1, 100), "four": (4, 95)}, one=(2.0, 8.0), four=(1.0, 2.0))
    frame["kid"] = [3.0, 4.0, 1.0, 1.0]
    found = narrow.ratios(frame, narrow.pairs(frame)).set_index("measure").q
    p = {}
    for measure, (a, b) in {"frechet": np.log([2, 4]), "kid": np.log([3, 4])}.items():
        p[measure] = 1 - 2 * math.atan((a + b) / abs(a - b)) / math.pi
    assert found["kid"] == pytest.approx(2 * p["kid"]) and p["kid"] < p["frechet"]
    assert found["frechet"] == pytest.approx(p["frechet"])  # the larger of two is not raised
    assert found.drop(["frechet", "kid"]).isna().all()


def test_a_measure_without_a_logarithm_is_left_out():
    """An unbiased distance near its floor falls below zero; a panel that agrees on nothing has a share of zero."""
    frame = _networks({"one": (1, 100), "four": (4, 95)}, one=(2.0, 8.0))
    frame.loc[0, "kid"], frame.loc[2, "panel_agreement"] = -1e-4, 0.0
    found = narrow.ratios(frame, narrow.pairs(frame))
    assert [*found.measure] == [name for name in ("loss", *narrow.MEASURES) if name not in ("kid", "panel_agreement")]


def test_loss_ratios_are_geometric_means_of_pairs():
    losses = {(0, "strict-1bit"): [2.0, 8.0], (0, "fp16"): [1.0, 1.0], (1, "strict-1bit"): [1.0, 2.0],
              (1, "fp16"): [2.0, 1.0]}

    class Told:
        profile, unet, reestimated = STUDY.profile, STUDY.unet, STUDY.reestimated

        def evaluate(self, family, source):
            run = source.run
            assert family == "denoising" and (run.recipe == "strict-1bit" or run.width == STUDY.profile.narrow_width)
            return Measured({}, {"losses": np.array(losses[run.seed, run.recipe]), "timesteps": np.array([50, 150])})

    seeds = len(narrow.runs(STUDY))
    found = narrow.loss_ratios(Told())
    pairs = [np.array(losses[s, "strict-1bit"]) / losses[s, "fp16"] for s in range(seeds)]
    assert found == pytest.approx(dict(zip([50, 150], np.prod(pairs, axis=0) ** (1 / seeds), strict=True)))


def test_quality_is_of_every_seed_of_what_one_seed_is_timed_of():
    laptop = Study.named("laptop", "mnist")
    sources = tradeoff._sources(laptop)
    assert set(sources) == set(timings.measured_runs(laptop))
    assert [source.run.seed for source in sources["W1A1 BiDM"]] == [0, 1, 2]
    assert [source.run.seed for source in sources["unet strict-1bit"]] == [0, 1, 2]
    assert all(source.request.reestimated for one in sources.values() for source in one)
    paper = tradeoff._sources(Study.named("paper", "mnist"))["resunet fp16"]
    assert {source.run.lr for source in paper} == {1e-3}  # of its protocols the first


def test_every_arm_and_headline_row_is_timed_once_by_its_first_seed():
    runs = timings.measured_runs(STUDY)
    assert {"unet fp16", "unet strict-1bit", "resunet published-1bit", "W1A1 XNOR", "W1A32 base"} <= set(runs)
    assert {run.seed for run in runs.values()} == {0} and len(set(runs.values())) == len(runs)


def test_the_key_of_a_table_names_what_is_timed_and_not_where():
    laptop = Study.named("laptop", "mnist")
    for kind in timings.MEASURES:
        spec = timings.entry(laptop, kind).spec
        assert timings.entry(STUDY, kind).key != timings.entry(laptop, kind).key
        assert not {"processor", "threads", "machine"} & set(spec)
    assert set(timings.entry(laptop, "networks").spec["runs"]) == set(timings.measured_runs(laptop))


def test_a_table_is_measured_once_and_then_read(home, monkeypatch):
    rows = [{"kind": "float32", "seconds": 0.5}]
    monkeypatch.setitem(timings.MEASURES, "convolutions", lambda study: rows)
    first = timings.table(STUDY, "convolutions")
    monkeypatch.setitem(timings.MEASURES, "convolutions", lambda study: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(timings.table(STUDY, "convolutions"), first)
    assert first.seconds.tolist() == [0.5] and timings.machine(STUDY, "convolutions").endswith(
        f"{torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() != 1))


def test_every_variant_of_a_convolution_is_timed_and_computes_its_kind(monkeypatch):
    x = torch.randn(2, 16, 7, 7).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        outputs = {kind: action() for kind, action in timings._variants(16, x).items()}
    images = {kind: y for kind, y in outputs.items() if not kind.startswith("packing")}
    assert all(y.shape == x.shape and y.isfinite().all() for y in images.values())
    for a, b in itertools.combinations(images.values(), 2):  # no two are the same thing under two names
        assert not torch.equal(a.float(), b.float())
    rows = timings._convolution(16, 7, 2, 0.01)
    assert [row["kind"] for row in rows] == list(outputs) and all(row["seconds"] > 0 for row in rows)


def test_memory_is_what_an_action_holds_at_its_peak():
    """Two arrays of 32 MiB at once, one of them gone at the end."""
    def hold():
        first, second = (np.ones(4 * 2**20) for _ in range(2))
        del first
        return second

    mib = raised_by(hold)
    assert math.isnan(mib) or 60 < mib < 80


def test_packed_samples_are_a_result_of_their_own_beside_the_dense_ones():
    rows = agreement.packed_rows(STUDY)
    assert set(rows) == {"W1A1 XNOR", "W1A1 BiDM", "W1A4 base", "W1A4 +EBB", "W1A4 +EBB +LRM"}
    for run in rows.values():
        dense, packed = agreement.pair(STUDY, run)
        keys = {results.samples_entry(run, dense.request, packed=flag).key for flag in (False, True)}
        assert len(keys) == 2 and dense.spec != packed.spec and packed.request == dense.request
    names = [job.entry.name for job in agreement.jobs(STUDY)]
    packed = len(rows) * (2 * (1 + len(agreement.FAMILIES)) + 1)  # and how far apart
    rounded = len(STUDY.strict_pair) * (2 * 2 + 1)
    assert len(set(names)) == len(names) == packed + rounded


def test_a_run_is_drawn_in_bfloat16_from_the_noise_of_its_usual_samples(monkeypatch):
    run = STUDY.strict_pair[0]
    usual, rounded = agreement.precisions(STUDY, run)
    assert usual == STUDY.reestimated(run) and "precision" not in usual.spec["samples"]  # which keep their keys
    assert rounded.request == replace(usual.request, precision="bfloat16")
    distances = {"float32": Estimate(100.0, 90.0, 110.0, 5, ""), "bfloat16": Estimate(101.0, 90.0, 110.0, 5, "")}
    apart = {"paired_distance": Estimate(0.1, 0.0, 0.2, 5, ""), "same_class": Estimate(0.9, 0.8, 1.0, 5, "")}
    monkeypatch.setattr(Study, "evaluate", lambda self, family, source: Measured(
        {"frechet": distances[source.request.precision]} if family == "headline" else apart, {}))
    frame = agreement.in_bfloat16(STUDY)
    assert len(frame) == len(STUDY.strict_pair) and set(frame.recipe) == {"fp16", "strict-1bit"}
    assert frame.iloc[0][["float32", "bfloat16", "paired_distance", "same_class"]].tolist() == [100, 101, 0.1, 0.9]


def test_metrics_apart_are_counted_in_half_widths(monkeypatch):
    """Hand-made: an interval of half-width 2, values 3 apart; one metric without an interval."""
    dense = {"frechet": Estimate(10.0, 8.0, 12.0, 5, ""), "exact": Estimate(1.0, 1.0, 1.0, 5, "")}
    packed = {"frechet": Estimate(13.0, 9.0, 15.0, 5, ""), "exact": Estimate(1.0, 1.0, 1.0, 5, "")}
    monkeypatch.setattr(Study, "evaluate", lambda self, family, source: Measured(
        packed if isinstance(source, PackedSamples) else dense, {}))
    frame = agreement.metrics(STUDY)
    assert set(frame.metric) == {"frechet"} and (frame.half_widths_apart == 1.5).all()
