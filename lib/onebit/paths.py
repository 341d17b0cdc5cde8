"""The one module that knows where things lie.  ONEBIT_HOME moves everything (tests use it)."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("ONEBIT_HOME") or Path(__file__).resolve().parents[2]).resolve()
DATA = ROOT / "data"  # downloaded data sets (ignored by git)
RELEASED = DATA / "released"  # committed results
RUNS = DATA / "runs"  # results computed on this machine (ignored)
FIGURES = ROOT / "figures"  # the reference profile's figures and tables (committed)
BUILD = ROOT / "build"  # everything else; deletable at any time
LIBRARY = Path(__file__).resolve().parent
