"""Executed notebooks into a static site, whole or not at all."""

import io
import shutil
import tempfile
from pathlib import Path

import nbformat
from sphinx.application import Sphinx
from sphinx.util.console import strip_escape_sequences
from sphinx.util.docutils import docutils_namespace

from .. import publish
from . import cells, ledger, pages
from .settings import settings
from .shelf import Shelf

LARGEST = 5e6  # bytes of a page


def build(notebooks: Path, figures: Path, target: Path, solutions: Path | None = None) -> list[str]:
    """Write the site of the executed `notebooks` to `target`, which is replaced; returns Sphinx's warnings.

    figures    where these notebooks have saved their figures, tables and claims.csv
    solutions  folder of NN_*.ipynb with solutions, each given a page of its own; may be missing

    Raises    FileNotFoundError if there are no executed notebooks or no claims.csv; FileExistsError if `target` holds
              something that is not a site; ValueError for a notebook that ended in an error, and for a page that is
              too large.
    """
    if target.exists() and any(target.iterdir()) and not (target / "index.html").exists():
        raise FileExistsError(f"{target} is not empty and holds no site; choose another folder or remove it")
    executed = publish.executed_in(notebooks)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        work = Path(folder).resolve()
        _stage(executed, sorted(solutions.glob("[0-9]*.ipynb")) if solutions else [], figures, work)
        warnings = _sphinx(work)
        _check_sizes(work / "site")
        if target.exists():
            target.rename(work / "old")
        (work / "site").rename(target)
    return warnings


def _stage(executed: list[Path], solutions: list[Path], figures: Path, work: Path) -> None:
    """The sources of all pages into work/source, what is copied as it is into work/extra."""
    source, shelf, rows = work / "source", Shelf(figures), ledger.load(figures / "claims.csv")
    (source / "solutions").mkdir(parents=True)
    shelf.copy(work / "extra" / "figures")
    solved = {path.name[:2]: f"solutions/{path.stem}" for path in solutions}
    series = []
    for path in executed:
        notebook = _read(path, work / "extra" / "notebooks" / path.name)
        page = pages.read(path.stem, notebook, shelf, rows, solved.get(path.name[:2], ""))
        series.append(page)
        _write(cells.prepare(notebook, page.number, shelf, below_title=pages.bar(page)), source / path.name)
    for path in solutions:
        name = f"solutions/{path.name}"
        notebook = _read(path, work / "extra" / "notebooks" / name)
        page = pages.read(name.removesuffix(".ipynb"), notebook, shelf, [])
        cells.prepare(notebook, path.name[:2], shelf, root="../", below_title=pages.bar(page, "../"), fold=False)
        _write(notebook, source / name)
    _front(series, rows, list(solved.values()), source)


def _front(series: list[pages.Page], rows: list[ledger.Row], solved: list[str], source: Path) -> None:
    """The pages that are made of all notebooks."""
    (source / "index.md").write_text(pages.index(series, rows, solved))
    (source / "ledger.md").write_text(pages.ledger(series, rows))
    (source / "gallery.md").write_text(pages.gallery(series))


def _read(path: Path, copy: Path) -> nbformat.NotebookNode:
    """A notebook without the traces of its execution, a copy of which is left for readers to download."""
    notebook = publish.cleaned(nbformat.read(path, 4))
    _write(notebook, copy)
    return notebook


def _write(notebook: nbformat.NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(notebook) + "\n")


def _sphinx(work: Path) -> list[str]:
    """work/source and work/extra into work/site."""
    warnings = io.StringIO()
    with docutils_namespace():
        app = Sphinx(work / "source", None, work / "site", work / "doctrees", "html", settings(work / "extra"),
                     status=None, warning=warnings, freshenv=True)
        app.build()
    shutil.rmtree(work / "site" / "_sources", ignore_errors=True)  # made even when no sources are copied
    for leftover in (".buildinfo", "objects.inv"):  # for Sphinx itself and for other manuals
        (work / "site" / leftover).unlink(missing_ok=True)
    return strip_escape_sequences(warnings.getvalue()).replace(f"{work}/source/", "").splitlines()


def _check_sizes(site: Path) -> None:
    for page in sorted(site.rglob("*.html")):
        if page.stat().st_size > LARGEST:
            raise ValueError(f"{page.name} has {page.stat().st_size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f} that "
                             "a page may have; make the HTML outputs of its notebook smaller")
