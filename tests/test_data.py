"""Data sets: sizes, subsets, and what becomes of damaged or absent files.  No test uses the network."""

import gzip
import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from filelock import FileLock
from sklearn.datasets import load_digits

from onebit import data, paths
from onebit.errors import CorruptFile, DataUnavailable


def test_names_are_parsed_and_bad_ones_list_the_valid():
    assert data.parse("mnist") == ("mnist", tuple(range(10)), 0)
    assert data.parse("kmnist:1") == ("kmnist", (1,), 0)
    assert data.parse("mnist:10") == data.parse("mnist:01") == ("mnist", (0, 1), 0)
    assert data.parse("mnist:10@200") == ("mnist", (0, 1), 200)
    with pytest.raises(ValueError, match=r"'cifar'.*mnist, fashion_mnist, kmnist, digits"):
        data.load("cifar")
    for bad in ("mnist:", "mnist:x", "mnist:11", "mnist:-1"):
        with pytest.raises(ValueError, match="mnist:01"):
            data.parse(bad)
    for bad in ("mnist@", "mnist@0", "mnist@x", "mnist:1@6743"):
        with pytest.raises(ValueError, match=r"valid: 1 to (60000|6742) images, as in 'mnist(:1)?@200'"):
            data.parse(bad)
    with pytest.raises(ValueError, match="train, test"):
        data.load("digits", "validation")


def test_a_limit_keeps_some_training_images_always_the_same_and_no_test_image_less():
    some, again, whole = data.load("digits:38@50"), data.load("digits:38@50"), data.load("digits:38")
    assert len(some) == data.train_size("digits:38@50") == 50 and torch.equal(some.images, again.images)
    known = {image.numpy().tobytes() for image in whole.images}
    assert len({image.numpy().tobytes() for image in some.images} & known) == 50
    assert not torch.equal(some.labels, whole.labels[:50])
    assert len(data.load("digits@50", "test")) == len(data.load("digits", "test"))


def test_digits_are_the_embedded_images_enlarged_twice():
    """Bilinear at twice the size: pixel 2i+1 is 3/4 of source i and 1/4 of source i+1, in both directions."""
    train, test = data.load("digits"), data.load("digits", "test")
    assert (len(train), len(test)) == (1_437, 360) and train.images.shape[1:] == (1, 16, 16)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    source = load_digits().images[5] * 255 / 16
    weights = np.array([0.75, 0.25])
    expected = weights @ source[3:5, 2:4] @ weights
    assert train.images[5, 0, 7, 5].item() == round(expected)
    assert train.labels[:10].tolist() == load_digits().target[:10].tolist()


def test_a_subset_holds_its_classes_and_nothing_else():
    whole, some = data.load("digits"), data.load("digits:38")
    assert set(some.labels.tolist()) == {3, 8}
    assert torch.equal(some.images, whole.images[(whole.labels == 3) | (whole.labels == 8)])


@pytest.mark.parametrize("name", ["digits", "digits:1", "digits:01", "mnist", "mnist:1", "mnist:01"])
def test_the_size_known_beforehand_is_the_size(name):
    if name.startswith("mnist") and not (paths.DATA / "MNIST" / "raw" / data.IDX_FILES[0]).exists():
        pytest.skip("MNIST is not in data/")
    assert data.train_size(name) == len(data.load(name))
    assert data.image_shape(name) == tuple(data.load(name).images.shape[1:])


def test_the_published_subset_sizes():
    """MNIST's training counts: 60,000; digits 0 and 1: 5,923 + 6,742."""
    assert [data.train_size(n) for n in ("mnist", "mnist:01", "mnist:1")] == [60_000, 12_665, 6_742]


def test_grey_levels_survive_the_round_trip_and_overshoot_is_clamped():
    levels = torch.arange(256, dtype=torch.uint8)
    x = data.normalize(levels)
    assert x[0] == -1 and x[255] == 1
    assert torch.equal(data.to_uint8(x), levels)
    assert data.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: data.normalize(torch.zeros(2)), r"needs .* uint8 .*got torch\.float32; to_uint8 makes one"),
    (lambda: data.normalize(torch.zeros(2).long()), r"got torch\.int64"),
    (lambda: data.normalize(np.zeros(2, np.uint8)), "needs a tensor .*got ndarray"),
    (lambda: data.to_uint8(torch.ones(2).byte()), r"needs .* floats .*got torch\.uint8; normalize makes one"),
    (lambda: data.to_uint8(np.zeros(2)), "needs a tensor .*got ndarray"),
])
def test_images_on_another_scale_are_refused_rather_than_scaled_twice(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def raw(home):
    """A data folder with four files of MNIST's sizes whose bytes are not MNIST's."""
    folder = paths.DATA / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, n in zip(data.IDX_FILES, data.IDX_BYTES, strict=True):
        (folder / name).write_bytes(bytes(n))
    return folder


def test_an_altered_file_is_refused_by_name_with_the_mend(raw):
    with pytest.raises(CorruptFile, match=r"train-images-idx3-ubyte.*MD5.*delete") as error:
        data.load("mnist")
    assert str(raw) in str(error.value)


def test_a_truncated_file_is_refused_by_name_with_the_mend(raw):
    (raw / data.IDX_FILES[0]).write_bytes(b"short")
    with pytest.raises(CorruptFile, match=r"train-images-idx3-ubyte has 5 bytes, not 47040016: truncated; delete"):
        data.load("mnist")


def test_a_damaged_set_is_not_called_available(raw):
    with pytest.raises(CorruptFile):
        data.available("mnist")


def test_packed_files_are_unpacked_and_a_truncated_one_leaves_nothing(raw):
    target = raw / data.IDX_FILES[1]
    content = target.read_bytes()
    target.unlink()
    packed = gzip.compress(content)
    source = raw / f"{target.name}.gz"
    source.write_bytes(packed[:-12])
    with pytest.raises(CorruptFile, match=r"\.gz cannot be unpacked.*delete it"):
        data.available("mnist")
    assert not target.exists() and not list(raw.glob(".*"))
    source.write_bytes(packed)
    data._ensure_files("mnist")
    assert target.read_bytes() == content


def test_an_archive_is_not_blamed_for_a_disk_that_is_full(raw, monkeypatch):
    target = raw / data.IDX_FILES[1]
    (raw / f"{target.name}.gz").write_bytes(gzip.compress(target.read_bytes()))
    target.unlink()

    def full(*files):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        data._ensure_files("mnist")
    assert not target.exists() and not list(raw.glob(".*"))


def test_an_archive_of_something_else_is_named_too(raw, monkeypatch):
    monkeypatch.setattr(data, "MNIST_MD5", tuple(hashlib.md5((raw / name).read_bytes()).hexdigest()
                                                 for name in data.IDX_FILES))
    target = raw / data.IDX_FILES[1]
    (raw / f"{target.name}.gz").write_bytes(gzip.compress(b"short"))
    target.unlink()
    with pytest.raises(CorruptFile, match=rf"5 bytes.*delete .*{target.name} and {target.name}.gz beside it"):
        data.available("mnist")


def test_absent_and_not_to_be_downloaded_names_the_mend(home, monkeypatch):
    class NoNetwork:
        def __init__(self, *_, **options):
            assert options == {"download": True}
            raise OSError("network is unreachable")

    monkeypatch.setattr(torchvision.datasets, "MNIST", NoNetwork)
    with pytest.raises(DataUnavailable, match=r"MNIST/raw.*DATASET=digits"):
        data.load("mnist")
    assert data.available("mnist") is False
    assert data.available("digits") is True


def test_the_first_images_are_the_first_images():
    whole = data.load("digits")
    assert torch.equal(whole.head(7).images, whole.images[:7]) and len(whole.head(0)) == len(whole)


def test_a_random_draw_takes_every_image_at_most_once_and_depends_on_its_seed():
    whole = data.load("digits")
    marked = data.Dataset("x", "train", torch.arange(1437).view(-1, 1, 1, 1), torch.arange(1437))
    drawn = marked.draw(300)
    assert len(set(drawn.labels.tolist())) == 300 and torch.equal(drawn.images.flatten(), drawn.labels)
    assert torch.equal(drawn.labels, marked.draw(300).labels)
    assert not torch.equal(drawn.labels, marked.draw(300, seed=1).labels)
    assert len(whole.draw(5_000)) == len(whole)


def test_every_pixel_of_digits_is_the_bilinear_value_rounded():
    """numpy: out = A grey A^T, rows of A with 3/4 and 1/4 of the two nearest sources, the edge repeated.  Exact."""
    a = np.zeros((16, 8))
    for i in range(16):
        near, far = i // 2, i // 2 + (1 if i % 2 else -1)
        a[i, near] += 0.75
        a[i, min(max(far, 0), 7)] += 0.25
    expected = np.rint(a @ (load_digits().images * 255 / 16) @ a.T)
    got = torch.cat([data.load("digits").images, data.load("digits", "test").images])[:, 0]
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.fixture
def kuzushiji(home):
    """A data folder with four sound files of KMNIST's sizes: zeros, but for the first test image and label."""
    folder = paths.DATA / "KMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, n in zip(data.IDX_FILES, data.IDX_BYTES, strict=True):
        dims = (28, 28) if "images" in name else ()
        items = 60_000 if name.startswith("train") else 10_000
        with open(folder / name, "wb") as file:
            file.write(struct.pack(f">{2 + len(dims)}I", 0x0801 + len(dims), items, *dims))
            file.write(bytes(range(1, 10)))
            file.truncate(n)  # the rest is a hole, which reads as zeros
    return folder


def test_files_are_read_as_they_are(kuzushiji):
    test = data.load("kmnist", "test")
    assert test.images.shape == (10_000, 1, 28, 28) and test.images.dtype == torch.uint8
    assert test.images[0].flatten()[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert test.images.sum() == 45 and test.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert len(data.load("kmnist:37", "test")) == 2


def test_files_that_another_process_is_downloading_are_waited_for(kuzushiji):
    """One is half written, one is there as half an archive only: neither is called damaged."""
    written, packed = kuzushiji / data.IDX_FILES[1], kuzushiji / data.IDX_FILES[3]
    whole = {path: path.read_bytes() for path in (written, packed)}
    written.write_bytes(whole[written][:1000])
    packed.unlink()
    archive = packed.with_name(f"{packed.name}.gz")
    archive.write_bytes(gzip.compress(whole[packed])[:-12])
    with ThreadPoolExecutor(1) as pool:
        with FileLock(paths.DATA / ".kmnist.lock"):
            other = pool.submit(data.available, "kmnist")
            with pytest.raises(TimeoutError):
                other.result(timeout=0.3)
            for path, content in whole.items():
                path.write_bytes(content)
        assert other.result(timeout=60)


def test_files_that_are_there_are_read_from_a_folder_that_takes_no_lock(kuzushiji, monkeypatch):
    def refused(path):
        raise PermissionError("read-only")

    monkeypatch.setattr(data, "FileLock", refused)
    assert data.available("kmnist") and not list(paths.DATA.glob(".*"))
    with open(kuzushiji / data.IDX_FILES[2], "r+b") as file:
        file.truncate(1000)
    with pytest.raises(CorruptFile, match="truncated"):
        data.available("kmnist")


@pytest.mark.parametrize("name", data.IDX_FILES)
def test_each_of_the_four_files_is_checked(kuzushiji, name):
    with open(kuzushiji / name, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(CorruptFile, match=f"{name} has 1000 bytes.*truncated"):
        data.load("kmnist", "test")


def test_the_checksum_of_the_last_file_is_checked_too(kuzushiji, monkeypatch):
    """MNIST's checksums stood in for by these files' own; one bit of the last file then tells."""
    (kuzushiji.parent).rename(paths.DATA / "MNIST")
    raw = paths.DATA / "MNIST" / "raw"
    monkeypatch.setattr(data, "MNIST_MD5",
                        tuple(hashlib.md5((raw / name).read_bytes()).hexdigest() for name in data.IDX_FILES))
    assert len(data.load("mnist", "test")) == 10_000
    with open(raw / data.IDX_FILES[3], "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    with pytest.raises(CorruptFile, match=f"{data.IDX_FILES[3]} is not the published file"):
        data.load("mnist", "test")


def test_a_packed_file_with_altered_bytes_is_refused_and_leaves_nothing(raw):
    target = raw / data.IDX_FILES[1]
    packed = bytearray(gzip.compress(np.random.default_rng(0).integers(0, 9, 10_000, dtype=np.uint8).tobytes()))
    packed[200:260] = bytes(b ^ 255 for b in packed[200:260])
    target.unlink()
    (raw / f"{target.name}.gz").write_bytes(packed)
    with pytest.raises(CorruptFile, match=r"\.gz cannot be unpacked.*delete it"):
        data.available("mnist")
    assert not target.exists() and not list(raw.glob(".*"))
