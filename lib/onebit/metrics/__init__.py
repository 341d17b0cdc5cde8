"""Metrics: arrays in, numbers out.  Nothing here knows of models or files."""

from .confidence import judge_confidence
from .frechet import Gaussian, frechet_distance

__all__ = ["Gaussian", "frechet_distance", "judge_confidence"]
