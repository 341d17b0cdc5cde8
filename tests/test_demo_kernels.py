"""The live demo's WebAssembly: it is what its source compiles to, and computes what numpy and torch compute."""

import json
import subprocess
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import wasmtime
from torch.nn import functional as F

from onebit import paths
from onebit.demo import build, document
from onebit.files import sha256

FIELDS = ["input", "inputPixel", "inputRow", "taps", "tapCount", "run", "weights", "scale", "bias", "output",
          "outputPixel", "outputRow", "residual", "residualPixel", "residualRow", "height", "width", "channels",
          "kinds", "counts"]  # of Plan in kernels.ts


class TestModule:
    """The committed module belongs to the committed source."""

    def test_the_record_names_these_sources_and_this_module(self):
        """If this fails, kernels.ts was edited, or the compiler changed: run `make demo`."""
        record = json.loads(build.RECORD.read_text())
        assert record == {"sources": build.sources(), "module": sha256(document.MODULE)}

    def test_compiling_the_source_gives_the_module_byte_for_byte(self):
        try:
            module = build.compiled(paths.BUILD / "demo")
        except FileNotFoundError:
            pytest.skip("the compiler is installed by npm, which is not there")
        except subprocess.CalledProcessError as error:
            if "ci" not in error.cmd:
                raise AssertionError(error.stdout + error.stderr) from None
            pytest.skip(f"npm cannot install the compiler: {error.stderr.strip()[:200]}")
        assert module == document.MODULE.read_bytes()

    @pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["elsewhere"], 2)])
    def test_asked_for_help_or_for_what_it_does_not_know_it_compiles_nothing(self, arguments, code, monkeypatch):
        monkeypatch.setattr(build, "compiled", lambda folder: pytest.fail("compiled"))
        with pytest.raises(SystemExit, match=str(code)):
            build.main(arguments)


@dataclass
class Machine:
    """The module in wasmtime, and what is put into its memory."""

    end: int = 1024
    exports: dict = field(init=False)

    def __post_init__(self):
        self.store = wasmtime.Store()
        module = wasmtime.Module.from_file(self.store.engine, str(document.MODULE))
        self.exports = wasmtime.Instance(self.store, module, []).exports(self.store)
        self.exports["memory"].grow(self.store, 64)

    def put(self, array, kind=np.float32):
        contents = np.ascontiguousarray(array, kind).tobytes()
        at, self.end = self.end, self.end + -(-len(contents) // 16) * 16
        self.exports["memory"].write(self.store, contents, at)
        return at

    def get(self, at, shape, kind=np.float32):
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        return np.frombuffer(self.exports["memory"].read(self.store, at, at + size), kind).reshape(shape)

    def call(self, name, *arguments):
        self.exports[name](self.store, *arguments)

    def run(self, name, factor=0.0, **fields):
        values = np.array([fields.get(f, 0) for f in FIELDS], np.uint32).tobytes() + np.float32(factor).tobytes()
        self.call(name, self.put(np.frombuffer(values, np.uint8), np.uint8))

    def frame(self, image):
        """(C, H, H) into memory, channels last, in a border of zeros: address of its first pixel, strides in bytes."""
        channels, side, _ = image.shape
        framed = np.pad(image, ((0, 0), (1, 1), (1, 1))).transpose(1, 2, 0)
        row = 4 * channels * (side + 2)
        return self.put(framed) + row + 4 * channels, 4 * channels, row


@pytest.fixture
def machine():
    return Machine()


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def taps(kernel, pixel, row):
    reach = range(-((kernel - 1) // 2), kernel - (kernel - 1) // 2)
    return [y * row + x * pixel for y in reach for x in reach]


@pytest.mark.parametrize(("inputs", "outputs", "side", "kernel", "stride"), [
    (1, 16, 28, 3, 1), (16, 4, 28, 3, 1), (20, 12, 7, 3, 1), (64, 32, 7, 1, 1), (8, 24, 8, 4, 2),
])
def test_the_float_kernel_convolves(machine, inputs, outputs, side, kernel, stride):
    """Widths that are no multiple of the four pixels it takes at a time, channels that are none of its eight."""
    x, w, bias = random(inputs, side, side), random(outputs, inputs, kernel, kernel), random(outputs)
    count, added = side // stride, random(outputs, side // stride, side // stride)
    at, pixel, row = machine.frame(x)
    residual, output_pixel, output_row = machine.frame(added)
    output, *_ = machine.frame(np.zeros_like(added))
    blocks = [w[o : o + 8].transpose(2, 3, 1, 0).ravel() for o in range(0, outputs, 8)]
    offsets = taps(kernel, pixel, row)
    machine.run("convolve", input=at, inputPixel=stride * pixel, inputRow=stride * row,
                taps=machine.put(offsets, np.int32), tapCount=len(offsets), run=inputs,
                weights=machine.put(np.concatenate(blocks)), bias=machine.put(bias), output=output,
                outputPixel=output_pixel, outputRow=output_row, residual=residual, residualPixel=output_pixel,
                residualRow=output_row, height=count, width=count, channels=outputs)
    framed = machine.get(output - output_row - output_pixel, (count + 2, count + 2, outputs)).transpose(2, 0, 1)
    made = framed[:, 1:-1, 1:-1]
    wide = [torch.from_numpy(v).double() for v in (x[None], w, bias)]
    expected = F.conv2d(*wide, stride, (kernel - 1) // 2)[0].numpy() + added
    np.testing.assert_allclose(made, expected, rtol=0, atol=3e-5)
    assert np.array_equal(framed, np.pad(made, ((0, 0), (1, 1), (1, 1))))  # the border is as it was


def test_the_activation_is_silu_of_a_batch_norm(machine):
    x = random(8, 5, 5)
    x[0, 0, :4] = -300, 300, 0, -88
    scale, shift = random(8), random(8)
    scale[0], shift[0] = 1, 0
    source, target = machine.frame(x), machine.frame(np.zeros_like(x))
    machine.call("activate", *source, *target, 5, 8, machine.put(scale), machine.put(shift))
    made = machine.get(target[0] - target[1] - target[2], (7, 7, 8))[1:-1, 1:-1].transpose(2, 0, 1)
    z = x.astype(np.float64) * scale[:, None, None] + shift[:, None, None]
    np.testing.assert_allclose(made, z / (1 + np.exp(-z)), rtol=3e-6, atol=1e-7)


def bits(positive):
    """Booleans (..., C) as words of 32, the first in the lowest bit."""
    padded = np.pad(positive, [(0, 0)] * (positive.ndim - 1) + [(0, -positive.shape[-1] % 32)])
    return np.packbits(padded, axis=-1, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("channels", [4, 16, 32, 100])
def test_packing_keeps_every_sign_and_the_mean_magnitude(machine, channels):
    x = random(channels, 4, 4)
    x[0, 0, 0], x[1, 0, 0] = 0.0, -0.0  # neither is negative
    words = -(-channels // 32)
    source, target = machine.frame(x), machine.frame(np.zeros((words + 1, 4, 4), np.float32))
    machine.call("pack", *source, *target, 4, channels)
    made = machine.get(target[0] - target[1] - target[2], (6, 6, words + 1), np.uint32)[1:-1, 1:-1]
    assert np.array_equal(made[..., :-1], bits((x >= 0).transpose(1, 2, 0)))
    means = np.ascontiguousarray(made[..., -1]).view(np.float32)
    np.testing.assert_allclose(means, np.abs(x).mean(0), rtol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs", "side"), [(4, 4, 4), (16, 16, 28), (32, 8, 7), (128, 4, 7), (256, 4, 5)])
def test_the_binary_kernel_counts_what_signs_multiply_to(machine, inputs, outputs, side):
    """XNOR-Net's y = K (sign(x) * sign(w)) s + b; from 128 channels on its bytes fill up before the last tap."""
    x, w = random(inputs, side, side), random(outputs, inputs, 3, 3)
    scale, bias = np.abs(random(outputs)), random(outputs + 1)[1:]
    words = -(-inputs // 32)
    source, packed = machine.frame(x), machine.frame(np.zeros((words + 1, side, side), np.float32))
    machine.call("pack", *source, *packed, side, inputs)
    output = machine.frame(np.zeros((outputs, side, side), np.float32))
    within = F.unfold(torch.ones(1, 1, side, side), 3, padding=1)[0].T.numpy() > 0  # (pixels, 9)
    kinds, of_pixel = np.unique(within, axis=0, return_inverse=True)
    ones = (w >= 0).sum(1).reshape(outputs, 9)
    counts = inputs * kinds.sum(1)[:, None] + 2 * (~kinds).astype(int) @ ones.T
    blocks = bits((w >= 0).transpose(0, 2, 3, 1).reshape(outputs, 9, inputs)).reshape(-1, 4, 9 * words)
    machine.run("xnor", factor=1 / 9, input=packed[0], inputPixel=packed[1], inputRow=packed[2],
                taps=machine.put(taps(3, *packed[1:]), np.int32), tapCount=9, run=words,
                weights=machine.put(blocks.transpose(0, 2, 1), np.uint32), scale=machine.put(scale),
                bias=machine.put(bias), output=output[0], outputPixel=output[1], outputRow=output[2], height=side,
                width=side, channels=outputs, kinds=machine.put(of_pixel.ravel(), np.uint32),
                counts=machine.put(counts))
    made = machine.get(output[0] - output[1] - output[2], (side + 2, side + 2, outputs))[1:-1, 1:-1].transpose(2, 0, 1)
    signs = [torch.from_numpy(np.where(v < 0, -1.0, 1.0)) for v in (x[None], w)]
    magnitude = torch.from_numpy(np.abs(x).mean(0, dtype=np.float64))[None, None]
    spread = F.conv2d(magnitude, torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64), padding=1)
    expected = (F.conv2d(*signs, padding=1) * spread)[0].numpy() * scale[:, None, None] + bias[:, None, None]
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-4)
