"""python -m onebit.site BUILT TARGET, as `make site` calls it."""

import argparse
import sys
from pathlib import Path

from .. import paths
from ..report import folder_of
from .assemble import build


def main(arguments: list[str] | None = None) -> int:
    """Build the site and print Sphinx's warnings; returns the exit status, 1 with a message if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m onebit.site", description="Executed notebooks as a static site.")
    parser.add_argument("built", type=Path, help="executed notebooks, build/DATASET/PROFILE")
    parser.add_argument("target", type=Path, help="folder to write, replaced if it holds a site")
    parser.add_argument("--figures", type=Path, help="their figures and tables; by default where that profile saves")
    options = parser.parse_args(arguments)
    _, *named = options.built.resolve().parts
    if len(named) < 2:
        parser.error(f"BUILT is a folder build/DATASET/PROFILE, got {options.built}")
    dataset, profile = named[-2:]
    figures = options.figures or folder_of(dataset, profile)
    try:
        warnings = build(options.built, figures, options.target, paths.ROOT / "notebooks" / "solutions")
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(warnings), file=sys.stderr, end="\n" if warnings else "")
    print(f"done: {options.target}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
