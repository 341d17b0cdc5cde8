"""Pins, and the promises the repository makes about itself."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


OPTIONAL = {"faiss"}  # compared against where somebody has it


def pins():
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", LOCK, re.M))


def test_the_lock_is_hashed_and_names_no_host():
    assert "://" not in LOCK and "index-url" not in LOCK and "+cpu" not in LOCK
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK.strip())
    assert len(blocks) > 50 and all("--hash=sha256:" in block for block in blocks)


def declared():
    return [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]


def imported(path):
    """The top-level names that a file imports, without those of its own package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_every_package_that_is_imported_is_declared():
    found = {name for folder in ("lib", "tests") for path in (ROOT / folder).rglob("*.py") for name in imported(path)}
    own = {"onebit", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    names, owners = {re.match(r"[a-z0-9-]+", one)[0] for one in declared()}, packages_distributions()
    foreign = found - own - OPTIONAL - set(sys.stdlib_module_names)
    assert {"torch", "PIL", "bs4"} <= foreign
    assert {one for one in foreign if not {name.lower() for name in owners.get(one, [one])} & names} == set()


def test_every_direct_dependency_is_locked_and_installed_at_its_pin():
    for requirement in declared():
        name, constraint = re.match(r"([a-z0-9-]+)(.*)", requirement).groups()
        assert name in pins(), f"{name} is not in requirements.lock: run make lock"
        assert version(name).split("+")[0] == pins()[name]
        if constraint.startswith("=="):
            assert pins()[name] == constraint[2:]


def test_conda_users_get_the_same_pins():
    text = (ROOT / "environment.yml").read_text()
    assert "-r requirements.lock" in text and "python=3.11" in text


def test_no_file_names_a_place_outside_the_repository():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = listed.rstrip("\0").split("\0")
    assert len(tracked) > 100
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


STUB = f"""#!{sys.executable}
import hashlib, json, os, shutil, sys
from pathlib import Path
what, scratch = " ".join(sys.argv[1:]), os.environ["FROM_SCRATCH"]
with open("log", "a") as log:
    print(what, "scratch=" + scratch, "path=" + os.environ["PYTHONPATH"], file=log)
figures = Path(os.environ.get("ONEBIT_HOME", ""), "figures")
figures.mkdir(parents=True, exist_ok=True)
if "onebit.study prepare" in what:
    if os.environ.get("BROKEN") == "prepare":
        sys.exit(1)
    print("mnist laptop")
elif "papermill" in what:
    name = Path(sys.argv[-2]).name
    if os.environ.get("BROKEN") == name:
        sys.exit(1)
    shutil.copy(*sys.argv[-2:])
    for suffix in (".csv", ".csv.json"):
        (figures / name).with_suffix(suffix).write_text(name)
elif "onebit.manifest" in what:
    items = {{}}
    for path in sorted(figures.glob("*.csv")):
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        items[path.name] = dict(notebook=path.stem + ".ipynb", files={{path.name: checksum}})
    (figures / "MANIFEST.json").write_text(json.dumps(dict(items=items)))
"""


@pytest.fixture
def make(tmp_path):
    """make in a folder of two notebooks, with an interpreter that computes nothing; returns what that was told, or with
    status=True how make ended."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml", "lib/onebit/a.py", "notebooks/01_a.ipynb",
                 "notebooks/09_verdicts.ipynb", "notebooks/solutions/01_a.ipynb", "notebooks/solutions/02_b.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "stub").write_text(STUB)
    (tmp_path / "stub").chmod(0o755)
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith("MAKE") and name not in ("FROM_SCRATCH", "PYTHONPATH", "ONEBIT_HOME", "MFLAGS")}

    def run(*arguments, status=False, **environment):
        (tmp_path / "log").write_text("")
        ended = subprocess.run(["make", "ENVIRONMENT=", "PY=./stub", f"PYTHON={sys.executable}", *arguments],
                               cwd=tmp_path, env=clean | environment, capture_output=True, text=True)
        assert status or ended.returncode == 0, ended.stderr
        return ended.returncode if status else (tmp_path / "log").read_text()

    return run


def executed(log):
    return re.findall(r"papermill .* notebooks/(\S+)", log)


BOTH = ["01_a.ipynb", "09_verdicts.ipynb"]


def test_a_notebook_is_executed_once_and_again_when_its_source_or_a_figure_of_its_is_not_what_it_was(make, tmp_path):
    assert executed(make("paper")) == BOTH
    log = make("paper")
    assert executed(log) == [] and "manifest" not in log
    (tmp_path / "figures/09_verdicts.csv").unlink()
    assert executed(make("paper")) == ["09_verdicts.ipynb"]
    (tmp_path / "figures/01_a.csv").write_text("of another branch")
    assert executed(make("paper")) == BOTH
    (tmp_path / "notebooks/01_a.ipynb").write_text("edited")
    assert executed(make("paper")) == BOTH
    shutil.rmtree(tmp_path / "figures")
    assert executed(make("paper")) == BOTH
    assert executed(make("paper")) == []


def test_a_home_with_a_space_in_its_name_gets_every_figure_once(make, tmp_path):
    store = str(tmp_path / "my store")
    assert executed(make("paper", ONEBIT_HOME=store)) == BOTH
    assert executed(make("paper", ONEBIT_HOME=store)) == []
    (tmp_path / "my store/figures/01_a.csv").unlink()
    assert executed(make("paper", ONEBIT_HOME=store)) == BOTH


def test_from_scratch_is_off_when_it_is_0(make):
    make("paper")
    assert executed(make("paper", "FROM_SCRATCH=0")) == executed(make("paper", FROM_SCRATCH="0")) == []
    log = make("paper", "FROM_SCRATCH=1")
    assert executed(log) == BOTH and "scratch=1" in log


def test_a_copied_checkout_computes_with_its_own_library(make, tmp_path):
    assert f"path={tmp_path}/lib\n" in make("train")
    assert f"path={tmp_path}/lib:/elsewhere\n" in make("train", PYTHONPATH="/elsewhere")


@pytest.mark.parametrize("flag", ["-n", "-q", "-t"])
@pytest.mark.parametrize("target", ["paper", "site", "smoke"])
def test_make_computes_nothing_when_it_is_asked_what_it_would_do(make, tmp_path, target, flag):
    for _ in ("before", "after"):
        make(flag, target, status=True)
        assert (tmp_path / "log").read_text() == ""
        make("paper")


@pytest.mark.parametrize(("target", "broken", "last"), [
    ("paper", "prepare", "prepare"), ("site", "prepare", "prepare"), ("site", "09_verdicts.ipynb", "09_verdicts.ipynb"),
    ("solutions", "01_a.ipynb", "01_a.ipynb"),
])
def test_a_failing_step_ends_the_command_also_where_make_knows_no_shellflags(make, tmp_path, target, broken, last):
    assert make(target, ".SHELLFLAGS=-c", BROKEN=broken, status=True) == 2
    assert last in (tmp_path / "log").read_text().splitlines()[-1]


def test_an_environment_without_its_interpreter_is_built_anew(tmp_path):
    """The stamp is there and newer than the lock, and the interpreter it stands for has gone with the system's."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in (".tools/bin/uv", ".venv/.complete"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / ".venv/bin").mkdir()
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    command = ["make", "-n", ".venv/.complete", f"PYTHON={sys.executable}"]
    assert "pip sync" not in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (tmp_path / ".venv/bin/python").unlink()
    (tmp_path / ".venv/bin/python").symlink_to("nowhere")
    planned = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "uv venv --quiet --clear" in planned and "pip sync" in planned


def test_the_versions_of_python_are_said_alike():
    said = re.search(r"^VERSIONS := Python 3\.(\d+) to 3\.(\d+) is needed", (ROOT / "Makefile").read_text(), re.M)
    lowest, highest = map(int, said.groups())
    assert PROJECT["requires-python"] == f">=3.{lowest},<3.{highest + 1}"


@pytest.mark.parametrize("home", ["", "store"])
def test_an_empty_home_is_the_repository_and_a_relative_one_is_made_absolute(home, tmp_path):
    code = "from onebit import paths; print(paths.ROOT)"
    library = Path(__file__).resolve().parents[1] / "lib"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env=os.environ | {"ONEBIT_HOME": home, "PYTHONPATH": str(library)})
    expected = (tmp_path / "store").resolve() if home else library.parent
    assert done.stdout.strip() == str(expected)


def test_a_linked_package_is_at_home_where_it_lies(tmp_path):
    (tmp_path / "onebit").symlink_to(ROOT / "lib/onebit")
    asked = {name: value for name, value in os.environ.items() if name != "ONEBIT_HOME"} | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", "from onebit import paths; print(paths.ROOT, paths.__file__)"],
                          cwd=tmp_path, capture_output=True, text=True, check=True, env=asked)
    root, file = done.stdout.split()
    assert Path(root) == ROOT.resolve() and file.startswith(str(tmp_path))
