"""The one look of the study: style, colours, and the few plots that more than one notebook draws."""

from collections.abc import Iterable, Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from . import claims
from .paths import LIBRARY

# one colour per recipe everywhere; their lightness differs too, so they can be told apart in grey
COLOURS = {
    "fp16": "#1b4f72",
    "published-1bit": "#d68910",
    "strict-1bit": "#b03a2e",
    "ptq-1bit": "#a9a9a9",
    "memorizer": "#7d3c98",
    "control": "#4d4d4d",  # real images and what is made of them
}

# for what is no recipe: rules, kinds of weights, samplers, judges; never two meanings for one colour
OTHERS = ("#117a65", "#c0398b", "#8a7a1f", "#5d6d7e")

NET_MARKS = {"resunet": ("s", "#4c72b0"), "unet": ("o", "#dd8452")}  # marker and colour where nets are told apart
EDGES = (0.1, 12)  # of measured over published
WIDE = 8  # a ratio from which a number at every tick of a log axis is too many
HALO = withStroke(linewidth=2, foreground="white")  # of a name on a line
MARKER = 4  # half of a point's height, in pixels: no name lies on it
# where a name may stand beside its point, the best place first: offset in points, and how it is aligned there
BESIDE = ((5, 0, "left", "center"), (-5, 0, "right", "center"), (0, 5, "center", "bottom"), (0, -5, "center", "top"),
          (4, 4, "left", "bottom"), (4, -4, "left", "top"), (-4, 4, "right", "bottom"), (-4, -4, "right", "top"))
EVERY = 5  # rows of a log from one drawing of a live loss to the next

VERDICT_COLOURS = {
    "reproduced": "#1e8449",
    "direction only": "#82c99a",
    "not reproduced": "#d68910",
    "contradicted": "#b03a2e",
    "undecided": "#7fb3d5",
    "not measured yet": "#d5d8dc",
    "not testable here": "#909497",
}


def use_style() -> None:
    """Switch matplotlib and seaborn to the study's look."""
    sns.set_theme(style="whitegrid")
    plt.style.use(LIBRARY / "onebit.mplstyle")


def mosaic(images: Tensor, columns: int) -> np.ndarray:
    """Tile uint8 images (N, 1, H, W) into one (rows H, columns W) picture, row by row, black where none is left."""
    n, _, height, width = images.shape
    rows = -(-n // columns)
    tiles = np.zeros((rows * columns, height, width), dtype=np.uint8)
    tiles[:n] = images[:, 0].cpu().numpy()
    return tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def show_images(ax: Axes, images: Tensor, columns: int, title: str = "") -> None:
    """Draw uint8 images as a mosaic, white ink on black as in the data."""
    ax.imshow(mosaic(images, columns), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    ax.set_title(title, fontsize=9)
    ax.axis("off")


def image_rows(rows: Mapping[str, Tensor], columns: int, size: float = 0.42) -> Figure:
    """One labelled row (or block) of images per entry, one below the other."""
    lines = [-(-len(images) // columns) for images in rows.values()]
    figure, axes = plt.subplots(len(rows), 1, figsize=(columns * size, sum(lines) * size + 0.28 * len(rows)),
                                gridspec_kw={"height_ratios": lines}, squeeze=False)
    for ax, (title, images) in zip(axes[:, 0], rows.items(), strict=True):
        show_images(ax, images, columns, title)
    return figure


def curves(frame: pd.DataFrame, y: str, label: str) -> Figure:
    """Curves over training steps on a log axis: a panel per net, a colour per recipe, a line per protocol and seed."""
    figure, axes = plt.subplots(1, frame.net.nunique(), figsize=(9, 2.9), sharey=True, squeeze=False)
    style = {"style": "protocol"} if frame.protocol.nunique() > 1 else {}
    for ax, (net, part) in zip(axes[0], frame.groupby("net"), strict=True):
        sns.lineplot(data=part, x="step", y=y, hue="recipe", units="seed", estimator=None, palette=COLOURS, lw=1, ax=ax,
                     **style)
        ax.set(title=net, yscale="log", ylabel=label)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=30))  # a power of ten alone is too coarse
        ax.yaxis.set_major_formatter(lambda x, _: np.format_float_positional(float(f"{x:.3g}"), trim="-"))
        ax.minorticks_off()
    return figure


def intervals(frame: pd.DataFrame, label: str, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Values with their intervals, a row per arm, a dot per seed: the rows of `tables.measured` for one metric."""
    arms = list(dict.fromkeys(frame.arm))
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 0.8 + 0.24 * len(arms)))
    for arm, part in frame.groupby("arm", sort=False):
        n = len(part)
        for i, row in enumerate(part.itertuples()):
            y = arms.index(arm) + (i - (n - 1) / 2) * min(0.22, 0.7 / n)
            colour = COLOURS[colour_of(row)]
            ax.plot([row.low, row.high], [y, y], color=colour, lw=1.4, solid_capstyle="butt")
            ax.plot(row.value, y, "o", color=colour, ms=4)
    ax.set_yticks(range(len(arms)), arms, fontsize=7)
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.set_xlabel(label)
    ax.grid(axis="y", visible=False)
    return ax.figure, ax


def dots(frame: pd.DataFrame, column: str, label: str, intervals: pd.DataFrame) -> Figure:
    """One line per `label` of the frame, in its order: a marker per seed, and the row's interval; log axis.

    `intervals` has a row per label: label, {column}_low, {column}_high.
    """
    order, bars = frame.label.drop_duplicates().tolist(), intervals.set_index("label")
    fig, ax = plt.subplots(figsize=(7, 0.27 * len(order) + 0.9))
    ax.hlines(range(len(order)), bars[f"{column}_low"][order], bars[f"{column}_high"][order], color="0.75", lw=4,
              zorder=1, label="95 % interval")
    seeds = sorted(frame.seed.unique())
    for i, (seed, marker) in enumerate(zip(seeds, cycle("os^vDP"), strict=False)):
        part = frame[frame.seed == seed]
        aside = 0.18 * (i - (len(seeds) - 1) / 2)
        ax.plot(part[column], part.label.map(order.index) + aside, marker, ms=4, label=f"seed {seed}")
    ax.set(xscale="log", xlabel=label, yticks=range(len(order)), yticklabels=order)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_minor_formatter("{x:,.0f}")
    if frame[column].max() > WIDE * frame[column].min():
        ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    ax.tick_params(axis="x", which="both", labelsize=7, length=0, pad=4)
    ax.tick_params(axis="y", labelsize=8)
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=frame.seed.nunique() + 1, borderaxespad=0.1)
    return fig


def costs(ax: Axes, frame: pd.DataFrame, cost: str, quality: str, best: NDArray, factor: float = 1.0) -> None:
    """Networks by cost and quality (log axes): a marker per net, a line along the `best` (booleans), and their labels,
    the best first, if they have any: see `name_points`."""
    for net, part in frame.groupby("net"):
        marker, colour = NET_MARKS[net]
        ax.plot(part[cost] * factor, part[quality], marker, ms=5, color=colour, label=net)
    line = frame[best].sort_values(cost)
    ax.step(line[cost] * factor, line[quality], where="post", color="0.8", lw=1, zorder=0)
    ax.set(xscale="log", yscale="log")
    for ticks in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        ticks("{x:,.0f}")
    ax.tick_params(axis="x", which="both", labelsize=6, length=0, pad=4)
    ax.margins(x=0.2)
    ordered = pd.concat([frame[best], frame[~best]]).dropna(subset="label")
    name_points(ax, ordered[cost] * factor, ordered[quality], ordered.label)


def name_points(ax: Axes, x: ArrayLike, y: ArrayLike, names: Iterable[str], size: float = 6.5) -> list[str]:
    """Write names beside points, on a side where they lie on no other point or name; returns those that found none.

    Earlier names choose first.  Call it last: the axes' limits and scales are to be final.
    """
    ax.figure.canvas.draw()
    points = ax.transData.transform(np.column_stack([x, y]))
    taken = [Bbox.from_extents(*(p - MARKER), *(p + MARKER)) for p in points]
    left_out = []
    for point, name in zip(np.column_stack([x, y]), names, strict=True):
        for dx, dy, side, height in BESIDE:
            text = ax.annotate(name, point, (dx, dy), textcoords="offset points", ha=side, va=height, fontsize=size,
                               path_effects=[HALO])
            box = text.get_window_extent()
            if not box.count_overlaps(taken) and ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1:
                taken.append(box)
                break
            text.remove()
        else:
            left_out.append(name)
    return left_out


def against_published(frame: pd.DataFrame, columns: int = 2) -> Figure:
    """Rows of a ledger as measured over published, with their intervals, in the colours of the verdicts; log axis.

    An arrow stands at the end of an interval that leaves the axis.
    """
    size = -(-len(frame) // columns)
    fig, axes = plt.subplots(1, columns, figsize=(4.7 * columns, 0.7 + 0.22 * max(size, 1)), squeeze=False)
    for i, ax in enumerate(axes[0]):
        part = frame.iloc[i * size : (i + 1) * size]
        for y, row in enumerate(part.itertuples()):
            ends = [max(end / row.published, 1e-9) for end in (row.ci_low, row.ci_high)]
            ax.plot(ends, [y, y], color="0.6", lw=1.4)
            if min(ends) < EDGES[0]:
                ax.plot(EDGES[0], y, "<", color="0.6", ms=5, clip_on=False)
            if max(ends) > EDGES[1]:
                ax.plot(EDGES[1], y, ">", color="0.6", ms=5, clip_on=False)
            ax.plot(row.measured / row.published, y, "o", ms=4, color=VERDICT_COLOURS[claims.state(row.verdict)])
        ax.axvline(1, color="0.3", ls="--", lw=1)
        ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
        ax.set(xscale="log", xlim=EDGES, ylim=(size - 0.5, -0.5), xticks=ticks, xticklabels=ticks)
        ax.set(xlabel="measured over published (1: the same)")
        ax.set_yticks(range(len(part)), part.claim_id, fontsize=7)
        ax.minorticks_off()
    names = dict.fromkeys(map(claims.state, frame.verdict))
    marks = [Line2D([], [], ls="", marker="o", ms=4, color=VERDICT_COLOURS[name]) for name in names]
    fig.legend(marks, names, fontsize=7, loc="outside upper center", ncols=5)
    return fig


def colour_of(row) -> str:
    """The key in COLOURS of a row of `tables.measured`: its recipe, or what kind of control it is."""
    if row.arm == "memorizer":
        return "memorizer"
    return row.recipe if getattr(row, "recipe", None) in COLOURS else "control"


class LiveLoss:
    """A loss curve that moves while a network trains: pass it as `on_log`.  A static page keeps the last state."""

    def __init__(self, title: str):
        self.figure, self.ax = plt.subplots(figsize=(5.5, 2.4))
        self.ax.set(title=title, xlabel="step", ylabel="loss (noise MSE)", yscale="log")
        self.rows, self.shown = [], None
        (self.line,) = self.ax.plot([], [], color=COLOURS["fp16"])

    def __call__(self, row: dict) -> None:
        self.rows.append((row["step"], row["loss"]))
        if len(self.rows) % EVERY == 1:
            self.draw()

    def draw(self) -> None:
        """Show the curve so far, in place of what was shown before."""
        self.line.set_data(*zip(*self.rows, strict=True))
        self.ax.relim()
        self.ax.autoscale_view()
        if self.shown is None:
            self.shown = display(self.figure, display_id=True)
        else:
            self.shown.update(self.figure)

    def close(self) -> None:
        """Draw the last state and release the figure, so that the notebook does not show it twice."""
        self.draw()
        plt.close(self.figure)
