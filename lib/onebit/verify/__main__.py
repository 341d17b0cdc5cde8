"""python -m onebit.verify: a verdict per table, one on a training, one per family of metrics; status 1 if any fails."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .. import data, manifest, paths
from ..report import REFERENCE, folder_of
from ..study import PROFILES, Study
from .metrics import metrics
from .tables import tables
from .training import training
from .verdict import Verdict

PARTS = ("tables", "training", "metrics")


def main(arguments: list[str] | None = None) -> int:
    """Print the verdicts as they come; returns the exit status."""
    options = _options(arguments)
    study = Study.named(options.profile, options.dataset)
    failed = 0
    for verdict in verdicts(study, options):
        print(verdict, flush=True)
        failed += verdict.holds is False
    print(f"{failed} failed" if failed else "everything that was checked holds")
    return int(failed > 0)


def verdicts(study: Study, options: argparse.Namespace) -> Iterator[Verdict]:
    """Those of the chosen parts, cheapest first."""
    if "training" in options.only:
        yield training()
    if "metrics" in options.only:
        if data.available(study.dataset):
            yield from metrics(study)
        else:
            yield Verdict("metrics", None, f"{study.dataset} is neither in data/ nor to be downloaded; `make paper` or "
                          "torchvision puts it there")
    if "tables" in options.only:
        yield _manifest(study)
        with tempfile.TemporaryDirectory() as home:
            yield from tables(study, options.notebooks, Path(home), options.jobs)


def _manifest(study: Study) -> Verdict:
    """Whether the committed figures are those that the manifest lists."""
    try:
        faults = manifest.faults(folder_of(study.dataset, study.profile.name))
    except FileNotFoundError as error:
        return Verdict(manifest.NAME, False, str(error))
    return Verdict(manifest.NAME, not faults, "; ".join(faults[:5]) or "every figure and table has its checksum")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number, 1 or more, not {text!r}")
    return int(text)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m onebit.verify", description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default=REFERENCE)
    parser.add_argument("--dataset", choices=data.NAMES, default="mnist")
    parser.add_argument("--jobs", type=_count, default=2, help="notebooks executed at the same time")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="what to check")
    parser.add_argument("--notebooks", type=Path, default=paths.LIBRARY.parents[1] / "notebooks", help="folder")
    options = parser.parse_args(arguments)
    if "tables" in options.only and not any(options.notebooks.glob("[0-9]*.ipynb")):
        parser.error(f"argument --notebooks: no notebooks in {options.notebooks}")
    return options


if __name__ == "__main__":
    sys.exit(main())
