"""Keyed results on disk: released (committed) first, then this machine's own, else computed; never half written."""

import contextlib
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout

from .. import __version__, paths
from ..files import digest, sha256, write_json, write_text

LEFT_OUT = "left out"  # what a manifest says of weights that are not released
MANIFEST = "manifest.json"
PATIENCE = 10  # seconds


class Busy(RuntimeError):
    """Another process is computing this result at the moment."""


class NotReleased(RuntimeError):
    """A result would have to be computed, and RELEASED_ONLY=1 forbids it (`make verify`)."""


@dataclass(frozen=True)
class Entry:
    """A result's name: what kind it is, a label for people, and the specification its key is a hash of."""

    kind: str
    label: str
    spec: dict

    def __post_init__(self):
        if {"/", os.sep} & {*self.kind, *self.label}:
            raise ValueError(f"{self.kind}-{self.label} is to name a folder: no / in it")

    @cached_property
    def key(self) -> str:
        return digest({"kind": self.kind} | self.spec)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.label}-{self.key}"


def described(one: object, *later: str) -> dict:
    """A dataclass's fields for an entry's `spec`; those that came `later` than its first results only where they are
    used, so that these results keep their keys."""
    defaults = {f.name: f.default for f in fields(one)}
    values = {name: _plain(value, defaults[name]) for name, value in asdict(one).items()}
    return {name: value for name, value in values.items() if name not in later or value != defaults[name]}


def _plain(value: object, default: object) -> object:
    """numpy's numbers as Python's, and a whole number as the float that its field holds: what is equal has one key."""
    value = value.item() if hasattr(value, "item") else value
    return float(value) if type(default) is float and type(value) is int else value


def made_from(**versions: int) -> dict:
    """Versions of what a result is made from, for its entry's `spec`: of those above 1, so that the results of first
    versions keep their keys."""
    later = {name: version for name, version in versions.items() if version > 1}
    return {"made_from": later} if later else {}


def find(entry: Entry, computed: bool = False) -> Path | None:
    """The folder of a finished, undamaged result, or None; with `computed`, one that is as it was computed here.

    A damaged one of this machine is reported and set aside as *.corrupt, or left to the process that is at it: it then
    is no result yet; where nothing can be written, it is reported alone.  A damaged released one is reported.
    """
    found = None if computed or from_scratch() else released(entry)
    folder = paths.RUNS / entry.name
    if found or not folder.is_dir():
        return found
    fault = _fault(folder)
    if fault is None:
        return folder
    try:
        with contextlib.suppress(Timeout), _lock(entry, wait=False):
            return _own(folder)
    except OSError as error:
        warnings.warn(f"{folder}: {fault}; ignored, since it cannot be set aside ({error})", stacklevel=2)
    return None


def released(entry: Entry) -> Path | None:
    """The folder of a released, undamaged result, or None, whatever FROM_SCRATCH says; a damaged one is reported."""
    folder = paths.RELEASED / entry.name
    if not folder.is_dir():
        return None
    fault = _fault(folder)
    if fault is None:
        return folder
    warnings.warn(f"{folder}: {fault}; ignored (restore it with git checkout)", stacklevel=3)
    return None


def _own(folder: Path) -> Path | None:
    """A result of this machine, if it is there and undamaged; a damaged one is set aside.

    Under the entry's lock: since it was looked at, another process may have set it aside and computed it anew.
    """
    if not folder.is_dir():
        return None
    fault = _fault(folder)
    if fault is None:
        return folder
    aside = folder.with_name(f"{folder.name}.{time.time_ns()}.corrupt")
    folder.rename(aside)
    warnings.warn(f"{folder}: {fault}; set aside as {aside.name} and computed anew", stacklevel=3)
    return None


def _work(entry: Entry) -> Path:
    """Where an entry is computed."""
    return paths.RUNS / ".partial" / entry.name


def _lock(entry: Entry, wait: bool) -> AcquireReturnProxy:
    """Held by who computes an entry or sets it aside; Timeout where it is held and `wait` is off.

    A wait of more than PATIENCE seconds is announced: what holds the lock may be a training of hours.
    """
    work = _work(entry)
    work.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work.with_name(f"{work.name}.lock"))
    try:
        return lock.acquire(timeout=PATIENCE if wait else 0)
    except Timeout:
        if not wait:
            raise
    warnings.warn(f"{entry.name} is being computed by another process; waiting for it to end", stacklevel=3)
    return lock.acquire()


def get(entry: Entry, compute: Callable[[Path], dict | None], wait: bool = True) -> Path:
    """The folder of `entry`, computed if it is nowhere.

    `compute` gets a work folder that survives a kill, so that it may resume, and returns facts for the manifest.  The
    folder appears under its name in one rename, after every file has its checksum in the manifest.

    Raises    Busy if another process computes the entry and `wait` is off; NotReleased if it would be computed where
              released results alone are to be read; ValueError for folders that `compute` makes; whatever it raises.
    """
    found = find(entry)
    if found:
        return found
    if flag("RELEASED_ONLY"):
        raise NotReleased(f"{entry.name} is not released, or damaged: restore data/released/, or run make release")
    target, work = paths.RUNS / entry.name, _work(entry)
    try:
        with _lock(entry, wait):
            if _own(target):
                return target
            work.mkdir(exist_ok=True)
            (work / MANIFEST).unlink(missing_ok=True)  # of a process killed before the rename
            began = time.time()
            facts = compute(work) or {}
            _check_flat(entry, work)
            for leftover in [*work.glob(".*"), *work.glob("*.corrupt")]:  # of an earlier process; no part of the result
                leftover.unlink()
            checksums = {p.name: sha256(p) for p in sorted(work.iterdir())}
            write_json(work / MANIFEST, {
                "kind": entry.kind, "key": entry.key, "spec": entry.spec, "facts": facts, "files": checksums,
                "elapsed_seconds": round(time.time() - began, 1), "provenance": provenance(),
            })
            os.replace(work, target)
    except Timeout as error:
        raise Busy(entry.name) from error
    return target


def _check_flat(entry: Entry, work: Path) -> None:
    folders = ", ".join(sorted(path.name for path in work.iterdir() if path.is_dir()))
    if folders:
        raise ValueError(f"{entry.name} is to hold files alone, and compute made folders ({folders}) in {work}: write "
                         "their files beside the others, and remove them")


def manifest(folder: Path) -> dict:
    """The result's manifest: key, spec, facts, checksums, provenance."""
    return json.loads((folder / MANIFEST).read_text())


def release(
    folder: Path, convert: Callable[[Path], dict] | None = None, form: int = 0, weights: dict[str, str] | None = None
) -> Path:
    """Copy a result, the files of its manifest and nothing else, into data/released/, to be committed.

    convert   rewrites the copy's files in its folder and returns what the manifest should say of that; key,
              specification, facts and provenance stay, checksums become those of the files as they are released
    form      number of what `convert` makes
    weights   what the manifest has to say of a network's weights, file by file

    A result that is released already, undamaged and in this form, stays as it is; another one is replaced.  Of a copy
    whose original is gone `weights` can ask no more than that they be left out: what was rounded stays rounded.
    """
    target = paths.RELEASED / folder.name
    if target.exists() and _fault(target) is None:
        told = manifest(target)
        asked = weights or {}
        rounded = folder == target and LEFT_OUT not in asked.values()
        if told.get("form", 0) == form and (rounded or asked.items() <= told.get("weights", {}).items()):
            return target
    partial = paths.RELEASED / f".{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    told = manifest(folder)
    for name in told["files"]:
        shutil.copy(folder / name, partial)
    if convert:
        told |= convert(partial) | {"form": form}
    told["files"] = {path.name: sha256(path) for path in sorted(partial.iterdir())}
    write_text(partial / MANIFEST, json.dumps(told, separators=(",", ":")) + "\n")  # of 1,900, indents are a megabyte
    _put(partial, target)
    return target


def _put(new: Path, target: Path) -> None:
    """Rename a folder to a name that may be taken; what was there is gone only once the new one is in its place."""
    recover(target)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Put back the released result of a process that was killed between the two renames of `_put`."""
    old = target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)


def from_scratch() -> bool:
    """Whether released results are to be ignored (`make paper FROM_SCRATCH=1`)."""
    return flag("FROM_SCRATCH")


def flag(name: str) -> bool:
    """Whether an environment variable says yes: anything but nothing and 0."""
    return os.environ.get(name, "") not in ("", "0")


def provenance() -> dict:
    """What made a result, beyond its key: versions and hardware class.  No host, user or path.

    `instructions` names a processor's instruction sets, caches and cores: where it is equal, bits can be.
    """
    cuda = torch.cuda.is_available()
    return {
        "onebit": __version__, "torch": torch.__version__, "python": platform.python_version(),
        "processor": torch.cuda.get_device_name() if cuda else torch.backends.cpu.get_cpu_capability(),
        "instructions": digest(dict(torch.cpu.get_capabilities())), "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def _fault(folder: Path) -> str | None:
    """What is wrong with a result folder, in words; None if nothing is."""
    try:
        told = manifest(folder)
        files, kind, key = told["files"].items(), told["kind"], told["key"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest unreadable ({error})"
    if not (folder.name.startswith(f"{kind}-") and folder.name.endswith(f"-{key}")):
        return f"its manifest is of {kind} {key}"
    if not files:
        return "its manifest lists no file"
    for name, checksum in files:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != checksum:
            return f"{name} is altered (checksum differs)"
    return None
