"""A small study to build a site from: two notebooks, solutions, a figure and two tables."""

import json

import nbformat
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

DEMO = '<div id="demo">still</div><script>document.getElementById("demo").textContent = "it " + "ran";</script>'
FRAME = ('<div><style scoped>.dataframe {}</style><table border="1" class="dataframe"><thead><tr><th></th><th>bits</th>'
         "</tr></thead><tbody><tr><th>0</th><td>1.5</td></tr></tbody></table></div>")
CODE = '<style>pre { color: red }</style><div class="highlight"><pre><span>def</span> f(x): ...\n</pre></div>'
TABLE = "| net_name   |   loss |\n|:-----------|-------:|\n| `unet`     |    nan |\n| resunet    |   0.25 |"
LEDGER = """claim_id,source,claim,published,measured,ci_low,ci_high,n_seeds,verdict,notebook,runs
a,000,it is 1 bit,1.0,0.35,,,0,contradicted,01,
b,"000, 001",a gap,1.7639,1.5,0.2,1.8,2,not testable here (interval too wide),01,
c,001,later,,,,,0,not testable here (notebook 07 has not measured it),07,
d,002,on a phone,,,,,0,not testable here (needs the phone (a new one)),,
"""


def shown(data, **metadata):
    return new_output("display_data", data, metadata=metadata)


def study(folder):
    """Writes notebooks/, solutions/ and figures/ into `folder`."""
    for name in ("notebooks", "solutions", "figures"):
        (folder / name).mkdir()
    figure = {"image/png": "iVBORw0KGgo="}
    cells = [
        new_markdown_cell("# 01 · First\n\n**Question.** Is $x < y$?\n\nNext: [second](02_second.ipynb)"),
        new_code_cell("import sys", metadata={"tags": ["setup"]}),
        new_markdown_cell("## 1.1 A part\n\n**Prediction.** It\ngrows.\n\nAnd text.\n\n$$a^2$$"),
        new_code_cell("plot()", outputs=[shown(figure), shown({"text/markdown": "*A figure with `code`.*"})]),
        new_code_cell("table()", outputs=[shown({"text/markdown": f"{TABLE}\n\n*A table.*"}),
                                          shown({"text/markdown": f"{TABLE}\n\n*Unknown.*"})]),
        new_code_cell("demo()", outputs=[shown({"text/html": DEMO}), shown({"text/html": FRAME}),
                                         shown({"text/html": CODE, "text/latex": "x"})]),
        new_markdown_cell("## Verdict\n\nBy rule."),
        new_markdown_cell("**What we learned.**\n1. One thing ([02](02_second.ipynb)).\n\n## Exercises\n"
                          "[here](solutions/01_solutions.ipynb)"),
    ]
    nbformat.write(new_notebook(cells=cells), folder / "notebooks" / "01_first.ipynb")
    second = [new_markdown_cell("# 02 · Second\n\n**Question.** And now?")]
    nbformat.write(new_notebook(cells=second), folder / "notebooks" / "02_second.ipynb")
    solved = [new_markdown_cell("# 01 · Solutions\n\nTo [1.1](../01_first.ipynb#1.1-A-part)"),
              new_code_cell("answer()")]
    nbformat.write(new_notebook(cells=solved), folder / "solutions" / "01_solutions.ipynb")
    note(folder / "figures" / "01_plot.png", "A figure with `code`.")
    note(folder / "figures" / "01_plot.csv", "A table.")
    (folder / "figures" / "claims.csv").write_text(LEDGER)
    return folder


def note(path, caption, notebook="01"):
    """A file of the figures folder with its note."""
    if path.suffix == ".png":
        Image.new("RGB", (320, 160)).save(path)
    else:
        path.write_text("a,b\n1,2\n")
    path.with_name(f"{path.name}.json").write_text(json.dumps({"caption": caption, "notebook": notebook}))


def soup(path):
    return BeautifulSoup(path.read_text(), "html.parser")
