"""Every committed table again, from released results alone."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from subprocess import DEVNULL

import nbformat

from .. import manifest, paths
from ..report import folder_of
from ..study import Study
from ..study.engines import cores
from .cells import compare, measured, parse
from .verdict import Verdict

LAST = "09"  # the notebook that reads the others' tables


def tables(study: Study, notebooks: Path, home: Path, jobs: int) -> Iterator[Verdict]:
    """Execute the notebooks in `home`, where released results are all there is, and compare what they write."""
    failures = render(study, notebooks, home, jobs)
    committed = folder_of(study.dataset, study.profile.name)
    again = home / committed.relative_to(paths.ROOT)
    yield from (Verdict(name, False, f"the notebook failed: {error}") for name, error in sorted(failures.items()))
    exact = same_machine(committed)
    for path in sorted(committed.glob("*.csv")):
        if any((folder / f"{path.name}.json").exists() for folder in (committed, again)):  # others are of no notebook
            yield table(path, again / path.name, exact)
    for name in sorted({path.name for path in again.glob("*.csv")} - {path.name for path in committed.glob("*.csv")}):
        yield Verdict(Path(name).stem, False, "written by a notebook, and not committed")


def same_machine(committed: Path) -> bool:
    """Whether this is the type of machine that the committed figures were drawn on, so that every digit must agree."""
    return (committed / manifest.NAME).exists() and manifest.read(committed)["machine"] == manifest.machine()


def table(committed: Path, again: Path, exact: bool) -> Verdict:
    """The verdict on one table."""
    name = committed.stem
    if not again.exists():
        return Verdict(name, False, "committed, and written by no notebook that ran to its end")
    expected, found = committed.read_text(), again.read_text()
    try:
        difference = compare(name, expected, found, exact)
    except ValueError as error:
        return Verdict(name, False, str(error))
    if difference.wrong:
        more = f", and {len(difference.wrong) - 1} more cells" if len(difference.wrong) > 1 else ""
        return Verdict(name, False, difference.wrong[0] + more)
    return Verdict(name, True, _agreement(name, expected, difference.worst, difference.where))


def _agreement(name: str, text: str, worst: float, where: str) -> str:
    columns, rows = parse(text)
    clocked = sum(measured(name, column, dict(zip(columns, row, strict=True))) for row in rows for column in columns)
    note = f"; {clocked} of them measured by a clock, as released" if clocked else ""
    apart = f"equal to {worst:.1e} of a number ({where})" if worst else "equal"
    return f"{len(rows) * len(columns)} cells {apart}{note}"


def render(study: Study, notebooks: Path, home: Path, jobs: int) -> dict[str, str]:
    """Execute every notebook in a home that holds released results and nothing else; name -> error of those that fail.

    Nothing is computed: a result that is not released is an error of the notebook that asks for it.
    """
    (home / "data").mkdir(parents=True)
    (home / "data/released").symlink_to(paths.RELEASED)
    sources = sorted(notebooks.glob("[0-9]*.ipynb"))
    if not sources:
        raise FileNotFoundError(f"no notebooks in {notebooks}")
    first = [path for path in sources if not path.name.startswith(LAST)]
    threads = str(max(1, cores() // 2))  # as make paper does: digits depend on it
    run = partial(execute, study, home, {"FROM_SCRATCH": "", "RELEASED_ONLY": "1", "TABLES_ONLY": "1",
                                         "OMP_NUM_THREADS": threads})
    with ThreadPoolExecutor(jobs) as pool:
        errors = dict(zip(first, pool.map(run, first), strict=True))
    errors |= {path: run(path) for path in sources if path not in first}
    return {path.stem: error for path, error in errors.items() if error}


def execute(study: Study, home: Path, environment: dict[str, str], source: Path, folder: Path | None = None) -> str:
    """Execute one notebook in a kernel with a home of its own; returns its error in a line, or nothing.

    It is executed in, and written to, `folder`, by default the home.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    folder = folder or home
    parameters = {"PROFILE": study.profile.name, "DATASET": study.dataset}
    notebook = parameterize_notebook(load_notebook_node(str(source)), parameters)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3")
    try:
        client.execute(cwd=str(folder), env=os.environ | environment | {"ONEBIT_HOME": str(home)}, stdout=DEVNULL,
                       stderr=DEVNULL)
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}".splitlines()[0]
    except DeadKernelError as error:
        return str(error)
    finally:
        nbformat.write(notebook, folder / source.name)
    return ""
