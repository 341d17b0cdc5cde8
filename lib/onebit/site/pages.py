"""What the pages say: each notebook's head read from its cells, and the index, ledger and gallery from templates."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup
from nbformat import NotebookNode

from ..plots import VERDICT_COLOURS
from .ledger import SOURCES, STATES, Answer, Row, answer, counts, slug
from .shelf import Item, Shelf

HERO = "02_comparison_grid"  # the figure on the front
NOTEBOOK = re.compile(r"\]\(([\w-]+)\.ipynb")  # a link to another notebook of the series, whose page stands beside it
_markdown = MarkdownIt("commonmark")


@dataclass(frozen=True)
class Page:
    """One notebook of the series, as the index shows it; its text fields are HTML, its title is plain."""

    name: str  # "02_training"
    title: str
    question: str
    time: str  # on two CPU cores; empty if the notebook does not say
    lessons: str  # what we learned, a list
    answer: Answer
    items: tuple[Item, ...]
    solutions: str  # the name of their page, or empty

    @property
    def number(self) -> str:
        return self.name.split("_")[0]


def read(name: str, notebook: NotebookNode, shelf: Shelf, rows: list[Row], solutions: str = "") -> Page:
    """The page of an executed notebook."""
    texts = [NOTEBOOK.sub(r"](\1.html", cell.source) for cell in notebook.cells if cell.cell_type == "markdown"] or [""]
    number = name.split("_")[0]
    return Page(
        name, _find(r"^# (.+)$", texts[0]) or name, _inline(_find(r"\*\*Question\.\*\* (.+?)(?:\n\n|\Z)", texts[0])),
        _find(r"^\| *(?:minutes|time)[^|]*\| *(.+?) *\|$", texts[0]),
        Markup(_markdown.render(_find(r"\*\*What we learned\.\*\*\n(.+?)(?:\n\n|\Z)", "\n\n".join(texts)))),
        answer(rows, number), tuple(item for item in shelf.items if item.notebook == number), solutions,
    )


def index(pages: list[Page], rows: list[Row], solutions: list[str]) -> str:
    """The index as MyST text.  `solutions` names the pages of solutions."""
    names = _names(pages)

    def link(number: str, words: str) -> str:
        return Markup('<a href="{}.html">{}</a>').format(names[number], words) if number in names else words

    return _render(
        "index", pages=pages, rows=[row for row in rows if row.measured != "-"], total=rows, counts=counts(rows),
        solutions=solutions, link=link, names=names,
        hero=next((item for page in pages for item in page.items if item.name == HERO), None),
    )


def ledger(pages: list[Page], rows: list[Row]) -> str:
    """The page of the whole ledger as MyST text."""
    return _render("ledger", pages=pages, names=_names(pages), rows=rows, counts=counts(rows))


def gallery(pages: list[Page]) -> str:
    """The page of all figures and tables as MyST text."""
    return _render("gallery", pages=pages)


def bar(page: Page, root: str = "") -> str:
    """HTML of the line under a notebook's title: what can be downloaded, and its solutions."""
    return _render("bar", page=page, root=root).strip()


def _names(pages: list[Page]) -> dict[str, str]:
    return {page.number: page.name for page in pages}


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )
    environment.globals |= {"colours": VERDICT_COLOURS, "sources": SOURCES, "states": STATES, "slug": slug}
    environment.filters["inline"] = _inline
    return environment


def _render(name: str, **values) -> str:
    return _environment().get_template(f"{name}.jinja").render(values)


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.M | re.S if "\\Z" in pattern else re.M)
    return found[1] if found else ""


def _inline(text: str) -> Markup:
    return Markup(_markdown.renderInline(text))
