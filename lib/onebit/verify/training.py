"""One short training again, from nothing, and its losses against the committed ones."""

import csv
import tempfile
from pathlib import Path

import torch

from ..study import cache, golden, results
from .verdict import Verdict

TOLERANCE = 1e-5  # relative, of the first row: the mean of 20 losses; later ones drift apart, since signs flip
COMPARED = ("torch", "processor", "instructions", "system", "threads")  # where they agree, every bit must


def training() -> Verdict:
    """Train `golden.RUN` again with as many threads as it was trained with, and compare its loss curve.

    Bit for bit where torch, instruction set and system are those of the committed training, else its first row.
    """
    folder = cache.released(golden.entry())
    if folder is None:
        return Verdict(golden.RUN.label, False, f"{golden.entry().name} is not released, or damaged: restore "
                       "data/released/")
    recorded = cache.manifest(folder)["provenance"]
    with tempfile.TemporaryDirectory() as work, _threads(recorded["threads"]):
        here = cache.provenance()
        results.train_into(Path(work), golden.RUN, progress=False)
        return compare(folder / "loss.csv", Path(work, "loss.csv"), all(here[k] == recorded[k] for k in COMPARED))


def compare(committed: Path, again: Path, exact: bool) -> Verdict:
    """The verdict on two loss.csv."""
    if exact:
        same = committed.read_bytes() == again.read_bytes()
        return Verdict(golden.RUN.label, same, f"{golden.RUN.steps} steps trained again, losses "
                       + ("equal bit for bit" if same else "differ on the same type of machine"))
    expected, found = (_first_loss(path) for path in (committed, again))
    apart = abs(found - expected) / abs(expected)
    return Verdict(golden.RUN.label, apart <= TOLERANCE, "trained again on another type of machine, the mean of the "
                   f"first 20 losses differs by {apart:.1e} of it, {TOLERANCE:.0e} allowed")


def _first_loss(path: Path) -> float:
    return float(next(csv.DictReader(path.read_text().splitlines()))["loss"])


class _threads:
    """Within it torch computes with n threads."""

    def __init__(self, n: int):
        self.n, self.before = n, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self.n)

    def __exit__(self, *_) -> None:
        torch.set_num_threads(self.before)
