"""Layers that keep packed weights and multiply by XNOR and popcount; for inference on the CPU."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import QuantConv2d, QuantConvTranspose2d, Quantized, QuantLinear
from ..quantizers.scale_maps import RankOneMap
from .geometry import Phase, Sliding, plan
from .inputs import InputPacker, NotPackable, flat
from .product import product
from .threads import alone
from .weights import blocked, code_constants, pack_bits, pack_weights, sign_constants, split, spread

SIZES = 32  # of inputs, that a layer remembers its plans for


class PackedLayer(nn.Module):
    """What the packed layers share: made from a `Quantized` layer, whose input goes through an activation rule.

    words     int64 (taps, words, out), the weight's bits, 64 input channels in one word (see packing)
    scale     float32 (out,): of the weight, with what a rule's map has per channel
    bias      float32 (out,)

    Inputs of another type are computed in float32; the output is of the input's type.  Where inputs are codes of
    several bits, NaN in a sample makes the sample's whole output NaN.

    Raises    NotPackable for a layer without quantized input, in groups, or padded with anything but zeros;
              ValueError for a weight that is not +-s per output channel.
    """

    def __init__(self, layer: Quantized, sliding: Sliding):
        super().__init__()
        if layer.activation is None:
            raise NotPackable("its input is not quantized")
        if layer.rule.weight_bits != 1:
            raise NotPackable(f"its weight has {layer.rule.weight_bits:g} bits")
        if getattr(layer, "groups", 1) != 1 or getattr(layer, "padding_mode", "zeros") != "zeros":
            raise NotPackable("it has groups, or pads with something else than zeros")
        with torch.no_grad():
            positive, scale = split(layer.quantized_weight(), out_dim=layer.rule.out_dim)
        self.sliding, self.channels, self.out_channels = sliding, *positive.shape[1:]
        self.packer, self.outputs = InputPacker(layer.activation), layer.outputs
        if isinstance(layer.activation, RankOneMap):
            scale = scale * layer.activation.alpha.detach().ravel()
        self.register_buffer("words", torch.from_numpy(pack_weights(positive.cpu()).view(np.int64).copy()))
        self.register_buffer("scale", scale.float().clone())
        bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias.float().clone())
        self._plans: dict[tuple[Sliding, int, int], tuple] = {}
        self._blocks: dict[bytes, np.ndarray] = {}  # the words as `product` takes them, by taps

    def image(self, x: Tensor) -> Tensor:
        """The input as images (N, H, W, C)."""
        raise NotImplementedError

    def shaped(self, y: Tensor, x: Tensor) -> Tensor:
        """The output (N, H', W', out) as the layer's own kind."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, input: Tensor, *, shift: Tensor | None = None, sliding: Sliding | None = None) -> Tensor:
        """shift (N, in): what a folded block adds to every pixel of the input, see `folding`.  sliding: another than
        the layer's own."""
        x = input  # torch's name, by which callers may give it
        if x.device.type != "cpu":
            raise ValueError(f"packed layers run on the CPU, got an input on {x.device}: move model and input there")
        image = self.image(x).float().contiguous()
        wide = x.float()
        y = self.shaped(self._product(image, wide, shift, sliding or self.sliding), x)
        for module in self.outputs or ():
            y = module(wide, y)
        return y.to(x.dtype)

    def _product(self, image: Tensor, x: Tensor, shift: Tensor | None, sliding: Sliding) -> Tensor:
        if image.shape[-1] != self.channels:  # the kernel would read on
            raise ValueError(f"needs inputs of {self.channels} channels, got {image.shape[-1]} in {tuple(x.shape)}")
        if image.shape[1] == 0 and sliding == Sliding():  # a Linear's samples without tokens; there is no plan of none
            return image.new_zeros(*image.shape[:-1], self.out_channels)
        where, phases, scale, bias = self._prepared(sliding, *image.shape[1:3])
        self._check_map(where.output)
        packed = self.packer.pack(image, x, where.margins, shift)
        out = torch.empty(len(image), *where.output, self.out_channels, dtype=torch.float32)
        for phase, weights, offsets, constants in phases:
            kernel = packed.kernel[phase.taps] if len(packed.kernel) else packed.kernel
            with alone():
                product(packed.frame, where.frame_pixels, self.words.shape[1], self.packer.planes, weights, offsets,
                        phase.base, phase.target, phase.kind, constants, scale, bias, packed.factor, packed.strides,
                        packed.magnitude, kernel, phase.offsets, packed.map_bias, flat(out), math.prod(where.output),
                        self.out_channels)
        if packed.lost is not None:
            out[packed.lost] = torch.nan
        return out

    def _check_map(self, output: tuple[int, int]) -> None:
        rule = self.packer.rule
        if isinstance(rule, RankOneMap) and rule.spatial and output != rule.pixels:
            raise ValueError(f"this layer's scale map was made for outputs of {rule.pixels}, not {output}: give images "
                             "of the size that it was quantized with, or take a rule without a map ('sign')")

    def _prepared(self, *size: Sliding | int) -> tuple:
        """The plan for a sliding, height and width; weights, offsets and constants of its phases as `product` takes
        them; the padded scale and bias.  Made once per size, of which the last SIZES are kept."""
        if size not in self._plans:
            if len(self._plans) == SIZES:
                del self._plans[next(iter(self._plans))]
            where = plan(*size)
            scale = self.scale / 2 if self._halved else self.scale
            self._plans[size] = (where, [self._phase(phase) for phase in where.phases],
                                 spread(flat(scale), np.float32), spread(flat(self.bias), np.float32))
        return self._plans[size]

    @property
    def _halved(self) -> bool:
        """`product` counts a single plane twice, which one plane of codes 0 and 1 is not worth."""
        return self.packer.codes is not None and self.packer.planes == 1

    def _phase(self, phase: Phase) -> tuple:
        words, codes = self.words.numpy().view(np.uint64), self.packer.codes
        constants = (sign_constants(words, self.channels, phase) if codes is None
                     else code_constants(words, self.channels, phase, codes))
        offsets = phase.offsets[:, None] * self.packer.planes * words.shape[1] + np.arange(words.shape[1])
        taps = phase.taps.tobytes()
        if taps not in self._blocks:
            self._blocks[taps] = blocked(words, phase.taps)
        return (phase, self._blocks[taps], offsets.ravel(),
                spread(constants * 2 if self._halved else constants, np.int32))

    def flip(self, channels: np.ndarray) -> None:
        """Turn the sign of all weights of these input channels (booleans): w becomes -w."""
        self.words.copy_(self.words ^ torch.from_numpy(pack_bits(channels).view(np.int64))[:, None])
        self._forget()

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._forget()

    def _forget(self) -> None:
        """What was made from other words."""
        self._plans.clear()
        self._blocks.clear()

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.out_channels}, {self.sliding}"


class PackedConv2d(PackedLayer):
    """A convolution.  Shapes as Conv2d; the output is laid out channels-last."""

    def __init__(self, layer: QuantConv2d):
        padding = _padding(layer)
        super().__init__(layer, Sliding(layer.kernel_size, layer.stride, padding, layer.dilation))

    def forward(self, input: Tensor, *, shift: Tensor | None = None, sliding: Sliding | None = None) -> Tensor:
        """As the layer's; an image without a batch is a batch of one."""
        if input.ndim == QuantConv2d.image_dims:
            return super().forward(input.unsqueeze(0), shift=shift, sliding=sliding).squeeze(0)
        return super().forward(input, shift=shift, sliding=sliding)

    def image(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)

    def shaped(self, y: Tensor, x: Tensor) -> Tensor:
        return y.permute(0, 3, 1, 2)


class PackedConvTranspose2d(PackedConv2d):
    """A transposed convolution, as one small convolution per residue of the output's rows and columns."""

    def __init__(self, layer: QuantConvTranspose2d):
        PackedLayer.__init__(self, layer, Sliding(layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                                                  layer.output_padding, transposed=True))

    def forward(self, input: Tensor, output_size: list[int] | None = None, *, shift: Tensor | None = None) -> Tensor:
        """output_size: rows and columns of the output, as ConvTranspose2d takes them."""
        own = self.sliding
        padding = nn.ConvTranspose2d._output_padding(  # uses nothing of a layer but its default
            SimpleNamespace(output_padding=own.output_padding), input, output_size, own.stride, own.padding, own.kernel,
            2, own.dilation)
        return super().forward(input, shift=shift, sliding=replace(own, output_padding=tuple(padding)))


class PackedLinear(PackedLayer):
    """A linear layer: an image whose pixels are the tokens of a sample.  Shapes as Linear."""

    def __init__(self, layer: QuantLinear):
        super().__init__(layer, Sliding())

    def image(self, x: Tensor) -> Tensor:
        samples, tokens = (x.shape[0], math.prod(x.shape[1:-1])) if x.ndim > 1 else (1, 1)
        return x.reshape(samples, tokens, 1, x.shape[-1])

    def shaped(self, y: Tensor, x: Tensor) -> Tensor:
        return y.reshape(*x.shape[:-1], self.out_channels)


def _padding(layer: QuantConv2d) -> tuple[int, int]:
    """Pairs as numbers: "valid" is none, "same" only where it is the same on both sides."""
    if layer.padding == "valid":
        return (0, 0)
    if layer.padding == "same":
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(r % 2 for r in reach):
            raise NotPackable("padding='same' with an even kernel pads one side more")
        return (reach[0] // 2, reach[1] // 2)
    return layer.padding


PACKED = {QuantConv2d: PackedConv2d, QuantConvTranspose2d: PackedConvTranspose2d, QuantLinear: PackedLinear}


def packed(layer: Quantized) -> PackedLayer:
    """The packed layer that computes what `layer` does in eval mode.

    Raises    as PackedLayer.
    """
    if type(layer) not in PACKED:
        raise NotPackable(f"no kernel for {type(layer).__name__}")
    return PACKED[type(layer)](layer).eval()
