"""The result cache: whole or absent, checked on every read, shared by processes."""

import contextlib
import errno
import json
import shutil
import threading
from pathlib import Path

import pytest

from onebit import paths
from onebit.study import cache
from onebit.study.cache import Busy, Entry, NotReleased

ENTRY = Entry("demo", "a-label", {"x": 1})


def write(text):
    def compute(work):
        (work / "result.txt").write_text(text)
        return {"length": len(text)}

    return compute


def refuse(work):
    raise AssertionError("computed although it is there")


def test_a_result_is_computed_once_and_carries_its_manifest(home):
    folder = cache.get(ENTRY, write("hello"))
    assert cache.get(ENTRY, refuse) == folder == paths.RUNS / ENTRY.name
    manifest = cache.manifest(folder)
    assert manifest["facts"] == {"length": 5} and manifest["spec"] == {"x": 1}
    assert manifest["files"] == {"result.txt": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}


def test_the_key_depends_on_every_field_and_not_on_the_label():
    assert Entry("demo", "a", {"x": 1}).key == Entry("demo", "b", {"x": 1}).key
    assert (
        len({Entry("demo", "a", {"x": 1}).key, Entry("demo", "a", {"x": 2}).key, Entry("other", "a", {"x": 1}).key})
        == 3
    )


def test_a_failed_computation_leaves_nothing_to_be_read_and_its_work_folder_to_resume_from(home):
    def fail(work):
        (work / "result.txt").write_text("half")
        raise RuntimeError("no space left on device")

    with pytest.raises(RuntimeError, match="no space"):
        cache.get(ENTRY, fail)
    assert cache.find(ENTRY) is None

    def resume(work):
        assert (work / "result.txt").read_text() == "half"
        (work / "result.txt").write_text("whole")

    assert (cache.get(ENTRY, resume) / "result.txt").read_text() == "whole"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "key", "kind", "files"])
def test_a_damaged_result_is_reported_set_aside_and_computed_anew(home, damage):
    folder = cache.get(ENTRY, write("hello"))
    file = folder / "result.txt"
    if damage == "flip":
        file.write_text("jello")
    elif damage == "truncate":
        file.write_text("hell")
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        (folder / cache.MANIFEST).write_text("{")
    else:  # another result's, or one that vouches for nothing
        told = cache.manifest(folder) | {damage: {} if damage == "files" else "other"}
        (folder / cache.MANIFEST).write_text(json.dumps(told))
    with pytest.warns(UserWarning, match="set aside"):
        again = cache.get(ENTRY, write("hello"))
    assert (again / "result.txt").read_text() == "hello"
    assert len(list(paths.RUNS.glob("*.corrupt"))) == 1


@pytest.mark.parametrize("refused", [(Path, "rename"), (cache.FileLock, "acquire")])
def test_a_damaged_result_on_storage_that_cannot_be_written_to_is_reported_and_none(home, monkeypatch, refused):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    folder = cache.get(ENTRY, write("hello"))
    (folder / "result.txt").write_text("jello")
    monkeypatch.setattr(*refused, refuse)
    with pytest.warns(UserWarning, match=r"result.txt is altered.*cannot be set aside .*Read-only"):
        assert cache.find(ENTRY) is None


def test_a_damaged_result_that_another_process_has_just_computed_anew_is_not_set_aside(home, monkeypatch):
    folder, fault_of, seen = cache.get(ENTRY, write("hello")), cache._fault, []
    (folder / "result.txt").write_text("jello")

    def late(folder):
        seen.append(fault_of(folder))
        (folder / "result.txt").write_text("hello")  # the other process, before this one does what it makes of it
        return seen[-1]

    monkeypatch.setattr(cache, "_fault", late)
    assert cache.find(ENTRY) == folder and "altered" in seen[0] and seen[1] is None
    assert not list(paths.RUNS.glob("*.corrupt"))


@pytest.mark.filterwarnings("ignore:.*set aside")
def test_two_that_find_one_damaged_result_at_once_set_it_aside_once_and_compute_it_once(home, monkeypatch):
    folder, fault_of, calls, found = cache.get(ENTRY, write("hello")), cache._fault, [], []
    (folder / "result.txt").write_text("jello")
    both = threading.Barrier(2, timeout=30)

    def seen_by_both(folder):
        fault = fault_of(folder)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait()  # neither goes on before the other has seen the damage, too
        both.abort()  # once: what is looked at again is looked at by one
        return fault

    def compute(work):
        calls.append(1)
        write("hello")(work)

    monkeypatch.setattr(cache, "_fault", seen_by_both)
    workers = [threading.Thread(target=lambda: found.append(cache.get(ENTRY, compute)), daemon=True) for _ in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert found == [folder] * 2 and calls == [1] and len(list(paths.RUNS.glob("*.corrupt"))) == 1
    assert (folder / "result.txt").read_text() == "hello"


def test_a_result_is_read_while_its_lock_is_held_and_a_damaged_one_left_to_the_holder(home):
    folder = cache.get(ENTRY, write("hello"))
    with cache._lock(ENTRY, wait=False):
        assert cache.find(ENTRY) == cache.get(ENTRY, refuse) == folder
        (folder / "result.txt").write_text("jello")
        assert cache.find(ENTRY) is None and folder.is_dir()
        with pytest.raises(Busy):
            cache.get(ENTRY, refuse, wait=False)


def test_a_released_result_comes_first_unless_from_scratch(home, monkeypatch):
    cache.release(cache.get(ENTRY, write("hello")))
    assert cache.find(ENTRY) == paths.RELEASED / ENTRY.name
    monkeypatch.setenv("FROM_SCRATCH", "1")
    assert cache.find(ENTRY) == paths.RUNS / ENTRY.name


def test_a_result_may_be_released_in_another_form_with_checksums_of_its_own(home):
    folder = cache.get(ENTRY, write("hello"))
    plain = cache.release(folder)

    def shout(work):
        assert [p.name for p in work.iterdir()] == ["result.txt"]
        (work / "result.txt").rename(work / "loud.txt")
        (work / "loud.txt").write_text("HELLO")
        return {"voice": "loud"}

    assert cache.release(plain, shout, form=1) == plain  # replaced where it lies
    assert cache.find(ENTRY) == plain and (plain / "loud.txt").read_text() == "HELLO"
    told, own = cache.manifest(plain), cache.manifest(folder)
    assert told["voice"] == "loud" and told["form"] == 1 and set(told["files"]) == {"loud.txt"}
    assert all(told[key] == own[key] for key in ("key", "spec", "facts", "provenance", "elapsed_seconds"))
    cache.release(folder, refuse, form=1)  # it is there, in this form
    assert [p.name for p in paths.RELEASED.iterdir()] == [ENTRY.name]


def test_a_release_that_fails_leaves_what_was_there(home):
    released = cache.release(cache.get(ENTRY, write("hello")))
    with pytest.raises(AssertionError):
        cache.release(released, refuse, form=1)
    assert cache.find(ENTRY) == released and (released / "result.txt").read_text() == "hello"


def test_nothing_is_computed_where_released_results_alone_are_to_be_read(home, monkeypatch):
    monkeypatch.setenv("RELEASED_ONLY", "1")
    with pytest.raises(NotReleased, match=r"demo-a-label-.*make release"):
        cache.get(ENTRY, refuse)
    monkeypatch.delenv("RELEASED_ONLY")
    cache.release(cache.get(ENTRY, write("hello")))
    monkeypatch.setenv("RELEASED_ONLY", "1")
    assert cache.get(ENTRY, refuse) == paths.RELEASED / ENTRY.name


def test_a_damaged_released_result_is_reported_but_left_in_place(home):
    released = cache.release(cache.get(ENTRY, write("hello")))
    (released / "result.txt").write_text("jello")
    with pytest.warns(UserWarning, match="git checkout"):
        assert cache.find(ENTRY) == paths.RUNS / ENTRY.name
    assert (released / "result.txt").read_text() == "jello"


def test_a_long_wait_for_another_process_is_announced(home, monkeypatch):
    held, told = cache._lock(ENTRY, wait=False), []
    monkeypatch.setattr(cache, "PATIENCE", 0)
    monkeypatch.setattr(cache.warnings, "warn", lambda text, **_: (told.append(text), held.lock.release()))
    assert (cache.get(ENTRY, write("hello")) / "result.txt").read_text() == "hello"
    assert told == [f"{ENTRY.name} is being computed by another process; waiting for it to end"]


def test_two_at_once_compute_once_and_the_second_may_wait_or_be_told(home):
    started, finish, calls = threading.Event(), threading.Event(), []

    def slow(work):
        calls.append(1)
        (work / "result.txt").write_text("hello")
        started.set()
        assert finish.wait(30)

    folders = []
    first, second = (threading.Thread(target=lambda: folders.append(cache.get(ENTRY, slow)), daemon=True) for _ in "ab")
    first.start()
    assert started.wait(30)
    with pytest.raises(Busy):
        cache.get(ENTRY, refuse, wait=False)
    second.start()
    finish.set()
    first.join(30)
    second.join(30)
    assert calls == [1] and folders == [paths.RUNS / ENTRY.name] * 2


def test_provenance_names_no_machine(home):
    import getpass
    import platform

    text = json.dumps(cache.provenance())
    assert platform.node() not in text or not platform.node()
    assert "/" not in text
    assert f'"{getpass.getuser()}"' not in text


@pytest.mark.parametrize("name", ["pictures", ".hidden"])
def test_a_folder_within_a_result_is_refused_by_name_and_what_was_computed_stays(home, name):
    def compute(work):
        (work / name).mkdir()
        return write("hello")(work)

    with pytest.raises(ValueError, match=rf"demo-a-label-.* files alone, and compute made folders \({name}\)"):
        cache.get(ENTRY, compute)
    assert cache.find(ENTRY) is None
    work = paths.RUNS / ".partial" / ENTRY.name
    (work / name).rmdir()
    assert (work / "result.txt").read_text() == "hello"


def test_temporary_files_of_a_killed_process_do_not_reach_the_result(home):
    work = paths.RUNS / ".partial" / ENTRY.name
    work.mkdir(parents=True)
    (work / ".result.txt.abc").write_text("half")
    folder = cache.get(ENTRY, write("hello"))
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "result.txt"]


def test_a_manifest_of_a_process_killed_before_the_rename_is_no_part_of_the_result(home):
    work = paths.RUNS / ".partial" / ENTRY.name
    work.mkdir(parents=True)
    (work / "manifest.json").write_text("{}")
    folder = cache.get(ENTRY, write("hello"))
    assert set(cache.manifest(folder)["files"]) == {"result.txt"} and cache.find(ENTRY) == folder


def test_what_was_set_aside_as_corrupt_is_no_part_of_the_result(home):
    def resume(work):
        (work / "checkpoint.json.corrupt").write_text("half")
        return write("hello")(work)

    folder = cache.get(ENTRY, resume)
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "result.txt"]


@pytest.mark.parametrize("damage", ["jello", None])
def test_a_damaged_released_result_is_released_anew_from_what_was_computed(home, damage):
    computed = cache.get(ENTRY, write("hello"))
    released = cache.release(computed)
    if damage:
        (released / "result.txt").write_text(damage)
    else:
        (released / "manifest.json").write_text("null")
    assert cache.release(computed) == released
    assert cache.find(ENTRY) == released and (released / "result.txt").read_text() == "hello"


def test_a_network_released_in_other_weights_than_are_wanted_is_replaced_by_its_original_alone(home):
    computed = cache.get(ENTRY, write("hello"))

    def as_(form):
        return lambda work: (work / "result.txt").write_text(form) and {"weights": {"result.txt": form}}

    released = cache.release(computed, as_("float16"), 1, {"result.txt": "float16"})
    cache.release(released, refuse, 1, {"result.txt": "float32"})  # a copy of the copy would be rounded too
    assert (released / "result.txt").read_text() == "float16"
    cache.release(computed, as_("float32"), 1, {"result.txt": "float32"})
    assert (released / "result.txt").read_text() == "float32" and computed == cache.find(ENTRY, computed=True)


def test_a_release_killed_between_its_two_renames_loses_nothing(home):
    released = cache.release(cache.get(ENTRY, write("hello")))
    released.rename(released.with_name(f".{released.name}.old"))
    with pytest.raises(AssertionError):
        cache.release(paths.RUNS / ENTRY.name, refuse, form=1)
    assert cache.release(paths.RUNS / ENTRY.name) == released and cache.find(ENTRY) == released


def test_a_result_that_is_only_released_comes_back_after_such_a_kill(home):
    folder = cache.get(ENTRY, write("hello"))
    released = cache.release(folder)
    shutil.rmtree(folder)
    released.rename(released.with_name(f".{released.name}.old"))
    cache.recover(released)
    assert cache.find(ENTRY) == released and (released / "result.txt").read_text() == "hello"
    cache.recover(released)  # nothing to do
    assert cache.find(ENTRY) == released


@pytest.mark.parametrize(("kind", "label"), [("train", "a/b"), ("a/b", "x")])
def test_a_name_that_is_no_folder_is_refused_before_anything_is_computed(kind, label):
    with pytest.raises(ValueError, match="is to name a folder"):
        Entry(kind, label, {})
