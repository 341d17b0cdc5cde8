"""The numbers that a figure draws, read back from it: points, lines, bars and bands as rows, images as arrays.

What is drawn is what a reader can take away, whichever frame it came from and however it was computed.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryFormatter
from matplotlib.collections import Collection, LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import FixedFormatter, FuncFormatter

from .files import replacing, write_text

COLUMNS = ("panel", "title", "x_label", "y_label", "mark", "series", "colour", "item", "x", "y", "x_name", "y_name")
DIGITS = "%.7g"  # more than a plot can show, few enough to agree between machines


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path`.data.csv for what is drawn as marks and `path`.data.npz for images, each if there is any; returns
    their paths.  What an earlier figure of that name has left goes.  The same figure gives the same bytes."""
    saved, frame, arrays = [], marks(figure), images(figure)
    for suffix in (".data.csv", ".data.npz"):
        path.with_suffix(suffix).unlink(missing_ok=True)
    if len(frame):
        saved.append(path.with_suffix(".data.csv"))
        write_text(saved[-1], frame.to_csv(index=False, float_format=DIGITS))
    if arrays:
        saved.append(path.with_suffix(".data.npz"))
        with replacing(saved[-1]) as partial:
            np.savez_compressed(partial, **arrays)
    return saved


def marks(figure: Figure) -> pd.DataFrame:
    """One row per drawn point, of COLUMNS.

    panel, title, x_label, y_label    the axes it is in
    mark      line (with or without markers), point, bar, band (outline of a filled area), segment (of a bar of errors)
    series    its label in the legend, if it has one;  colour: as #rrggbb;  item: which line, bar, ... of the panel
    x, y      in the units of the axes: of a bar two opposite corners
    x_name, y_name    the name at that place, where an axis has names for ticks

    Lines across a whole panel (axhline, axvline), arrows and text are not data, and left out; so are kinds of marks
    that the study does not draw (wedges, contours).
    """
    rows = [row for panel, ax in enumerate(figure.axes) for row in _panel(panel, ax)]
    return pd.DataFrame(rows, columns=COLUMNS)


def images(figure: Figure) -> dict[str, np.ndarray]:
    """The array of every image drawn, by panel and number within it: "panel0_image0" and so on, dtype as drawn."""
    found = {}
    for panel, ax in enumerate(figure.axes):
        drawn = [*ax.images, *[c for c in ax.collections if isinstance(c, QuadMesh)]]
        for number, image in enumerate(drawn):
            found[f"panel{panel}_image{number}"] = _filled(image.get_array())
    return found


def _filled(shown: np.ndarray) -> np.ndarray:
    """Without a mask: NaN where nothing is drawn, which only floats can say; others are whole as they come."""
    return np.ma.filled(shown, np.nan) if shown.dtype.kind == "f" else np.ma.filled(shown)


def _panel(panel: int, ax: Axes) -> Iterator[tuple]:
    head = (panel, ax.get_title(), ax.get_xlabel(), ax.get_ylabel())
    names = [_names(axis) for axis in (ax.xaxis, ax.yaxis)]
    for item, (mark, label, colour, points) in enumerate(_artists(ax)):
        series = "" if label is None or str(label).startswith("_") else str(label)
        for x, y in points:
            yield (*head, mark, series, to_hex(colour), item, x, y, *map(_nearest, names, (x, y)))


def _artists(ax: Axes) -> Iterator[tuple]:
    """(mark, label, colour, points (n, 2)) of everything that stands at coordinates of the data."""
    for line in ax.lines:
        if all(line.get_transform().contains_branch_seperately(ax.transData)) and not _is_cap(line):
            yield "line", line.get_label(), line.get_color(), line.get_xydata()
    for bar in ax.patches:
        colour = bar.get_facecolor() if bar.get_fill() else bar.get_edgecolor()
        if isinstance(bar, Rectangle) and bar.get_transform().contains_branch(ax.transData):
            yield "bar", bar.get_label(), colour, bar.get_bbox().get_points()
        elif isinstance(bar, Polygon) and bar.get_transform().contains_branch(ax.transData):
            yield "band", bar.get_label(), colour, bar.get_xy()
    for group in ax.collections:
        yield from _collection(group)


def _collection(group: Collection) -> Iterator[tuple]:
    label, colours = group.get_label(), [*group.get_facecolor(), *group.get_edgecolor()] or ["none"]
    if isinstance(group, PathCollection):
        offsets, faces = group.get_offsets(), group.get_facecolor()
        if len(faces) < len(offsets):  # one for all
            yield "point", label, colours[0], offsets
            return
        shades, which = np.unique(faces, axis=0, return_inverse=True)
        for i, shade in enumerate(shades):
            yield "point", label, shade, offsets[which.ravel() == i]
    elif isinstance(group, LineCollection):
        for segment in group.get_segments():
            yield "segment", label, colours[0], segment
    elif isinstance(group, PolyCollection):
        for outline in group.get_paths():
            yield "band", label, colours[0], outline.vertices


def _names(axis: Axis) -> dict[float, str]:
    """Place -> name, where somebody named the ticks; numbers that matplotlib wrote are none."""
    if not isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter | StrCategoryFormatter):
        return {}
    places = axis.get_majorticklocs()
    return dict(zip(map(float, places), axis.get_major_formatter().format_ticks(places), strict=True))


def _nearest(names: dict[float, str], place: float) -> str:
    """The name that a mark stands at: marks of one name are spread about it by less than half."""
    tick = min(names, key=lambda tick: abs(tick - place), default=None)
    return names[tick] if tick is not None and abs(tick - place) < 0.5 else ""


def _is_cap(line: Line2D) -> bool:
    """Whether a line is but the end of a bar of errors, which is there as a segment."""
    return line.get_label() == "_nolegend_" and line.get_marker() in ("|", "_")
