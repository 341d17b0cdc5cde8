"""The loss that networks are trained for, of images apart: by heart or not, and of which network it is lower."""

import numpy as np
import torch
from torch import Tensor, nn

from .. import data, metrics
from ..connections import connections_of, neighbour
from ..diffusion import TIMESTEPS, image_losses
from . import results
from .evaluation import Measured, Protocol
from .sources import Samples

IMAGES = {"overfitting": 1_000, "denoising": 500}
BATCH = 250
LEVELS = tuple(range(50, TIMESTEPS, 100))  # timesteps: ten, evenly spread
TEXT = f"noise MSE, mean over {len(LEVELS)} timesteps"


def overfitting(source: Samples, protocol: Protocol, wait: bool) -> Measured:
    """The network's own loss on images it was trained on, and on images it was not: same noise, same timesteps."""
    model = results.weights(source.run, wait=wait)
    n = min(IMAGES["overfitting"], data.train_size(source.run.dataset), protocol.held_out)
    trained = losses(model, data.load(source.run.dataset, "train").draw(n).images).mean(0)
    held_out = losses(model, data.load(protocol.dataset, "test").draw(n).images).mean(0)
    return Measured({
        "training_loss": metrics.bootstrap(trained, f"{TEXT}, {n} training images"),
        "held_out_loss": metrics.bootstrap(held_out, f"{TEXT}, {len(held_out)} held-out images"),
        "loss_gap": metrics.difference(held_out, trained, f"{TEXT}, held-out minus training"),
    }, {})


def denoising(source: Samples, protocol: Protocol, wait: bool) -> Measured:
    """The loss on held-out images of the network as it samples: with the same batch-norm statistics, and with
    connections to the timestep that the sampler visited before.

    Estimates  held_out_loss: mean over images and timesteps, with its bootstrap interval over images.
    Arrays     timesteps (10,), losses (10,): the mean over images at each.
    """
    model = results.weights(source.run, wait=wait, reestimated=source.request.reestimated)
    images = data.load(protocol.dataset, "test").draw(min(IMAGES["denoising"], protocol.held_out)).images
    found = losses(model, images, stride=TIMESTEPS // source.request.steps)
    estimate = metrics.bootstrap(found.mean(0), f"{TEXT}, {len(images)} held-out images")
    return Measured({"held_out_loss": estimate}, {"timesteps": np.array(LEVELS), "losses": found.mean(1)})


@torch.inference_mode()
def losses(model: nn.Module, images: Tensor, stride: int = 1) -> np.ndarray:
    """The loss of each image at each of ten timesteps; the i-th image of any set meets the same noise.

    Connections mix in block outputs of the same image and noise `stride` timesteps before, where a sampler of that
    stride comes from; as computed there, unmixed, which is what training does.

        loss[k, n] = mean over pixels of (eps - eps_theta(sqrt(alpha_bar_t) x_n + sqrt(1 - alpha_bar_t) eps, t))^2

    Shapes    images (N, 1, H, W) uint8 -> (10, N) float64, t = 50, 150, ..., 950.
    Source    DDPM Eq. 14, `diffusion.noise_loss`.
    """
    place = next(model.parameters()).device
    found = np.empty((len(LEVELS), len(images)))
    for row, t in zip(found, LEVELS, strict=True):
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(t))
        for part in torch.arange(len(images)).split(BATCH):
            x0, timestep = data.normalize(images[part]).to(place), torch.full((len(part),), t, device=place)
            row[part] = _batch_losses(model, x0, noise[part].to(place), timestep, stride).double().cpu()
    return found


def _batch_losses(model: nn.Module, x0: Tensor, noise: Tensor, timestep: Tensor, stride: int) -> Tensor:
    connections = connections_of(model)
    if connections is None:
        return image_losses(model, x0, noise, timestep)
    with connections.mixing(neighbour(model, x0, noise, timestep, stride)):
        return image_losses(model, x0, noise, timestep)
