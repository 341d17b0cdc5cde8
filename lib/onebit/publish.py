"""For readers: executed notebooks back into notebooks/ without traces of the machine, or as linked HTML pages; and
the table of claims into the README."""

import argparse
import copy
import hashlib
import html
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode

from .files import write_text

CLAIMS_START, CLAIMS_END = "<!-- claims, written by make publish -->", "<!-- end of claims -->"
INDEX = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>1-bit diffusion: the study</title>
<style>body {{ font: 17px/1.5 Georgia, serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem }}
li {{ margin: 1rem 0 }}
p {{ margin: 0.2rem 0; color: #444 }}</style></head>
<body><h1>1-bit diffusion: the study</h1><ol>
{items}
</ol></body></html>
"""


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


def back(built: Path, sources: Path) -> None:
    """Write the executed notebooks of `built` over their sources.  Raises FileNotFoundError if there are none."""
    for path in _executed(built):
        write_text(sources / path.name, nbformat.writes(cleaned(nbformat.read(path, 4))) + "\n")


def site(built: Path, target: Path) -> None:
    """One HTML page per executed notebook, linked to its neighbours, and index.html with titles and questions."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab")
    paths = _executed(built)
    items = []
    for i, path in enumerate(paths):
        notebook = cleaned(nbformat.read(path, 4))
        title, question = _headline(notebook)
        navigation = _navigation(paths, i)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = re.sub(r"\]\((?:\./)?([\w-]+)\.ipynb", r"](\1.html", cell.source)
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(navigation))
        notebook.cells.append(nbformat.v4.new_markdown_cell(navigation))
        page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
        write_text(target / f"{path.stem}.html", page)
        items.append(f'<li><a href="{path.stem}.html">{html.escape(title)}</a><p>{html.escape(question)}</p></li>')
    write_text(target / "index.html", INDEX.format(items="\n".join(items)))


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
    """The measured claims of claims.csv as Markdown."""
    rows = pd.read_csv(ledger, dtype={"notebook": str, "source": str})
    rows = rows[rows.measured.notna()]
    measured = [f"{r.measured:.3g}" + (f" [{r.ci_low:.3g}, {r.ci_high:.3g}]" if r.ci_low == r.ci_low else "")
                for r in rows.itertuples()]
    published = ["-" if x != x else f"{x:.4g}" for x in rows.published]
    table = pd.DataFrame({"claim": rows.claim, "source": rows.source, "published": published, "measured": measured,
                          "verdict": rows.verdict, "notebook": rows.notebook})
    return table.to_markdown(index=False, disable_numparse=True)


def _navigation(paths: list[Path], i: int) -> str:
    """Links from page i to the index and its neighbours."""
    links = ["[all notebooks](index.html)"]
    if i > 0:
        links.append(f"[previous]({paths[i - 1].stem}.html)")
    if i + 1 < len(paths):
        links.append(f"[next]({paths[i + 1].stem}.html)")
    return " · ".join(links)


def _injected(cell: NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def _executed(built: Path) -> list[Path]:
    paths = sorted(built.glob("[0-9]*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"no executed notebooks in {built}; run make paper first")
    return paths


def _headline(notebook: NotebookNode) -> tuple[str, str]:
    """The title (first heading) and the question (the line that begins with **Question.**)."""
    text = next(c.source for c in notebook.cells if c.cell_type == "markdown")
    title = re.search(r"^# (.+)$", text, re.M)
    question = re.search(r"\*\*Question\.\*\* (.+)$", text, re.M)
    return (title.group(1) if title else "untitled"), (question.group(1) if question else "")


def main(arguments: list[str] | None = None) -> int:
    """python -m onebit.publish back|site|readme FROM TO"""
    parser = argparse.ArgumentParser(prog="python -m onebit.publish", description=__doc__)
    parser.add_argument("what", choices=["back", "site", "readme"])
    parser.add_argument("built", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    {"back": back, "site": site, "readme": readme}[options.what](options.built, options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
