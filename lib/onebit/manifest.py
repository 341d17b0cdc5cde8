"""figures/MANIFEST.json: for every figure and table its notebook, runs, code and checksums; the sum of their notes.

python -m onebit.manifest --dataset mnist --profile laptop
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat

from . import paths
from .files import sha256, write_json
from .publish import source_hash
from .report import folder_of
from .study import cache

NAME = "MANIFEST.json"
SHOWN = {".csv": (".md",), ".png": (".pdf", ".data.csv", ".data.npz")}  # what has a note -> the same in other forms
REPEATED = ("dataset", "profile", "runs", "version", "library")  # what the manifest says again of a note
ARITHMETIC = ("torch", "numpy", "scipy", "pandas", "scikit-learn")  # packages whose versions decide digits


def write(folder: Path, notebooks: Path) -> Path:
    """Write MANIFEST.json beside the figures and tables of `folder`; the same files give the same bytes.

    Raises    FileNotFoundError if nothing in the folder has a note of origin, or a note's notebook is missing.
    """
    notes = sorted(path for path in folder.glob("*.json") if Path(path.stem).suffix in SHOWN)
    if not notes:
        raise FileNotFoundError(f"no figures with a note of origin in {folder}; run make paper first")
    sources = {path.name[:2]: path for path in sorted(notebooks.glob("[0-9]*.ipynb"))}
    hashes = {number: source_hash(nbformat.read(path, 4)) for number, path in sources.items()}
    items = {}
    for path in notes:
        note = json.loads(path.read_text())
        number = note["notebook"]
        if number not in sources:
            raise FileNotFoundError(f"{path.name} names notebook {number}, which {notebooks} does not hold")
        items[path.stem] = {
            "notebook": sources[number].name, "notebook_source": hashes[number],
            **{key: note[key] for key in REPEATED},
            "files": {one.name: sha256(one) for one in _files(folder / path.stem)},
        }
    write_json(folder / NAME, {"machine": machine(), "items": items})
    return folder / NAME


def read(folder: Path) -> dict:
    """What `write` wrote.  Raises FileNotFoundError with the mend if it has not."""
    path = folder / NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; make paper writes it")
    return json.loads(path.read_text())


def faults(folder: Path) -> list[str]:
    """What differs between the manifest and the files beside it, in words."""
    items = read(folder)["items"]
    listed = {name: checksum for item in items.values() for name, checksum in item["files"].items()}
    wrong = [f"{name} is missing" for name in listed if not (folder / name).exists()]
    wrong += [f"{name} is altered" for name, checksum in listed.items()
              if (folder / name).exists() and sha256(folder / name) != checksum]
    noted = {path.stem for path in folder.glob("*.json") if Path(path.stem).suffix in SHOWN}
    wrong += [f"{name}.json is missing" for name in sorted(set(items) - noted)]
    wrong += [f"{name}.json is altered" for name in sorted(set(items) & noted)
              if not _agrees(folder / f"{name}.json", items[name])]
    return wrong + [f"{name} is not listed" for name in sorted(noted - set(items))]


def machine() -> dict:
    """The type of machine, as far as digits depend on it: equal dictionaries promise equal bits.  No host, no path."""
    found = cache.provenance()
    return {key: found[key] for key in ("processor", "instructions", "threads", "system", "python")} | {
        "packages": {name: version(name) for name in ARITHMETIC}}


def _agrees(path: Path, item: dict) -> bool:
    """Whether a note of origin still says what the manifest says again."""
    try:
        note = json.loads(path.read_text())
        return note["notebook"] == item["notebook"][:2] and all(note[key] == item[key] for key in REPEATED)
    except (KeyError, TypeError, ValueError):
        return False


def _files(path: Path) -> list[Path]:
    return [one for one in (path, *map(path.with_suffix, SHOWN[path.suffix])) if one.exists()]


def main(arguments: list[str] | None = None) -> int:
    """Write the manifest of a study's figures."""
    parser = argparse.ArgumentParser(prog="python -m onebit.manifest", description=__doc__)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--notebooks", type=Path, default=paths.LIBRARY.parents[1] / "notebooks")
    options = parser.parse_args(arguments)
    write(folder_of(options.dataset, options.profile), options.notebooks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
