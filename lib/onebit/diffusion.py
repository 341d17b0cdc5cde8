"""The forward process and the training loss of DDPM: schedule, noising, epsilon loss."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIMESTEPS = 1000  # T


@dataclass(frozen=True)
class NoiseSchedule:
    r"""Linear variance schedule.

        beta_t = linspace(beta_start, beta_end, T),    alpha_bar_t = prod_{s <= t} (1 - beta_s)

    Shapes    beta, alpha_bar (T,), float64: cast where used, since a float32 product of 1000 factors drifts.
    Units     variances; t counts 0 .. T-1.
    Source    DDPM (arXiv:2006.11239) section 4 and Eq. 4; source 000 and BinaryDM on CIFAR-10 use the same numbers.
    """

    timesteps: int = TIMESTEPS
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta: Tensor = field(init=False, repr=False, compare=False)
    alpha_bar: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        beta = torch.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=torch.float64)
        object.__setattr__(self, "beta", beta)
        object.__setattr__(self, "alpha_bar", torch.cumprod(1 - beta, dim=0))


SCHEDULE = NoiseSchedule()


def add_noise(x0: Tensor, noise: Tensor, timestep: Tensor, schedule: NoiseSchedule = SCHEDULE) -> Tensor:
    r"""Draw x_t given x_0.

        x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps

    Shapes    x0, noise (B, ...), of images (B, C, H, W); timestep (B,) int in 0 .. T-1 -> (B, ...).
    Raises    ValueError for images that are no floating-point numbers, or a timestep on the CPU outside 0 .. T-1 (on
              another device asking would wait for it).
    Source    DDPM Eq. 4 and the line after it.
    """
    if not x0.is_floating_point():
        raise ValueError(f"x0 must be floating-point images in [-1, 1], got {x0.dtype}; data.normalize makes them of "
                         "grey levels")
    if timestep.device.type == "cpu" and ((timestep < 0) | (timestep >= schedule.timesteps)).any():
        raise ValueError(f"timestep must be in 0..{schedule.timesteps - 1}, got {int(timestep.min())}.."
                         f"{int(timestep.max())}")
    alpha_bar = schedule.alpha_bar.to(x0.device)[timestep].view(-1, *[1] * (x0.ndim - 1))  # (B, 1, 1, 1)
    return alpha_bar.sqrt().to(x0.dtype) * x0 + (1 - alpha_bar).sqrt().to(x0.dtype) * noise


def predict(model: nn.Module, xt: Tensor, timestep: Tensor) -> Tensor:
    """The model's noise; diffusers' networks wrap theirs in `sample`.

    A network in half precision, bfloat16 or double is given xt in its own type.  What comes back is float32, whatever
    it or autocast computes in, and double where xt is.

    Shapes    xt (B, C, H, W), timestep (B,) int -> (B, C, H, W).
    Raises    ValueError for an output of another kind or shape.
    """
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), xt.dtype)
    output = model(xt.to(own), timestep)
    noise = output if isinstance(output, Tensor) else getattr(output, "sample", output)
    if not isinstance(noise, Tensor) or noise.shape != xt.shape:
        got = tuple(noise.shape) if isinstance(noise, Tensor) else f"a {type(noise).__name__}"
        raise ValueError(f"{type(model).__name__} must put out the noise in its input, {tuple(xt.shape)}, as a tensor "
                         f"or as `sample`, but puts out {got}: wrap it in a module that returns this alone (the first "
                         "of a tuple; without the channels of a learned variance)")
    return noise.to(torch.promote_types(xt.dtype, torch.float32))


def noise_loss(model: nn.Module, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    r"""Mean squared error of the predicted noise, over pixels and batch.

        L_simple = E |eps - eps_theta(x_t, t)|^2

    Shapes    as `add_noise` -> scalar, in the precision of `predict`.
    Source    DDPM Eq. 14.
    """
    return F.mse_loss(predict(model, add_noise(x0, noise, timestep), timestep), noise)


def image_losses(model: nn.Module, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """`noise_loss` of each image apart, (B,): what training and held-out images are compared by."""
    predicted = predict(model, add_noise(x0, noise, timestep), timestep)
    return F.mse_loss(predicted, noise, reduction="none").flatten(1).mean(1)
