"""What a figure draws, read back: the numbers given to matplotlib come out again, and nothing else does."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from onebit import drawn

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def points(ax, mark):
    frame = drawn.marks(ax.figure)
    return frame[frame.mark == mark].reset_index(drop=True)


def test_a_line_is_its_points_with_its_series_and_the_labels_of_its_axes(ax):
    ax.plot([1, 2, 4], [0.5, np.nan, 8], color="#ff0000", label="loss")
    ax.set(xlabel="step", ylabel="value", title="A", yscale="log")
    frame = points(ax, "line")
    assert frame.x.tolist() == [1, 2, 4] and frame.y.tolist()[::2] == [0.5, 8] and np.isnan(frame.y[1])
    row = frame.iloc[0]
    assert (row.panel, row.title, row.x_label, row.y_label, row.series, row.colour) == (
        0, "A", "step", "value", "loss", "#ff0000")


def test_lines_across_the_panel_and_text_are_no_data(ax):
    ax.axhline(1)
    ax.axvline(2)
    ax.annotate("here", (0, 0))
    assert drawn.marks(ax.figure).empty


def test_scattered_points_and_error_bars(ax):
    ax.scatter([1, 2], [3, 4])
    ax.errorbar([1, 2], [5, 6], yerr=[[1, 2], [3, 4]], fmt="o", capsize=3)
    assert points(ax, "point")[["x", "y"]].to_numpy().tolist() == [[1, 3], [2, 4]]
    assert points(ax, "line").y.tolist() == [5, 6]  # no caps
    assert points(ax, "segment").y.tolist() == [4, 8, 4, 10]


def test_points_of_several_colours_keep_theirs(ax):
    ax.scatter([1, 2, 3, 4], [5, 6, 7, 8], c=["#ff0000", "#00ff00", "#ff0000", "#0000ff"])
    frame = drawn.marks(ax.figure)
    assert dict(zip(frame.x, frame.colour, strict=True)) == {1: "#ff0000", 2: "#00ff00", 3: "#ff0000", 4: "#0000ff"}
    assert dict(zip(frame.x, frame.y, strict=True)) == {1: 5, 2: 6, 3: 7, 4: 8}


def test_bars_are_corners_also_where_they_are_stacked_on_others(ax):
    ax.barh([0, 1], [2, 3], left=[1, 0], height=0.5)
    assert points(ax, "bar")[["x", "y"]].to_numpy().tolist() == [[1, -0.25], [3, 0.25], [0, 0.75], [3, 1.25]]


def test_a_histogram_has_its_counts_filled_or_not(ax):
    counts, edges, _ = ax.hist([0, 0, 1], bins=2)
    bars = points(ax, "bar")
    assert bars.y.tolist()[1::2] == counts.tolist() and bars.x.tolist()[::2] == edges[:-1].tolist()
    ax.hist([0, 0, 1], bins=2, histtype="step")
    assert points(ax, "band").y.max() == 2


def test_filled_bands_are_their_outline(ax):
    ax.fill_between([0, 1], [0, 1], [2, 3])
    assert {(0, 0), (1, 1), (0, 2), (1, 3)} <= set(points(ax, "band")[["x", "y"]].itertuples(index=False, name=None))


def test_named_ticks_name_what_stands_near_them_and_plain_ones_do_not(ax):
    ax.plot([3, 4], [0.2, 1.0], "o")
    ax.set_yticks([0, 1], ["first", "second"])
    frame = points(ax, "line")
    assert frame.y_name.tolist() == ["first", "second"] and set(frame.x_name) == {""}


def test_categories_are_names(ax):
    ax.bar(["a", "b"], [1, 2])
    assert points(ax, "bar").x_name.tolist() == ["a", "a", "b", "b"]


def test_images_come_back_as_they_were_drawn_and_files_are_the_same_twice(ax, tmp_path):
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3)
    ax.imshow(picture, cmap="gray")
    ax.plot([0, 1], [1 / 3, 0])
    first = {path.name: path.read_bytes() for path in drawn.save(ax.figure, tmp_path / "02_a")}
    again = {path.name: path.read_bytes() for path in drawn.save(ax.figure, tmp_path / "02_a")}
    assert first == again and set(first) == {"02_a.data.csv", "02_a.data.npz"}
    with np.load(tmp_path / "02_a.data.npz") as found:
        assert found.files == ["panel0_image0"] and found["panel0_image0"].dtype == np.uint8
        assert (found["panel0_image0"] == picture).all()
    assert pd.read_csv(tmp_path / "02_a.data.csv").y.tolist() == [0.3333333, 0]


def test_a_figure_without_marks_or_images_saves_nothing_and_leaves_nothing_of_an_earlier_one(ax, tmp_path):
    (tmp_path / "02_a.data.csv").write_text("old")
    assert drawn.save(ax.figure, tmp_path / "02_a") == [] and not list(tmp_path.iterdir())


def test_what_a_heat_map_leaves_out_is_no_zero_and_a_label_of_none_is_no_series(ax):
    ax.pcolormesh(np.ma.masked_invalid([[1.0, np.nan], [2.0, 3.0]]))
    np.testing.assert_array_equal(drawn.images(ax.figure)["panel0_image0"], [[1, np.nan], [2, 3]])
    ax.hist([1, 2], histtype="step")
    assert set(drawn.marks(ax.figure).series) == {""}
