"""Packed files: read by a stranger, as small as promised, and no damage that goes unnoticed."""

import hashlib
import json

import numpy as np
import pytest
import torch
from packing_tools import built, packed
from safetensors.torch import load_file, save, save_file
from torch import nn
from torch.nn.utils import prune

from onebit import __version__, nets
from onebit.errors import CorruptFile
from onebit.layers import quantized_layers
from onebit.packing import load_packed, save_packed
from onebit.packing.container import BLANK, FIELD, KEY
from onebit.recipes import quantize
from onebit.train import save_weights

X = {"x": torch.zeros(2)}


def test_a_stranger_reads_the_file_with_safetensors_numpy_and_the_docstring(tmp_path):
    model, path = packed(tmp_path)
    tensors, raw = load_file(path), path.read_bytes()
    header = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["onebit-packed"])
    assert (header["version"], header["onebit"], header["recipe"]) == (1, __version__, str(model.recipe))
    assert header["net"] == {"name": "unet", "width": 4} and header["class"] == "UNet"
    blank = raw.replace(header["sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == header["sha256"]
    for name, layer in quantized_layers(model).items():
        shape, axis = header["layers"][name]["shape"], header["layers"][name].get("axis", 0)
        n = np.prod(shape) // shape[axis]
        bits = np.unpackbits(tensors[f"{name}.weight"].numpy()[0, :, 0], axis=1, bitorder="little")[:, :n]
        rows = (2.0 * bits - 1) * tensors[f"{name}.scales"].float().numpy()[0]
        want = layer.quantized_weight().movedim(axis, 0).flatten(1).detach()
        np.testing.assert_allclose(rows, want, rtol=2.0**-11)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    _, path = packed(tmp_path)
    save_packed(built(), tmp_path / "twin")
    assert (tmp_path / "twin").read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("sound"), "bonsai-ternary-g128")[1].read_bytes()


def refused(path, contents):
    path.write_bytes(contents)
    with pytest.raises((CorruptFile, ValueError), match=r"m\.packed"):
        load_packed(path)


def test_a_flipped_byte_anywhere_is_noticed(sound, tmp_path):
    header = 8 + int.from_bytes(sound[:8], "little")
    for at in {*range(0, 700), *range(700, header, 31), *range(header, len(sound), 97), len(sound) - 1}:
        damaged = bytearray(sound)
        damaged[at] ^= 1 << at % 8
        refused(tmp_path / "m.packed", bytes(damaged))


def test_a_file_cut_off_anywhere_is_noticed(sound, tmp_path):
    for length in {*range(20), *range(20, len(sound), 499), len(sound) - 1}:
        refused(tmp_path / "m.packed", sound[:length])
    refused(tmp_path / "m.packed", sound + b"\0")


@pytest.mark.parametrize("contents", [b"", b"a text file", b"\xff" * 200, save(X), save(X, {KEY: "[]"}),
                                      save(X, {KEY: "{}"})])
def test_another_file_is_no_packed_network(contents, tmp_path):
    (tmp_path / "other").write_bytes(contents)
    with pytest.raises(CorruptFile, match=r"other.*again"):
        load_packed(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_packed(tmp_path / "nowhere")


def rewritten(path, change):
    """The file with another header and tensors, and a checksum that is right: what another program might write."""
    tensors, raw = load_file(path), path.read_bytes()
    header = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"][KEY])
    change(header, tensors)
    contents = save(tensors, {KEY: json.dumps(header | {"sha256": BLANK}, separators=(",", ":"))})
    at = contents.index(FIELD) + len(FIELD)
    path.write_bytes(contents[:at] + hashlib.sha256(contents).hexdigest().encode() + contents[at + 64 :])


FOREIGN = {
    "format version 2.*reads 1": lambda h, t: h.update(version=2),
    "unknown recipe 'w0a0'": lambda h, t: h.update(recipe="w0a0"),
    "unknown net 'vit'": lambda h, t: h["net"].update(name="vit"),
    "in the network alone: conv_in.bias": lambda h, t: t.pop("conv_in.bias"),
    "tensors of packed layers differ; .*: mid.conv1.scales": lambda h, t: t.pop("mid.conv1.scales"),
    "in the file alone: extra": lambda h, t: t.update(extra=torch.zeros(1)),
    "quantized layers differ; .*: mid.conv1": lambda h, t: h["layers"].pop("mid.conv1"),
    "size mismatch for conv_in.bias": lambda h, t: t.update({"conv_in.bias": torch.zeros(3)}),
    "packed weights must be": lambda h, t: t.update({"mid.conv1.weight": t["mid.conv1.weight"][:, :, :, :3].clone()}),
    "scales must be": lambda h, t: t.update({"mid.conv1.scales": t["mid.conv1.scales"][:, :2].clone()}),
    r"mid.conv1 is \(16, 16, 9, 1\) in the file and \(16, 16, 3, 3\)": lambda h, t: h["layers"]["mid.conv1"].update(
        shape=[16, 16, 9, 1]),
    "base": lambda h, t: h["layers"]["mid.conv1"].update(base=3),
    "KeyError|layers|cannot be loaded": lambda h, t: h.pop("layers"),
}


@pytest.mark.parametrize("message", FOREIGN)
def test_a_file_that_is_sound_but_not_ours_says_what_differs(message, tmp_path):
    _, path = packed(tmp_path)
    rewritten(path, lambda header, tensors: None)
    load_packed(path)  # the rewriting itself is faithful
    rewritten(path, FOREIGN[message])
    with pytest.raises(ValueError, match=message) as error:
        load_packed(path)
    assert str(path) in str(error.value)


# size ----------------------------------------------------------------------------------------------------------------


def sizes(how, tmp_path):
    """Bytes of the packed published network, and how many times smaller it is than its float32 and float16 files."""
    torch.manual_seed(0)
    model = nets.build("resunet", 64)
    save_weights(model, tmp_path / "float32")
    narrow = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(narrow, tmp_path / "float16")
    quantize(model, how)
    save_packed(model, tmp_path / "packed")
    n, *floats = ((tmp_path / name).stat().st_size for name in ("packed", "float32", "float16"))
    return n, *(size / n for size in floats)


def test_strictly_binary_the_published_network_is_28_times_smaller_than_float32(tmp_path):
    """Whole files; the packed one is what the audit counts, the norms' statistics, and a header."""
    n, by_float32, by_float16 = sizes("strict-1bit", tmp_path)
    assert by_float32 >= 28 and by_float16 >= 14
    torch.manual_seed(0)
    model = nets.build("resunet", 64)
    ideal = quantize(model, "strict-1bit").stored_bytes
    buffers = sum(2 if v.is_floating_point() else 8 for _, v in model.named_buffers() for _ in range(v.numel()))
    assert n == ideal + buffers + 8 + int.from_bytes((tmp_path / "packed").read_bytes()[:8], "little")


def test_as_published_it_is_half_again_as_small_as_float16(tmp_path):
    """Two thirds of the published 1-bit network are float: 1.5 times, not 14."""
    _, by_float32, by_float16 = sizes("published-1bit", tmp_path)
    assert by_float16 == pytest.approx(1.5, abs=0.05) and by_float32 == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("hook", [nn.utils.weight_norm, nn.utils.spectral_norm,
                                  lambda layer: prune.l1_unstructured(layer, "weight", 0.5)])
def test_a_layer_whose_weight_a_hook_makes_since_is_not_packed(hook, tmp_path):
    """It could be written, and nobody could load it."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    quantize(model, "weights=xnor")
    hook(model[1])
    with pytest.raises(ValueError, match=r"not as recipes.quantize leaves them: 1"):
        save_packed(model, tmp_path / "file")


def test_weights_whose_sum_overflows_their_type_are_finite(tmp_path):
    model = nn.Sequential(nn.Linear(1024, 1024))
    quantize(model, "weights=xnor")
    with torch.no_grad():
        model[0].weight.uniform_(0.1, 0.2)
    model.half()
    assert model[0].weight.sum().isinf()
    save_packed(model, tmp_path / "file")
