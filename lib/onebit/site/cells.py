"""An executed notebook made ready for Sphinx: code folded away, figures and tables framed, predictions marked."""

import re
from base64 import b64decode

import nbformat
from bs4 import BeautifulSoup
from nbformat import NotebookNode

from . import blocks
from .shelf import Shelf

CAPTION = re.compile(r"\*(?P<caption>[^*].*)\*", re.S)
TABLE = re.compile(r"(?P<table>\|.+\|\n\|[ :|-]+\|(?:\n\|.*\|)*)(?:\n\n\*(?P<caption>.+)\*)?\s*", re.S)
MARKED = re.compile(r"^(\*\*(Prediction|What we see|What we learned)\.\*\*.*?)(?=\n\n|\Z)", re.S | re.M)
TITLE = re.compile(r"^# .+$", re.M)


def prepare(notebook: NotebookNode, number: str, shelf: Shelf, *, root: str = "", below_title: str = "",
            fold: bool = True) -> NotebookNode:
    """The notebook as its page shows it; `notebook` itself is changed.

    number       two digits, as in the captions' notes
    root         leads from the page to the site's first folder
    below_title  HTML to insert under the title
    fold         whether code is folded away
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tags = cell.metadata.setdefault("tags", [])
            if "setup" in tags:  # for those who run it
                tags.append("remove-cell")
            elif fold:
                tags.append("hide-input")
            cell.outputs = rewritten(cell.outputs, number, shelf, root)
            _describe(cell)
        elif cell.cell_type == "markdown":
            cell.source = MARKED.sub(_marked, cell.source)
    head = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    head.source = TITLE.sub(lambda title: f"{title[0]}\n\n{below_title}\n", head.source, count=1)
    return notebook


def rewritten(outputs: list, number: str, shelf: Shelf, root: str) -> list:
    """Outputs with every figure and its caption, and every table, as one framed block; the others as they were."""
    done, waiting = [], list(outputs)
    while waiting:
        output = waiting.pop(0)
        data = output.get("data", {})
        if "image/png" in data and waiting and (item := _figure(waiting[0], number, shelf)):
            waiting.pop(0)  # its caption
            output = _html(blocks.figure(item, root))
        elif "text/html" in data:
            output = _html_output(output)
        elif found := TABLE.fullmatch(data.get("text/markdown", "")):
            output = _html(_table(found, number, shelf, root))
        done.append(output)
    return done


def _figure(following: NotebookNode, number: str, shelf: Shelf):
    found = CAPTION.fullmatch(following.get("data", {}).get("text/markdown", ""))
    return shelf.find("figure", number, found["caption"]) if found else None


def _table(found: re.Match, number: str, shelf: Shelf, root: str) -> str:
    caption = found["caption"] or ""
    if caption:
        item = shelf.find("table", number, caption)
    else:
        head = found["table"].partition("\n")[0]
        item = shelf.claims(number) if "| claim_id " in head else None
    return blocks.table(found["table"], caption, item, root)


def _html_output(output: NotebookNode) -> NotebookNode:
    """Source code and data frames in the site's own style; other HTML, scripts included, is left alone."""
    text = output.data["text/html"]
    if "text/latex" in output.data and 'class="highlight"' in text:  # IPython.display.Code
        code = BeautifulSoup(text, "html.parser").find(class_="highlight").get_text().strip("\n")
        return _display({"text/markdown": f"```python\n{code}\n```"})
    if 'class="dataframe"' in text and "<script" not in text:
        return _html(blocks.frame(text))
    return output


def _describe(cell: NotebookNode) -> None:
    """What remains a picture of its own gets a description, for those who hear it."""
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    if pictures:
        words = [output.metadata.get("image/png", {}).get("alt") for output in pictures]
        alt = next(filter(None, words), "Picture made by the code above.")
        moving = any(b"acTL" in b64decode(output.data["image/png"])[:200] for output in pictures)  # an animated PNG
        cell.metadata["mystnb"] = {"image": {"alt": alt, "classes": "ob-picture ob-moving" if moving else "ob-picture"}}


def _marked(found: re.Match) -> str:
    kind = found[2].split()[-1]
    return f":::{{container}} ob-mark ob-{kind.lower()}\n{found[1]}\n:::"


def _html(text: str) -> NotebookNode:
    return _display({"text/html": text})


def _display(data: dict) -> NotebookNode:
    return nbformat.v4.new_output("display_data", data)
