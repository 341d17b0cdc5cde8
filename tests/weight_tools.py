"""What tests of weight rules share."""

import numpy as np
import torch


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(rule, w, g):
    """d sum(g * rule(w)) / d w."""
    w = w.clone().requires_grad_()
    (rule(w) * g).sum().backward()
    return w.grad


def channels(w, out_dim):
    """Rows of one output channel each, as numpy float64."""
    return np.moveaxis(w.detach().double().numpy(), out_dim, 0).reshape(w.shape[out_dim], -1)
