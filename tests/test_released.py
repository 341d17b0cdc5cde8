"""Results as they are committed: complete, sound, small; and as good as the ones they were made of."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from onebit import paths
from onebit.audit import audit
from onebit.files import digest, sha256
from onebit.layers import quantized_layers
from onebit.packing import Stored
from onebit.quantizers import weight_rule
from onebit.study import Run, Study, ablations, cache, golden, judging, longer, release, results, scaling, scarce
from onebit.study.__main__ import main
from onebit.study.arrays import load_arrays, save_arrays
from onebit.study.release import Kept
from onebit.study.study import Job

COMMITTED = sorted(path for path in paths.RELEASED.iterdir())
TINY = Run(dataset="digits", net="unet", width=4, steps=20, batch=32, lr=2e-3, ema=0.9, precision="float32")
STRICT = replace(TINY, recipe="strict-1bit")
STUDENT = replace(TINY, recipe="binarydm-base-w1a4", teacher=TINY, ema=0.0)


# what is committed ----------------------------------------------------------------------------------------------------


def test_committed_results_are_small():
    sizes = {file: file.stat().st_size for folder in COMMITTED for file in folder.iterdir()}
    assert sum(sizes.values()) < 80e6
    assert max(sizes.values()) <= release.LARGEST == 8_000_000


def test_every_committed_folder_is_what_its_manifest_says():
    assert len(COMMITTED) > 400
    for folder in COMMITTED:
        told = cache.manifest(folder)
        found = {file.name: sha256(file) for file in folder.iterdir() if file.name != cache.MANIFEST}
        assert found == told["files"], folder.name
        assert told["key"] == digest({"kind": told["kind"]} | told["spec"]), folder.name
        assert folder.name.startswith(f"{told['kind']}-") and folder.name.endswith(f"-{told['key']}")
        assert told["form"] == release.FORM and told["provenance"]["torch"] and "facts" in told


def test_no_committed_folder_is_asked_for_by_nobody():
    studies = [Study.named("laptop", dataset) for dataset in ("mnist", "digits")]
    asked = {job.entry.name for study in studies for job in study.jobs() if job.shown} | {golden.entry().name}
    assert {folder.name for folder in COMMITTED} <= asked


def test_committed_weights_are_stored_as_their_manifests_say():
    forms = {"float32": torch.float32, "float16": torch.float16}
    for folder in (folder for folder in COMMITTED if folder.name.startswith(("train-", "judge-"))):
        told = cache.manifest(folder)["weights"]
        stored = {name: form for name, form in told.items() if form != release.LEFT_OUT}
        assert set(stored) == {file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".packed")}
        for name, form in stored.items():
            if form != "packed":
                wide = [x for x in load_file(folder / name).values() if x.numel() > max(x.shape, default=1)]
                bits = sum(x.numel() for x in wide if x.dtype == forms[form]) / sum(x.numel() for x in wide)
                assert bits > 0.9, (folder.name, name)


def test_committed_weights_load_as_float32_networks():
    study = Study.named("laptop", "mnist")
    chosen = [*study.unet(), *study.resunet(), *(run for _, run in ablations.trained(study))]
    for run in (run for run in chosen if run.seed == 0 and cache.find(results.training_entry(run))):
        model = results.weights(run)
        assert all(x.dtype == torch.float32 and x.isfinite().all() for x in model.parameters())
        with torch.inference_mode():
            assert model(torch.zeros(1, 1, 28, 28), torch.tensor([500])).abs().mean() < 10


# how it is made -------------------------------------------------------------------------------------------------------


def test_half_precision_loses_no_sign_and_no_number_that_it_cannot_hold():
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    w[0, :4] = torch.tensor([-1e-12, 1e-12, 0.0, -0.0])
    narrow = release.halved(w)
    assert narrow.dtype == torch.float16
    assert torch.equal(narrow.sign(), w.sign().half())  # torch alone would make zeros of the first two
    assert (narrow.double() - w.double()).abs().max() <= 2.0**-11 * w.abs().max()
    assert torch.equal(release.halved(narrow.float()), narrow)
    for kept in (w * 1e6, w * 1e-9, w[:, 0], w[:, :1, None, None], torch.arange(6).view(2, 3)):
        assert torch.equal(release.halved(kept), kept) and release.halved(kept).dtype == kept.dtype


@pytest.mark.parametrize("rule", ["sign", "xnor", "centred", "reactnet", "lsq:2", "lsq:4", "ebb", "residual:2"])
def test_codes_survive_half_precision_even_where_weights_crowd_at_thresholds(rule):
    """Half of each channel's weights lie within 1e-6 of its mean, 0.1, as those of trained centred layers do."""
    w = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    w[:, :8] -= w[:, :8].mean((1, 2, 3), keepdim=True)
    w[:, 8:] *= 1e-6
    w += 0.1
    made, rounded = weight_rule(rule, w), release.halved(w)
    if rule == "centred":  # else this would show nothing
        assert not torch.equal(made.codes(rounded.float()), made.codes(w))
    kept = release.same_codes(made, w, rounded)
    assert kept.dtype == torch.float16 and torch.equal(made.codes(kept.float()), made.codes(w))
    assert (kept.float() - w).abs().max() < 2.0**-9 * w.abs().max()


def computed(run, kept):
    """A run's released folder, and the outputs and codes that its network had before."""
    folder = results.training(run, progress=False)
    model = results.weights(run)
    released = cache.release(folder, partial(release.convert, kept=kept), release.FORM)
    return released, outputs(model), codes_of(model)


def codes_of(model):
    return {name: layer.rule.codes(layer.weight) for name, layer in quantized_layers(model).items()}


def outputs(model):
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(x, torch.tensor([10, 300, 600, 990]))


@pytest.mark.parametrize(("run", "form"), [(TINY, "float32"), (TINY, "float16"), (STRICT, "float16")])
def test_a_released_network_computes_what_it_computed(home, run, form):
    folder, before, codes = computed(run, Kept(run, form, averaged=True))
    assert cache.find(results.training_entry(run)) == folder == paths.RELEASED / folder.name
    model = results.weights(run)
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=0 if form == "float32" else 5e-3)
    assert all(torch.equal(found, codes[name]) for name, found in codes_of(model).items())
    told, own = cache.manifest(folder), cache.manifest(paths.RUNS / folder.name)
    assert told["weights"] == {"ema.safetensors": "float16", "model.safetensors": form}
    assert all(told[key] == own[key] for key in ("key", "spec", "facts", "provenance", "elapsed_seconds"))
    assert results.weights(run, average=True).training is False


def test_teachers_are_released_as_they_are_1_bit_students_and_later_strict_seeds_as_bits():
    study = Study.named("laptop", "mnist")
    plan = release.trainings(study)
    assert {plan[results.training_entry(run).name].weights for run in longer.runs(study)} == {release.LEFT_OUT}
    forms = {(kept.run.net, kept.run.recipe, kept.run.seed, kept.run.teacher is None): kept.weights
             for kept in plan.values() if kept.run.dataset == "mnist" and kept.run.width == 16
             and kept.run.steps < study.profile.long_steps}
    assert forms["unet", "fp16", 0, True] == "float32"
    assert forms["unet", "strict-1bit", 0, True] == forms["resunet", "published-1bit", 1, True] == "float16"
    assert forms["unet", "strict-1bit", 1, True] == forms["unet", "bidm-w1a1", 0, False] == "packed"
    assert forms["unet", "bonsai-binary-g128", 1, False] == "packed"
    changed = "binarydm-base-w1a32 weights=ebb"  # of a recipe with a part changed the first seed's weights are enough
    assert forms["unet", changed, 0, False] == "packed" and forms["unet", changed, 1, False] == release.LEFT_OUT


@pytest.mark.parametrize("run", [STUDENT, replace(STRICT, seed=1)], ids=["student", "strict"])
def test_bits_that_are_released_compute_what_the_network_computed(home, run):
    folder, before, codes = computed(run, Kept(run, "packed", averaged=False))
    own = audit(results._loaded(run, paths.RUNS / folder.name, average=False))
    model = results.weights(run)
    assert cache.manifest(folder)["weights"] == {results.PACKED: "packed"}
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=1e-6)
    assert all(isinstance(layer.rule, Stored) for layer in quantized_layers(model).values())
    assert all(torch.equal(found, codes[name]) for name, found in codes_of(model).items())
    assert audit(model).bits_per_weight == own.bits_per_weight and audit(model).parameters == own.parameters
    assert (folder / results.PACKED).stat().st_size < (paths.RUNS / folder.name / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("run", "form"), [(TINY, "float16"), (STRICT, "packed")])
def test_averaged_weights_that_nobody_samples_from_are_not_released_and_asking_for_them_says_so(home, run, form):
    folder, *_ = computed(run, Kept(run, form, averaged=False))
    shutil.rmtree(paths.RUNS / folder.name)
    with pytest.raises(FileNotFoundError, match="FROM_SCRATCH=1"):
        results.weights(run, average=True)


def test_weights_that_nothing_reads_are_left_out_and_asking_for_them_says_so(home):
    folder = results.training(TINY, progress=False)
    released = cache.release(folder, partial(release.convert, kept=Kept(TINY, release.LEFT_OUT, False)), release.FORM)
    assert cache.manifest(released)["weights"] == {"model.safetensors": "left out"}
    assert {path.name for path in released.iterdir()} == {"loss.csv", "snapshots.npz", "manifest.json"}
    assert len(results.loss_log(TINY)) > 0 and results.facts(TINY)["parameters"] > 0
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors of .* is not released: FROM_SCRATCH=1"):
        results.weights(TINY)


@pytest.mark.parametrize("average", [False, True])
def test_weights_that_were_left_out_of_a_release_are_those_that_were_computed_here(home, average):
    results.training(TINY, progress=False)
    before = results.weights(TINY, average).state_dict()
    cache.release(results.training(TINY), partial(release.convert, kept=Kept(TINY, release.LEFT_OUT, False)),
                  release.FORM)
    assert results.training(TINY).parent == paths.RELEASED
    after = results.weights(TINY, average).state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())


@pytest.mark.parametrize(("run", "form"), [(TINY, "float16"), (STRICT, "packed")])
def test_weights_are_left_out_of_a_copy_whose_original_is_gone_and_nothing_else_is_asked_of_it(home, run, form):
    folder, *_ = computed(run, Kept(run, form, averaged=False))
    shutil.rmtree(paths.RUNS / folder.name)
    for kept in (Kept(run, "float32", False), Kept(run, release.LEFT_OUT, False), Kept(run, form, False)):
        cache.release(folder, partial(release.convert, kept=kept), release.FORM, kept.wanted)
        stored = cache.manifest(folder)["weights"]
        assert set(stored.values()) == {form if kept.weights == "float32" else release.LEFT_OUT}
        assert any(folder.glob("model.*")) == (kept.weights == "float32")


def test_no_weights_of_networks_on_few_classes_or_images_nor_of_extra_seeds_are_released():
    study = Study.named("laptop", "mnist")
    plan = {kept.run: kept.weights for kept in release.trainings(study).values()}
    for run in study.resunet(recipes=("published-1bit",)):
        assert plan[run] == (release.LEFT_OUT if run.seed > 2 else "float16")
    for run in study.resunet(":01", ("fp16", "strict-1bit")):
        assert plan[run] == release.LEFT_OUT
    assert {plan[run] for run in scarce.runs(study)} == {release.LEFT_OUT}
    widths = {(run.recipe, run.width, run.seed): plan[run] for run in scaling.runs(study)}
    assert {form for (_, width, seed), form in widths.items() if width == 2 or (width, seed) == (8, 1)} == {
        release.LEFT_OUT}
    assert widths["strict-1bit", 8, 0] == release.LEFT_OUT and widths["fp16", 16, 1] == "float32"  # a teacher
    assert plan[study.memorizer] == release.LEFT_OUT  # its samples can be looked at


def test_arrays_are_compressed_again_only_where_that_pays_and_stay_the_same(tmp_path):
    images = np.zeros((500, 28, 28), np.uint8)
    images[:, 8:20, 8:20] = np.random.default_rng(0).integers(0, 4, (500, 12, 12)) * 64
    for name, arrays in (("large", {"images": images, "empty": np.zeros((0, 5))}), ("small", {"x": np.arange(3)})):
        path = tmp_path / f"{name}.npz"
        save_arrays(path, **arrays)
        before = path.read_bytes()
        release.recompress(path)
        again = path.read_bytes()
        assert len(again) < len(before) if name == "large" else again == before
        loaded = load_arrays(path)
        assert all(np.array_equal(loaded[key], x) and loaded[key].dtype == x.dtype for key, x in arrays.items())
        release.recompress(path)
        assert path.read_bytes() == again


def test_a_file_that_is_too_large_is_refused_by_name(home, monkeypatch):
    monkeypatch.setattr(release, "LARGEST", 1_000)
    with pytest.raises(ValueError, match=f"{results.training_entry(TINY).name}/.* has .* bytes"):
        computed(TINY, Kept(TINY, "float16", averaged=False))
    assert cache.find(results.training_entry(TINY)).parent == paths.RUNS


def test_release_converts_every_result_of_a_study_and_the_golden_run(home, monkeypatch, capsys):
    study = Study.named("smoke", "digits")
    teacher = study.unet(recipes=("fp16",))[0]
    student = next(run for _, run in ablations.trained(study) if run.teacher == teacher)
    jobs = [Job(judging.judge_entry(study.judges[0]), partial(judging.judge, study.judges[0])),
            *(Job(results.training_entry(run), partial(results.training, run)) for run in (teacher, student))]
    monkeypatch.setattr(Study, "jobs", lambda self: jobs)
    command = ["release", "--profile", "smoke", "--dataset", "digits"]
    assert main(command) == 1 and jobs[0].entry.name in capsys.readouterr().err
    for job in jobs:
        job.compute()
    assert main(command) == 0
    forms = {folder.name.split("-")[0] + "-" + form for folder in paths.RELEASED.iterdir()
             for form in cache.manifest(folder)["weights"].values()}
    assert forms == {"judge-float16", "train-float32", "train-float16", "train-packed"}
    assert {folder.name for folder in paths.RELEASED.iterdir()} == {job.entry.name for job in jobs} | {
        golden.entry().name}
    stamps = {file: file.stat().st_mtime_ns for folder in paths.RELEASED.iterdir() for file in folder.iterdir()}
    assert main(command) == 0
    assert stamps == {file: file.stat().st_mtime_ns for folder in paths.RELEASED.iterdir() for file in folder.iterdir()}
