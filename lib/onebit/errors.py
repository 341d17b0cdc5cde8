"""Errors a user can meet, each naming the thing that is wrong and the mend."""

from collections.abc import Iterable
from typing import NoReturn


class DataUnavailable(RuntimeError):
    """A data set is neither on disk nor to be downloaded."""


class CorruptFile(RuntimeError):
    """A file does not hold what it should; the message names it and says what to do."""


class Diverged(RuntimeError):
    """The training loss, or a sample, stopped being finite."""


class EngineUnavailable(RuntimeError):
    """What was to compute the study cannot be started, or cannot take part; the message says what to do."""


class WorkerLost(RuntimeError):
    """Worker processes kept dying over one job."""


def unknown(kind: str, name: object, valid: Iterable[str]) -> NoReturn:
    """Raise ValueError for `name`, listing what would have been valid."""
    raise ValueError(f"unknown {kind} {name!r}; valid: {', '.join(valid)}")
