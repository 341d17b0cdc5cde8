"""What activation rules are built from (the base class, the first batch, the clock), and TDQ, which needs all three."""

import inspect
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nets.embedding import sinusoidal_embedding
from .lsq import levels, lsq, smallest_step

EMBEDDING_DIM = 32
HIDDEN_DIM = 64


class Clock:
    """Remembers the timestep of a network's current call, for the rules inside the network.

    `model.register_forward_pre_hook(clock, with_kwargs=True)` sets `timestep` from the argument of that name, or else
    the second one, to a tensor (B,), or (1,) for one time for all; to None where there is neither, or no numbers.
    The `forward` of the `model` that a clock is made for may give another place to an argument of that name.  A copy
    starts without a time; copying a whole model leaves its hook and its rules on one clock.
    """

    timestep: Tensor | None = None
    passing = False  # whether the call is one without gradient, of which there is no backward pass
    place = 1  # of the timestep among a call's arguments

    def __init__(self, model: nn.Module | None = None):
        takes = inspect.signature(model.forward).parameters.values() if model is not None else ()
        names = [one.name for one in takes if one.kind is one.POSITIONAL_OR_KEYWORD]
        if "timestep" in names:
            self.place = names.index("timestep")

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.passing = not torch.is_grad_enabled()
        time = kwargs.get("timestep")
        self.timestep = _numbers(args[self.place] if time is None and len(args) > self.place else time)

    def __getstate__(self) -> dict:
        return {"place": self.place}  # the time belongs to a call, not to the model


def _numbers(value: object) -> Tensor | None:
    """One or more numbers as a tensor; None for anything else, which a network may well take second."""
    if value is None:
        return None
    try:
        return torch.as_tensor(value).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        return None


def in_backward() -> bool:
    """Whether autograd is at work, as torch's checkpoint asks: what computes now then does so again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class ActivationRule(nn.Module):
    """What all activation rules share: built for one layer, they quantize its input.

    `Rule(layer, clock)` reads the layer's sizes and keeps no reference to it; input channels are on axis 1, on the
    last axis for a Linear.  In eval mode the result for one sample does not depend on the rest of its batch.

    Raises    ValueError for a layer that is no Conv2d, ConvTranspose2d or Linear.
    """

    activation_bits = 1

    def __init__(self, layer: nn.Module, clock: Clock | None):
        super().__init__()
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            raise ValueError(f"layer must be a Conv2d, ConvTranspose2d or Linear, got {type(layer).__name__}")
        self.clock = clock
        self.spatial = not isinstance(layer, nn.Linear)
        self.channels = layer.in_channels if self.spatial else layer.in_features

    def forward(self, x: Tensor) -> Tensor:
        """The quantized input, of x's shape."""
        raise NotImplementedError

    def scale_map(self, x: Tensor) -> Tensor | None:
        """What the layer's output is multiplied with before the bias is added, from the raw input; None for most."""
        return None

    def with_scale_map(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The quantized input, and the scale map of the raw one."""
        return self(x), self.scale_map(x)

    def advance(self, share: float) -> None:
        """As WeightRule.advance: the share of training done, told before every step."""

    def per_channel(self, values: Tensor) -> Tensor:
        """One value per input channel, shaped to broadcast over the input."""
        return values[:, None, None] if self.spatial else values

    def extra_repr(self) -> str:
        return f"bits={self.activation_bits}"


class DataInitialised(ActivationRule):
    """A rule that takes its first parameters from the first batch that it sees in training mode; from none that is
    empty, all zero or not finite, which tells nothing.

    Copies that are made before that batch, for averaged weights or by DistributedDataParallel, know nothing of it:
    run one batch first.  Whether it has done so is saved with the parameters, in the buffer `initialised`; a Python
    flag mirrors the buffer, so that a forward pass does not wait for the device.

    Raises    RuntimeError in eval mode before any training batch.
    """

    def __init__(self, layer: nn.Module, clock: Clock | None):
        super().__init__(layer, clock)
        self.register_buffer("initialised", torch.tensor(False))
        self._known = False

    def initialise(self, x: Tensor) -> None:
        """Set the parameters from a batch of raw inputs."""
        raise NotImplementedError

    def quantized(self, x: Tensor) -> Tensor:
        """The quantized input, once initialised."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if not self._known:
            self._meet(x)
        return self.quantized(x)

    @torch.no_grad()
    def _meet(self, x: Tensor) -> None:
        if not self.initialised:
            if not self.training:
                raise RuntimeError(
                    f"{type(self).__name__} takes its step from the first batch in training mode, and has seen none: "
                    "run one training step first, or load the state of a trained model"
                )
            if not (x.any() and x.isfinite().all()):
                return
            self.initialise(x)
            self.initialised.fill_(True)
        self._known = True

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # here and not in the first forward pass, which could not be exported if it asked the buffer
        self._known = not self.initialised.is_meta and bool(self.initialised)


def gradient_scale(x: Tensor, high: int) -> float:
    """1 / sqrt(N Q_P), N features of one sample, whatever the batch."""
    return (max(1, math.prod(x.shape[1:] or x.shape)) * high) ** -0.5  # 1: there is an x without features, too


class TDQ(DataInitialised):
    r"""A8, temporal dynamic quantization: LSQ whose step is a small network's function of the timestep.

        Q(x) = s(t) round(clip(x / s(t), -Q, Q)),    Q = 2^(k-1) - 1,    s(t) = softplus(MLP(embedding of t))

    MLP: three times Linear(64)-ReLU, dropout 0.2, Linear(1).  The step does not see x: at inference it is a table.

    Shapes    x (B, ...) -> as x; one step per sample, (B, 1, ...), or one for all where the clock has one time.
    Units     as x; s > 0.  k bits.
    Error     at most s / 2 inside the range.
    Backward  as lsq, gradient scale 1/sqrt(N Q), N features per sample; through softplus and the MLP to its weights.
    Raises    RuntimeError as DataInitialised, without a timestep, and where `torch.utils.checkpoint` computes a layer
              again in the backward pass after a call without gradient, whose timestep it would take; ValueError for
              bits outside 2..16 or a clock with another number of samples than x.
    Source    Temporal Dynamic Quantization for Diffusion Models (arXiv:2306.02316), re-hosted code lsq.py.
    DIFFERS   the last layer's weight starts at 0, so that s(t) = s0 for every t at first, instead of nearly s0;
              s0 = (|mean| + 3 sd) / Q of the first training batch (no calibration run; |mean| keeps it positive);
              the gradient scale is commented out in the released code.
    """

    def __init__(self, layer: nn.Module, clock: Clock | None, bits: int = 4):
        super().__init__(layer, clock)
        self.high = levels(bits)[1]
        self.activation_bits = bits
        self.mlp = nn.Sequential(
            nn.Linear(EMBEDDING_DIM, HIDDEN_DIM), nn.ReLU(),
            nn.Linear(HIDDEN_DIM, HIDDEN_DIM), nn.ReLU(),
            nn.Linear(HIDDEN_DIM, HIDDEN_DIM), nn.ReLU(),
            nn.Dropout(0.2), nn.Linear(HIDDEN_DIM, 1),
        )
        nn.init.zeros_(self.mlp[-1].weight)

    def initialise(self, x: Tensor) -> None:
        x = x.float()
        step = ((x.mean().abs() + 3 * x.std(correction=0)) / self.high).clamp_min(1e-8)
        self.mlp[-1].bias.fill_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step

    def steps(self, timestep: Tensor) -> Tensor:
        """s(t), (B,); in full precision under autocast too, where half of it would quantize the step itself."""
        with torch.autocast(timestep.device.type, enabled=False):
            embedding = sinusoidal_embedding(timestep, EMBEDDING_DIM).to(self.mlp[0].weight.dtype)
            return F.softplus(self.mlp(embedding)).squeeze(1).clamp_min(smallest_step(embedding.dtype))

    def steps_for(self, x: Tensor) -> Tensor:
        """The steps of a batch of inputs, by the clock's time: (B,), or (1,) where it has one time for all."""
        timestep = self.clock.timestep if self.clock else None
        if timestep is None:
            raise RuntimeError("TDQ needs the timestep: register the rule's Clock on the model as a forward pre-hook "
                               "with kwargs, and call the model with (x, timestep)")
        if torch.is_grad_enabled() and self.clock.passing and in_backward():
            raise RuntimeError("TDQ is computed again in the backward pass, by torch.utils.checkpoint, and the network "
                               "has been called without gradient meanwhile, whose timestep it would take: call "
                               "backward() before that, or leave checkpointing off")
        if len(timestep) not in (1, len(x)):
            raise ValueError(f"the clock holds {len(timestep)} timesteps for an input of {len(x)} samples")
        return self.steps(timestep.to(x.device))

    def quantized(self, x: Tensor) -> Tensor:
        step = self.steps_for(x).view(-1, *[1] * (x.ndim - 1))  # (B, 1, ...)
        return lsq(x, step, -self.high, self.high, gradient_scale(x, self.high))
