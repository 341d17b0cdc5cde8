"""What tests of packed networks share."""

import torch
from weight_tools import gaussian

from onebit import nets
from onebit.packing import save_packed
from onebit.recipes import quantize


def built(net="unet", width=4, how="strict-1bit", **options):
    """A network that has seen one training batch, so that activation rules have a step and norms statistics."""
    torch.manual_seed(0)
    model = nets.build(net, width, **options)
    for parameter in model.parameters():  # zero-initialised layers too
        parameter.data += 0.1 * torch.randn_like(parameter)
    x, t = pictures()
    quantize(model, how, (x, t))
    with torch.no_grad():
        model(x, t)
    return model.eval()


def pictures():
    return gaussian(3, 1, 8, 8, dtype=torch.float32), torch.tensor([0, 400, 999])


def packed(tmp_path, how="strict-1bit", **options):
    """A model and the file it was packed into."""
    model = built(how=how, **options)
    save_packed(model, tmp_path / "m.packed")
    return model, tmp_path / "m.packed"


def output(model):
    with torch.no_grad():
        return model(*pictures())
