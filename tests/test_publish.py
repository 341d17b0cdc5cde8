"""Executed notebooks on their way to readers."""

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


def test_the_site_links_its_pages(tmp_path):
    for name in ("01_a", "02_b"):
        nbformat.write(executed(), tmp_path / f"{name}.ipynb")
    publish.site(tmp_path, tmp_path / "site")
    first, index = ((tmp_path / "site" / f"{n}.html").read_text() for n in ("01_a", "index"))
    assert 'href="02_b.html"' in first and ".ipynb" not in first.split("<body")[1]
    assert "Title &amp; more" in index and "Does it work?" in index
