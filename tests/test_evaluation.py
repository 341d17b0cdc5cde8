"""Families of metrics as keyed results: recomputed from their parts, and controls that behave as they must."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from onebit import data, metrics
from onebit.errors import DataUnavailable
from onebit.judge import look
from onebit.study import (
    Control,
    JudgeSpec,
    Protocol,
    Run,
    Samples,
    SampleSpec,
    Walk,
    cache,
    evaluation,
    families,
    graph,
    judging,
    results,
)
from onebit.study.evaluation import evaluate
from onebit.study.families import CUTOFFS
from onebit.study.sources import PackedSamples

TINY = Run(dataset="digits", net="unet", width=4, steps=20, batch=32, lr=1e-3, ema=0.9, precision="float32")
N = 200


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One home for the whole module, so that its judge is trained once."""
    from onebit import paths

    home, patch = tmp_path_factory.mktemp("home"), pytest.MonkeyPatch()
    for name, folder in {"DATA": "data", "RUNS": "data/runs", "RELEASED": "data/released"}.items():
        patch.setattr(paths, name, home / folder)
    evaluation.real_features.cache_clear()
    yield home
    evaluation.real_features.cache_clear()
    patch.undo()


@pytest.fixture
def protocol(shared):
    return Protocol(JudgeSpec("digits", 0, 10), (JudgeSpec("digits", 0, 2, seed=1),), reference=900, held_out=N)


def control(kind, level=0.0):
    return Control("digits", kind, N, level)


def values(family, source, protocol):
    return {name: e.value for name, e in evaluate(family, source, protocol).estimates.items()}


def test_the_headline_is_that_of_its_parts(protocol):
    """Features of the stored samples against features of the training images, by the other functions."""
    source = Samples(TINY, SampleSpec("ddim", 4, N))
    found = values("headline", source, protocol)
    judge = judging.judge(protocol.judge)
    features, probabilities = look(judge, results.samples(TINY, source.request))
    real, _ = look(judge, data.load("digits").draw(900).images)
    expected = metrics.frechet_distance(metrics.Gaussian.fit(features), metrics.Gaussian.fit(real))
    assert found["frechet"] == pytest.approx(expected, rel=1e-9)
    assert found["judge_confidence"] == pytest.approx(probabilities.max(1).values.double().mean().item(), rel=1e-6)


def test_packed_samples_are_compared_with_dense_ones_pixel_by_pixel(protocol, monkeypatch):
    """By hand: one image equal, one a grey level off, one three levels off in half of it, one in a single pixel."""
    dense = torch.full((4, 1, 16, 16), 100, dtype=torch.uint8)
    packed = dense.clone()
    packed[1] += 1
    packed[2, 0, :8] -= 3
    packed[3, 0, 0, 0] = 0
    monkeypatch.setattr(results, "samples", lambda *_, packed=False, drawn=(dense, packed), **__: drawn[packed])
    found = families.packing(PackedSamples(TINY, SampleSpec("ddim", 4, 4)), protocol, True).estimates
    assert found["mean_difference"].value == pytest.approx((0 + 1 + 1.5 + 100 / 256) / 4)
    assert found["pixels_equal"].value == pytest.approx((1 + 0 + 0.5 + 255 / 256) / 4)
    assert found["images_equal"].value == 0.5 and found["images_equal"].n == 4


def test_images_in_bfloat16_are_compared_with_those_of_the_same_noise_in_float32(protocol):
    usual = SampleSpec("ddim", 4, N)
    rounded = replace(usual, precision="bfloat16")
    found = values("rounding", Samples(TINY, rounded), protocol)
    pairs = [results.samples(TINY, request) for request in (usual, rounded)]
    assert not torch.equal(*pairs)
    a, b = (look(judging.judge(protocol.judge), images)[1].argmax(1) for images in pairs)
    assert found["same_class"] == pytest.approx((a == b).double().mean().item())
    assert found["paired_distance"] == metrics.paired_distance(*pairs).value < 0.2
    entry = evaluation.entry("rounding", Samples(TINY, rounded), protocol)
    needed = {needed.name for needed in graph._reads(entry)}
    assert {results.samples_entry(TINY, request).name for request in (usual, rounded)} <= needed


def test_every_control_is_what_it_says():
    held_out, test = control("held-out").images(), data.load("digits", "test").images
    assert held_out.shape == (N, 1, 16, 16) and torch.equal(control("file-order").images(), test[:N])
    known = {image.numpy().tobytes() for image in data.load("digits").images}
    assert all(image.numpy().tobytes() in known for image in control("training").images())
    assert not all(image.numpy().tobytes() in known for image in held_out)
    assert len({image.numpy().tobytes() for image in control("repeated").images()}) == 20
    noise = (control("noisy", 0.1).images().float() - held_out.float()) / 255
    inside = (held_out > 70) & (held_out < 185)
    assert noise[inside].std() == pytest.approx(0.1, rel=0.05) and abs(noise[inside].mean()) < 0.01
    assert control("noise").images().float().mean() == pytest.approx(127.5, rel=0.02)
    assert control("smooth", 0.1).images().float().std() < held_out.float().std()
    for kind in ("held-out", "noise", "noisy", "blend", "repeated", "training"):
        assert control(kind, 0.1).images().dtype == torch.uint8
        assert torch.equal(control(kind, 0.1).images(), control(kind, 0.1).images())


def test_a_blend_is_the_mean_of_two_images_of_different_classes():
    held_out = data.load("digits", "test").draw(N)
    blend = control("blend").images().float()
    for image in blend[:10]:
        gaps = ((held_out.images.float()[:, None] + held_out.images.float()) / 2 - image).abs().amax((2, 3, 4))
        i, j = divmod(int(gaps.argmin()), N)
        assert gaps.min() <= 0.5 and held_out.labels[i] != held_out.labels[j]


def test_no_two_blends_are_of_the_same_pair_and_few_classes_are_refused():
    blends = control("blend").images()
    assert len(torch.unique(blends.flatten(1), dim=0)) == len(blends) == N
    for classes in ("digits:1", "digits:01"):
        with pytest.raises(ValueError, match=f"blend of {classes}: a class has more than a third"):
            Control(classes, "blend", 100).images()


def test_blends_are_keyed_apart_from_those_that_were_other_images():
    assert control("blend").spec["version"] == 2 and "version" not in control("noise").spec


def test_copies_are_flagged_and_unseen_images_are_not(protocol):
    copies, unseen = (values("memorization", control(kind), protocol) for kind in ("training", "held-out"))
    assert copies["nn_distance"] == copies["distance_ratio"] == copies["authenticity"] == 0
    assert copies["closer_than_held_out"] == 1
    assert unseen["closer_than_held_out"] == pytest.approx(0.01, abs=0.005)
    assert unseen["distance_ratio"] > 0.85 and unseen["authenticity"] > 0.2
    assert copies["published_memorization"] > 0.5 * unseen["published_memorization"]  # blind to copying


def test_noise_raises_the_published_score_and_changes_no_novelty(protocol):
    scores = [values("memorization", source, protocol)["published_memorization"]
              for source in (control("held-out"), control("noisy", 0.1), control("noisy", 0.2))]
    assert scores == sorted(scores) and scores[2] > 1.2 * scores[0]


def test_collapse_is_seen_by_vendi_and_coverage_and_hardly_by_the_published_diversity(protocol):
    whole, collapsed = (values("memorization", control(kind), protocol) for kind in ("held-out", "repeated"))
    assert collapsed["published_diversity"] > 0.85 * whole["published_diversity"]
    assert collapsed["vendi"] < 0.5 * whole["vendi"]
    whole, collapsed = (values("manifold", control(kind), protocol) for kind in ("held-out", "repeated"))
    assert collapsed["coverage"] < 0.5 * whole["coverage"] and collapsed["recall"] < 0.1 * whole["recall"]


def test_distances_rank_the_controls(protocol):
    found = {kind: values("distribution", control(kind), protocol) for kind in ("held-out", "blend", "noise")}
    for metric in ("frechet", "frechet_published", "frechet_infinity", "frechet_relu", "frechet_judge1",
                   "spatial_frechet", "kid"):
        assert found["held-out"][metric] < found["blend"][metric] < found["noise"][metric], metric
    assert found["held-out"]["inception_score"] > found["blend"]["inception_score"]
    assert found["held-out"]["class_entropy"] > found["noise"]["class_entropy"]


def test_texture_sees_noise_and_blur(protocol):
    found = {level: values("texture", source, protocol) for level, source in
             {"real": control("held-out"), "noise": control("noisy", 0.2), "blur": control("smooth", 0.1)}.items()}
    high = {kind: numbers["high_share_0.2"] for kind, numbers in found.items()}
    assert high["blur"] < 0.5 * high["real"] < high["real"] < high["noise"]
    for cutoff in CUTOFFS:
        assert found["real"][f"frechet_below_{cutoff:g}"] < found["noise"][f"frechet_below_{cutoff:g}"]
    arrays = evaluate("texture", control("held-out"), protocol).arrays
    assert arrays["grey"].sum() == pytest.approx(1) and arrays["frequency"].max() <= 0.5


def test_a_panel_agrees_on_digits_and_not_on_blends_or_noise(protocol):
    found = {kind: values("legibility", control(kind), protocol) for kind in ("held-out", "blend", "noise")}
    assert found["held-out"]["legible"] > 0.75 > 0.5 > found["blend"]["legible"] and found["noise"]["legible"] < 0.3
    assert found["held-out"]["panel_kappa"] > 0.8 > found["noise"]["panel_kappa"]
    assert found["noise"]["confidence"] > 0.2  # twice its floor, on images of nothing
    calibration = judging.calibration(protocol.judge)
    assert calibration["error_after"][0] <= calibration["error_before"][0] + 0.01
    assert 0 < calibration["floor_after"][0] < 0.1  # nobody scores 0 on so few images


@pytest.fixture
def two_classes(protocol):
    return Protocol(protocol.judge, reference=200, held_out=N, against="digits:01")


def test_a_subset_is_measured_against_its_own_classes_by_the_judge_of_all(two_classes):
    """From the parts: training images of two classes, as many of them searched as there, and the judge's labels."""
    run = replace(TINY, dataset="digits:01")
    found = evaluate("subset", Samples(run, SampleSpec("ddim", 4, N)), two_classes).estimates
    images = results.samples(run, SampleSpec("ddim", 4, N))
    train = data.load("digits:01").images
    assert found["published_memorization"] == metrics.published_memorization(images, train, 100, 1437 // 12)
    assert found["published_diversity"] == metrics.published_diversity(images, 100)
    features, probabilities = look(judging.judge(two_classes.judge), images)
    real, _ = look(judging.judge(two_classes.judge), data.load("digits:01").draw(200).images)
    expected = metrics.frechet_distance(metrics.Gaussian.fit(features), metrics.Gaussian.fit(real))
    assert found["frechet"].value == pytest.approx(expected, rel=1e-9)
    assert found["in_subset"].value == pytest.approx((probabilities.argmax(1) < 2).double().mean().item())


def test_controls_of_a_subset_are_of_its_classes_and_few_of_them_have_no_covariance(two_classes):
    held_out, copies = (evaluate("subset", Control("digits:01", kind, N), two_classes).estimates
                        for kind in ("held-out", "training"))
    assert held_out["in_subset"].value > 0.9 and "frechet" not in held_out and "frechet" in copies
    assert held_out["published_diversity"].n == len(data.load("digits:01", "test")) // 2
    assert copies["published_memorization"].value < held_out["published_memorization"].value


def test_a_limit_bounds_what_samples_are_compared_with(protocol):
    """All copies of the limited set are found in it; of the whole set's images, the share that it holds."""
    few = replace(protocol, against="digits@300", reference=300)
    copies, others = (evaluate("neighbours", Control(name, "training", N), few).arrays
                      for name in ("digits@300", "digits"))
    assert (copies["distances"][:, 0] == 0).all()
    assert (others["distances"][:, 0] == 0).mean() == pytest.approx(300 / 1437, abs=0.1)
    assert copies["indices"].max() < 300


def test_keys_say_what_is_compared_with_only_where_it_is_not_the_whole_set(protocol, two_classes):
    whole, part = (evaluation.entry("headline", source, p) for source, p in (
        (control("held-out"), protocol), (Control("digits:01", "held-out", N), two_classes)))
    assert "against" not in whole.spec["protocol"] and part.spec["protocol"]["against"] == "digits:01"
    assert part.name.startswith("evaluation-headline-digits-01-held-out-")  # no colon in the name of a folder


def test_a_network_fits_what_it_was_trained_on_better(protocol):
    """A float U-Net on 16 images for 400 steps: the loss on them falls below that on images it never saw."""
    run = Run(dataset="digits@16", net="unet", width=8, steps=400, batch=16, lr=2e-3, precision="float32")
    found = evaluate("overfitting", Samples(run, SampleSpec("ddim", 4, N)), protocol).estimates
    assert found["loss_gap"].low > 0
    assert found["loss_gap"].value == pytest.approx(found["held_out_loss"].value - found["training_loss"].value)


def test_paths_of_the_calibrators_read_as_fading_and_as_moving(protocol):
    walk = {path: values("walking", Walk(TINY, 4, 9, steps=4, path=path), protocol)
            for path in ("latent", "cross-fade", "transport")}
    assert walk["cross-fade"]["fade_residual"] < 1e-3 < walk["transport"]["fade_residual"]
    arrays = evaluate("calibrator", Walk(TINY, 4, 9, steps=4, path="transport"), protocol).arrays
    whole = evaluate("walking", Walk(TINY, 4, 9, steps=4, path="transport"), protocol).arrays
    assert whole.keys() - arrays.keys() == {"labels", "strips"}
    assert all(np.array_equal(found, whole[name]) for name, found in arrays.items())
    arrays = evaluate("walking", Walk(TINY, 4, 9, steps=4), protocol).arrays
    frames = Walk(TINY, 4, 9, steps=4).images()
    assert arrays["strips"].shape == (4, 9, 1, 16, 16) and np.array_equal(arrays["strips"], frames.numpy())
    assert torch.equal(frames[:, 0], results.samples(TINY, SampleSpec("ddim", 4, 8))[0::2])


def test_walks_of_renormed_networks_end_at_their_samples_and_keep_the_classes_of_both_ends(protocol):
    walk = Walk(TINY, 4, 9, steps=4, reestimated=True)
    ends = walk.images()[:, [0, -1]]
    drawn = results.samples(TINY, SampleSpec("ddim", 4, 8, reestimated=True))
    assert torch.equal(ends.flatten(0, 1), drawn)
    assert not torch.equal(ends, Walk(TINY, 4, 9, steps=4).images()[:, [0, -1]])
    found = evaluate("crossing", walk, protocol)
    judged = look(judging.judge(protocol.judge), drawn)[1].argmax(1).reshape(4, 2)
    assert np.array_equal(found.arrays["ends"], judged.numpy())
    assert found.estimates == evaluate("walking", walk, protocol).estimates


def test_a_measured_family_needs_no_data_the_second_time(protocol, monkeypatch):
    first = evaluate("memorization", control("held-out"), protocol)

    def unavailable(*_):
        raise DataUnavailable("cut off")

    monkeypatch.setattr(data, "load", unavailable)
    again = evaluate("memorization", control("held-out"), protocol)
    assert again.estimates == first.estimates
    assert all(np.array_equal(again.arrays[name], first.arrays[name]) for name in first.arrays)
    with pytest.raises(DataUnavailable):
        evaluate("memorization", control("noisy", 0.3), protocol)
    assert not list((cache.paths.RUNS).glob("*noisy-0.3*"))


@pytest.mark.parametrize(("module", "version", "stale"), [
    (results, "SAMPLES_VERSION", {"headline", "renormed", "fitted", "legibility", "memorization", "walking",
                                   "renormed samples", "fitted samples"}),
    (results, "STATISTICS_VERSION", {"renormed", "renormed samples"}),
    (results, "FITTED_VERSION", {"fitted", "fitted samples"}),
    (judging, "JUDGE_VERSION",
     {"headline", "renormed", "fitted", "legibility", "memorization", "walking", "calibration"}),
    (judging, "CALIBRATION_VERSION", {"legibility", "calibration"}),
])
def test_what_is_made_from_another_version_is_another_result(module, version, stale, monkeypatch):
    """Samples from statistics, metrics from samples and judges: none is read from what an older version has left."""
    usual, renormed = (SampleSpec(steps=5, n=N, reestimated=anew) for anew in (False, True))
    rounded = replace(TINY, recipe="binarydm-base-w1a32 post_training=calibrated")

    def keys() -> dict[str, str]:
        measured = {"headline": Samples(TINY, usual), "renormed": Samples(TINY, renormed),
                    "fitted": Samples(rounded, usual), "legibility": Samples(TINY, usual),
                    "memorization": Samples(TINY, usual), "walking": Walk(TINY, 2, 3)}
        found = {name: evaluation.entry(name if name in evaluation.VERSIONS else "headline", source,
                                        Protocol(JudgeSpec("digits"))) for name, source in measured.items()}
        found |= {"renormed samples": results.samples_entry(TINY, renormed),
                  "fitted samples": results.samples_entry(rounded, usual),
                  "calibration": judging.calibration_entry(JudgeSpec("digits"))}
        return {name: entry.key for name, entry in found.items()}

    before = keys()
    monkeypatch.setattr(module, version, getattr(module, version) + 1)
    after = keys()
    assert {name for name in before if before[name] != after[name]} == stale


def test_memorization_is_measured_anew_with_the_neighbours_it_reads(monkeypatch):
    source, protocol = Samples(TINY, SampleSpec(steps=5, n=N)), Protocol(JudgeSpec("digits"))
    before = [evaluation.entry(name, source, protocol).key for name in ("memorization", "manifold")]
    monkeypatch.setitem(evaluation.VERSIONS, "neighbours", evaluation.VERSIONS["neighbours"] + 1)
    after = [evaluation.entry(name, source, protocol).key for name in ("memorization", "manifold")]
    assert before[0] != after[0] and before[1] == after[1]


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": -5}, {"level": -0.1}, {"level": float("nan")}])
def test_a_control_of_no_images_or_no_level_is_refused(wrong):
    with pytest.raises(ValueError, match="control noisy: need n >= 1 images and a finite level >= 0"):
        Control(**{"dataset": "digits", "kind": "noisy", "n": 5} | wrong)


def test_equal_requests_have_one_key():
    """A whole number where a float is meant, and numbers out of numpy."""
    assert repr(Control("digits", "noisy", 5, 0).spec) == repr(Control("digits", "noisy", np.int64(5), 0.0).spec)
    assert repr(replace(TINY, ema=0, lr=1).spec) == repr(replace(TINY, ema=0.0, lr=1.0).spec)
    few = SampleSpec(n=np.int64(5))
    assert results.samples_entry(TINY, few).name == results.samples_entry(TINY, SampleSpec(n=5)).name


def test_what_cannot_be_measured_is_refused(protocol):
    with pytest.raises(ValueError, match=r"unknown family of metrics 'fid'.*headline"):
        evaluate("fid", control("held-out"), protocol)
    with pytest.raises(ValueError, match="the judge of digits: train one for it"):
        evaluate("headline", Control("mnist", "held-out", N), protocol)
    with pytest.raises(ValueError, match="compare like with like, against='digits:01'"):
        evaluate("subset", Control("digits:01", "held-out", N), protocol)
    with pytest.raises(ValueError, match="name a part of digits"):
        replace(protocol, against="mnist:01")
    with pytest.raises(ValueError, match="more_judges: one is of mnist, the judge of digits"):
        replace(protocol, more_judges=(JudgeSpec("mnist"),))
    with pytest.raises(ValueError, match=r"unknown control 'blurry'.*held-out"):
        control("blurry")
    with pytest.raises(ValueError, match=r"unknown path 'straight'.*latent"):
        Walk(TINY, 4, 9, path="straight")
    with pytest.raises(ValueError, match="too few to leave out"):
        evaluate("headline", Control("digits", "held-out", 100), protocol)
