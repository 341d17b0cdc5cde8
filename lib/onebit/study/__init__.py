"""Runs, profiles and their keyed results: the only room of the library that knows where results are kept."""

from .evaluation import Measured, Protocol
from .judging import JudgeSpec
from .profiles import PROFILES, Profile
from .results import SampleSpec
from .run import Run
from .sources import Control, Samples, Walk
from .study import Job, Study

__all__ = ["PROFILES", "Control", "Job", "JudgeSpec", "Measured", "Profile", "Protocol", "Run", "SampleSpec", "Samples",
           "Study", "Walk"]
