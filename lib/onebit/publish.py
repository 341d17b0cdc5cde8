"""For readers: executed notebooks back into notebooks/ without traces of the machine, and the table of claims into the
README."""

import argparse
import copy
import hashlib
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbformat import NotebookNode

from . import claims
from .claims import NOT_TESTABLE
from .claims.rules import UNDECIDED
from .files import replacing, write_text
from .report import cell as printed

CLAIMS_START, CLAIMS_END = "<!-- claims, written by make publish -->", "<!-- end of claims -->"


def source_hash(notebook: NotebookNode) -> str:
    """Twelve hex digits of the code cells, papermill's injected ones left out: what the outputs must belong to."""
    code = [c.source for c in notebook.cells if c.cell_type == "code" and not _injected(c)]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:12]


def cleaned(executed: NotebookNode) -> NotebookNode:
    """A copy without injected cells, times, progress bars and warnings on stderr, its source hash in the metadata.

    Raises    ValueError if a cell ended in an error.
    """
    notebook = copy.deepcopy(executed)
    notebook.cells = [cell for cell in notebook.cells if not _injected(cell)]
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            if any(output.output_type == "error" for output in cell.outputs):
                raise ValueError("a cell ended in an error; execute the notebook to its end first")
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = NotebookNode({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "onebit": {"source_hash": source_hash(notebook)},
    })
    return notebook


def executed_in(built: Path) -> list[Path]:
    """The executed notebooks in `built`, in their order.  Raises FileNotFoundError if there are none."""
    paths = sorted(built.glob("[0-9]*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no executed notebooks in {built}; run make paper first")
    return paths


def back(built: Path, sources: Path) -> None:
    """Write the executed notebooks of `built` over their sources, all of them or none.

    A source gets the time of what was executed from it, as make executes anew what is older than its source or than the
    library: the first it is not, and whether it is the second stays to be seen.

    Raises    FileNotFoundError if there are none; ValueError if one ended in an error, or if its text is no longer that
              of its source.
    """
    pages = {path: cleaned(nbformat.read(path, 4)) for path in executed_in(built)}
    for path, page in pages.items():
        _check_source(path, page, sources / path.name)
    with ExitStack() as stack:  # renamed at its end, once every one is written: a full disk changes none
        for path, page in pages.items():
            partial, executed = stack.enter_context(replacing(sources / path.name)), path.stat()
            partial.write_text(nbformat.writes(page) + "\n")
            os.utime(partial, ns=(executed.st_atime_ns, executed.st_mtime_ns))


def _check_source(path: Path, page: NotebookNode, source: Path) -> None:
    if not source.exists():
        raise ValueError(f"{source} is gone: remove {path}, which was executed from it, and run make paper first")
    if _texts(page) != _texts(nbformat.read(source, 4)):
        raise ValueError(f"{source} was edited since it was executed: run make paper first")


def _texts(notebook: NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells if not _injected(cell)]


def readme(ledger: Path, page: Path) -> None:
    """Write the measured claims of `ledger` (claims.csv) between the two marks in `page`.

    Raises    ValueError if the page does not hold both marks.
    """
    text = page.read_text()
    before, start, rest = text.partition(CLAIMS_START)
    _, end, after = rest.partition(CLAIMS_END)
    if not (start and end):
        raise ValueError(f"{page} lacks the marks {CLAIMS_START} and {CLAIMS_END} around its table of claims")
    write_text(page, f"{before}{start}\n{claims_table(ledger)}\n{end}{after}")


def claims_table(ledger: Path) -> str:
    """claims.csv as Markdown: how many got which verdict, the decided ones, and folded away the measured others."""
    rows = pd.read_csv(ledger, dtype={"notebook": str, "source": str})
    verdict = rows.verdict.str.replace(r" \(.*", "", regex=True)  # without the reason
    states = rows.verdict.map(claims.state).value_counts()
    order = [*claims.VERDICTS[:-1], *states.index.difference(claims.VERDICTS), NOT_TESTABLE]
    counts = ", ".join(f"{states[name]} {name}" for name in order if name in states)
    decided, open_ = verdict != NOT_TESTABLE, (verdict == NOT_TESTABLE) & rows.measured.notna()
    return (f"{len(rows)} claims: {counts}.\n\n{_rows(rows[decided])}\n\n<details><summary>{open_.sum()} more were "
            f"measured, and could not be decided</summary>\n\n{_rows(rows[open_])}\n\n</details>")


def _rows(rows: pd.DataFrame) -> str:
    known = claims.load()
    table = pd.DataFrame({
        "claim": rows.claim, "what is measured": [known[name].unit for name in rows.claim_id], "source": rows.source,
        "published": [published_text(row) for row in rows.itertuples()],
        "measured": [measured_text(row) for row in rows.itertuples()],
        "seeds": rows.n_seeds.astype(str).replace("0", "-"),
        "verdict": rows.verdict.str.replace(NOT_TESTABLE, UNDECIDED), "notebook": rows.notebook,
    })
    return table.to_markdown(index=False, disable_numparse=True)


def published_text(row: Any) -> str:
    """The published number of a row of the ledger, "-" where the source gives none."""
    return "-" if row.published != row.published else printed(row.published, 4)


def measured_text(row: Any) -> str:
    """The measured number of a row of the ledger and its interval, if any; "-" if nothing was measured."""
    if row.measured != row.measured:
        return "-"
    interval = f" [{printed(row.ci_low, 3)}, {printed(row.ci_high, 3)}]" if row.ci_low == row.ci_low else ""
    return f"{printed(row.measured, 3)}{interval}"


def _injected(cell: NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def main(arguments: list[str] | None = None) -> int:
    """python -m onebit.publish back|readme FROM TO"""
    parser = argparse.ArgumentParser(prog="python -m onebit.publish", description=__doc__)
    parser.add_argument("what", choices=["back", "readme"])
    parser.add_argument("built", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    {"back": back, "readme": readme}[options.what](options.built, options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
