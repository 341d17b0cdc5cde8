"""The networks of the study, built by name and base width."""

import inspect
from functools import partial

from torch import nn

from ..errors import unknown
from .resunet import ResUNet
from .unet import UNet

NETS = {"resunet": ResUNet, "unet": UNet, "unet-group": partial(UNet, norm="group")}

__all__ = ["NETS", "ResUNet", "UNet", "architecture", "build"]


def build(name: str, width: int, **options) -> nn.Module:
    """A freshly initialised network (torch's global generator decides the weights), which remembers what it was built
    from as `net.architecture`.

    Raises    ValueError for an unknown name, a width below 1, or an option the net does not have.
    """
    if name not in NETS:
        unknown("net", name, NETS)
    if width < 1:
        raise ValueError(f"width must be a positive number of channels, got {width}")
    known = [option for option in inspect.signature(NETS[name]).parameters if option != "width"]
    for option in options:
        if option not in known:
            unknown(f"option of {name}", option, known or ["none"])
    net = NETS[name](width, **options)
    net.architecture = {"name": name, "width": int(width), **options}  # JSON takes no numpy integer
    return net


def architecture(net: nn.Module) -> dict | None:
    """What `build` made the network from; None for one it did not make, whatever that calls its `architecture`."""
    return getattr(net, "architecture", None) if type(net) in (ResUNet, UNet) else None
