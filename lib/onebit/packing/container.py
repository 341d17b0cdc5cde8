"""The file itself: safetensors, with one JSON in its metadata that names the format and vouches for every byte."""

import hashlib
import json
import mmap
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import __version__
from ..checkpoint import separate
from ..errors import CorruptFile
from ..files import replacing

KEY = "onebit-packed"  # in the metadata
VERSION = 1  # +1 whenever an older onebit would misread the file
BLANK = "0" * 64  # stands for the checksum while it is computed
FIELD = b'\\"sha256\\":\\"'  # a JSON within a JSON: its quotes are escaped


def write(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write header and tensors, atomically; the same ones give the same bytes.

    The checksum is sha256 over the whole file, with 64 zeros in its own place.
    """
    fields = {"version": VERSION, "sha256": BLANK, "onebit": __version__} | header
    metadata = {KEY: json.dumps(fields, separators=(",", ":"))}
    contents = bytearray(save(separate({k: v.cpu() for k, v in tensors.items()}), metadata))
    at = contents.index(FIELD) + len(FIELD)
    contents[at : at + len(BLANK)] = hashlib.sha256(contents).hexdigest().encode()
    with replacing(path) as partial:
        partial.write_bytes(contents)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors; the tensors' memory is the file's own pages, read when they are touched.

    Raises    FileNotFoundError; CorruptFile for a file that is not a packed network, or in which a byte has changed or
              is missing; ValueError for a version other than ours.
    """
    with open(path, "rb") as file:
        length = file.seek(0, 2)
        if length < 8:
            raise CorruptFile(f"{path} is cut off or empty ({length} bytes); copy or pack it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            header = _header(path, contents)
            _verify(path, contents, header["sha256"])
    try:
        with safe_open(path, "pt") as stored:
            return header, {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptFile(f"{path} is no sound safetensors file ({error}); pack the network again") from None


def _header(path: Path, contents: mmap.mmap) -> dict[str, Any]:
    """The JSON of a file whose version is ours."""
    end = 8 + int.from_bytes(contents[:8], "little")
    if end > len(contents):
        raise CorruptFile(f"{path} is cut off, or no packed network; copy or pack it again")
    try:
        header = json.loads(json.loads(contents[8:end])["__metadata__"][KEY])
        version, _ = header["version"], header["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(f"{path} is no packed network, or its header is damaged ({error!r}); "
                          "write it with save_packed, or copy it again") from None
    if version != VERSION:
        raise ValueError(f"{path} has format version {version!r}, this onebit {__version__} reads {VERSION}: use the "
                         "onebit that wrote it, or pack the network again")
    return header


def _verify(path: Path, contents: mmap.mmap, stored: str) -> None:
    at = contents.find(FIELD) + len(FIELD)
    computed = hashlib.sha256(contents[:at])
    computed.update(BLANK.encode())
    with memoryview(contents) as view, view[at + len(BLANK):] as rest:
        computed.update(rest)
    if computed.hexdigest() != stored:
        raise CorruptFile(f"{path} is damaged: its checksum differs; copy or pack it again")
