"""For notebooks opened in a hosted service: what the service lacks is installed, and its own torch is left alone.

Imports nothing but the standard library: the setup cell of every notebook calls this before anything is installed.  The
package itself is not installed but imported from its clone, where the released results lie beside it.
"""

import importlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

SERVICE = {"jupyterlab", "papermill", "nbconvert"}  # for running notebooks: a service has its own ways


def complete(clone: Path) -> None:
    """Install what the clone's pyproject.toml asks for and this machine lacks.

    What is there stays at its version: another build of torch beside the service's torchvision fails at import, and
    another numpy under a running kernel does too.

    Raises    RuntimeError, naming the packages, if pip cannot add them to what is there.
    """
    absent, present = _declared(clone / "pyproject.toml")
    if not absent:
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *absent, *present]
    if subprocess.run(command).returncode:
        raise RuntimeError(f"pip could not add {', '.join(absent)} to what is installed here (its message is above, or "
                           f"in the log of the notebook server); install them by hand and run this cell again")
    importlib.invalidate_caches()


def _declared(pyproject: Path) -> tuple[list[str], list[str]]:
    """Requirements that are not installed, as pyproject.toml spells them; and pins of the others to what there is."""
    absent, present = [], []
    for requirement in tomllib.loads(pyproject.read_text())["project"]["dependencies"]:
        name = re.match(r"[\w.-]+", requirement)[0]
        if name in SERVICE:
            continue
        try:
            present.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            absent.append(requirement)
    return absent, present
