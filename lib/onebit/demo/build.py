"""Compile the demo's kernels: kernels.ts to kernels.wasm, by the AssemblyScript that package-lock.json pins.

`python -m onebit.demo.build`, or `make demo`.  The same source gives the same bytes on every machine; kernels.json says
which source the committed module was compiled from.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from .. import paths
from ..files import replacing, sha256, write_json
from .document import HERE, MODULE

SOURCES = ("kernels.ts", "package.json", "package-lock.json")  # all that decides the module
RECORD = HERE / "kernels.json"


def compiled(folder: Path) -> bytes:
    """The module as the sources make it, compiled in `folder`, where the compiler is installed if it is not yet.

    Raises    FileNotFoundError without npm; CalledProcessError, its output in `stderr`, if npm or the compiler fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    installed, wanted = folder / "package-lock.json", HERE / "package-lock.json"
    fresh = (folder / "node_modules").exists() and installed.exists() and sha256(installed) == sha256(wanted)
    for name in SOURCES:
        shutil.copyfile(HERE / name, folder / name)
    if not fresh:
        _npm(folder, "ci", "--no-audit", "--no-fund")
    _npm(folder, "run", "build")
    return (folder / MODULE.name).read_bytes()


def sources() -> dict[str, str]:
    """sha256 of every source, by name."""
    return {name: sha256(HERE / name) for name in SOURCES}


def _npm(folder: Path, *arguments: str) -> None:
    subprocess.run(["npm", "--silent", *arguments], cwd=folder, check=True, capture_output=True, text=True)


def main(arguments: list[str] | None = None) -> int:
    """Write kernels.wasm and kernels.json."""
    argparse.ArgumentParser(prog="python -m onebit.demo.build", description=__doc__).parse_args(arguments)
    try:
        module = compiled(paths.BUILD / "demo")
    except FileNotFoundError:
        print("npm is missing: install Node.js 20 or newer, or leave kernels.wasm as it is", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(error.cmd)} failed:\n{error.stdout}{error.stderr}", file=sys.stderr)
        return 1
    with replacing(MODULE) as partial:
        partial.write_bytes(module)
    write_json(RECORD, {"sources": sources(), "module": sha256(MODULE)})
    print(f"{MODULE.name}: {len(module)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
