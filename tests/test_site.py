"""The site of the committed notebooks: complete, without a broken link, and without a network."""

import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from site_tools import soup, study

from onebit import files, site
from onebit.site import assemble

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
SOLUTIONS = sorted(path.stem for path in (ROOT / "notebooks" / "solutions").glob("[0-9]*.ipynb"))
MATHJAX = "d4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882"  # es5/tex-svg.js of mathjax 3.2.2
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    target = tmp_path_factory.mktemp("committed") / "site"
    return target, site.build(ROOT / "notebooks", ROOT / "figures", target, ROOT / "notebooks" / "solutions")


@pytest.fixture(scope="module")
def built(result):
    return result[0]


@pytest.fixture(scope="module")
def pages(built):
    return {path.relative_to(built).as_posix(): soup(path) for path in sorted(built.rglob("*.html"))}


def test_sphinx_has_nothing_to_complain_of(result):
    assert result[1] == []


def test_every_notebook_and_every_way_in_has_a_page(built, pages):
    front = ["index", "ledger", "gallery", "search"]
    assert set(pages) == {f"{name}.html" for name in [*NOTEBOOKS, *front, *(f"solutions/{s}" for s in SOLUTIONS)]}
    for previous, name, following in zip(["index", *NOTEBOOKS], NOTEBOOKS, [*NOTEBOOKS[1:], "ledger"], strict=False):
        assert pages[f"{name}.html"].find("a", class_="prev-page")["href"] in (f"{previous}.html", "#")
        assert pages[f"{name}.html"].find("a", class_="next-page")["href"] == f"{following}.html"
        assert len(pages[f"{name}.html"].select(".toc-tree a")) > 3
        assert (built / "notebooks" / f"{name}.ipynb").exists()


def references(page):
    """What a page loads when it is opened."""
    for tag, attribute in (("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")):
        yield from (found[attribute] for found in page.find_all(tag, attrs={attribute: True}))


def test_no_page_or_style_asks_for_anything_from_elsewhere(built, pages):
    loaded = [reference for page in pages.values() for reference in references(page)]
    assert len(loaded) > 100 and not [one for one in loaded if re.match(r"(?:https?:)?//", one)]
    for style in built.rglob("*.css"):
        assert not re.findall(r"""(?:@import|url\()\s*["']?(?:url\(["']?)?(?:https?:|//)""", style.read_text()), style


def test_every_link_and_anchor_leads_somewhere(built, pages):
    anchors = {(built / name).resolve(): {tag["id"] for tag in page.find_all(id=True)} for name, page in pages.items()}
    broken = []
    for name, page in pages.items():
        for link in {*references(page), *(a["href"] for a in page.find_all("a", href=True))}:
            parts = urlsplit(link)
            target = ((built / name).parent / unquote(parts.path) if parts.path else built / name).resolve()
            if parts.scheme not in ("http", "https") and not (
                    target.is_file() and (not parts.fragment or unquote(parts.fragment) in anchors.get(target, ()))):
                broken.append((name, link))
    assert broken == []


def test_every_figure_and_table_stands_on_its_page_with_its_files(built, pages):
    missing = []
    for note in sorted((ROOT / "figures").glob("[0-9][0-9]_*.json")):
        name, suffix = note.name.removesuffix(".json").rsplit(".", 1)
        page = next(page for path, page in pages.items() if path.startswith(name[:2]))
        shown = page.find(id=f"figure-{name}" if suffix == "png" else f"table-{name}")
        names = [a["href"] for a in shown.select(".ob-files a")] if shown else []
        if not {f"figures/{name}.{suffix}", f"figures/{note.name}"} <= set(names):
            missing.append(note.name)
    assert missing == []  # else notebooks/ and figures/ come from different executions: make paper, make publish
    assert all("ob-sortable" in table["class"] for name in NOTEBOOKS for table in
               pages[f"{name}.html"].select("figure[id^=table-] table"))


def test_pages_are_light(built, pages):
    for name, page in pages.items():
        images = {(built / name).parent / image["src"] for image in page.find_all("img", src=True)}
        assert (built / name).stat().st_size + sum(path.stat().st_size for path in images) < assemble.LARGEST, name


def test_equations_are_typeset_from_the_committed_mathjax(built, pages):
    assert files.sha256(built / "_static" / "mathjax" / "tex-svg.js") == MATHJAX
    assert MATHJAX in (built / "_static" / "mathjax" / "README.md").read_text()
    assert "Apache License" in (built / "_static" / "mathjax" / "LICENSE").read_text()
    page = pages["02_training.html"]
    assert r"\bar\alpha_t" in page.find("div", class_="math").text
    assert [link for link in references(page) if "mathjax/tex-svg.js" in link]


def test_the_search_index_knows_the_text_of_tables_and_captions(built):
    index = (built / "searchindex.js").read_text()
    assert index.startswith("Search.setIndex(")
    assert all(f'"{name}"' in index for name in NOTEBOOKS)
    assert "wilcoxon" in index.lower() and "memor" in index


def test_the_walks_move(built, pages):
    moving = pages["06_interpolation.html"].find_all("img", class_="ob-moving")
    assert len(moving) == 1 and moving[0]["alt"].startswith("Walks between")
    assert b"acTL" in (built / moving[0]["src"]).read_bytes()[:200]


def test_the_ledger_holds_every_claim_and_the_front_every_question(pages):
    rows = (ROOT / "figures" / "claims.csv").read_text().count("\n") - 1
    assert len(pages["ledger.html"].select("#ledger tbody tr")) == rows
    assert len(pages["index.html"].select(".ob-questions > li")) == len(NOTEBOOKS)
    assert all(item.find(class_="ob-question").text.endswith("?") and item.find(class_="ob-said")
               for item in pages["index.html"].select(".ob-questions > li"))


def test_no_page_names_the_machine_that_built_it(built):
    for path in [*built.rglob("*.html"), *built.rglob("*.js")]:
        assert str(ROOT) not in (text := path.read_text()) and str(built.parent) not in text, path


def browse(address, tmp_path):
    """The page after its scripts have run, and what the browser complained about; no name can be resolved."""
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=10000",
         "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True)
    return BeautifulSoup(done.stdout, "html.parser"), re.findall(r"CONSOLE.*", done.stderr)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = study(tmp_path_factory.mktemp("small"))
    site.build(folder / "notebooks", folder / "figures", folder / "site", folder / "solutions")
    return folder / "site"


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
def test_a_browser_without_a_network_runs_the_scripts(small, tmp_path):
    page, complaints = browse((small / "01_first.html").as_uri(), tmp_path)
    assert complaints == [] and page.find(id="demo").text == "it ran"  # a script in the output of a cell
    assert len(page.find_all("mjx-container")) == 2 and not page.find("mjx-merror")
    assert len(page.find_all("button", class_="ob-sort")) == 6 and not page.find(class_="ob-unfold").has_attr("hidden")


CLICK = """<script>addEventListener("load", () => {
  const ids = () => [...document.querySelectorAll("#ledger tbody tr")].map((row) => row.cells[0].title).join("");
  document.querySelectorAll("#ledger .ob-sort")[2].click();
  document.body.dataset.up = ids();
  document.querySelectorAll("#ledger .ob-sort")[2].click();
  document.body.dataset.down = ids();
});</script></body>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
def test_the_ledger_sorts_and_filters(small, tmp_path):
    (small / "clicked.html").write_text((small / "ledger.html").read_text().replace("</body>", CLICK))
    page, complaints = browse(f"{(small / 'clicked.html').as_uri()}?source=001", tmp_path)
    assert complaints == []
    assert (page.body["data-up"], page.body["data-down"]) == ("abcd", "bacd")  # what has no number stays last
    assert [row.td["title"] for row in page.select("#ledger tbody tr:not([hidden])")] == ["b", "c"]
    assert page.select("#ledger thead th")[2]["aria-sort"] == "descending"
