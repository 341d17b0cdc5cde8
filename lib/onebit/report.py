"""Figures and tables with their note of origin: what you look at, the numbers behind it, and where they came from."""

import functools
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from pandas.api.types import is_numeric_dtype

from . import __version__, claims, drawn, paths
from .files import replacing, write_json, write_text
from .study import Run, Study, cache

REFERENCE = "laptop"  # the profile whose figures are committed, until a complete `paper` run exists
THOUSAND = 1_000  # from which on numbers on a page have commas and no decimals
FORMS = {".png": {"Software": None}, ".pdf": {"CreationDate": None}}  # no dates: same input, same bytes


@functools.cache
def library_fingerprint() -> str:
    """Twelve hex digits of the library's source: which code made a figure."""
    digest = hashlib.sha256()
    for path in sorted(paths.LIBRARY.rglob("*.py")):
        digest.update(path.relative_to(paths.LIBRARY).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def folder_of(dataset: str, profile: str) -> Path:
    """Where the figures and tables of a data set and a profile are saved."""
    if profile != REFERENCE:
        return paths.BUILD / dataset / profile / "figures"
    return paths.FIGURES if dataset == "mnist" else paths.FIGURES / dataset


def _page(frame: pd.DataFrame, digits: int) -> str:
    """A table in Markdown, its numbers with `digits` significant digits, but all of those before the point."""
    sides = ["right" if is_numeric_dtype(frame[column]) else "left" for column in frame]
    shown = frame.astype(object).map(functools.partial(cell, digits=digits)).rename(columns=cell)
    return shown.to_markdown(index=False, disable_numparse=True, colalign=sides)


def cell(value: object, digits: int = 4) -> str:
    """Texts so that Markdown leaves them alone: recipes hold "|", which ends a cell, and "*", which slants it."""
    if isinstance(value, Real) and math.isfinite(value) and round(abs(value)) >= min(THOUSAND, 10**digits):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "" if value is None else re.sub(r"([|*])", r"\\\1", str(value))


@contextmanager
def _laid_out(figure: Figure) -> Iterator[Bbox]:
    """Find the places of everything, once for all formats; gives the box around it, in inches.

    Every format would find them again, and draw twice, had the figure a layout engine: it has none here, not even the
    stand-in that "none" would leave, and gets none back from the style when a format puts back what it has found.
    """
    figure.draw_without_rendering()
    with plt.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
        yield figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])


@dataclass(frozen=True)
class Report:
    """Saves what one notebook shows.  report = Report("02", study)

    `root`, if given, takes everything.  Without it, only the reference profile writes to figures/ (other
    data sets than MNIST to a folder of their own in it); every other profile writes under build/, so that a small run
    never overwrites the figures of a larger one.
    """

    notebook: str
    study: Study
    root: str | None = None

    @property
    def folder(self) -> Path:
        if self.root:
            return Path(self.root)
        return folder_of(self.study.dataset, self.study.profile.name)

    def figure(self, figure: Figure, name: str, caption: str, runs: Iterable[Run] = ()) -> Path:
        """Stamp, show and save a figure as PNG and PDF, and what it draws as CSV (marks) and NPZ (images) beside them;
        returns the PNG's path.

        With TABLES_ONLY=1 in the environment there is no PNG, no PDF (an older one goes: it is of other numbers) and
        nothing to see: drawing takes longer than all else in most notebooks, and `make verify` compares numbers.
        """
        runs, path = list(runs), self._path(name)
        if cache.flag("TABLES_ONLY"):
            for suffix in FORMS:
                path.with_suffix(suffix).unlink(missing_ok=True)
        else:
            self._draw(figure, path, self._stamp(runs))
        drawn.save(figure, path)
        self._note(path.with_suffix(".png"), caption, runs)
        plt.close(figure)
        display(Markdown(f"*{caption}*"))
        return path.with_suffix(".png")

    @staticmethod
    def _draw(figure: Figure, path: Path, stamp: str) -> None:
        figure.text(0.995, -0.01, stamp, ha="right", va="top", fontsize=6, color="0.45")
        shown = io.BytesIO()
        with _laid_out(figure) as box:
            for suffix, metadata in FORMS.items():
                with replacing(path.with_suffix(suffix)) as partial:
                    figure.savefig(partial, metadata=metadata, bbox_inches=box)
            figure.savefig(shown, dpi=figure.dpi, bbox_inches=box)
        display(Image(shown.getvalue()))

    def table(
        self, frame: pd.DataFrame, name: str, caption: str, runs: Iterable[Run] = (), digits: int = 4,
        columns: Sequence[str] | None = None,
    ) -> Path:
        """Show a table and save it, unrounded as CSV and rounded as Markdown; returns the CSV's path.

        `digits` counts significant digits on the page, where numbers of a thousand or more are whole ones; `columns`,
        of those saved, are all that the notebook shows.

        Raises    KeyError for `columns` that the table has not.
        """
        runs, path = list(runs), self._path(name)
        shown = frame if columns is None else frame[list(columns)]
        if columns is not None:
            caption += f" All {frame.shape[1]} columns: {path.name}.csv."
        page, all_of_it = (_page(part, digits) for part in (shown, frame))
        write_text(path.with_suffix(".csv"), frame.to_csv(index=False))
        write_text(path.with_suffix(".md"), f"{all_of_it}\n\n{caption}  \n{self._stamp(runs)}\n")
        self._note(path.with_suffix(".csv"), caption, runs)
        display(Markdown(f"{page}\n\n*{caption}*"))
        return path.with_suffix(".csv")

    def claims(self, measured: Iterable[tuple], runs: Iterable[Run] = ()) -> Path:
        """Show and save the ledger's rows this notebook measures: (claim_id, measured) each, or with the runs that this
        claim rests on as a third, and its premise as a fourth; others rest on `runs`.  `claims.decide` decides.

        Raises    ValueError as `claims.row`.
        """
        runs = list(runs)
        rows = [claims.row(claim, found, own[0] if own else runs, self.notebook, *own[1:])
                for claim, found, *own in measured]
        frame = pd.DataFrame(rows, columns=claims.COLUMNS)
        path = self._path("claims")
        write_text(path.with_suffix(".csv"), frame.to_csv(index=False))
        self._note(path.with_suffix(".csv"), "Claims this notebook decides, by their rules in claims.toml.", runs)
        page = frame[["claim", "verdict", "published", "measured", "ci_low", "ci_high", "claim_id"]]
        display(Markdown(_page(page, 4)))
        return path.with_suffix(".csv")

    def ledger(self, frame: pd.DataFrame) -> Path:
        """Save the whole ledger of `claims.assemble` as claims.csv; returns its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "claims.csv"
        write_text(path, frame.to_csv(index=False))
        self._note(path, "Every claim of the four sources, with its verdict.", [])
        return path

    def _path(self, name: str) -> Path:
        if not re.fullmatch(r"[\w-]+", name):  # what follows a dot would be taken for the file's form
            raise ValueError(f"name {name!r} of a figure or table: letters, digits, _ and - alone")
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{self.notebook}_{name}"

    def _stamp(self, runs: list[Run]) -> str:
        seeds = Counter(map(_arm, dict.fromkeys(runs))).values()  # of each arm
        least = f"{min(seeds)} to " if len({*seeds}) > 1 else ""
        counted = f" · {least}{max(seeds)} seed{'s' if max(seeds) != 1 else ''}" if runs else ""
        return f"{self.study.dataset} · {self.study.profile.name}{counted} · onebit {__version__}"

    def _note(self, path: Path, caption: str, runs: list[Run]) -> None:
        from .study.results import training_entry

        write_json(path.with_name(f"{path.name}.json"), {
            "caption": caption, "notebook": self.notebook, "dataset": self.study.dataset,
            "profile": self.study.profile.name, "runs": sorted({training_entry(run).name for run in runs}),
            "version": __version__, "library": library_fingerprint(),
        })


def _arm(run: Run) -> Run:
    """The run without its seed, and its teacher without its own."""
    return replace(run, seed=0, teacher=run.teacher and _arm(run.teacher))
