"""Binary activations with a map that gives the layer's output its size back: XNOR-Net, XNOR-Net++ and BiDM."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import fused
from .estimators import sign
from .timed import ActivationRule, Clock


class MapRule(ActivationRule):
    """What rules with a map share: the layer's geometry, to run a one-channel kernel along with its own.

    Raises    ValueError as ActivationRule, and for a grouped layer or one that pads with anything but zeros.
    """

    def __init__(self, layer: nn.Module, clock: Clock | None):
        super().__init__(layer, clock)
        if not self.spatial:
            return
        if layer.groups != 1 or layer.padding_mode != "zeros":
            raise ValueError(f"a scale map needs groups=1 and padding_mode='zeros', got groups={layer.groups}, "
                             f"padding_mode={layer.padding_mode!r}: use a rule without a map ('sign') here")
        self.size = layer.kernel_size
        self.geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        self.transposed = isinstance(layer, nn.ConvTranspose2d)
        if self.transposed:
            self.geometry["output_padding"] = layer.output_padding

    def slide(self, magnitude: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's own operation with one input channel, one output channel and the given kernel."""
        operation = F.conv_transpose2d if self.transposed else F.conv2d
        return operation(magnitude, kernel, bias, **self.geometry)


class MagnitudeMap(MapRule):
    """What XNOR-Net's and BiDM's share: sign, with a map S = k * A + bias of the input's mean magnitude A.

    A subclass has `threshold` (C,), `kernel` (1, 1, kh, kw) and `bias` (1,), each of them or None, and an `estimator`;
    or its own `kernel_for`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return sign(x if self.threshold is None else x - self.per_channel(self.threshold), self.estimator)

    def kernel_for(self, x: Tensor) -> Tensor:
        """k for inputs like x."""
        return self.kernel

    def box(self, x: Tensor) -> Tensor:
        """Kernel of a plain mean, (1, 1, kh, kw), of x's type: 1/(kh kw); for a transposed layer times the product of
        its strides, because so many fewer inputs reach an output: the mean over those that do."""
        reached = math.prod(self.geometry["stride"]) if self.transposed else 1
        return torch.full((1, 1, *self.size), reached / math.prod(self.size), device=x.device, dtype=x.dtype)

    def scale_map(self, x: Tensor) -> Tensor | None:
        magnitude = x.abs().mean(1, keepdim=True)
        return self.slide(magnitude, self.kernel_for(magnitude), self.bias)

    def with_scale_map(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not (self.spatial and self.estimator in fused.POLYNOMIAL and fused.in_one_pass(x)):
            return super().with_scale_map(x)
        signs, magnitude = fused.Binarize.apply(x, self.threshold, self.estimator)
        return signs, self.slide(magnitude, self.kernel_for(magnitude), self.bias)


class XNORMap(MagnitudeMap):
    r"""A4, sign, with outputs scaled by the mean magnitude of the input under the kernel.

        x_bin = sign(x),    y = K (x_bin * w_bin),    K = A * k,    A = mean_c |x|,    k = 1/(kh kw)

    Shapes    x (B, C, H, W); K (B, 1, H', W') of the layer's output.  Linear: K = mean |x| over the features.
    Units     K as x, x_bin dimensionless.  1 bit.
    Error     zero padding counts in K: at borders it is smaller, and the binary convolution has fewer terms too.
    Backward  clipped STE through sign, exact through K: to dL/dx comes sign(x)/C corr(k, sum_o g B), B = x_bin * w_bin.
    Raises    as MapRule.
    Source    XNOR-Net (arXiv:1603.05279) section 3.2.
    DIFFERS   the paper has no transposed convolution: there k = sh sw / (kh kw) for strides sh, sw, see `box`.
    """

    estimator = "clipped"

    def __init__(self, layer: nn.Module, clock: Clock | None):
        super().__init__(layer, clock)
        self.threshold = self.bias = None

    def kernel_for(self, x: Tensor) -> Tensor:
        return self.box(x)  # no buffer: of a network built on meta that would stay there when a state is loaded

    def scale_map(self, x: Tensor) -> Tensor:
        return super().scale_map(x) if self.spatial else x.abs().mean(-1, keepdim=True)


class BiDMMap(MagnitudeMap):
    r"""A6, BiDM's learned "tiny convolution": XNOR-Net's map with a trained kernel, and a threshold per channel.

        x_bin = sign(x - th[c]),    y = S (x_bin * w_bin),    S = k * A,    A = mean_c |x| of the raw input

    k starts as the mean of XNORMap, th at 0.  `threshold=False` drops th, `learn=False` keeps k as it is, `bias=True`
    adds the released code's bias to the tiny convolution (uniform in +-1/sqrt(kh kw) at first).

    Shapes    x (B, C, H, W); k (1, 1, kh, kw); S (B, 1, H', W').  Linear: no map, as in the released code.
    Units     S as x.  1 bit.
    Backward  polynomial STE through sign, minus its sum over batch and space to th;
              dL/dk[u,v] = sum g[n,o,i,j] B[n,o,i,j] A[n, i stride + u - pad, j stride + v - pad], B = x_bin * w_bin;
              A is not detached, so that x receives the term of XNORMap too.
    Raises    as MapRule.
    Source    BiDM (arXiv:2412.05926) Eq. 9-10, released code util_ours.py 52-74.
    DIFFERS   the released code sets k back to its start in every new process; here it is part of the state.
    """

    estimator = "polynomial"

    def __init__(self, layer: nn.Module, clock: Clock | None, threshold: bool = True, bias: bool = False,
                 learn: bool = True):
        super().__init__(layer, clock)
        self.threshold = nn.Parameter(layer.weight.new_zeros(self.channels)) if threshold else None
        self.kernel = nn.Parameter(self.box(layer.weight), requires_grad=learn) if self.spatial else None
        self.bias = nn.Parameter(self._first_bias()) if bias and self.spatial else None

    def _first_bias(self) -> Tensor:
        bound = self.kernel.numel() ** -0.5
        return self.kernel.new_empty(1).uniform_(-bound, bound)

    def scale_map(self, x: Tensor) -> Tensor | None:
        return super().scale_map(x) if self.spatial else None


class RankOneMap(MapRule):
    r"""W5, XNOR-Net++: sign, with outputs scaled by a learned outer product that no input changes.

        y[o,i,j] = Gamma[o,i,j] (sign(x) * w_bin)[o,i,j],    Gamma[o,i,j] = alpha[o] beta[i] gamma[j]

    `prepare(x, y)` makes the three vectors from one input and output of the layer, before the optimiser is built and
    once: alpha = mean |w[o]| mean |x|, beta = gamma = 1.  Loading a state makes them too.  The weight rule that
    belongs to it is "sign": Gamma holds the scale of the weight.

    Shapes    x (B, C, H, W); alpha (O, 1, 1), beta (H', 1), gamma (W',) fix the size of the output.
              Linear: alpha (O,) alone.
    Units     Gamma as x w.  1 bit.
    Backward  clipped STE through sign; exact to the three vectors.
    Raises    RuntimeError before `prepare`, or when it is called again; ValueError as MapRule.
    Source    XNOR-Net++ (arXiv:1909.13863), rank-1 form.
    DIFFERS   there all three start at one, for training from scratch: from a float layer that would enlarge outputs.
    """

    def __init__(self, layer: nn.Module, clock: Clock | None):
        super().__init__(layer, clock)
        for name in ("alpha", "beta", "gamma"):
            self.register_parameter(name, None)
        self.out_dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        weight = layer.weight.detach().abs()
        means = weight.mean([d for d in range(weight.ndim) if d != self.out_dim])
        self.register_buffer("weight_scale", means[:, None, None] if self.spatial else means, persistent=False)

    def prepare(self, x: Tensor, y: Tensor) -> None:
        """Make the vectors for inputs like x and outputs like y."""
        if self.alpha is not None:
            raise RuntimeError("XNOR-Net++ is prepared already: an optimiser may hold its parameters")
        self.alpha = nn.Parameter(self.weight_scale * x.detach().abs().mean().to(self.weight_scale.dtype))
        if self.spatial:
            self.beta = nn.Parameter(self.alpha.new_ones(y.shape[-2], 1))
            self.gamma = nn.Parameter(self.alpha.new_ones(y.shape[-1]))

    @property
    def pixels(self) -> tuple[int, int]:
        """Rows and columns of the outputs that it is prepared for."""
        return len(self.beta), len(self.gamma)

    def quantized(self, x: Tensor) -> Tensor:
        """The binary input, which needs no preparation."""
        return sign(x, "clipped")

    def forward(self, x: Tensor) -> Tensor:
        self._check()
        return self.quantized(x)

    def scale_map(self, x: Tensor) -> Tensor:
        self._check()
        return self.alpha * self.beta * self.gamma if self.spatial else self.alpha

    def _check(self) -> None:
        if self.alpha is None:
            raise RuntimeError("XNOR-Net++ scales have the size of the layer's output: call prepare(x, y) with one of "
                               "its inputs and outputs before building the optimiser, or load a trained state")

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for name in ("alpha", "beta", "gamma"):  # of a fresh rule they are still to be made
            saved = state_dict.get(prefix + name)
            if saved is not None and getattr(self, name) is None:
                setattr(self, name, nn.Parameter(self.weight_scale.new_empty(saved.shape)))
        super()._load_from_state_dict(state_dict, prefix, *args)
