"""Executed notebooks on their way to readers."""

import errno
import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from onebit import publish


def executed(error=False):
    parameters = new_code_cell(
        "PROFILE = 'laptop'", metadata={"tags": ["parameters"], "papermill": {"start_time": "now"}}
    )
    injected = new_code_cell("PROFILE = 'smoke'", metadata={"tags": ["injected-parameters"]})
    shown = new_code_cell(
        "print(1)",
        outputs=[new_output("stream", name="stdout", text="1"), new_output("stream", name="stderr", text="50 %")],
    )
    if error:
        shown.outputs.append(new_output("error", ename="E", evalue="", traceback=[]))
    head = new_markdown_cell("# Title & more\n\n**Question.** Does it work?\n\nsee [02](02_b.ipynb)")
    return new_notebook(cells=[head, parameters, injected, shown], metadata={"papermill": {"duration": 3}})


def test_cleaning_removes_traces_and_keeps_outputs():
    notebook = publish.cleaned(executed())
    assert [c.source for c in notebook.cells[1:]] == ["PROFILE = 'laptop'", "print(1)"]
    assert [o["text"] for o in notebook.cells[2].outputs] == ["1"]
    assert "papermill" not in str(notebook) and notebook.cells[1].metadata["tags"] == ["parameters"]


def test_the_source_hash_follows_code_and_nothing_else():
    a, b, c = executed(), executed(), executed()
    b.cells[0].source += " more prose"
    b.cells[3].outputs = []
    c.cells[3].source = "print(2)"
    assert publish.source_hash(a) == publish.source_hash(b) != publish.source_hash(c)


def test_a_notebook_with_an_error_is_not_published():
    with pytest.raises(ValueError, match="ended in an error"):
        publish.cleaned(executed(error=True))


def test_nothing_executed_is_an_error_that_names_the_mend(tmp_path):
    with pytest.raises(FileNotFoundError, match="make paper"):
        publish.back(tmp_path, tmp_path)


@pytest.fixture
def folders(tmp_path):
    """What was executed, and sources of it without outputs."""
    built, sources = tmp_path / "built", tmp_path / "notebooks"
    for folder in (built, sources):
        folder.mkdir()
        for name in ("01_a.ipynb", "02_b.ipynb"):
            notebook = executed()
            if folder is sources:
                notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in str(cell.metadata)]
                notebook.cells[-1].outputs = []
            nbformat.write(notebook, folder / name)
    return built, sources


def edit(path, place):
    notebook = nbformat.read(path, 4)
    notebook.cells[place].source += "# more"
    nbformat.write(notebook, path)


def test_sources_get_the_outputs_and_the_time_of_what_was_executed(folders):
    """Else make would execute anew what is older than its source, or not execute what is older than the library."""
    built, sources = folders
    os.utime(built / "01_a.ipynb", (1_000, 1_000))
    publish.back(built, sources)
    assert nbformat.read(sources / "01_a.ipynb", 4).cells[-1].outputs[0]["text"] == "1"
    assert (sources / "01_a.ipynb").stat().st_mtime == (built / "01_a.ipynb").stat().st_mtime == 1_000


@pytest.mark.parametrize("place", [0, -1], ids=["prose", "code"])
def test_a_source_that_was_edited_since_is_kept_and_so_are_all_others(folders, place):
    built, sources = folders
    edit(sources / "02_b.ipynb", place)
    before = {path: path.read_text() for path in sources.iterdir()}
    with pytest.raises(ValueError, match=r"02_b\.ipynb was edited .* run make paper first"):
        publish.back(built, sources)
    assert {path: path.read_text() for path in sources.iterdir()} == before


def test_a_disk_that_is_full_leaves_every_source_as_it_was(folders, monkeypatch):
    built, sources = folders
    before, write = {path: path.read_text() for path in sources.iterdir()}, Path.write_text

    def full(path, text):
        if "02_b" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        publish.back(built, sources)
    assert {path: path.read_text() for path in sources.iterdir()} == before


def test_a_source_that_was_removed_does_not_come_back(folders):
    built, sources = folders
    (sources / "02_b.ipynb").unlink()
    with pytest.raises(ValueError, match=r"02_b\.ipynb is gone: remove .* run make paper first"):
        publish.back(built, sources)
    assert [path.name for path in sources.iterdir()] == ["01_a.ipynb"]


def test_the_claims_are_written_between_the_marks_and_nothing_else_changes(tmp_path):
    ledger, page = tmp_path / "claims.csv", tmp_path / "README.md"
    header = "claim_id,source,claim,published,measured,ci_low,ci_high,n_seeds,verdict,notebook,runs\n"
    ledger.write_text(header + "000-one-bit,000,It is 1 bit,1.0,0.34974,,,0,contradicted,01,\n"
                      "000-fmd-gap,000,A gap,1.7639,1.5,1.2,1.8,2,direction only,02,\n"
                      "001-spd,001,Not yet,,,,,0,not testable here (x),07,\n"
                      "001-tbs,001,Open,2.0,3.0,1.0,9.0,2,not testable here (interval too wide),07,\n")
    page.write_text(f"top\n{publish.CLAIMS_START}\nold\n{publish.CLAIMS_END}\nend\n")
    publish.readme(ledger, page)
    publish.readme(ledger, page)
    text = page.read_text()
    assert text.startswith("top\n") and text.endswith("\nend\n") and "old" not in text and "Not yet" not in text
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert cells[0] == ["claim", "what is measured", "source", "published", "measured", "seeds", "verdict", "notebook"]
    assert cells[2] == ["It is 1 bit", "1-bit weights over all parameters", "000", "1", "0.35", "-", "contradicted",
                        "01"]
    assert cells[3][:1] + cells[3][2:] == ["A gap", "000", "1.764", "1.5 [1.2, 1.8]", "2", "direction only", "02"]
    assert "4 claims: 1 direction only, 1 contradicted, 1 undecided, 1 not testable here." in text
    decided, folded = text.split("<details><summary>1 more")
    assert "| Open" not in decided and "| Open" in folded and text.count("| A gap") == 1
    assert "undecided (interval too wide)" in folded
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        publish.readme(ledger, page)


def test_the_readme_shows_the_committed_ledger():
    root = Path(__file__).parents[1]
    block = (root / "README.md").read_text().partition(publish.CLAIMS_START)[2].partition(publish.CLAIMS_END)[0]
    assert block.strip() == publish.claims_table(root / "figures/claims.csv").strip()
