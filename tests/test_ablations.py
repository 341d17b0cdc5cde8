"""The grid of notebook 07: what the file may say, the runs that follow from it, and its tables on small data."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from onebit import claims, nets, recipes
from onebit.diffusion import noise_loss
from onebit.distill import distillation
from onebit.objective import Objective
from onebit.quantizers.evolvable import EBB
from onebit.study import JudgeSpec, Protocol, Run, Samples, SampleSpec, Study, ablation_tables, ablations, results
from onebit.study.ablations import (
    SAMPLED,
    SAMPLERS,
    STRIDED,
    Ablation,
    both,
    budget,
    by_sampler,
    by_stride,
    families_of,
    grid,
    jobs,
    of_table,
    own_teachers,
    pictured,
    renormed,
    teachers,
    trained,
)
from onebit.study.activity import _Trace

STUDY = Study.named("smoke", "digits")


def test_every_row_is_a_recipe_and_a_distillation_that_can_be_built():
    rows = grid()
    assert len({row.label for row in rows}) == len(rows) > 50
    for row in rows:
        recipes.recipe(row.recipe)
        run = row.run(teachers(STUDY, row.net)[0], budget(STUDY, row.net))
        assert run.teacher is None if row.start == "scratch" else (run.teacher.recipe, run.net) == ("fp16", row.net)


@pytest.mark.parametrize("label", [row.label for row in grid() if row.net == "resunet"])
def test_rows_on_the_published_net_take_a_step(label):
    """Their recipes name its blocks, their distillation finds features there."""
    torch.manual_seed(0)
    row = next(row for row in grid() if row.label == label)
    student, teacher = nets.build("resunet", 4), nets.build("resunet", 4)
    audit = recipes.quantize(student, row.recipe)
    loss = Objective(teacher, distillation(row.distill), row.weight) if row.distill != "none" else noise_loss
    x, noise, t = torch.randn(4, 1, 28, 28), torch.randn(4, 1, 28, 28), torch.tensor([10, 400, 700, 990])
    loss(student, x, noise, t).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters() if p.requires_grad)
    two_bits = {layer.name.split(".conv")[0] for layer in audit.layers if layer.weight_bits == 2}
    assert ("+EBB" in label) == ({"down.0", "up.1"} <= two_bits)


def test_every_named_recipe_of_the_papers_trains_in_the_smoke_profile():
    used = {recipes.recipe(row.recipe) for row, _ in trained(STUDY)}
    mnist_study = {"published-1bit", "strict-1bit", "ptq-1bit"}
    missing = [name for name, how in recipes.RECIPES.items() if how not in used and name not in mnist_study]
    assert not missing


def test_rows_of_a_seed_share_everything_but_the_method():
    runs = [run for row, run in trained(STUDY) if row.net == "unet" and row.start == "teacher" and run.seed == 0
            and row.lr == row.steps == 1]
    shared = {(run.dataset, run.net, run.width, run.steps, run.batch, run.lr, run.warmup, run.decay, run.ema, run.seed,
               run.teacher) for run in runs}
    assert len(shared) == 1 and len(runs) == len({(run.recipe, run.distill, run.distill_weight) for run in runs})


def test_from_scratch_takes_the_steps_of_teacher_and_student_together():
    teacher = STUDY.unet(recipes=("fp16",))[0]
    row = next(row for row in grid() if row.start == "scratch")
    assert row.run(teacher, budget(STUDY)).steps == teacher.steps + STUDY.profile.ablation_steps


def test_headline_rows_come_first_and_at_every_seed():
    laptop = Study.named("laptop", "mnist")
    order = [(row.first, run.seed) for row, run in trained(laptop)]
    assert order == sorted(order)
    seeds = {row.label: {run.seed for other, run in trained(laptop) if other is row} for row, _ in trained(laptop)}
    assert all(seeds[row.label] == {0, 1, 2} for row in grid() if row.first == 1)


@pytest.mark.parametrize("net", ["unet", "resunet"])
def test_teachers_are_float_networks_of_the_better_protocol_one_per_seed(net):
    found = teachers(Study.named("paper", "mnist"), net)
    assert [run.seed for run in found] == [0, 1, 2]
    assert all((run.net, run.recipe) == (net, "fp16") and run.ema > 0 for run in found)


def test_tables_keep_the_order_of_the_file():
    labels = [row.label for row, _ in of_table(STUDY, "bidm")]
    order = [row.label for row in grid()]
    assert labels == sorted(labels, key=order.index) and labels[0] == "W1A1 XNOR"


@pytest.mark.parametrize(("text", "message"), [
    ('["a"]\nrecipe = "xnor-w1a1"\ntables = ["bidm"]\nfirst = 1\nlambda = 2\n', r"unknown key of 'a'.*lambda.*recipe"),
    ('["a"]\nrecipe = "xnor-w1a1"\ntables = ["x"]\nfirst = 1\n', r"unknown table of 'a' 'x'.*bidm"),
    ('["a"]\nrecipe = "xnor-w1a1"\ntables = ["bidm"]\nfirst = 8\n', r"unknown priority of 'a' 8"),
    ('["a"]\nrecipe = "xnor-w1a1"\ntables = ["bidm"]\nfirst = 1\nstart = "x"\n', r"unknown start of 'a' 'x'"),
    ('["a"]\nrecipe = "xnor-w1a1"\ntables = ["bidm"]\nfirst = 1\nnet = "x"\n', r"unknown net of 'a' 'x'.*resunet"),
])
def test_a_mistake_in_the_file_is_named(tmp_path, text, message):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        grid(path)


def test_networks_with_group_norm_start_from_float_ones_of_their_own():
    """Which no other notebook trains, and which are listed before the rows that need them."""
    study = Study.named("paper", "mnist")
    own = own_teachers(study)
    assert [(run.net, run.recipe, run.seed) for run in own] == [("unet-group", "fp16", seed) for seed in (0, 1, 2)]
    assert replace(own[0], net="unet") == teachers(study)[0]
    rows = [run for row, run in trained(study) if row.net == "unet-group"]
    assert {run.teacher for run in rows} == set(own)
    names = [job.entry.name for job in jobs(study)]
    assert all(names.index(results.training_entry(run.teacher).name) < names.index(results.training_entry(run).name)
               for run in rows)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in results.new_model(own[0]).modules())


def test_the_panel_sees_the_headline_alone():
    first, later = (Ablation("a", "xnor-w1a1", ("bidm",), n) for n in (2, 3))
    teacher = STUDY.unet(recipes=("fp16",))[0]
    run = first.run(teacher, budget(STUDY))
    assert set(families_of(first, run)) - set(families_of(later, run)) == {"legibility"}
    assert "mimicry" in families_of(later, run) and "mimicry" not in families_of(later, teacher)


def test_two_labels_are_compared_by_the_seeds_both_have():
    frame = pd.DataFrame({"label": ["a", "a", "a", "b", "b"], "seed": [0, 1, 2, 0, 1], "frechet": [2.0, 8, 99, 1, 2]})
    e = ablation_tables.compare(frame, "frechet", "a", "b")
    assert e.n == 2 and e.value == pytest.approx(math.sqrt(2 * 4))
    assert e.low < 2 and e.high > 4
    with pytest.raises(KeyError):
        ablation_tables.compare(frame, "frechet", "a", "c")


def test_two_labels_of_one_seed_are_compared_by_what_seeds_do_to_the_others():
    frame = pd.DataFrame({"label": ["a", "a", "b", "b", "c", "d"], "seed": [0, 1, 0, 1, 0, 1],
                          "frechet": [2.0, 8, 1, 2, 3, 3]})
    e = ablation_tables.compare(frame, "frechet", "c", "a")
    sd = math.log(2) / 2  # a over b is 2 and 4: residuals of a quarter of log 2 each, one degree of freedom
    assert (e.n, e.value) == (1, pytest.approx(1.5))
    assert e.high == pytest.approx(1.5 * math.exp(12.7062047 * sd * math.sqrt(2)), rel=1e-6)
    with pytest.raises(ValueError, match="no seed in common"):
        ablation_tables.compare(frame, "frechet", "c", "d")


def test_final_terms_average_the_last_tenth(monkeypatch):
    run = budget(STUDY)
    log = pd.DataFrame({"step": range(1, 11), "loss": [9.0] * 9 + [3.0], "penalty": 1.0})
    monkeypatch.setattr(ablation_tables.results, "loss_log", lambda run: log.assign(step=log.step * run.steps / 10))
    assert ablation_tables.final_terms(run) == {"loss": 2.0, "loss_before": 8.0, "penalty": 1.0}
    log.loc[log.step == 5, "loss"] = 4.0  # the tenth before the transition, ends included: four and five of ten
    assert ablation_tables.final_terms(run)["loss_before"] == 5.5
    log = log[log.step > 5]
    assert math.isnan(ablation_tables.final_terms(run)["loss_before"])


def test_what_the_tables_take_for_the_transition_is_where_the_binarizer_has_it():
    assert EBB(torch.randn(4, 8)).transition == ablation_tables.TRANSITION


def test_over_the_best_of_several_is_over_the_lowest_with_a_wider_interval():
    e = ablation_tables.over_best(CHOICES, "frechet", "a", ["b", "c"])
    ratios = {control: ablation_tables.compare(CHOICES, "frechet", "a", control) for control in ("b", "c")}
    worse = max(ratios, key=lambda control: ratios[control].value)
    assert e.value == ratios[worse].value != min(r.value for r in ratios.values())
    assert e.high > ratios[worse].high and e.low < ratios[worse].low


def test_claims_of_notebook_07_name_rows_of_the_grid():
    """The notebook's dictionary of ratios: every label exists, every claim is its own."""
    import json
    from pathlib import Path

    cells = json.loads(Path("notebooks/07_ablations.ipynb").read_text())["cells"]
    source = "".join(line for cell in cells for line in [*cell["source"], "\n"] if cell["cell_type"] == "code")
    body = source.split("RATIOS = ", 1)[1].split("trained = set", 1)[0].replace("RATIOS |= ", "| ")
    ratios = eval(f"({body})")
    labels, known = {row.label for row in grid()}, claims.load()
    for claim, (_, row, base) in ratios.items():
        assert {row, base} <= labels, claim
        assert known[claim].notebook == "07" and known[claim].compare == "ratio", claim


# what goes on inside a network ---------------------------------------------------------------------------------------


@pytest.fixture
def measure(tmp_path, monkeypatch):
    from onebit import paths
    from onebit.study import evaluation

    for name, folder in {"DATA": "data", "RUNS": "data/runs", "RELEASED": "data/released"}.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    tiny = Run(dataset="digits", net="unet", width=4, steps=6, batch=32, precision="float32")
    protocol = Protocol(JudgeSpec("digits", 100, 1), (), reference=200, held_out=150)

    def measure(family, **changes):
        source = Samples(replace(tiny, **changes, teacher=tiny if changes else None), SampleSpec("ddim", 5, 4))
        return evaluation.evaluate(family, source, protocol)

    return measure


def test_activity_follows_every_layer_along_a_trajectory(measure):
    found = measure("activity")
    arrays = found.arrays
    assert arrays["timesteps"].tolist() == [999, 799, 599, 399, 199]
    layers, blocks = arrays["layers"].tolist(), arrays["blocks"].tolist()
    assert "mid.conv1" in layers and not [name for name in layers if name.startswith("time_mlp")]
    assert arrays["ranges"].shape == (len(layers), 5) and (arrays["ranges"] > 0).all()
    assert arrays["similarity"].shape == (len(blocks), 4) and (abs(arrays["similarity"]) <= 1 + 1e-6).all()
    assert arrays["between"].shape == (len(blocks), 5) and (abs(arrays["between"]) <= 1 + 1e-6).all()
    for name, array in {"similarity": "similarity", "between_images": "between"}.items():
        assert found.estimates[name].value == pytest.approx(arrays[array].mean())
    assert blocks == ["down.0", "down.1", "mid", "up.0", "up.1", "up.2"]
    ratio = arrays["ranges"].max(1) / arrays["ranges"].min(1)
    assert found.estimates["range_ratio"].value == pytest.approx(ratio.mean())
    # conv_in sees the image alone: x_T is standard noise, of which 98 % lie within 2 x 2.326
    assert arrays["ranges"][layers.index("conv_in"), 0] == pytest.approx(2 * 2.326, rel=0.05)


def test_likeness_is_set_between_steps_of_an_image_and_between_images_of_a_step():
    """Two images, two steps, one block of two numbers: cosines by hand."""
    trace = _Trace(nets.build("unet", 4))
    steps = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, 1.0]]])  # (step, image, feature)
    for t, features in zip((9, 4), steps, strict=True):
        trace.called(SimpleNamespace(names=["mid"], features=[features]), torch.tensor([t]))
    half = 1 / math.sqrt(2)
    assert trace.timesteps == [9, 4]
    assert trace.alike["mid"] == pytest.approx([(half + 1) / 2])  # image 0 turns by 45 degrees, image 1 not at all
    assert trace.between["mid"] == pytest.approx([0, half])


def test_mimicry_is_the_relative_distance_of_block_outputs(measure):
    """A student of no steps that left its teacher nowhere has none; a binarized one has some."""
    far = measure("mimicry", recipe="xnor-w1a1")
    assert far.estimates["feature_distance"].value > 0.01
    assert far.estimates["feature_distance"].value == pytest.approx(far.arrays["distance"].mean(), rel=1e-5)
    near = measure("mimicry", recipe="fp16", lr=1e-12)
    assert near.arrays["distance"][0] < 1e-3 < far.arrays["distance"].max()


def test_mimicry_needs_a_teacher(measure):
    with pytest.raises(ValueError, match="has no teacher"):
        measure("mimicry")


# claims about choices ------------------------------------------------------------------------------------------------

CHOICES = pd.DataFrame({
    "label": ["a", "b", "c"] * 2, "seed": [0] * 3 + [1] * 3, "frechet": [4.0, 2, 8, 6, 3, 2],
})


def test_the_worst_of_several_rows_has_a_wider_interval_than_if_it_had_been_alone():
    e = ablation_tables.worst(CHOICES, "frechet", ["a", "b"], "c")
    alone = ablation_tables.compare(CHOICES, "frechet", "a", "c")
    assert e.n == 2 and e.value == alone.value == pytest.approx(math.sqrt(4 / 8 * 6 / 2))
    assert e.low < alone.low < 1 < alone.high < e.high
    with pytest.raises(KeyError):
        ablation_tables.worst(CHOICES, "frechet", ["a", "x"], "c")


def test_the_best_setting_is_found_seed_by_seed():
    e = ablation_tables.lowest(CHOICES, "frechet", {"a": 2, "b": 4, "c": 8})
    assert (e.value, e.n) == (6, 2)  # 4 at the first seed, 8 at the second
    one = ablation_tables.lowest(CHOICES[CHOICES.seed == 0], "frechet", {"a": 2, "b": 4, "c": 8})
    assert one.value == 4 and math.isnan(one.low)


def test_gains_are_paired_by_seed_and_have_the_interval_of_a_comparison():
    frame = ablation_tables.gains(CHOICES, "frechet", {"b": "a", "c": "a", "x": "a"})
    assert list(frame.row) == ["b", "c"] and list(frame.seeds) == [2, 2]
    assert frame.ratio.tolist() == pytest.approx([math.sqrt(2 / 4 * 3 / 6), math.sqrt(8 / 4 * 2 / 6)])
    assert frame.ratio_seed1.tolist() == pytest.approx([0.5, 1 / 3])
    e = ablation_tables.compare(CHOICES, "frechet", "b", "a")
    assert (frame.low[0], frame.high[0]) == (e.low, e.high)


def test_a_ruler_is_as_good_as_rows_are_louder_than_seeds():
    """Two rows a factor of 100 apart, whose two seeds are a factor of 4 apart, crosswise: sums of squares by hand."""
    frame = pd.DataFrame({"label": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "frechet": [1.0, 4, 400, 100],
                          "loss": [4.0, 1, 1e-3, 4e-3]})
    table = ablation_tables.rulers(frame, ["frechet", "loss"]).set_index("metric")
    step = math.log(4)
    sd = step  # residuals of +- step / 2 in four places, one degree of freedom
    for metric, apart in {"frechet": math.log(100), "loss": math.log(1e3)}.items():
        between = math.sqrt(apart**2 / 2 - sd**2 / 2)
        assert table.loc[metric, "seed"] == pytest.approx(4)
        assert table.loc[metric, "row"] == pytest.approx(math.exp(between))
        assert table.loc[metric, "times"] == pytest.approx(between / sd)
    assert table.order.tolist() == pytest.approx([1, -1])


def test_a_row_under_two_names_tells_of_the_spread_once():
    """The twin has its first seed to the last bit, and its second nearly; rows that merely tie are two."""
    (second, first), = ablations.TWINS.items()
    frame = pd.DataFrame({"label": [first, first, "b", "b"], "seed": [0, 1, 0, 1], "frechet": [1.0, 4, 400, 100]})
    twin = pd.DataFrame({"label": [second] * 2, "seed": [0, 1], "frechet": [1.0, 4.1]})
    alone, both = (ablation_tables.spread(f, "frechet")[0] for f in (frame, pd.concat([frame, twin])))
    assert alone == both and alone.degrees == 1
    assert ablation_tables.compare(pd.concat([frame, twin]), "frechet", second, "b").n == 2
    tied = twin.assign(label="c")
    assert ablation_tables.spread(pd.concat([frame, tied]), "frechet")[0].degrees == 2


def test_twins_are_one_training_with_one_result():
    """By the released losses, which agree to the last logged digit; no other two rows do."""
    laptop, losses = Study.named("laptop", "mnist"), {}
    for row, run in trained(laptop):
        if run.seed == 0:
            losses.setdefault(tuple(results.loss_log(run).loss), []).append(row.label)
    shared = [set(labels) for labels in losses.values() if len(labels) > 1]
    assert shared == [{*labels} for labels in ablations.TWINS.items()]


def test_gains_have_the_false_discovery_rate_of_benjamini_and_hochberg():
    """Of two p values the larger is its own q, and the smaller's is twice itself, or the larger if that is less."""
    frame = ablation_tables.gains(CHOICES, "frechet", {"b": "a", "c": "a"})
    spread = ablation_tables.spread(CHOICES, "frechet")[0]
    p = [spread.p_value(math.log(ratio), 2 / 2) for ratio in frame.ratio]
    assert frame.q.max() == pytest.approx(max(p)) and frame.q.min() == pytest.approx(min(2 * min(p), max(p)))
    assert ablation_tables.gains(CHOICES[CHOICES.seed == 0], "frechet", {"b": "a"}).q.isna().all()
    assert ablation_tables.gains(CHOICES, "frechet", {"x": "a"}).empty


def test_a_claim_rests_on_the_seeds_that_all_its_rows_have():
    laptop = Study.named("laptop", "mnist")
    both = ablation_tables.seeds_of(laptop, ["W1A32 base", "W1A32 +EBB"])
    assert sorted((run.seed, run.recipe) for run in both) == sorted(
        (run.seed, run.recipe) for row, run in trained(laptop) if row.label in ("W1A32 base", "W1A32 +EBB"))
    assert {run.seed for run in both} == {0, 1, 2}
    assert {run.seed for run in ablation_tables.seeds_of(laptop, ["W1A32 base", "W1A8 base"])} == {0}


def test_strided_rows_are_drawn_at_the_steps_of_other_evaluations_and_at_finer_ones():
    laptop = Study.named("laptop", "mnist")
    found = by_stride(laptop)
    assert {(row.label, steps) for row, steps, _ in found} == {(label, n) for label in STRIDED for n in (50, 200)}
    for row, steps, source in found:
        assert source.run in {run for other, run in trained(laptop) if other is row and run.seed == 0}
        assert source.request == SampleSpec("ddim", steps, laptop.profile.solver_samples, reestimated=True)


def test_networks_are_drawn_twice_with_the_same_noise_and_other_statistics():
    found = renormed(STUDY)
    labels = {label for label, _ in found}
    assert {"unet fp16, from scratch", "resunet strict-1bit, from scratch", "W1A32 base", "W1A1 BiDM"} <= labels
    assert "unet ptq-1bit" in labels  # it trains nothing, and has its float network's statistics
    for _, run in found:
        ended, anew = (source.request for source in both(STUDY, run))
        assert anew.reestimated and replace(anew, reestimated=False) == ended == STUDY.evaluation(run).request


def test_the_grid_is_measured_with_statistics_estimated_anew():
    measured = {job.entry.spec["family"]: job.entry.spec["source"]["samples"] for job in jobs(STUDY)
                if job.entry.kind == "evaluation"}
    assert {"manifold", "divergence", "legibility", "mimicry"} <= measured.keys()
    assert all(measured[family]["reestimated"] for family in ("manifold", "divergence", "legibility", "mimicry"))
    drawn = [job.entry for job in jobs(STUDY) if job.entry.kind == "samples"]
    assert {entry.spec["samples"]["n"] for entry, shown in ((job.entry, job.shown) for job in jobs(STUDY))
            if entry in drawn and shown} == {pictured(STUDY).n}  # whole sets would be too many bytes


def test_wins_are_counted_sampler_by_sampler():
    frame = pd.DataFrame({"label": ["a", "b"] * 3, "seed": 0, "sampler": ["x", "x", "y", "y", "z", "z"],
                          "frechet": [1.0, 2, 1, 2, 3, 2]})
    e = ablation_tables.wins(frame, "a", "b")
    assert e.value == pytest.approx(2 / 3) and e.n == 1


def test_rows_by_sampler_differ_in_the_sampler_alone():
    found = by_sampler(STUDY)
    assert {row.label for row, _, _ in found} == set(SAMPLED) and {s for _, s, _ in found} == set(SAMPLERS)
    assert all(source == Samples(source.run, replace(STUDY.reestimated(source.run).request, sampler=sampler))
               for _, sampler, source in found)


def test_a_row_may_take_a_share_of_the_steps():
    row, plain = (Ablation("a", "xnor-w1a1", ("bidm",), 4, steps=steps) for steps in (0.5, 1.0))
    teacher, whole = STUDY.unet(recipes=("fp16",))[0], budget(STUDY)
    assert row.run(teacher, whole) == replace(plain.run(teacher, whole), steps=round(whole.steps / 2))


def test_every_training_is_drawn_again_with_noise_on_the_way_and_nothing_else_changed():
    asked = {}
    for job in jobs(STUDY):
        if job.entry.kind == "evaluation" and job.entry.spec["family"] == "headline":
            source = job.entry.spec["source"]
            asked.setdefault(source["samples"]["sampler"], []).append(source)
    for _, run in trained(STUDY):
        noised = Samples(run, replace(STUDY.reestimated(run).request, sampler="ddim-eta1"))
        assert STUDY.stochastic(run) == noised and noised.spec in asked["ddim-eta1"]


def test_handovers_are_a_row_for_every_network_sampler_and_timestep(monkeypatch):
    sources = {("a", 0, "ddim"): 1, ("b", 1, "ddpm"): 2}
    monkeypatch.setattr(ablation_tables.ablations, "finishing", lambda study: sources)

    def evaluate(family, source):
        found = {f"frechet_from_{t}": SimpleNamespace(value=source + t, low=t, high=2 * t) for t in (0, 999)}
        return SimpleNamespace(estimates=found)

    frame = ablation_tables.handovers(SimpleNamespace(evaluate=evaluate))
    assert frame.to_dict("list") == {
        "label": ["a", "a", "b", "b"], "seed": [0, 0, 1, 1], "sampler": ["ddim", "ddim", "ddpm", "ddpm"],
        "timestep": [0, 999, 0, 999],
        "frechet": [1, 1000, 2, 1001], "low": [0, 999, 0, 999], "high": [0, 1998, 0, 1998]}
