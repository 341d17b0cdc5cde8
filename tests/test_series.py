"""The whole series, executed at the smallest profile on the embedded digits; and the committed notebooks' hygiene."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from onebit.publish import source_hash

pytestmark = pytest.mark.timeout(1_200)  # the first test waits for the whole study
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A home in which the smoke study on digits has been computed, by two processes, from nothing."""
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {"ONEBIT_HOME": str(home)}
    command = [
        sys.executable,
        "-m",
        "onebit.study",
        "prepare",
        "--profile",
        "smoke",
        "--dataset",
        "digits",
        "--jobs",
        "2",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["digits", "smoke"]
    return home


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_from_any_folder_and_computes_nothing_the_grid_has_not(series, path, tmp_path, monkeypatch):
    monkeypatch.setenv("ONEBIT_HOME", str(series))
    before = sorted(p.name for p in (series / "data/runs").iterdir())
    papermill.execute_notebook(
        path,
        tmp_path / path.name,
        parameters={"PROFILE": "smoke", "DATASET": "digits"},
        cwd=tmp_path,
        progress_bar=False,
    )
    assert sorted(p.name for p in (series / "data/runs").iterdir()) == before
    figures = series / "build/digits/smoke/figures"
    saved = [p for p in figures.iterdir() if p.name.startswith(path.stem[:2])]
    assert saved and all(p.with_name(f"{p.name}.json").exists() for p in saved if p.suffix in (".png", ".csv"))
    claims = pd.read_csv(figures / ("claims.csv" if path.stem == "09_verdicts" else f"{path.stem[:2]}_claims.csv"))
    assert {"claim_id", "source", "claim", "published", "measured", "verdict"} <= set(claims.columns) and len(claims)


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
