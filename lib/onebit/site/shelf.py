"""The figures folder as the site reads it: every figure and table, found again by its caption."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

THUMBNAIL = 480  # pixels wide at most
SHOWN_DPI, SAVED_DPI = 110, 160  # onebit.mplstyle: what a notebook shows, what report.figure writes


@dataclass(frozen=True)
class Item:
    """A figure or a table that `onebit.report` has saved, by its name in `folder`, such as "02_metrics"."""

    folder: Path
    name: str
    kind: str  # "figure" or "table"
    notebook: str
    caption: str

    @property
    def anchor(self) -> str:
        return f"{self.kind}-{self.name}"

    @property
    def files(self) -> dict[str, str]:
        """What a reader can download, by label; of a figure what it draws, and the table of its name, if any."""
        wanted = {"Data (CSV)": "csv", "Origin (JSON)": "csv.json"}
        if self.kind == "figure":
            wanted = {"PNG": "png", "PDF": "pdf", "Drawn (CSV)": "data.csv", "Images (NPZ)": "data.npz",
                      "Data (CSV)": "csv", "Origin (JSON)": "png.json"}
        named = {label: f"{self.name}.{suffix}" for label, suffix in wanted.items()}
        return {label: name for label, name in named.items() if (self.folder / name).exists()}

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in CSS pixels at which the figure is shown, as large as in its notebook."""
        with Image.open(self.folder / f"{self.name}.png") as image:
            return tuple(round(side * SHOWN_DPI / SAVED_DPI) for side in image.size)


class Shelf:
    """All figures and tables of a folder, in the order of their names."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.items = [_item(path) for path in sorted(folder.glob("[0-9][0-9]_*.json"))]
        self.items = [item for item in self.items if (folder / item.name).with_suffix(_suffix(item.kind)).exists()]
        keys = Counter(map(_key, self.items))
        self._found = {_key(item): item for item in self.items if keys[_key(item)] == 1}

    def find(self, kind: str, notebook: str, caption: str) -> Item | None:
        """The one item of this kind that the notebook saved under this caption; None if there is none, or several."""
        return self._found.get((kind, notebook, caption))

    def claims(self, notebook: str) -> Item | None:
        """The rows of the ledger that a notebook has written."""
        return next((item for item in self.items if item.name == f"{notebook}_claims"), None)

    def copy(self, target: Path) -> None:
        """Everything that can be downloaded into `target`, small pictures of the figures into `target`/small."""
        (target / "small").mkdir(parents=True)
        names = {name for item in self.items for name in item.files.values()}
        for name in sorted(names | {"claims.csv", "claims.csv.json"}):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, target / name)
        for item in self.items:
            if item.kind == "figure":
                with Image.open(self.folder / f"{item.name}.png") as image:
                    small = image.convert("RGB")
                small.thumbnail((THUMBNAIL, 4 * THUMBNAIL))
                small.save(target / "small" / f"{item.name}.webp", quality=80)


def _item(note: Path) -> Item:
    name, suffix = note.name.removesuffix(".json").rsplit(".", 1)
    content = json.loads(note.read_text())
    kind = "figure" if suffix == "png" else "table"
    return Item(note.parent, name, kind, content["notebook"], content["caption"])


def _suffix(kind: str) -> str:
    return ".png" if kind == "figure" else ".csv"


def _key(item: Item) -> tuple[str, str, str]:
    return item.kind, item.notebook, item.caption
