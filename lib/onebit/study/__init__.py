"""Runs, profiles and their keyed results: the only room of the library that knows where results are kept."""

from .profiles import PROFILES, Job, Profile, Study
from .results import JudgeSpec, SampleSpec
from .run import Run

__all__ = ["PROFILES", "Job", "JudgeSpec", "Profile", "Run", "SampleSpec", "Study"]
