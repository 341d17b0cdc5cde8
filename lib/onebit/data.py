"""Data sets as uint8 tensors in memory: MNIST and its siblings through torchvision, `digits` through scikit-learn."""

import gzip
import hashlib
import os
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F

from . import paths
from .errors import CorruptFile, DataUnavailable, unknown

NAMES = ("mnist", "fashion_mnist", "kmnist", "digits")
SPLITS = ("train", "test")
TORCHVISION_CLASS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_BYTES = (47_040_016, 60_008, 7_840_016, 10_008)  # header + items; the same for the three MNIST-shaped sets
MNIST_MD5 = (  # of the decompressed files, as published
    "6bbc9ace898e44ae57da46a324031adb",
    "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea",
    "27ae3e4e09519cfbb04c329615203637",
)
TRAIN_PER_CLASS = {  # training images of each class; known beforehand, so that a run can be planned without its data
    "mnist": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "fashion_mnist": (6000,) * 10,
    "kmnist": (6000,) * 10,
    "digits": (143, 146, 142, 146, 144, 145, 144, 143, 141, 143),
}
DIGITS_TRAIN = 1_437  # the remaining 360 come last in the file; other writers wrote most of them


@dataclass(frozen=True)
class Dataset:
    """One split of one data set.

    Shapes    images (N, 1, H, W) uint8, labels (N,) int64.
    Units     images: grey levels 0 (background) .. 255 (ink).
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def head(self, n: int) -> "Dataset":
        """The first n images; all of them for n = 0."""
        return replace(self, images=self.images[:n], labels=self.labels[:n]) if n else self

    def draw(self, n: int, seed: int = 0) -> "Dataset":
        """n images at random, without replacement; all of them, shuffled, if there are fewer.

        MNIST's files are not shuffled: the first half of its test split is by tidier writers than the second.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]
        return replace(self, images=self.images[order], labels=self.labels[order])


class Name(NamedTuple):
    """What a data set's name says: the set, its classes, and how many training images are kept (0: all)."""

    base: str
    classes: tuple[int, ...]
    limit: int


def parse(name: str) -> Name:
    """Read `mnist:01@200`: classes 0 and 1 of MNIST, 200 of their training images.  Both parts may be left out.

    Raises    ValueError for an unknown data set, a class list that is not distinct digits, or a limit that is not a
              number of images from 1 up to all there are.
    """
    whole, at, limit = name.partition("@")
    base, colon, subset = whole.partition(":")
    if base not in NAMES:
        unknown("data set", base, NAMES)
    if colon and not (_is_number(subset) and len(set(subset)) == len(subset)):
        raise ValueError(f"unknown class subset {subset!r} in {name!r}; valid: distinct digits, as in '{base}:1', "
                         f"'{base}:01', or no colon for all ten classes")
    classes = tuple(sorted(int(c) for c in subset)) if colon else tuple(range(10))
    most = sum(TRAIN_PER_CLASS[base][c] for c in classes)
    if at and not (_is_number(limit) and 1 <= int(limit) <= most):
        raise ValueError(f"unknown limit {limit!r} in {name!r}; valid: 1 to {most} images, as in '{whole}@200'")
    return Name(base, classes, int(limit) if at else 0)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def load(name: str, split: str = "train") -> Dataset:
    """Load one split into memory, keeping only the classes named after a colon.

    A limit after an @ keeps that many training images, drawn at random, always the same; the test split stays whole.

    Looks in `data/`, then downloads (torchvision).  MNIST's decompressed files are checked against their published
    MD5s; Fashion-MNIST and KMNIST, whose archives torchvision checks, against their exact size.  A process reads
    files anew only if they have changed: the images are shared by all who load them, not to be written to.

    Raises    ValueError for an unknown name, subset or split; CorruptFile for a damaged file;
              DataUnavailable if the set is not there and cannot be downloaded.
    """
    base, classes, limit = parse(name)
    if split not in SPLITS:
        unknown("split", split, SPLITS)
    images, labels = _load_digits(split) if base == "digits" else _load_idx(base, split)
    if len(classes) < 10:
        keep = torch.isin(labels, torch.tensor(classes))
        images, labels = images[keep], labels[keep]
    dataset = Dataset(name, split, images, labels)
    return dataset.draw(limit) if limit and split == "train" else dataset


def image_shape(name: str) -> tuple[int, int, int]:
    """(C, H, W) of a data set's images, without loading it."""
    base = parse(name).base
    return (1, 16, 16) if base == "digits" else (1, 28, 28)


def train_size(name: str) -> int:
    """Number of training images, without loading them."""
    base, classes, limit = parse(name)
    return limit or sum(TRAIN_PER_CLASS[base][c] for c in classes)


def available(name: str) -> bool:
    """Whether `load(name)` has its files; tries the download if it has to.

    Raises    CorruptFile for files that are there but damaged: that is for the user to mend, not to work around.
    """
    try:
        base = parse(name).base
        if base != "digits":
            _ensure_files(base)
            _check_files(base)
    except DataUnavailable:
        return False
    return True


def normalize(images: Tensor) -> Tensor:
    """uint8 grey levels 0..255 to float32 in [-1, 1], the range the diffusion models see.

    Raises    ValueError for anything but uint8: floats have been scaled before, or not as they are to be here.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise ValueError(f"normalize needs a tensor of uint8 grey levels 0..255, got {_kind(images)}; to_uint8 makes "
                         "one of images in [-1, 1]")
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """The inverse of `normalize`, clamped to [-1, 1] first.

    Raises    ValueError for anything but floats: grey levels would be clamped to black and white.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"to_uint8 needs a tensor of floats in [-1, 1], got {_kind(x)}; normalize makes one of uint8 "
                         "grey levels")
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _kind(x: object) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__


@lru_cache(maxsize=2)
def _load_digits(split: str) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()  # parses text
    grey = torch.tensor(bunch.images, dtype=torch.float32)[:, None] * (255 / 16)  # (1797, 1, 8, 8)
    images = F.interpolate(grey, size=(16, 16), mode="bilinear").round().to(torch.uint8)
    labels = torch.tensor(bunch.target)
    part = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    return images[part], labels[part]


def _load_idx(base: str, split: str) -> tuple[Tensor, Tensor]:
    _ensure_files(base)
    files = [(_raw(base) / file).stat() for file in IDX_FILES]
    return _read_idx(paths.DATA, base, split, tuple((file.st_size, file.st_mtime_ns) for file in files))


@lru_cache(maxsize=4)
def _read_idx(root: Path, base: str, split: str, state: tuple) -> tuple[Tensor, Tensor]:
    """`state` changes with the files, so that altered ones are checked again."""
    import torchvision

    _check_files(base)
    dataset = getattr(torchvision.datasets, TORCHVISION_CLASS[base])(root, train=split == "train")
    return dataset.data[:, None].contiguous(), dataset.targets.long()


def _raw(base: str) -> Path:
    return paths.DATA / TORCHVISION_CLASS[base] / "raw"


def _ensure_files(base: str) -> None:
    """Unpack .gz files a user has put there; else download what is missing."""
    raw = _raw(base)
    if _complete(base):
        return  # nobody is at work on them, and a folder that is read-only would take no lock
    with _alone(base):
        for file in IDX_FILES:
            if not (raw / file).exists() and (raw / f"{file}.gz").exists():
                _gunzip(raw / f"{file}.gz", raw / file)
        if not all((raw / file).exists() for file in IDX_FILES):
            _download(base)


def _complete(base: str) -> bool:
    files = [_raw(base) / file for file in IDX_FILES]
    return all(path.exists() for path in files) and [path.stat().st_size for path in files] == list(IDX_BYTES)


@contextmanager
def _alone(base: str) -> Iterator[None]:
    """One process at a time: what another has half downloaded would look damaged, and be deleted on our advice.

    Where nothing can be written there is nothing to wait for, and what is missing is said by what comes next.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            paths.DATA.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(paths.DATA / f".{base}.lock"))
        yield


def _gunzip(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with gzip.open(source) as packed, open(partial, "wb") as out:
            shutil.copyfileobj(packed, out)
        partial.rename(target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorruptFile(f"{source} cannot be unpacked ({error}); delete it and run again, or copy it anew") from error
    finally:
        partial.unlink(missing_ok=True)


def _download(base: str) -> None:
    import torchvision

    patience, _ = socket.getdefaulttimeout(), socket.setdefaulttimeout(20)  # seconds; a cut network must not hang
    try:
        getattr(torchvision.datasets, TORCHVISION_CLASS[base])(paths.DATA, download=True)
    except (OSError, RuntimeError) as error:
        raise DataUnavailable(
            f"{base} is not in {_raw(base)} and cannot be downloaded ({error}); put the files {', '.join(IDX_FILES)} "
            f"there (plain or .gz), or use the embedded set: DATASET=digits"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _check_files(base: str) -> None:
    for file, n_bytes, md5 in zip(IDX_FILES, IDX_BYTES, MNIST_MD5, strict=True):
        path = _raw(base) / file
        packed = path.with_name(f"{path.name}.gz")
        both = f"{path} and {packed.name} beside it, out of which it came," if packed.exists() else path
        mend = f"delete {both} and run again to download it, or copy the original there"
        if path.stat().st_size != n_bytes:
            raise CorruptFile(f"{path} has {path.stat().st_size} bytes, not {n_bytes}: truncated; {mend}")
        if base == "mnist" and hashlib.md5(path.read_bytes()).hexdigest() != md5:
            raise CorruptFile(f"{path} is not the published file (MD5 differs from {md5}); {mend}")
