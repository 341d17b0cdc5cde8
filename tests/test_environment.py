"""Pins, and the promises the repository makes about itself."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins():
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", LOCK, re.M))


def test_the_lock_is_hashed_and_names_no_host():
    assert "://" not in LOCK and "index-url" not in LOCK and "+cpu" not in LOCK
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK.strip())
    assert len(blocks) > 50 and all("--hash=sha256:" in block for block in blocks)


def test_every_direct_dependency_is_locked_and_installed_at_its_pin():
    wanted = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    for requirement in wanted:
        name, constraint = re.match(r"([a-z0-9-]+)(.*)", requirement).groups()
        assert name in pins(), f"{name} is not in requirements.lock: run make lock"
        assert version(name).split("+")[0] == pins()[name]
        if constraint.startswith("=="):
            assert pins()[name] == constraint[2:]


def test_conda_users_get_the_same_pins():
    text = (ROOT / "environment.yml").read_text()
    assert "-r requirements.lock" in text and "python=3.11" in text


def test_no_file_names_a_place_outside_the_repository():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".yml", ".cff", ".ipynb") or path.name == "Makefile":
            text = path.read_text()
            assert not re.search(r"(?<![\w./])/(home|root|work|Users|tmp)/\w", text), name


def test_importing_the_package_imports_no_heavy_library():
    script = "import sys, onebit; print(sorted({'torch', 'pandas', 'diffusers', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_make_lists_its_targets():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("paper", "smoke", "test", "lab", "train", "bench", "site", "clean", "lock", "publish", "plan"):
        assert re.search(rf"^\s+make {target}\s", listed, re.M), target
