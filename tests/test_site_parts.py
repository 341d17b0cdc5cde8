"""The site's parts on a small study: what becomes of each kind of output, of claims and of captions."""

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from site_tools import DEMO, TABLE, note, shown, soup, study

from onebit import site
from onebit.site import assemble, blocks, cells, ledger
from onebit.site.__main__ import main
from onebit.site.shelf import Shelf


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = study(tmp_path_factory.mktemp("small"))
    warnings = site.build(folder / "notebooks", folder / "figures", folder / "site", folder / "solutions")
    assert warnings == []
    return folder / "site"


def test_a_figure_stands_with_its_caption_and_files(small):
    figure = soup(small / "01_first.html").find(id="figure-01_plot")
    assert figure.img["src"] == "figures/01_plot.png" and figure.img["alt"] == "A figure with code."
    assert (figure.img["width"], figure.img["height"]) == ("220", "110")  # 320 x 160 at 160 dpi, shown at 110
    assert [str(code) for code in figure.find_all("code")] == ["<code>code</code>"]
    files = {a.text: a["href"] for a in figure.find(class_="ob-files").find_all("a")}
    assert files == {"PNG": "figures/01_plot.png", "Data (CSV)": "figures/01_plot.csv",
                     "Origin (JSON)": "figures/01_plot.png.json"}  # no PDF was saved
    assert all((small / path).exists() for path in files.values())


def test_tables_are_sortable_and_nan_reads_as_nothing(small):
    known, unknown = soup(small / "01_first.html").find_all("figure", class_="ob-tabular")[:2]
    assert "ob-sortable" in known.table["class"] and known.find_parent("div", class_="text_html")
    assert [cell.text for cell in known.table.find_all(["th", "td"])] == [
        "net_name", "loss", "unet", "\u2013", "resunet", "0.25"]
    assert known["id"] == "table-01_plot" and "01_plot.csv" in str(known.find(class_="ob-files"))
    assert not unknown.has_attr("id") and unknown.figcaption.text == "Unknown." and not unknown.find(class_="ob-files")


def test_scripts_in_outputs_stay_and_frames_and_sources_take_the_sites_looks(small):
    text = (small / "01_first.html").read_text()
    assert DEMO in text and "style scoped" not in text and "color: red" not in text
    page = soup(small / "01_first.html")
    assert page.find_all("figure", class_="ob-tabular")[2].table["class"] == ["ob-table", "ob-sortable"]
    assert page.find("div", class_="cell_output").find_all_next("span", class_="nf", string="f")


def test_setup_is_left_out_and_predictions_are_marked(small):
    page = soup(small / "01_first.html")
    assert "import sys" not in page.text and "plot()" in page.text
    assert [mark.text.strip() for mark in page.find_all(class_="ob-prediction")] == ["Prediction. It\ngrows."]
    assert all(not fold.has_attr("open") for fold in page.find_all("details"))


def test_solutions_are_pages_linked_from_their_notebook_and_back(small):
    bar = soup(small / "01_first.html").find(class_="ob-bar")
    assert [a["href"] for a in bar.find_all("a")] == [
        "notebooks/01_first.ipynb", "solutions/01_solutions.html", "gallery.html#01_first"]
    assert "solutions/" not in str(soup(small / "02_second.html").find(class_="ob-bar"))
    solved = soup(small / "solutions" / "01_solutions.html")
    assert solved.article.find("a", string="1.1")["href"] == "../01_first.html#a-part"
    assert not solved.find("details") and "answer()" in solved.text  # the code is the solution
    assert solved.find(class_="ob-bar").a["href"] == "../notebooks/solutions/01_solutions.ipynb"


def test_the_front_answers_from_the_ledger(small):
    first, second = soup(small / "index.html").find(class_="ob-questions").find_all("li", recursive=False)
    said = [" ".join(line.text.split()) for line in first.find_all(class_="ob-said")]
    assert said == ["Contradicted: It is 1 bit.", "Open: 1 undecided"]
    assert "One thing" in first.details.text and first.details.find("a", href="02_second.html")
    assert first.find(class_="ob-question").text.startswith("Is $x")
    assert "Of 4 claims, 1 contradicted, 1 undecided, 1 not measured yet, 1 not testable here." in second.text


def test_the_ledger_says_why_a_claim_has_no_verdict(tmp_path):
    rows = ledger.load(study(tmp_path) / "figures" / "claims.csv")
    assert [(row.state, row.reason) for row in rows] == [
        ("contradicted", ""), ("undecided", "interval too wide"), ("not measured yet", ""),
        ("not testable here", "needs the phone (a new one)")]
    assert [(row.measured, row.interval, row.published) for row in rows[:3]] == [
        ("0.35", "", "1"), ("1.5", "[0.2, 1.8]", "1.764"), ("-", "", "-")]
    (tmp_path / "figures" / "claims.csv").write_text(
        (tmp_path / "figures" / "claims.csv").read_text().replace("contradicted", "doubtful"))
    with pytest.raises(ValueError, match="'doubtful' is no verdict"):
        ledger.load(tmp_path / "figures" / "claims.csv")


def test_a_caption_that_stands_twice_finds_nothing(tmp_path):
    folder = study(tmp_path) / "figures"
    assert Shelf(folder).find("figure", "01", "A figure with `code`.").name == "01_plot"
    assert Shelf(folder).find("table", "01", "A figure with `code`.") is None
    note(folder / "01_again.png", "A figure with `code`.")
    assert Shelf(folder).find("figure", "01", "A figure with `code`.") is None
    (folder / "01_plot.png").unlink()  # a note without its figure
    assert Shelf(folder).find("figure", "01", "A figure with `code`.").name == "01_again"


def test_outputs_that_are_no_figure_stay_as_they_are(tmp_path):
    shelf = Shelf(study(tmp_path) / "figures")
    plain = [shown({"image/png": "iVBORw0KGgo="}), shown({"text/markdown": "*at one seed:* a | b"}),
             shown({"text/html": "<b>x</b>"})]
    assert cells.rewritten(plain, "01", shelf, "") == plain


def test_headings_in_two_rows_do_not_sort():
    double = ("<table class='dataframe'><thead><tr><th colspan='2'>a</th></tr><tr><th>b</th><th>c</th></tr></thead>"
              "<tbody><tr><td>1</td><td>2</td></tr></tbody></table>")
    assert 'class="ob-table"' in blocks.frame(double)
    assert 'class="ob-table ob-sortable"' in blocks.table(TABLE, "", None, "")


def test_numbers_of_a_data_frame_stand_right_and_whole_ones_have_commas():
    frame = pd.DataFrame({"name": ["a", "b"], "macs": [115604504, -7], "bits": [0.125, np.nan], "mixed": [1, "x"]})
    shown = BeautifulSoup(blocks.frame(frame.to_html()), "html.parser")
    rows = [[(cell.get_text(), "ob-number" in cell.get("class", [])) for cell in row.find_all("td")]
            for row in shown.tbody.find_all("tr")]
    assert rows[0] == [("a", False), ("115,604,504", True), ("0.125", True), ("1", False)]
    assert rows[1][1] == ("-7", True) and rows[1][3] == ("x", False)
    heads = [th.get_text() for th in shown.thead.find_all("th") if "ob-number" in th.get("class", [])]
    assert heads == ["macs", "bits"]
    spanned = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]))
    assert "ob-number" not in blocks.frame(spanned.to_html())


def test_a_table_that_scrolls_says_how_many_rows_it_has():
    head, row = "| a | b |\n|---|---|\n", "| 1 | 2 |\n"
    assert "<span>17 rows</span>" in blocks.table(head + 17 * row, "", None, "")
    assert " rows" not in blocks.table(head + 16 * row, "", None, "")


def test_a_site_replaces_a_site_and_nothing_else(tmp_path, capsys):
    folder = study(tmp_path)
    target = folder / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    arguments = [str(folder / "notebooks"), str(target), "--figures", str(folder / "figures")]
    assert main(arguments) == 1 and "holds no site" in capsys.readouterr().err
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]
    (target / "thesis.txt").rename(target / "index.html")
    assert main(arguments) == 0 and "index.html" in capsys.readouterr().out
    assert (target / "01_first.html").exists() and "mine" not in (target / "index.html").read_text()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_what_is_missing_or_too_large_is_named(tmp_path, monkeypatch):
    folder = study(tmp_path)
    with pytest.raises(FileNotFoundError, match="make paper"):
        site.build(folder / "figures", folder / "figures", folder / "site")
    monkeypatch.setattr(assemble, "LARGEST", 20_000)
    with pytest.raises(ValueError, match=r"01_first.html has 0.0 MB"):
        site.build(folder / "notebooks", folder / "figures", folder / "site")
    (folder / "figures" / "claims.csv").unlink()
    with pytest.raises(FileNotFoundError, match="notebook 09 writes it"):
        site.build(folder / "notebooks", folder / "figures", folder / "site")
    assert not (folder / "site").exists()
