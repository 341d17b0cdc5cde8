"""Figures and tables as the site shows them: in a frame, captioned, with their files to download."""

import html
import re

from bs4 import BeautifulSoup, Tag
from markdown_it import MarkdownIt

from .shelf import Item

LONG = 28  # characters in a cell from which on it may break into lines
TALL = 16  # rows above which a table says how many it has, since a part of them may be scrolled out of sight
_markdown = MarkdownIt("commonmark").enable("table")
_nothing = re.compile(r"nan|NaN")
_number = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?|nan|NaN|inf")


def figure(item: Item, root: str) -> str:
    """HTML of a saved figure.  `root` leads from the page to the site's first folder: "" or "../"."""
    width, height = item.size
    text = html.escape(_plain(item.caption), quote=True)
    source = f"{root}figures/{item.name}.png"
    return (f'<figure class="ob-figure" id="{item.anchor}"><a class="ob-frame" href="{source}">'
            f'<img src="{source}" alt="{text}" width="{width}" height="{height}" loading="lazy"></a>'
            f"{_below(item.caption, item, root)}</figure>")


def table(source: str, caption: str, item: Item | None, root: str) -> str:
    """HTML of a Markdown table, sortable; without a link to its data where `item` is None."""
    return _framed(BeautifulSoup(_markdown.render(source), "html.parser").table, caption, item, root)


def frame(source: str) -> str:
    """HTML of a table as pandas writes it, without its own style.  Sortable if it has a single row of headings."""
    table = BeautifulSoup(source, "html.parser").table
    _align(table)
    return _framed(table, "", None, "")


def _align(table) -> None:
    """Columns of numbers to the right, whole numbers with commas, as the tables of `onebit.report` have them."""
    rows = [row.find_all(["th", "td"]) for row in table.find_all("tr")]
    spans = table.find(attrs={"colspan": True}) or table.find(attrs={"rowspan": True})
    if spans or len({len(cells) for cells in rows}) != 1:
        return
    heads = len(table.thead.find_all("tr"))
    for column in zip(*rows, strict=True):
        body = [cell for cell in column[heads:] if cell.name == "td"]
        if body and all(_number.fullmatch(cell.get_text().strip()) for cell in body):
            for cell in column:
                cell["class"] = "ob-number"
            for cell in body:
                text = cell.get_text().strip()
                if text.lstrip("-").isdigit():
                    cell.string = f"{int(text):,}"


def _framed(table, caption: str, item: Item | None, root: str) -> str:
    simple = len(table.thead.find_all("tr")) == 1 and not table.find(attrs={"colspan": True})
    table.attrs = {"class": "ob-table ob-sortable" if simple else "ob-table"}
    for cell in table.find_all(["th", "td"]):
        if _nothing.fullmatch(cell.get_text().strip()):
            cell.string = "\u2013"  # an en dash reads as "nothing", nan does not
        if cell.name == "th":
            _breakable(cell)
        elif len(cell.get_text()) > LONG:
            cell["class"] = "ob-prose"
    name = f' id="{item.anchor}"' if item else ""
    label = html.escape(_plain(caption) or "table", quote=True)
    return (f'<figure class="ob-tabular"{name}><div class="ob-scroll" tabindex="0" role="region" aria-label="{label}">'
            f"{table}</div>{_below(caption, item, root, len(table.find_all('tr')) - len(table.thead.find_all('tr')))}"
            "</figure>")


def _breakable(heading) -> None:
    """Long names of columns may break after an underscore."""
    parts = heading.get_text().split("_")
    heading.clear()
    for i, part in enumerate(parts):
        if i:
            heading.append("_")
            heading.append(Tag(name="wbr", can_be_empty_element=True))
        heading.append(part)


def _below(caption: str, item: Item | None, root: str, rows: int = 0) -> str:
    words = f"<figcaption>{_markdown.renderInline(caption)}</figcaption>" if caption else ""
    count = f"<span>{rows} rows</span>" if rows > TALL else ""
    links = files(item, root) if item else ""
    return words + (f'<p class="ob-files">{count}{links}</p>' if count or links else "")


def files(item: Item, root: str) -> str:
    """HTML of the links to an item's files."""
    return "".join(f'<a href="{root}figures/{name}" download>{label}</a>' for label, name in item.files.items())


def _plain(caption: str) -> str:
    """A caption without its Markdown, for those who hear it."""
    return BeautifulSoup(_markdown.renderInline(caption), "html.parser").get_text()
