"""What the tests of the kernels share: +-1 tensors, quantized layers that look trained, and a stable denoiser."""

import torch
from torch import nn

from onebit.diffusion import SCHEDULE
from onebit.recipes import Recipe, quantize


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def signs(*shape, seed=0):
    return torch.randint(0, 2, shape, generator=generator(seed)).double() * 2 - 1


def quantized(layer, activations, x, weights="xnor"):
    """A trained-looking layer in eval mode: one batch seen, every parameter of its quantizers moved off its start."""
    model = nn.Sequential(layer)
    quantize(model, Recipe(weights=weights, activations=activations), example=(x,))
    model(x)
    with torch.no_grad():
        for name, parameter in model[0].activation.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator(len(name)))
            parameter.copy_(parameter * 0.7 if name.endswith("step") else parameter + 0.2 * noise)
    return model.eval()[0]


def plain_layer(kind, channels, out, **options):
    """A layer whose sign weights and inputs are plain, so that its outputs are integers."""
    layer = kind(channels, out, bias=False, **options)
    with torch.no_grad():
        layer.weight.copy_(signs(*layer.weight.shape, seed=7))
    return quantized(layer, "sign", torch.zeros(1, channels, 9, 9), "sign")


class Denoiser(nn.Module):
    """The best noise estimate for standard normal images, plus a tenth of a network: its trajectories stay stable."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        if hasattr(net, "connections"):
            self.connections = net.connections

    def forward(self, x, timestep):
        share = (1 - SCHEDULE.alpha_bar[timestep]).sqrt().to(x)[:, None, None, None]
        return share * x + 0.1 * self.net(x, timestep)
