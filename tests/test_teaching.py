"""The notebooks as a course: goals, prerequisites, graded exercises, solutions apart, one setup cell anywhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from onebit import hosted
from onebit.publish import source_hash

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks/solutions").glob("[0-9]*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
GRADES = ["easy", "medium", "open"]


def read(path):
    return nbformat.read(path, 4)


def solution_of(path):
    return path.parent / "solutions" / f"{path.stem[:2]}_solutions.ipynb"


def tagged(notebook, tag):
    (cell,) = [c for c in notebook.cells if tag in c.metadata.get("tags", [])]
    return cell


def exercises(notebook):
    """(number, grade, question) of every exercise."""
    (section,) = [c.source.split("## Exercises")[1] for c in notebook.cells if "## Exercises" in c.source]
    return re.findall(r"^(\d)\. \*\((\w+)\)\* (.+)$", section, re.M)


def test_there_are_nine_notebooks_and_nine_solutions():
    assert [p.stem[:2] for p in NOTEBOOKS] == [f"{n:02d}" for n in range(1, 10)]
    assert [solution_of(path) for path in NOTEBOOKS] == SOLUTIONS


@EACH
def test_the_head_says_what_one_learns_how_long_it_takes_and_what_to_know_before(path):
    head = read(path).cells[1]
    assert head.cell_type == "markdown" and head.source.startswith("**You will learn**")
    assert 2 <= len(re.findall(r"^- .+", head.source, re.M)) <= 4
    rows = dict(re.findall(r"^\| \*\*(.+)\*\* \| (.+) \|$", head.source, re.M))
    assert re.match(r"\d+ minutes to read; .*(minute|second)s? to run", rows["Time"])
    assert len(rows["Before this"]) > 20


@EACH
def test_three_graded_exercises_each_with_its_question_repeated_and_solved(path):
    asked = exercises(read(path))
    assert [(int(number), grade) for number, grade, _ in asked] == list(enumerate(GRADES, 1))
    cells = read(solution_of(path)).cells
    starts = [i for i, c in enumerate(cells) if c.source.startswith("## Exercise ")]
    assert [cells[i].source for i in starts] == [f"## Exercise {n}\n\n*({grade})* {text}" for n, grade, text in asked]
    for first, last in zip(starts, [*starts[1:], len(cells)], strict=True):
        part = cells[first:last]
        assert any(c.cell_type == "code" and c.outputs for c in part)
        assert part[-1].cell_type == "markdown" and part[-1].source.startswith("**What we see.**")
    assert "**What else could be tried.**" in cells[-1].source


@EACH
def test_exercises_and_solutions_link_to_each_other_and_every_link_leads_somewhere(path):
    solution = solution_of(path)
    (section,) = [c.source for c in read(path).cells if "## Exercises" in c.source]
    assert f"](solutions/{solution.name})" in section
    assert f"](../{path.name}#Exercises)" in read(solution).cells[0].source
    for page in (path, solution):
        text = "\n".join(c.source for c in read(page).cells if c.cell_type == "markdown")
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_a_committed_solution_is_fit_to_read(path):
    notebook, text = read(path), path.read_text()
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert tagged(notebook, "parameters").source.startswith("PROFILE = ")
    assert all(len([line for line in c.source.splitlines() if line.strip()]) <= 16 for c in code)
    assert notebook.metadata["onebit"]["source_hash"] == source_hash(notebook), "outputs are older than the code"
    assert not any(o.output_type == "error" for c in code for o in c.outputs)
    for trace in ("papermill", "/site-packages/", "/tmp/", str(ROOT), str(Path.home())):
        assert trace not in text
    assert path.stat().st_size < 1_000_000


# the setup cell ------------------------------------------------------------------------------------------------------


def setup_cell(repository=""):
    """The cell that all notebooks share, with the address a reader would type in."""
    source = tagged(read(NOTEBOOKS[0]), "setup").source
    assert 'REPOSITORY = ""' in source
    return source.replace('REPOSITORY = ""', f"REPOSITORY = {str(repository)!r}")


def checkout(folder):
    """As much of the repository as the cell needs."""
    (folder / "lib/onebit").mkdir(parents=True)
    for name in ("pyproject.toml", "lib/onebit/__init__.py", "lib/onebit/hosted.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


SERVICE = """
import subprocess, sys
real = subprocess.run
def run(command, **options):
    if "pip" not in command:
        return real(command, **options)
    print("PIP", *command[command.index("install"):])
    return subprocess.CompletedProcess(command, 0)
subprocess.run = run
exec(sys.argv[1])
import onebit
print("FROM", onebit.__file__)
"""


def run_cell(source, folder, bare=True):
    """The cell in a new process; `bare`: one without any installed package, in which pip only says what it would do."""
    command = [sys.executable, *(["-S"] if bare else []), "-c", SERVICE, source]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)


def test_the_setup_cell_is_the_same_everywhere_and_follows_the_parameters():
    cells = set()
    for path in (*NOTEBOOKS, *SOLUTIONS):
        code = [c for c in read(path).cells if c.cell_type == "code"]
        assert code[1] == tagged(read(path), "setup") and code[0] == tagged(read(path), "parameters")
        cells.add(code[1].source)
    assert len(cells) == 1


def test_the_setup_cell_does_nothing_where_onebit_is_installed(tmp_path):
    done = run_cell(setup_cell("no/such/place"), tmp_path, bare=False)
    assert done.stdout.split() == ["FROM", hosted.__file__.replace("hosted", "__init__")], done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["notebooks/solutions", ".", ".."])
def test_the_setup_cell_takes_a_clone_that_is_near(tmp_path, place):
    """Opened where it lies, at the top of the clone, or beside it: a folder named onebit is not yet the package."""
    clone = checkout(tmp_path / "onebit")
    folder = clone / place
    folder.mkdir(parents=True, exist_ok=True)
    done = run_cell(setup_cell(), folder)
    assert f"FROM {clone / 'lib/onebit/__init__.py'}" in done.stdout, done.stderr
    installed = done.stdout.split("PIP")[1]
    assert "torch==" in installed and "diffusers" in installed and "jupyterlab" not in installed


def test_the_setup_cell_clones_the_repository_it_is_told_and_only_once(tmp_path):
    origin = checkout(tmp_path / "origin")
    git = ["git", "-C", origin, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "content").mkdir()
    wanted = f"FROM {tmp_path / 'content/onebit-study/lib/onebit/__init__.py'}"
    first = run_cell(setup_cell(origin), tmp_path / "content")
    assert wanted in first.stdout, first.stderr
    shutil.rmtree(origin)  # a kernel that is started anew needs no second clone
    assert wanted in run_cell(setup_cell(origin), tmp_path / "content").stdout


def test_the_setup_cell_says_what_to_do_where_nothing_is_known(tmp_path):
    done = run_cell(setup_cell(), tmp_path)
    assert done.returncode and "set REPOSITORY above" in done.stderr


class TestComplete:
    """What a service lacks is installed, and what it has stays as it is."""

    @pytest.fixture
    def pip(self, monkeypatch):
        calls = []
        monkeypatch.setattr(hosted.subprocess, "run", lambda c: calls.append(c) or subprocess.CompletedProcess(c, 0))
        return calls

    @staticmethod
    def installed(monkeypatch, versions):
        def version(name):
            if name not in versions:
                raise hosted.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(hosted.metadata, "version", version)

    def test_nothing_is_missing_in_the_projects_own_environment(self, pip):
        hosted.complete(ROOT)
        assert pip == []

    def test_only_what_is_missing_and_torch_pinned_to_the_services_own_build(self, monkeypatch, pip, tmp_path):
        (tmp_path / "pyproject.toml").write_text(
            '[project]\ndependencies = ["torch==2.14.1", "numpy<2.5", "diffusers", "scipy<1.18", "papermill"]\n')
        self.installed(monkeypatch, {"torch": "2.9.0+cu126", "numpy": "2.0.2"})
        hosted.complete(tmp_path)
        (command,) = pip
        assert command[command.index("install") + 3:] == ["diffusers", "scipy<1.18", "torch==2.9.0+cu126",
                                                          "numpy==2.0.2"]

    def test_a_failed_installation_stops_the_cell_and_names_the_packages(self, monkeypatch, tmp_path):
        (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["diffusers"]\n')
        self.installed(monkeypatch, {})
        monkeypatch.setattr(hosted.subprocess, "run", lambda c: subprocess.CompletedProcess(c, 1))
        with pytest.raises(RuntimeError, match="pip could not add diffusers"):
            hosted.complete(tmp_path)
