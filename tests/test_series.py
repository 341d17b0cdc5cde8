"""The whole series, executed at the smallest profile on the embedded digits; and the committed notebooks' hygiene."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from onebit.publish import source_hash
from onebit.study import Study, evaluation, golden
from onebit.verify.cells import MEASURED, compare
from onebit.verify.tables import execute

pytestmark = pytest.mark.timeout(2_400)  # the first test of a home waits for the whole study
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
DRAWN = ".data.csv"  # what a figure draws
SOLUTIONS = sorted((Path(__file__).parents[1] / "notebooks/solutions").glob("[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A home in which the smoke study on digits has been computed, by two processes, from nothing."""
    return computed(tmp_path_factory.mktemp("home"))


def computed(home):
    study("prepare", home, "--jobs", "2")
    return home


def study(command, home, *options):
    """One command of the study at its smallest size, on digits, in a home of its own."""
    line = [sys.executable, "-m", "onebit.study", command, "--profile", "smoke", "--dataset", "digits", *options]
    done = subprocess.run(line, env=os.environ | {"ONEBIT_HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == (["digits", "smoke"] if command == "prepare" else [])


@pytest.fixture(scope="module")
def executed(series):
    """The same home once every notebook has run in it, two at a time, and from a folder that is not the repository."""
    before = results_of(series)
    write_tables(series, NOTEBOOKS)
    assert results_of(series) == before, "a notebook computed what the grid has not"
    return series


def results_of(home):
    return sorted(p.name for p in (home / "data/runs").iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_saves_its_figures_and_tables_with_their_notes_and_its_claims(executed, path):
    figures = tables_of(executed)
    saved = [p for p in figures.iterdir() if p.name.startswith(path.stem[:2])]
    noted = [p for p in saved if p.suffix in (".png", ".csv") and not p.name.endswith(DRAWN)]
    assert noted and all(p.with_name(f"{p.name}.json").exists() for p in noted)
    assert all(list(figures.glob(f"{p.stem}.data.*")) for p in saved if p.suffix == ".png"), "a figure without its data"
    claims = pd.read_csv(figures / ("claims.csv" if path.stem == "09_verdicts" else f"{path.stem[:2]}_claims.csv"))
    assert {"claim_id", "source", "claim", "published", "measured", "verdict"} <= set(claims.columns) and len(claims)


@pytest.fixture(scope="module")
def twice(executed, tmp_path_factory):
    """The tables of two executions of the series, computations included, each in a home of its own.

    Times are measured once: two of them never agree.  Networks and judges are trained and fitted once, batch-norm
    statistics estimated once and samples drawn once: what does it has its own tests of the same bytes from the same
    settings.  Every metric is computed twice on a third of what it is computed on.  No figure is drawn again.
    """
    again = tmp_path_factory.mktemp("again")
    kept = [name for kind in ("timing", "train", "fitted", "judge", "statistics", "samples")
            for name in results_of(executed) if name.startswith(f"{kind}-")]
    for family in evaluation.VERSIONS:
        measured = [name for name in results_of(executed) if name.startswith(f"evaluation-{family}-")]
        kept += [name for i, name in enumerate(measured) if i % 3]
    for name in kept:
        shutil.copytree(executed / "data/runs" / name, again / "data/runs" / name)
    computed(again)
    write_tables(again, NOTEBOOKS, {"TABLES_ONLY": "1"})
    return tables_of(executed), tables_of(again)


def tables_of(home):
    return home / "build/digits/smoke/figures"


def write_tables(home, notebooks, environment=()):
    """Execute notebooks two at a time, the one that reads the others' tables last."""
    run = partial(execute, Study.named("smoke", "digits"), home, {"OMP_NUM_THREADS": "1"} | dict(environment))
    with ThreadPoolExecutor(2) as pool:
        first = [path for path in notebooks if path.stem[:2] != "09"]
        errors = dict(zip(first, pool.map(run, first), strict=True))
    errors |= {path: run(path) for path in NOTEBOOKS if path.stem[:2] == "09"}
    assert {path.stem: error for path, error in errors.items() if error} == {}


def test_two_executions_give_the_same_tables_but_for_what_a_clock_measured(twice):
    """Byte for byte; what a clock measured is declared, cell by cell, in onebit.verify.cells."""
    first, second = ({path.name: path.read_text() for path in folder.glob("*.csv")} for folder in twice)
    assert set(first) == set(second) and len(first) > 60
    same = {name for name in first if first[name] == second[name]}
    timed = {f"{name}.csv" for name in MEASURED} | {"08_claims.csv", "claims.csv"}
    timed |= {name for name in first if name.startswith(("08_", "09_")) and name.endswith(DRAWN)}  # 09: 08's claims
    assert set(first) - same <= timed
    for name in sorted(name for name in set(first) - same if not name.endswith(DRAWN)):
        assert compare(Path(name).stem, first[name], second[name], exact=True, clocked=False).wrong == (), name


def test_the_series_is_released_for_digits_as_for_mnist_and_then_needs_nothing_else(twice):
    home = twice[1].parents[3]
    study("release", home)
    released, own = home / "data/released", home / "data/runs"
    wanted = {job.entry.name for job in Study.named("smoke", "digits").jobs() if job.shown}
    assert {path.name for path in released.iterdir()} == wanted | {golden.entry().name}
    own.rename(home / "elsewhere")
    study("prepare", home)
    assert not own.exists()


def test_solutions_run_after_the_series_and_add_nothing_to_it(executed, tmp_path):
    before = files_of(executed)
    solve = partial(execute, Study.named("smoke", "digits"), executed, {"OMP_NUM_THREADS": "1"}, folder=tmp_path)
    with ThreadPoolExecutor(2) as pool:
        errors = zip(SOLUTIONS, pool.map(solve, SOLUTIONS), strict=True)
        assert {path.stem: error for path, error in errors if error} == {}
    assert files_of(executed) == before


def files_of(home):
    return sorted(p for p in home.rglob("*") if ".partial" not in p.parts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_committed_notebook_is_fit_to_read(path):
    notebook = nbformat.read(path, 4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1
    assert all(len([line for line in c.source.splitlines() if line.strip()]) <= 16 for c in code)
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for part in ("**Question.**", "**Prediction.**", "**What we see.**", "## Verdict", "## Exercises"):
        assert part in text
    assert notebook.metadata["onebit"]["source_hash"] == source_hash(notebook), "outputs are older than the code"
    assert any(c.outputs for c in code) and not any(o.output_type == "error" for c in code for o in c.outputs)
    assert "papermill" not in path.read_text() and "/site-packages/" not in path.read_text()
