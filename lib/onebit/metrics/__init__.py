"""Metrics: arrays in, an `Estimate` out.  Nothing here knows of models or files."""

from .calibration import calibration_error, calibration_floor, fit_temperature, reliability, softmax, top_class
from .classes import class_entropy, class_shares, inception_score, uniformity_test
from .estimate import GROUPS, Estimate, bootstrap, difference, geometric_over_seeds, hull, jackknife, over_seeds
from .frechet import Gaussian, curve_sizes, frechet, frechet_curve, frechet_distance, frechet_infinity
from .kernel import kid
from .legibility import agreement, by_class, class_losses, confidence, fleiss_kappa, legible, majority
from .manifold import kernel_scale, manifold, vendi
from .memorization import (
    authenticity,
    closer_than,
    distance_ratio,
    diversity,
    memorized,
    nearer_seen,
    nn_distance,
    other_gap,
    published_diversity,
    published_memorization,
)
from .neighbours import nearest
from .pairing import chance_agreement, label_agreement, paired_distance
from .paths import fade_mass, fade_residual, largest_jump, mid_grey, sliced_wasserstein, transport_length
from .spread import Spread, common_spread, equal_spreads, spread_power
from .texture import (
    grey_histogram,
    grey_share,
    high_share,
    low_pass,
    power_spectrum,
    stroke_width,
    stroke_widths,
)
from .topology import betti, betti_curve, persistence, topology_changes

__all__ = [
    "GROUPS", "Estimate", "Gaussian", "Spread", "agreement", "authenticity", "betti", "betti_curve", "bootstrap",
    "by_class", "calibration_error", "calibration_floor", "chance_agreement", "class_entropy", "class_losses",
    "class_shares", "closer_than", "common_spread", "confidence", "curve_sizes", "difference", "distance_ratio",
    "diversity", "equal_spreads", "fade_mass", "fade_residual", "fit_temperature", "fleiss_kappa", "frechet",
    "frechet_curve", "frechet_distance", "frechet_infinity", "geometric_over_seeds", "grey_histogram", "grey_share",
    "high_share", "hull", "inception_score", "jackknife", "kernel_scale", "kid", "label_agreement", "largest_jump",
    "legible", "low_pass", "majority", "manifold", "memorized", "mid_grey", "nearer_seen", "nearest", "nn_distance",
    "other_gap", "over_seeds", "paired_distance", "persistence", "power_spectrum", "published_diversity",
    "published_memorization", "reliability", "sliced_wasserstein", "softmax", "spread_power", "stroke_width",
    "stroke_widths", "top_class", "topology_changes", "transport_length", "uniformity_test", "vendi",
]
