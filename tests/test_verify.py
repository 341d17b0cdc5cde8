"""What `make verify` accepts and what it finds."""

import json
import math
import re
import shutil
from dataclasses import replace
from fnmatch import fnmatchcase

import nbformat
import pytest

from onebit import manifest, paths
from onebit.metrics import Estimate
from onebit.study import Study, cache, golden, published, results
from onebit.study.cache import Entry
from onebit.verify import __main__ as command
from onebit.verify import metrics, tables, training
from onebit.verify.cells import MEASURED, compare, distance, parse, tolerance
from onebit.verify.verdict import Verdict

TABLE = "arm,n,frechet,verdict\nunet,3,1.5,reproduced\nresunet,4,2.5,\n"
STUDY = Study.named("smoke", "digits")


# cells ----------------------------------------------------------------------------------------------------------------


def test_equal_tables_agree_and_one_changed_cell_is_named():
    assert compare("02_x", TABLE, TABLE, exact=True).wrong == ()
    for old, new in (("2.5", "2.6"), ("reproduced", "contradicted"), ("4", "5"), (",\n", ",text\n"), ("2.5", "")):
        wrong = compare("02_x", TABLE, TABLE.replace(old, new), exact=False).wrong
        assert len(wrong) == 1 and "row" in wrong[0] and "committed" in wrong[0]


def test_numbers_may_differ_by_their_columns_tolerance_only_on_another_type_of_machine():
    near = TABLE.replace("2.5", repr(2.5 * (1 + 5e-7)))
    found = compare("02_x", TABLE, near, exact=False)
    assert found.wrong == () and found.worst == pytest.approx(5e-7, rel=1e-3) and found.where == "frechet, row 2"
    assert len(compare("02_x", TABLE, near, exact=True).wrong) == 1
    assert len(compare("02_x", TABLE, TABLE.replace("2.5", repr(2.5 * (1 + 3e-6))), exact=False).wrong) == 1
    assert tolerance("02_x", "frechet") < tolerance("04_x", "frechet")


@pytest.mark.parametrize("found", ["arm,n\nunet,3\n", TABLE + "more,5,3.5,\n", TABLE.replace("arm", "net"), "",
                                   "a,b\n1\n"])
def test_a_table_of_another_shape_is_refused(found):
    with pytest.raises(ValueError, match=r"columns differ|rows|not a table"):
        compare("02_x", TABLE, found, exact=False)


def test_distances_of_whole_numbers_text_and_what_is_not_finite():
    assert distance("3", "3.0") == distance("1e-10", "-1e-10") == 0 and distance("2.0", "1.0") == 0.5
    assert distance("3", "4") == distance("a", "b") == distance("nan", "1.0") == math.inf


def test_what_a_clock_measured_is_declared_by_columns_that_exist():
    """Of tables as committed; every other cell must repeat."""
    for table, patterns in MEASURED.items():
        columns, _ = parse((paths.FIGURES / f"{table}.csv").read_text())
        for pattern in patterns:
            assert any(fnmatchcase(column, pattern) for column in columns), (table, pattern)
    costs = "seed,seconds,loss\n0,1.5,2.5\n"
    assert compare("02_costs", costs, costs.replace("1.5", "9.5"), exact=True, clocked=False).wrong == ()
    assert compare("02_costs", costs, costs.replace("1.5", "9.5"), exact=True).wrong
    assert compare("02_costs", costs, costs.replace("2.5", "9.5"), exact=True, clocked=False).wrong
    claims = "claim_id,measured,verdict\n002-throughput,1.5,reproduced\n003-size,28.0,reproduced\n"
    assert not compare("08_claims", claims, claims.replace("1.5", "0.5"), exact=True, clocked=False).wrong
    assert compare("08_claims", claims, claims.replace("28", "29"), exact=True, clocked=False).wrong


# tables from released results -----------------------------------------------------------------------------------------

SHOW = """
import pandas as pd
from onebit.report import Report
from onebit.study import Study, cache
from onebit.study.cache import Entry
def compute(work):
    (work / "x.txt").write_text("0.5")
folder = cache.get(Entry("demo", NAME, {}), compute)
frame = pd.DataFrame({"name": [NAME], "x": [float((folder / "x.txt").read_text())]})
Report(NUMBER, Study.named(PROFILE, DATASET)).table(frame, "shown", "What is shown.")
"""


def notebook(folder, number, name):
    cells = [nbformat.v4.new_code_cell('PROFILE, DATASET = "smoke", "digits"', metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(f"NUMBER, NAME = {number!r}, {name!r}\n{SHOW}")]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / f"{number}_{name}.ipynb")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A study of two notebooks, one of which asks for what is not released: its folder, and what verification says."""
    root = tmp_path_factory.mktemp("root")
    sources, figures = root / "notebooks", root / "build/digits/smoke/figures"
    sources.mkdir()
    figures.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in {"ROOT": "", "RUNS": "data/runs", "RELEASED": "data/released", "BUILD": "build"}.items():
            patch.setattr(paths, name, root / folder)
        for number, name in (("01", "released"), ("02", "own")):
            notebook(sources, number, name)
            own = cache.get(Entry("demo", name, {}), lambda work: (work / "x.txt").write_text("1.25") and {})
            for path in (figures / f"{number}_shown.csv", figures / f"{number}_shown.md"):
                path.write_text(f"name,x\n{name},1.25\n")
            note = {"notebook": number, "dataset": "digits", "profile": "smoke", "runs": [], "version": "0",
                    "library": "1"}
            (figures / f"{number}_shown.csv.json").write_text(json.dumps(note))
            if name == "released":
                cache.release(own)
        manifest.write(figures, sources)
        verdicts = list(tables.tables(STUDY, sources, root / "again", jobs=2))
    return root, {verdict.what: verdict for verdict in verdicts}


def test_a_table_that_follows_from_released_results_is_accepted_digit_for_digit(rendered):
    _, verdicts = rendered
    assert verdicts["01_shown"] == Verdict("01_shown", True, "2 cells equal")


def test_a_notebook_that_would_have_to_compute_is_a_failed_verdict_and_not_a_crash(rendered):
    root, verdicts = rendered
    assert verdicts["02_own"].holds is False and "is not released" in verdicts["02_own"].text
    assert verdicts["02_shown"].holds is False and "no notebook that ran to its end" in verdicts["02_shown"].text
    assert not (root / "again/data/runs").exists()


def test_an_altered_table_and_one_that_nobody_committed_are_found(rendered, tmp_path):
    root, _ = rendered
    again = root / "again/build/digits/smoke/figures/01_shown.csv"
    committed = tmp_path / "01_shown.csv"
    committed.write_text(again.read_text().replace("1.25", "1.26"))
    found = tables.table(committed, again, exact=True)
    assert found.holds is False and "x, row 1: 1.26 committed, 1.25 found" in found.text
    committed.write_text("other\n1\n")
    assert "columns differ" in tables.table(committed, again, exact=True).text


def test_an_empty_folder_of_notebooks_is_refused(home, tmp_path):
    with pytest.raises(FileNotFoundError, match="no notebooks"):
        tables.render(STUDY, tmp_path, home / "again", 1)


# the manifest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [paths.FIGURES])
def test_the_committed_manifest_agrees_with_the_committed_figures(folder):
    assert manifest.faults(folder) == []
    items = manifest.read(folder)["items"]
    assert {path.stem for path in folder.glob("*.json") if path.name != manifest.NAME} == set(items)
    known = {path.name for path in paths.RELEASED.iterdir()}
    unreleased = published.runs(Study.named("laptop", "mnist"))  # too many bytes; their metrics are released
    known |= {results.training_entry(run).name for run in unreleased}
    for name, item in items.items():
        assert set(item) == {"notebook", "notebook_source", "dataset", "profile", "runs", "version", "library", "files"}
        assert (paths.ROOT / "notebooks" / item["notebook"]).exists()
        assert set(item["runs"]) <= known, name


def test_the_manifest_has_the_same_bytes_whenever_it_is_written_and_finds_what_was_altered(rendered):
    root, _ = rendered
    figures = root / "build/digits/smoke/figures"
    before = (figures / manifest.NAME).read_bytes()
    assert manifest.write(figures, root / "notebooks").read_bytes() == before and manifest.faults(figures) == []
    page = figures / "01_shown.md"
    text = page.read_text()
    page.write_text("altered")
    assert manifest.faults(figures) == ["01_shown.md is altered"]
    page.unlink()
    assert manifest.faults(figures) == ["01_shown.md is missing"]
    page.write_text(text)
    (figures / "02_more.csv.json").write_text("{}")
    assert manifest.faults(figures) == ["02_more.csv is not listed"]
    (figures / "02_more.csv.json").unlink()
    note = figures / "01_shown.csv.json"
    text = note.read_text()
    note.unlink()
    assert "01_shown.csv.json is missing" in manifest.faults(figures)
    told = json.loads(text)
    for changed in ({"notebook": "02"}, {"runs": ["train-x"]}, {"library": "2"}, {"dataset": "mnist"}):
        note.write_text(json.dumps(told | changed))
        assert manifest.faults(figures) == ["01_shown.csv.json is altered"]
    for broken in ("", "[]", "{}"):
        note.write_text(broken)
        assert manifest.faults(figures) == ["01_shown.csv.json is altered"]
    note.write_text(text)
    assert manifest.faults(figures) == []


def test_a_table_whose_note_is_gone_is_still_compared(home, monkeypatch):
    committed, again = home / "figures", home / "again/figures"
    for folder, value in ((committed, 2), (again, 1)):
        folder.mkdir(parents=True)
        (folder / "01_shown.csv").write_text(f"x\n{value}\n")
    (again / "01_shown.csv.json").write_text("{}")
    monkeypatch.setattr(paths, "ROOT", home)
    monkeypatch.setattr(tables, "folder_of", lambda *names: committed)
    monkeypatch.setattr(tables, "render", lambda *asked: {})
    (found,) = tables.tables(STUDY, home, home / "again", 1)
    assert not found.holds and "2 committed, 1 found" in found.text


def test_a_folder_without_figures_or_a_manifest_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="make paper"):
        manifest.write(tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="make paper"):
        manifest.read(tmp_path)


# training and metrics -------------------------------------------------------------------------------------------------


def test_the_committed_training_is_repeated():
    verdict = training.training()
    assert verdict.holds, verdict.text


def test_losses_must_be_equal_on_the_same_type_of_machine_and_close_on_another(tmp_path):
    def losses(name, first):
        (tmp_path / name).write_text(f"step,loss,lr,sign_flips\n20,{first!r},0.1,0\n40,{first / 2 + 1e-3!r},0.1,0\n")
        return tmp_path / name

    committed = losses("a.csv", 0.5)
    for factor, exact, close in ((1, True, True), (1 + 5e-6, False, True), (1 + 5e-5, False, False)):
        again = losses("b.csv", 0.5 * factor)
        assert training.compare(committed, again, exact=True).holds is exact
        assert training.compare(committed, again, exact=False).holds is close


def test_a_training_that_is_not_released_fails_in_words(home):
    assert training.training().holds is False and golden.entry().name in training.training().text


def release_headline(source):
    """Compute and release what the verdict on a headline reads; returns the folder of its estimates."""
    STUDY.evaluate("headline", source)
    folder, *_ = [cache.release(cache.find(entry)) for entry in metrics._needed(STUDY, "headline", source)]
    return folder


def test_released_metrics_are_computed_again_and_a_changed_one_is_found(home, monkeypatch):
    source = STUDY.protocol.control
    monkeypatch.setattr(metrics, "FAMILIES", ("headline",))
    monkeypatch.setattr(metrics, "sources", lambda study: [source])
    assert [verdict.holds for verdict in metrics.metrics(STUDY)] == [False]  # nothing is there
    folder = release_headline(source)
    (verdict,) = metrics.metrics(STUDY)
    assert verdict.holds and "frechet" in verdict.text
    numbers = json.loads((folder / "estimates.json").read_text())
    numbers["frechet"]["value"] *= 1.001
    rewrite(folder, json.dumps(numbers))
    (verdict,) = metrics.metrics(STUDY)
    assert verdict.holds is False and "1.0e-03 apart" in verdict.text
    for text, said in (("", "unreadable"), ("[]", "unreadable"), ("{}", "frechet is not released")):
        rewrite(folder, text)
        (verdict,) = metrics.metrics(STUDY)
        assert verdict.holds is False and said in verdict.text


def rewrite(folder, text):
    """Give a result other estimates, with a manifest that vouches for them."""
    (folder / "estimates.json").write_text(text)
    told = cache.manifest(folder) | {"files": {p.name: manifest.sha256(p) for p in folder.iterdir()
                                              if p.name != cache.MANIFEST}}
    (folder / cache.MANIFEST).write_text(json.dumps(told))


@pytest.mark.parametrize(("changes", "said"), [
    ({"low": -1.0}, "low of frechet -1 released, 0.1 found"), ({"high": 1e9}, "high of frechet 1e\\+09 released"),
    ({"n": 101}, "n of frechet 101 released, 100 found, inf apart"), ({"low": math.nan}, "low of frechet nan released"),
    ({"value": math.inf}, "frechet inf released"),
])
def test_an_altered_interval_or_number_of_things_is_found(changes, said):
    found = {"frechet": Estimate(2.0, 0.1, 4.0, 100, "x"), "share": Estimate(0.5, math.nan, math.nan, 100, "x")}
    released = found | {"frechet": replace(found["frechet"], **changes)}
    verdict = metrics.compare("x", released, found)
    assert verdict.holds is False and re.search(said, verdict.text)


def test_ends_of_an_interval_near_0_may_differ_by_as_much_as_the_number_between_them():
    found = Estimate(2.0, 1e-4, 4.0, 100, "x")
    verdict = metrics.compare("x", {"frechet": replace(found, low=4e-4)}, {"frechet": found})
    assert verdict.holds and "1.5e-04 apart" in verdict.text
    assert metrics.compare("x", {"frechet": found}, {"frechet": found}).holds


def test_an_estimate_that_was_added_or_removed_is_named():
    one = Estimate(2.0, 1.0, 4.0, 100, "x")
    assert metrics.compare("x", {"a": one, "b": one}, {"a": one}) == Verdict("x", False, "b is not found")
    assert metrics.compare("x", {}, {"a": one, "b": one}).text == "a is not released; b is not released"


def test_what_was_computed_here_is_not_taken_for_released(home, monkeypatch):
    source = STUDY.protocol.control
    STUDY.evaluate("headline", source)
    cache.get(golden.entry(), lambda work: (work / "loss.csv").write_text("step,loss\n") and {})
    assert "is not released" in metrics.metric(STUDY, "headline", source).text
    assert "is not released" in training.training().text


def test_from_scratch_changes_nothing_of_what_is_verified(home, monkeypatch):
    source = STUDY.protocol.control
    release_headline(source)
    shutil.rmtree(paths.RUNS)
    monkeypatch.setenv("FROM_SCRATCH", "1")
    assert metrics.metric(STUDY, "headline", source).holds and not list(paths.RUNS.glob("*-*"))
    assert cache.from_scratch()


# the command ----------------------------------------------------------------------------------------------------------


def test_the_status_says_whether_anything_failed_and_without_the_data_set_one_line_says_so(home, monkeypatch, capsys):
    monkeypatch.setattr(command, "training", lambda: Verdict("a run", True, "as it was"))
    monkeypatch.setattr(command.data, "available", lambda name: False)
    assert command.main(["--only", "training", "metrics"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok") and lines[1].startswith("skipped") and "mnist" in lines[1] and len(lines) == 3
    monkeypatch.setattr(command, "tables", lambda *_: iter([Verdict("01_x", False, "differs")]))
    assert command.main(["--only", "tables"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  01_x" in out and "MANIFEST.json" in out and "2 failed" in out


@pytest.mark.parametrize(("option", "said"), [
    ("--jobs=0", "--jobs: a whole number, 1 or more, not '0'"), ("--jobs=-1", "--jobs: a whole number"),
    ("--notebooks=/nowhere", "--notebooks: no notebooks in /nowhere"),
])
def test_the_command_refuses_in_a_line_what_it_cannot_do(option, said, capsys, monkeypatch):
    monkeypatch.setattr(command, "verdicts", lambda *_: iter(()))
    with pytest.raises(SystemExit):
        command.main(["--only", "tables", option])
    assert said in capsys.readouterr().err
