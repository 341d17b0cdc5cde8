"""Figures and tables: where they go, what lies beside them, and that the same input gives the same bytes."""

import json
import math
import re
from dataclasses import replace
from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from onebit import claims, paths, plots
from onebit.metrics import Estimate
from onebit.report import Report
from onebit.study import Run, Study
from onebit.study.profiles import RESUNET_RECIPES, UNET_RECIPES

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RUNS = [Run(seed=0), Run(seed=1)]


def picture():
    figure, ax = plt.subplots()
    ax.plot([0, 1], [1, 0])
    return figure


def test_the_same_figure_has_the_same_bytes_and_a_note_of_origin(home):
    report = Report("02", Study.named("laptop", "mnist"))
    first = report.figure(picture(), "demo", "A line.", RUNS)
    before = {p.name: p.read_bytes() for p in paths.FIGURES.iterdir()}
    assert set(before) == {"02_demo.png", "02_demo.pdf", "02_demo.png.json", "02_demo.data.csv"}
    report.figure(picture(), "demo", "A line.", RUNS)
    assert {p.name: p.read_bytes() for p in paths.FIGURES.iterdir()} == before
    note = json.loads(first.with_name("02_demo.png.json").read_text())
    assert note["caption"] == "A line." and note["dataset"] == "mnist" and note["profile"] == "laptop"
    assert len(note["runs"]) == 2 and all(name.startswith("train-mnist-resunet64-fp16-s") for name in note["runs"])


@pytest.mark.parametrize(("asked", "drawn"), [("1", False), ("0", True), ("", True)])
def test_tables_only_saves_what_a_figure_draws_without_drawing_it(home, monkeypatch, asked, drawn):
    report = Report("02", Study.named("laptop", "mnist"))
    report.figure(picture(), "demo", "A line.", RUNS)
    before = {p.name: p.read_bytes() for p in paths.FIGURES.iterdir()}
    monkeypatch.setenv("TABLES_ONLY", asked)
    report.figure(picture(), "demo", "A line.", RUNS)
    kept = {name: content for name, content in before.items() if drawn or not name.endswith((".png", ".pdf"))}
    assert {p.name: p.read_bytes() for p in paths.FIGURES.iterdir()} == kept
    assert not plt.get_fignums()


def test_a_figure_is_laid_out_once_and_drawn_once_for_each_of_its_forms(home, monkeypatch):
    engines, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, r: (engines.append(self.get_layout_engine()), draw(self, r))[1])
    with plt.rc_context():
        plots.use_style()
        Report("02", Study.named("laptop", "mnist")).figure(picture(), "demo", "A line.", RUNS)
    assert len(engines) == 4, "the layout, PNG, PDF, and what the notebook shows"
    assert isinstance(engines[0], ConstrainedLayoutEngine) and engines[1:] == [None] * 3


def test_a_table_is_saved_unrounded_and_shown_rounded_with_the_number_of_seeds(home):
    frame = pd.DataFrame({"arm": ["a"], "value": [1 / 3]})
    path = Report("02", Study.named("laptop", "mnist")).table(frame, "demo", "Thirds.", RUNS)
    assert pd.read_csv(path).value[0] == pytest.approx(1 / 3, abs=1e-15)
    page = path.with_suffix(".md").read_text()
    assert "0.3333 |" in page and "0.33333" not in page
    assert "mnist · laptop · 2 seeds" in page


def test_a_table_shows_the_columns_asked_for_and_saves_all(home, monkeypatch):
    shown = []
    monkeypatch.setattr("onebit.report.display", lambda page: shown.append(page.data))
    frame, report = pd.DataFrame({"a": [1], "b": [2], "c": [3]}), Report("02", Study.named("laptop", "mnist"))
    path = report.table(frame, "demo", "Letters.", RUNS, columns=["c", "a"])
    assert [cell.strip() for cell in shown[0].splitlines()[0].split("|")[1:-1]] == ["c", "a"]
    assert "Letters. All 3 columns: 02_demo.csv." in shown[0]
    assert list(pd.read_csv(path)) == ["a", "b", "c"] and "b |" in path.with_suffix(".md").read_text()
    with pytest.raises(KeyError, match="d"):
        report.table(frame, "demo", "Letters.", RUNS, columns=["d"])


def test_numbers_on_a_page_lose_no_digit_before_the_point_and_need_no_power_of_ten(home):
    frame = pd.DataFrame({"x": [11321.6, -1234.5, 999.96, 0.123456, math.nan], "n": [357585, 1000, 999, 0, 1],
                          "mixed": [None, "a|b", True, 2.5, 4321]})
    path = Report("02", Study.named("laptop", "mnist")).table(frame, "numbers", "Numbers.", digits=3)
    _, rule, *rows = path.with_suffix(".md").read_text().splitlines()[:7]
    assert [part.endswith(":") for part in rule.strip("|").split("|")] == [True, True, False]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert cells == [["11,322", "357,585", ""], ["-1,234", "1,000", r"a\|b"], ["1,000", "999", "True"],
                     ["0.123", "0", "2.5"], ["nan", "1", "4,321"]]
    assert pd.read_csv(path).x[0] == 11321.6


def test_a_text_with_bars_and_stars_stays_in_its_cell_as_it_is(home):
    frame = pd.DataFrame({"recipe": ["keep=a*|b*"], "last": ["x"]})
    path = Report("02", Study.named("laptop", "mnist")).table(frame, "demo", "Bars.", RUNS)
    row = path.with_suffix(".md").read_text().splitlines()[2]
    assert len(row.replace("\\|", "").split("|")) == 4 and "keep=a\\*\\|b\\*" in row
    assert pd.read_csv(path).recipe[0] == "keep=a*|b*"


def test_a_heading_with_bars_stays_one_heading(home):
    frame = pd.DataFrame({"a|b": [1], "c": [2]})
    path = Report("02", Study.named("laptop", "mnist")).table(frame, "demo", "Bars.", RUNS)
    head, rule = path.with_suffix(".md").read_text().splitlines()[:2]
    assert len(head.replace("\\|", "").split("|")) == len(rule.split("|")) == 4
    assert list(pd.read_csv(path)) == ["a|b", "c"]


@pytest.mark.parametrize("name", ["lr0.001", "a/b", "", "../x"])
def test_a_name_that_would_not_name_its_own_file_is_refused(home, name):
    report = Report("02", Study.named("laptop", "mnist"))
    with pytest.raises(ValueError, match="letters, digits, _ and - alone"):
        report.table(pd.DataFrame({"x": [1]}), name, "c")
    with pytest.raises(ValueError, match="letters, digits"):
        report.figure(picture(), name, "c")


@pytest.mark.parametrize(("profile", "dataset", "folder"), [
    ("laptop", "mnist", "figures"), ("laptop", "digits", "figures/digits"),
    ("smoke", "mnist", "build/mnist/smoke/figures"), ("smoke", "digits", "build/digits/smoke/figures"),
    ("paper", "mnist", "build/mnist/paper/figures"),
])
def test_only_the_reference_profile_writes_to_figures(home, profile, dataset, folder):
    assert Report("01", Study.named(profile, dataset)).folder == home / folder


def test_a_mosaic_keeps_reading_order():
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert plots.mosaic(images, 2).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]]


def test_every_recipe_has_its_colour():
    assert set(plots.COLOURS) == {*RESUNET_RECIPES, *UNET_RECIPES, "memorizer", "control"}


def test_intervals_draw_a_row_per_arm_and_a_dot_per_seed():
    frame = pd.DataFrame({"arm": ["held-out", "unet fp16", "unet fp16"], "recipe": [None, "fp16", "fp16"],
                          "value": [1.0, 2.0, 4.0], "low": [0.5, 1.5, float("nan")], "high": [2.0, 2.5, float("nan")]})
    figure, ax = plots.intervals(frame, "distance")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["held-out", "unet fp16"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [1, 2, 4]
    assert [round(dot.get_ydata()[0]) for dot in dots] == [0, 1, 1] and dots[1].get_ydata() != dots[2].get_ydata()
    assert [dot.get_color() for dot in dots] == [plots.COLOURS[c] for c in ("control", "fp16", "fp16")]
    bars = [line.get_xdata() for line in ax.lines if line.get_marker() != "o"]
    assert list(bars[0]) == [0.5, 2.0] and list(bars[1]) == [1.5, 2.5]
    plt.close(figure)


def test_claims_are_saved_as_rows_of_the_ledger_with_their_runs(home):
    measured = Estimate(1.8, 1.7, 1.9, 2, "p")
    path = Report("02", Study.named("laptop", "mnist")).claims([("000-fmd-gap", measured)], RUNS)
    row = pd.read_csv(path).iloc[0]
    assert tuple(row.index) == claims.COLUMNS
    assert (row.claim_id, row.measured, row.ci_low, row.ci_high, row.n_seeds) == ("000-fmd-gap", 1.8, 1.7, 1.9, 2)
    assert row.published == pytest.approx(425.8 / 241.4) and row.verdict == "reproduced"
    assert row.runs.count("train-mnist-resunet64") == 2
    with pytest.raises(ValueError, match="belongs to notebook 02"):
        Report("03", Study.named("laptop", "mnist")).claims([("000-fmd-gap", measured)], RUNS)


def test_dots_draw_a_marker_per_seed_and_the_interval_of_each_row():
    frame = pd.DataFrame({"label": ["b", "b", "a"], "seed": [0, 1, 0], "frechet": [100.0, 400.0, 50.0]})
    intervals = pd.DataFrame({"label": ["a", "c", "b"], "frechet_low": [40.0, 1, 150], "frechet_high": [60.0, 2, 300]})
    ax = plots.dots(frame, "frechet", "distance", intervals).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"] and ax.get_xlabel() == "distance"
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}
    assert drawn == {"seed 0": ([100, 50], [-0.09, 0.91]), "seed 1": ([400], [0.09])}  # beside each other
    (bars,) = ax.collections
    assert [bar.tolist() for bar in bars.get_segments()] == [[[150, 0], [300, 0]], [[40, 1], [60, 1]]]


def test_dots_draw_every_seed_however_many():
    frame = pd.DataFrame({"label": "a", "seed": range(8), "frechet": [10.0 + seed for seed in range(8)]})
    intervals = pd.DataFrame({"label": ["a"], "frechet_low": [9.0], "frechet_high": [18.0]})
    assert [line.get_label() for line in plots.dots(frame, "frechet", "distance", intervals).axes[0].lines] == [
        f"seed {seed}" for seed in range(8)]


def test_names_lie_on_no_point_and_no_other_name_and_those_without_room_are_returned():
    _, ax = plt.subplots(figsize=(4, 3))
    x, y = [1, 1.02, 3, 9], [1, 1.02, 3, 9]
    ax.plot(x, y, "o", ms=5)
    names = ["one", "its neighbour", "three", "nine"]
    assert plots.name_points(ax, x, y, names) == []
    boxes = [text.get_window_extent() for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == names
    assert not any(box.overlaps(other) for box, other in combinations(boxes, 2))
    points = ax.transData.transform(np.column_stack([x, y]))
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes)
    crowd = [1.0] * 20
    assert plots.name_points(ax, crowd, crowd, [f"number {i}" for i in range(20)])[-1] == "number 19"


def test_rows_of_a_ledger_are_drawn_as_measured_over_published():
    ledger = pd.DataFrame({"claim_id": ["a", "b", "c"], "published": [2.0, -4.0, 5.0], "measured": [1.0, -8.0, 5.0],
                           "ci_low": [-1.0, -10.0, np.nan], "ci_high": [3.0, -6.0, np.nan],
                           "verdict": [claims.TOO_WIDE, "direction only", "reproduced"]})
    first, second = plots.against_published(ledger).axes
    assert [t.get_text() for t in first.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in second.get_yticklabels()] == ["c"]
    lines = first.lines[:-1]  # the last is at 1
    assert [line.get_marker() for line in lines] == ["None", "<", "o", "None", "o"]  # the first interval holds zero
    assert [list(line.get_xdata()) for line in lines] == [[1e-9, 1.5], [0.1], [0.5], [2.5, 1.5], [2.0]]
    assert lines[-1].get_color() == plots.VERDICT_COLOURS["direction only"]


def test_a_table_of_arms_of_unequal_seeds_says_from_how_many_to_how_many(home):
    more = [*RUNS, replace(RUNS[0], recipe="strict-1bit", seed=7)]
    path = Report("02", Study.named("laptop", "mnist")).table(pd.DataFrame({"a": [1]}), "demo", "One.", more)
    assert "mnist · laptop · 1 to 2 seeds" in path.with_suffix(".md").read_text()


def test_students_of_teachers_of_several_seeds_are_one_arm(home):
    students = [replace(RUNS[0], seed=seed, teacher=replace(RUNS[0], recipe="fp16", seed=seed)) for seed in (0, 1)]
    path = Report("02", Study.named("laptop", "mnist")).table(pd.DataFrame({"a": [1]}), "demo", "One.", students)
    assert "mnist · laptop · 2 seeds" in path.with_suffix(".md").read_text()
