"""The families of metrics: which numbers answer which question.  Definitions and sources are in `onebit.metrics`."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .. import data, metrics
from ..judge import look, look_spatially
from ..metrics import Gaussian
from ..metrics.estimate import share
from ..panel import knn_labels, logistic_probabilities
from . import judging
from .activity import activity, mimicry  # noqa: F401 - two of the families
from .copying import copying  # noqa: F401 - a family
from .denoising import denoising, overfitting  # noqa: F401 - and two more
from .evaluation import Measured, Protocol, evaluate, real_features, seen
from .sources import PackedSamples, Samples, Source, Walk
from .trajectories import handover  # noqa: F401 - and one

PUBLISHED_SHARE = 12  # of all classes' training images, as many as one in twelve are searched: 5,000 in source 000
PUBLISHED_SAMPLES = 100  # of which memorization and diversity are computed, source 000
PUBLISHED_FRECHET = 2_000  # images on either side, source 000
PUBLISHED_CONFIDENCE = 1_000
CUTOFFS = (0.05, 0.1, 0.15, 0.2, 0.3)  # cycles per pixel; 0.5 is the finest a pixel grid holds
VENDI = 1_000  # images; the score grows with their number
PAIRS = 10  # closest pairs kept as pictures
MANIFOLD_DRAW = 2  # real images drawn anew, apart from those of the other distances
FRECHET_LEAST = 140  # images whose 128 features, a twentieth left out, still have a covariance
FRECHET_SIZES = 6  # sample sizes of the bias curve
STRIPS, STRIP = 6, 40  # walks kept as pictures; frames of each
CROSSINGS, CROSSING = 12, 9  # the same of those that are chosen by their ends


def headline(source: Source, protocol: Protocol, wait: bool) -> Measured:
    """The two numbers every arm has: Fréchet distance to training images, and the judge's confidence."""
    features, probabilities = seen(source, protocol.judge, wait)
    real = Gaussian.fit(real_features(protocol.judge, protocol.dataset, protocol.reference, wait=wait))
    return Measured({"frechet": metrics.frechet(features, real),
                     "judge_confidence": metrics.confidence(probabilities)}, {})


def neighbours(source: Source, protocol: Protocol, wait: bool) -> Measured:
    """Exact nearest training images, among all of them, in pixels and in the judge's features."""
    train, images = data.load(protocol.dataset, "train"), source.images(wait)
    distances, indices = metrics.nearest(images, train.images, k=2)
    features, _ = seen(source, protocol.judge, wait)
    everything = real_features(protocol.judge, protocol.dataset, len(train), wait=wait)
    judged, _ = metrics.nearest(features, everything, k=1)
    gap = metrics.other_gap(indices[:, 0], train.images)
    return Measured({}, {"distances": distances, "indices": indices, "gap": gap, "judge_distances": judged[:, 0]})


def memorization(source: Source, protocol: Protocol, wait: bool) -> Measured:
    """Does it copy, and does it repeat itself?"""
    train, images = data.load(protocol.dataset, "train").images, source.images(wait)
    near = evaluate("neighbours", source, protocol, wait).arrays
    held_out = evaluate("neighbours", protocol.control, protocol, wait).arrays
    threshold = np.percentile(held_out["distances"][:, 0], 1)
    features, probabilities = seen(source, protocol.judge, wait)
    labels = probabilities.argmax(1)
    first, second = near["distances"].T
    order = np.argsort(first / np.maximum(second, np.finfo(float).tiny), kind="stable")[:PAIRS]
    return Measured({
        "published_memorization": metrics.published_memorization(images, train, subset=_searched(protocol)),
        "nn_distance": metrics.nn_distance(near["distances"][:, 0]),
        "nn_distance_judge": metrics.nn_distance(near["judge_distances"]),
        "distance_ratio": metrics.distance_ratio(near["distances"]),
        "closer_than_held_out": metrics.closer_than(near["distances"][:, 0], threshold),
        "authenticity": metrics.authenticity(near["distances"][:, 0], near["gap"]),
        "published_diversity": metrics.published_diversity(images),
        "diversity": metrics.diversity(images),
        "vendi": metrics.vendi(features[:VENDI], metrics.kernel_scale(_reference_head(protocol, wait))),
    }, {"distances": near["distances"].astype(np.float32), "class_diversity": _class_diversity(images, labels),
        "pair_samples": images[order].numpy(),
        "pair_train": train[near["indices"][order, 0]].numpy()})


def _searched(protocol: Protocol) -> int:
    """How many training images the published score searches: 5,000 of MNIST's, be they of ten classes or of one."""
    base, _, limit = data.parse(protocol.dataset)
    return (limit or data.train_size(base)) // PUBLISHED_SHARE


def _reference_head(protocol: Protocol, wait: bool) -> np.ndarray:
    return real_features(protocol.judge, protocol.dataset, protocol.reference, wait=wait)[:VENDI]


def _class_diversity(images: Tensor, labels: np.ndarray) -> np.ndarray:
    """(class, images, diversity, low, high) for every judged class of enough images."""
    rows = []
    for c in range(10):
        mine = images[labels == c]
        if len(mine) >= metrics.GROUPS:
            e = metrics.diversity(mine)
            rows.append((c, len(mine), e.value, e.low, e.high))
    return np.array(rows).reshape(-1, 5)


def subset(source: Source, protocol: Protocol, wait: bool) -> Measured:
    """What the studies of one and two classes ask: the published scores, the headline, and whether classes are kept."""
    train, images = data.load(protocol.dataset, "train").images, source.images(wait)
    features, probabilities = seen(source, protocol.judge, wait)
    n = min(PUBLISHED_SAMPLES, len(images) // 2)  # of a small class there are few held-out images to draw from
    inside = np.isin(probabilities.argmax(1), data.parse(protocol.dataset).classes)
    estimates = {
        "published_memorization": metrics.published_memorization(images, train, n, _searched(protocol)),
        "published_diversity": metrics.published_diversity(images, n),
        "judge_confidence": metrics.confidence(probabilities),
        "in_subset": share(inside, "share judged as one of the subset's classes"),
    }
    if len(images) >= FRECHET_LEAST:
        real = Gaussian.fit(real_features(protocol.judge, protocol.dataset, protocol.reference, wait=wait))
        estimates["frechet"] = metrics.frechet(features, real)
    return Measured(estimates, {})


def manifold(source: Source, protocol: Protocol, wait: bool) -> Measured:
    """Precision, recall, density and coverage against as many training images, in the judge's features."""
    features, _ = seen(source, protocol.judge, wait)
    real = real_features(protocol.judge, protocol.dataset, len(features), MANIFOLD_DRAW, wait=wait)
    return Measured(metrics.manifold(real, features), {})


def divergence(source: Source, protocol: Protocol, wait: bool) -> Measured:
    """What tables of many rows have beside the Fréchet distance: its unbiased partner, and the Inception Score."""
    features, probabilities = seen(source, protocol.judge, wait)
    real = real_features(protocol.judge, protocol.dataset, protocol.reference, wait=wait)
    return Measured({"kid": metrics.kid(features, real[: len(features)]),
                     "inception_score": metrics.inception_score(probabilities)}, {})


def distribution(source: Source, protocol: Protocol, wait: bool) -> Measured:
    """Every distance between distributions, by every judge, and what classes are covered."""
    features, probabilities = seen(source, protocol.judge, wait)
    real = real_features(protocol.judge, protocol.dataset, protocol.reference, wait=wait)
    gaussian, relu = Gaussian.fit(real), Gaussian.fit(real.clip(min=0))
    sizes = metrics.curve_sizes(len(features), features.shape[1], FRECHET_SIZES)
    n = min(PUBLISHED_FRECHET, len(real))
    labels = probabilities.argmax(1)
    estimates = {
        "frechet_published": metrics.frechet(features[:PUBLISHED_FRECHET], Gaussian.fit(real[:n])),
        "frechet": metrics.frechet(features, gaussian),
        "frechet_infinity": metrics.frechet_infinity(features, gaussian, sizes),
        "frechet_relu": metrics.frechet(features.clip(min=0), relu),
        "kid": metrics.kid(features, real[: len(features)]),  # unbiased: it needs no more of them
        "inception_score": metrics.inception_score(probabilities),
        "class_entropy": metrics.class_entropy(labels),
    }
    for other in protocol.more_judges:
        theirs = Gaussian.fit(real_features(other, protocol.dataset, protocol.reference, wait=wait))
        estimates[f"frechet_judge{other.seed}"] = metrics.frechet(seen(source, other, wait)[0], theirs)
    estimates["spatial_frechet"] = _spatial(source, protocol, wait)
    curve = np.array(metrics.frechet_curve(features, gaussian, sizes))
    return Measured(estimates, {"labels": labels.astype(np.uint8), "curve": curve})


def _spatial(source: Source, protocol: Protocol, wait: bool) -> metrics.Estimate:
    """sFID's idea: the Fréchet distance of a feature map that still knows where things are."""
    real = _spatial_reference(protocol.judge, protocol.dataset, protocol.reference, wait)
    return metrics.frechet(look_spatially(judging.judge(protocol.judge, wait), source.images(wait)), real)


@lru_cache(maxsize=4)
def _spatial_reference(judge: judging.JudgeSpec, dataset: str, n: int, wait: bool) -> Gaussian:
    return Gaussian.fit(look_spatially(judging.judge(judge, wait), data.load(dataset, "train").draw(n).images))


def texture(source: Source, protocol: Protocol, wait: bool) -> Measured:
    """What is lost at which scale: spectra, grey levels, stroke widths, and distances after a low-pass."""
    images = source.images(wait)
    frequency, power = metrics.power_spectrum(images)
    estimates = {"grey_share": metrics.grey_share(images), "stroke_width": metrics.stroke_width(images)}
    for cutoff in CUTOFFS:
        estimates[f"high_share_{cutoff:g}"] = metrics.high_share(images, cutoff)
        blurred = real_features(protocol.judge, protocol.dataset, protocol.reference, cutoff=cutoff, wait=wait)
        real = Gaussian.fit(blurred)
        features, _ = look(judging.judge(protocol.judge, wait), metrics.low_pass(images, cutoff))
        estimates[f"frechet_below_{cutoff:g}"] = metrics.frechet(features, real)
    widths = metrics.stroke_widths(images)
    return Measured(estimates, {
        "frequency": frequency, "power": power.mean(0), "power_sd": power.std(0),
        "grey": metrics.grey_histogram(images), "widths": widths[np.isfinite(widths)].astype(np.float32),
    })


def legibility(source: Source, protocol: Protocol, wait: bool) -> Measured:
    """How sure the judge is, how sure it should be, and whether other kinds of judges read the same."""
    images = source.images(wait)
    features, probabilities = seen(source, protocol.judge, wait)
    calibrated = judging.calibrated(protocol.judge, features, wait)
    train = data.load(protocol.dataset, "train")
    labels = np.stack([
        probabilities.argmax(1),
        logistic_probabilities(images, *judging.logistic(protocol.dataset, wait)).argmax(1),
        knn_labels(images, train),
    ])
    return Measured({
        "confidence_published": metrics.confidence(probabilities[:PUBLISHED_CONFIDENCE]),
        "confidence": metrics.confidence(probabilities),
        "confidence_calibrated": metrics.confidence(calibrated),
        "panel_agreement": metrics.agreement(labels),
        "panel_kappa": metrics.fleiss_kappa(labels),
        "legible": metrics.legible(labels, calibrated),
    }, {"labels": labels.astype(np.uint8), "confidence": probabilities.max(1).astype(np.float32),
        "calibrated": calibrated.max(1).astype(np.float32)})


def packing(source: PackedSamples, protocol: Protocol, wait: bool) -> Measured:
    """How far what the packed network draws is from what the dense one draws from the same noise, in grey levels."""
    dense, packed = Samples(source.run, source.request).images(wait), source.images(wait)
    apart = (dense.float() - packed.float()).abs().flatten(1).numpy()
    return Measured({
        "mean_difference": metrics.bootstrap(apart.mean(1), "mean over pixels and images, grey levels of 255"),
        "pixels_equal": metrics.bootstrap((apart == 0).mean(1), "share of pixels, mean over images"),
        "images_equal": share(apart.max(1) <= 1, "share of images that are equal to one grey level"),
    }, {})


def rounding(source: Samples, protocol: Protocol, wait: bool) -> Measured:
    """How far images drawn in bfloat16 are from those of the same noise in float32, as notebook 06 compares arms."""
    usual = replace(source, request=replace(source.request, precision="float32"))
    labels = [seen(one, protocol.judge, wait)[1].argmax(1) for one in (usual, source)]
    return Measured({"paired_distance": metrics.paired_distance(usual.images(wait), source.images(wait)),
                     "same_class": metrics.label_agreement(*labels)}, {})


def walking(walk: Walk, protocol: Protocol, wait: bool) -> Measured:
    """What a path between two images looks like on its way: one number per path, and some paths to show."""
    frames = walk.images(wait)
    found = _on_the_way(walk, frames)
    pictures = {"labels": _classes(frames, protocol, wait), "strips": _shown(frames, STRIPS, STRIP)}
    return Measured(found.estimates, found.arrays | pictures)


def crossing(walk: Walk, protocol: Protocol, wait: bool) -> Measured:
    """The numbers of `walking`, and the classes of both ends: of paths that are chosen by what lies at their ends."""
    frames = walk.images(wait)
    found = _on_the_way(walk, frames)
    pictures = {"ends": _classes(frames[:, [0, -1]], protocol, wait), "strips": _shown(frames, CROSSINGS, CROSSING)}
    return Measured(found.estimates, found.arrays | pictures)


def _shown(frames: Tensor, walks: int, each: int) -> NDArray:
    """So many of the first walks, and of each so many frames from its first to its last."""
    last = frames.shape[1] - 1
    return frames[:walks, np.linspace(0, last, min(each, last + 1)).round().astype(int)].numpy()


def _classes(frames: Tensor, protocol: Protocol, wait: bool) -> NDArray:
    """What the judge takes every frame for, uint8 (paths, frames)."""
    judge = judging.judge(protocol.judge, wait)
    return np.stack([look(judge, path)[1].numpy().argmax(1) for path in frames]).astype(np.uint8)


def calibrator(walk: Walk, protocol: Protocol, wait: bool) -> Measured:
    """The numbers of `walking` alone, of an artificial path between the ends of a network's own walks."""
    return _on_the_way(walk, walk.images(wait))


def _on_the_way(walk: Walk, frames: Tensor) -> Measured:
    by_path = {measure.__name__: measure(frames) for measure in (
        metrics.fade_residual, metrics.mid_grey, metrics.fade_mass, metrics.largest_jump, metrics.transport_length)}
    by_path |= metrics.topology_changes(frames)
    estimates = {name: metrics.bootstrap(values, f"mean over {walk.pairs} paths of {walk.frames} frames")
                 for name, values in by_path.items()}
    return Measured(estimates, by_path)
