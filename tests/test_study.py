"""Runs, profiles and keyed results, on the embedded digits."""

import io
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from onebit import data, paths, recipes
from onebit.batches import STATISTICS, Batches
from onebit.diffusion import noise_loss
from onebit.errors import DataUnavailable, EngineUnavailable
from onebit.study import PROFILES, Run, SampleSpec, Study, cache, engines, evaluation, fitted, results, tables
from onebit.study.__main__ import main

TINY = Run(dataset="digits", net="unet", width=4, steps=20, batch=32, lr=1e-3, ema=0.9, precision="float32")
FEW = SampleSpec("ddim", 4, 140)


def test_every_field_of_a_run_changes_its_key():
    other = {
        "dataset": "digits:1",
        "net": "resunet",
        "width": 8,
        "recipe": "strict-1bit",
        "steps": 21,
        "batch": 16,
        "lr": 2e-3,
        "warmup": 1,
        "decay": "cosine",
        "ema": 0.5,
        "seed": 1,
        "precision": "bfloat16",
    }
    student = replace(TINY, recipe="xnor-w1a1", teacher=TINY)
    distilled = replace(student, distill="spd", distill_weight=0.01)
    more = [student, distilled, replace(distilled, distill="lrm"), replace(distilled, distill_weight=0.1),
            replace(student, teacher=replace(TINY, steps=30))]
    assert {*other, "teacher", "distill", "distill_weight"} == {f.name for f in fields(Run)}
    runs = [TINY, *(replace(TINY, **{k: v}) for k, v in other.items()), *more]
    assert len({results.training_entry(run).key for run in runs}) == len(runs)


@pytest.mark.parametrize(("changes", "message"), [
    ({"distill": "lrm"}, "contradict"),
    ({"distill_weight": 1.0}, "contradict"),
    ({"distill": "lrm", "distill_weight": 1.0}, "needs a teacher"),
    ({"distill": "l3", "distill_weight": 1.0, "teacher": TINY}, "valid: l2, lrm, spd"),
    ({"teacher": replace(TINY, width=8)}, "differ in width"),
    ({"teacher": replace(TINY, dataset="digits:1")}, "differ in dataset"),
    ({"teacher": replace(TINY, recipe="strict-1bit")}, "float run"),
])
def test_a_teacher_and_a_distillation_must_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"steps": 30}, {"lr": 2e-3}])
def test_a_number_out_of_numpy_gives_the_key_and_the_label_of_pythons(changes):
    theirs = {name: np.array(value)[()] for name, value in changes.items()}
    run, other = replace(TINY, **changes), replace(TINY, **theirs)
    assert isinstance(next(iter(theirs.values())), np.generic)
    assert results.training_entry(other) == results.training_entry(run)
    student, twin = (replace(one, recipe="xnor-w1a1", teacher=one) for one in (run, other))
    assert results.training_entry(twin).name == results.training_entry(student).name


def test_the_key_of_a_run_is_pinned():
    """It names folders that are committed: if this fails, every released result is orphaned."""
    assert results.training_entry(Run()).key == PINNED_KEY


PINNED_KEY = "7cd45ae852f7"


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("dataset", "cifar", "mnist"),
        ("dataset", "mnist:x", "mnist:01"),
        ("dataset", "mnist@x", "mnist@200"),
        ("net", "vit", "resunet"),
        ("recipe", "1bit", "strict-1bit"),
        ("decay", "step", "cosine"),
    ],
)
def test_a_bad_field_lists_the_valid_ones(field, value, valid):
    with pytest.raises(ValueError, match=valid):
        replace(TINY, **{field: value})


def test_unknown_profile_and_subset_as_data_set_are_refused():
    with pytest.raises(ValueError, match=r"smoke.*laptop.*paper"):
        Study.named("huge", "mnist")
    with pytest.raises(ValueError, match="chooses class subsets itself"):
        Study.named("smoke", "mnist:1")


def test_the_paper_profile_is_the_published_protocol_and_a_better_one():
    """Source 000: width 64, 20 epochs of 468 batches, Adam 1e-3 constant, no averaging."""
    runs = Study.named("paper", "mnist").resunet(recipes=("fp16",))
    published, modern = runs[0], runs[-1]
    assert (published.width, published.steps, published.batch, published.lr) == (64, 9_360, 128, 1e-3)
    assert (published.warmup, published.decay, published.ema) == (0, "constant", 0.0)
    assert modern.ema > 0 and modern.decay == "cosine" and modern.steps == published.steps
    assert len({run.seed for run in runs}) >= 3


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("dataset", ["mnist", "digits"])
def test_the_grid_holds_every_arm_of_the_study_once(profile, dataset):
    study = Study.named(profile, dataset)
    assert {run.recipe for run in study.unet()} == {"fp16", "strict-1bit", "ptq-1bit"}
    for subset in ("", ":01", ":1"):
        arms = study.resunet(subset)
        assert {run.recipe for run in arms} == {"fp16", "published-1bit", "strict-1bit", "ptq-1bit"}
        assert {run.dataset for run in arms} == {dataset + subset}
    names = [job.entry.name for job in study.jobs()]
    assert len(names) == len(set(names))
    assert len({run.width for run in study.resunet()}) == 1


@pytest.mark.parametrize(("family", "kind", "key"), [
    ("headline", "held-out", "f9176462b93a"), ("distribution", "blend", "e4f660b8dd41"),
])
def test_the_keys_of_measurements_are_pinned(family, kind, key):
    """As released: a field added to the protocol, a control or a sample request must not orphan them."""
    study = Study.named("laptop", "mnist")
    assert evaluation.entry(family, study.control(kind), study.protocol).key == key


@pytest.mark.parametrize("profile", PROFILES)
def test_the_grid_measures_every_arm_of_a_subset_beside_its_controls_and_the_published_sampler(profile):
    study = Study.named(profile, "mnist")
    names = {job.entry.name for job in study.jobs()}
    for subset in (":01", ":1"):
        sources = [*study.subset_controls(subset), *map(study.evaluation, study.resunet(subset))]
        assert {evaluation.entry("subset", source, study.subset_protocol(subset)).name for source in sources} <= names
        assert study.subset_protocol(subset).judge == study.judges[0]  # the judge of all classes
    for run in study.solver_runs:
        request = study.ancestral(run).request
        assert (request.sampler, request.n) == ("ddpm", study.profile.solver_samples)
        assert request.steps == (10 if profile == "smoke" else 1_000)
        assert study.solved(run)[-1] == study.ancestral(run)
        assert {evaluation.entry("headline", source, study.protocol).name for source in study.solved(run)} <= names


@pytest.mark.parametrize("profile", ["smoke", "laptop", "paper"])
def test_the_two_networks_of_source_000_have_more_seeds_than_other_arms(profile):
    study = Study.named(profile, "mnist")
    seeds = {}
    for run in study.resunet():
        seeds.setdefault(run.recipe, set()).add(run.seed)
    size = study.profile
    assert seeds["fp16"] == seeds["published-1bit"] == set(size.headline_seeds) > set(size.resunet_seeds)
    assert seeds["strict-1bit"] == seeds["ptq-1bit"] == set(size.resunet_seeds)
    assert {run.seed for run in study.resunet(":1")} == set(size.subset_seeds)


def test_smoke_compares_with_few_training_images_and_the_other_profiles_with_all():
    smoke, laptop = (Study.named(profile, "mnist") for profile in ("smoke", "laptop"))
    assert smoke.protocol.dataset == "mnist@2000" and smoke.subset_protocol(":1").dataset == "mnist:1@2000"
    assert laptop.protocol.dataset == "mnist" and laptop.subset_protocol(":1").dataset == "mnist:1"
    assert Study.named("smoke", "digits").protocol.dataset == "digits"  # which has fewer
    assert smoke.protocol.control in smoke.controls and smoke.evaluation(smoke.memorizer).dataset == "mnist"
    assert all(0 < run.steps < 60 for run in smoke.all_runs)


def test_a_run_is_trained_and_sampled_from_keyed_results(home):
    images = results.samples(TINY, FEW)
    assert images.shape == (140, 1, 16, 16) and images.dtype == torch.uint8
    assert {p.name.split("-")[0] for p in cache.paths.RUNS.glob("*-*")} == {"train", "samples"}
    log = results.loss_log(TINY)
    assert list(log.columns) == ["step", "loss", "lr", "sign_flips"] and np.isfinite(log.loss).all()
    assert list(results.snapshots(TINY)) == [1, 4, 10, 20]


def test_released_results_need_no_data(home, monkeypatch):
    first = results.samples(TINY, FEW)
    for folder in list(cache.paths.RUNS.glob("[a-z]*")):
        cache.release(folder)
    monkeypatch.setattr(cache.paths, "RUNS", home / "elsewhere")

    def unavailable(*_):
        raise DataUnavailable("cut off")

    monkeypatch.setattr(data, "load", unavailable)
    assert torch.equal(results.samples(TINY, FEW), first)
    assert results.weights(TINY, average=True).training is False
    with pytest.raises(DataUnavailable):
        results.training(replace(TINY, seed=1))


def test_post_training_binarization_trains_nothing_of_its_own(home):
    afterwards = replace(TINY, recipe="ptq-1bit")
    assert results.training(afterwards) == results.training(TINY)
    latent, binary = results.weights(TINY), results.weights(afterwards)
    assert torch.equal(latent.mid.conv1.weight, binary.mid.conv1.weight)
    levels = binary.mid.conv1.quantized_weight()[0].unique()
    assert len(levels) == 2 and levels[0] == -levels[1]


def test_networks_fitted_after_training_need_no_training_of_their_own(home):
    """Calibrated ones are nearer to their float network than those whose weights alone were looked at."""
    x, timestep = torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(0, 1000, 63)
    far = []
    for method in ("nearest", "calibrated"):
        run = replace(TINY, recipe=fitted.recipe(method, 2))
        assert results.training(run) == results.training(TINY)
        with torch.no_grad():
            far.append(float((results.weights(run)(x, timestep) - results.weights(TINY)(x, timestep)).square().mean()))
    assert far[1] < far[0] / 2


def test_all_arms_of_a_seed_start_from_the_same_weights():
    a, b = results.new_model(TINY), results.new_model(replace(TINY, recipe="strict-1bit"))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    c = results.new_model(replace(TINY, seed=1))
    assert not torch.equal(a.mid.conv1.weight, c.mid.conv1.weight)


def test_statistics_estimated_anew_are_means_over_the_runs_own_first_batches(home):
    """Twenty batches, as many as the run had; everything else is as it was."""
    plain, anew = results.weights(TINY), results.weights(TINY, reestimated=True)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), anew.parameters(), strict=True))
    batches, seen = Batches(data.load("digits").images, TINY.settings, STATISTICS), []
    hook = plain.norm_out.register_forward_pre_hook(lambda m, args: seen.append(args[0].mean(dim=(0, 2, 3))))
    with torch.no_grad():
        for step in range(20):
            noise_loss(plain.train(), *batches(step))
    hook.remove()
    torch.testing.assert_close(anew.norm_out.running_mean, torch.stack(seen).mean(0), rtol=1e-4, atol=1e-5)
    assert not anew.training and anew.norm_out.momentum == plain.norm_out.momentum


def test_statistics_are_estimated_once_for_a_network_and_its_average(home, monkeypatch):
    first = {average: results.weights(TINY, average, reestimated=True) for average in (False, True)}
    monkeypatch.setattr(results, "reestimate", lambda *_: pytest.fail("estimated a second time"))
    for average, model in first.items():
        again = results.weights(TINY, average, reestimated=True).state_dict()
        assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(first[False].norm_out.running_mean, first[True].norm_out.running_mean)


def test_statistics_come_out_the_same_twice(home):
    first = results.statistics(TINY, results.weights(TINY))
    for folder in paths.RUNS.glob("statistics-*"):
        shutil.rmtree(folder)
    again = results.statistics(TINY, results.weights(TINY))
    assert set(first) == set(again) and all(torch.equal(again[name], value) for name, value in first.items())


def test_a_network_is_fitted_on_data_once_and_comes_back_bit_for_bit(home, monkeypatch):
    run = replace(TINY, recipe=fitted.recipe("calibrated", 2))
    first = results.weights(run)
    monkeypatch.setattr(results, "quantize_trained", lambda *_: pytest.fail("fitted a second time"))
    again = results.weights(run)
    assert not again.training and again.state_dict().keys() == first.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in first.state_dict().items())
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 500])
    assert torch.equal(first(x, t), again(x, t)) and again.recipe == recipes.recipe(run.recipe)


def test_statistics_that_lack_a_batch_norm_of_the_network_are_no_silent_success(home, monkeypatch):
    found = dict(results.statistics(TINY, results.weights(TINY)))
    found.pop("norm_out.running_mean")
    monkeypatch.setattr(results, "statistics", lambda *_: found)
    with pytest.raises(KeyError, match=r"norm_out\.running_mean"):
        results.weights(TINY, reestimated=True)


def test_a_network_without_batch_norms_has_no_statistics_to_estimate(home, monkeypatch):
    monkeypatch.setattr(results, "statistics", lambda *_: pytest.fail("there is nothing to estimate"))
    results.weights(replace(TINY, net="unet-group"), reestimated=True)


def test_a_request_for_other_statistics_has_a_key_of_its_own_and_orphans_no_other():
    plain, anew = SampleSpec(), SampleSpec(reestimated=True)
    assert "reestimated" not in plain.spec and anew.spec == plain.spec | {"reestimated": True}
    assert results.samples_entry(TINY, plain).key != results.samples_entry(TINY, anew).key


def test_averaged_weights_of_a_run_without_them_are_refused(home):
    with pytest.raises(ValueError, match="keeps no averaged weights"):
        results.weights(replace(TINY, ema=0.0), average=True)


def test_weights_loaded_in_a_new_process_compute_the_same_bits(home):
    run = replace(TINY, recipe="strict-1bit")
    results.training(run)
    script = (
        "import sys, torch; from pathlib import Path; from onebit import paths\n"
        "torch.set_num_threads(1); paths.RUNS = Path(sys.argv[1])\n"
        "from onebit.study import results; from onebit.study.run import Run\n"
        f"model = results.weights({run!r})\n"
        "x = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)\n"
        "with torch.no_grad(): print(model(x, torch.tensor([500])).double().numpy().tobytes().hex())\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(cache.paths.RUNS)], capture_output=True, text=True, check=True
    )
    with torch.no_grad():
        here = results.weights(run)(torch.linspace(-1, 1, 256).view(1, 1, 16, 16), torch.tensor([500]))
    assert out.stdout.strip() == here.double().numpy().tobytes().hex()


class TestPrepare:
    """The three cases of `make paper`, each said in one line."""

    @staticmethod
    def call(*arguments):
        out = io.StringIO()
        with redirect_stdout(out):
            status = main(["prepare", *arguments])
        return status, out.getvalue().split()

    @pytest.fixture
    def computed(self, monkeypatch):
        calls = []
        monkeypatch.setattr(engines, "run", lambda jobs, *how: calls.append([job.entry.name for job in jobs]) or [])
        return calls

    @staticmethod
    def names(profile, dataset):
        return [job.entry.name for job in Study.named(profile, dataset).jobs()]

    def test_everything_there_renders_whatever_data_is_present(self, home, computed, monkeypatch, capsys):
        monkeypatch.setattr(cache, "find", lambda entry: home)
        monkeypatch.setattr(data, "available", lambda name: False)
        assert self.call("--profile", "laptop") == (0, ["mnist", "laptop"])
        assert "rendering" in capsys.readouterr().err and computed == []

    def test_something_missing_with_data_at_hand_is_computed(self, home, computed, monkeypatch, capsys):
        monkeypatch.setattr(data, "available", lambda name: True)
        assert self.call("--profile", "smoke") == (0, ["mnist", "smoke"])
        assert "computing" in capsys.readouterr().err and computed == [self.names("smoke", "mnist")]

    def test_something_missing_without_data_runs_on_digits_and_says_so(self, home, computed, monkeypatch, capsys):
        monkeypatch.setattr(data, "available", lambda name: name == "digits")
        assert self.call("--profile", "smoke") == (0, ["digits", "smoke"])
        assert "embedded digits instead" in capsys.readouterr().err and computed == [self.names("smoke", "digits")]

    def test_a_data_set_asked_for_by_name_is_never_swapped(self, home, computed, monkeypatch, capsys):
        monkeypatch.setattr(data, "available", lambda name: False)
        assert self.call("--profile", "smoke", "--dataset", "kmnist") == (1, [])
        assert "DATASET=digits" in capsys.readouterr().err and computed == []

    def test_failed_runs_fail_the_command_and_are_named_at_the_end(self, home, monkeypatch, capsys):
        monkeypatch.setattr(data, "available", lambda name: True)
        monkeypatch.setattr(engines, "run", lambda jobs, *how: [engines.Failure(jobs[0], "ValueError: boom")])
        assert self.call("--profile", "smoke")[0] == 1
        assert capsys.readouterr().err.endswith("judge-mnist-s0-" + Study.named("smoke", "mnist").jobs()[0].entry.key
                                                + ": ValueError: boom\n")

    def test_an_unknown_engine_is_refused_with_the_names_of_all(self, home, capsys):
        with pytest.raises(SystemExit):
            main(["prepare", "--engine", "threads"])
        said = capsys.readouterr().err
        assert all(name in said for name in engines.ENGINES)

    def test_an_engine_that_cannot_be_started_fails_the_command_in_one_line(self, home, monkeypatch, capsys):
        monkeypatch.setattr(data, "available", lambda name: True)

        def unavailable(*how):
            raise EngineUnavailable("no scheduler answers")

        monkeypatch.setattr(engines, "run", unavailable)
        assert self.call("--profile", "smoke") == (1, [])
        assert capsys.readouterr().err.splitlines()[-1] == "no scheduler answers"


def test_latent_weights_put_output_channels_first(home):
    tensors = tables.latent_weights(TINY)
    model = results.weights(TINY)
    assert torch.equal(tensors["mid.conv1"], model.mid.conv1.weight)
    assert torch.equal(tensors["upsample.0"], model.upsample[0].weight.transpose(0, 1))
    assert "conv_in" not in tensors and not any("time" in name for name in tensors)


def test_what_make_paper_asks_first_does_not_wait_for_slow_imports():
    """A `make paper` with nothing to do imports the study, and no pandas, scipy, scikit-learn or plotting with it."""
    script = "import sys, onebit.study.__main__; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in out and not {"pandas", "scipy", "sklearn", "matplotlib", "diffusers", "torchvision"} & set(out)


def test_release_resolves_auto_as_prepare_does(home, capsys):
    """Nothing is computed in this home: it names the first missing result of mnist, and fails."""
    assert main(["release"]) == 1
    assert "judge-mnist-s0" in capsys.readouterr().err
