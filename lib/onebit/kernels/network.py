"""A trained network with its binary layers packed, for inference on the CPU."""

import copy
from dataclasses import dataclass, replace

from torch import nn

from ..layers import Quantized, weight_layers
from .folding import fold_norms
from .inputs import NotPackable
from .modules import packed

HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
         "_forward_hooks_always_called")


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer: "packed", or "dense" and why."""

    name: str
    became: str
    why: str = ""


def to_packed(model: nn.Module, fold: bool = True) -> nn.Module:
    """A copy of the model, in eval mode, in which every layer of binary weight and quantized input is packed.

    Layers for which there is no kernel (float ones, 8-bit ends, float inputs) stay dense; `packed_report` of the copy,
    one `LayerReport` per layer, says which and why.  Outputs (shortcuts, RPReLUs), hooks and cross-timestep
    connections work as before.  With `fold`, norms go into the thresholds they can go into, see `fold_norms`.

    Units     outputs equal the dense network's up to float rounding, except where an input lies so near its threshold
              that rounding decides its sign.
    Raises    ValueError, naming the layer, for a binary weight that is not +-s per output channel; for a model that
              has no layer to pack, that is not on the CPU, or that is a `frozen` copy.
    """
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices - {"cpu"}:
        raise ValueError(f"to_packed needs the model on the CPU, it is on {', '.join(sorted(devices))}: model.cpu()")
    if getattr(model, "is_frozen_copy", False):
        raise ValueError("to_packed needs the network that `frozen` was given, not the frozen copy")
    model = copy.deepcopy(model).eval()
    if isinstance(model, Quantized):  # a layer by itself has no parent to be replaced in
        wrapped = to_packed(nn.Sequential(model), fold)
        wrapped[0].packed_report = [replace(row, name="") for row in wrapped.packed_report]
        return wrapped[0]
    report = [_pack(model, name, layer) for name, layer in weight_layers(model).items()]
    if all(row.became == "dense" for row in report):
        reasons = ", ".join(sorted({row.why for row in report})) or "it has no layers"
        raise ValueError(f"nothing to pack: {reasons}; binary layers come from recipes such as xnor-w1a1")
    model.packed_report = report
    if fold:
        model.folded = fold_norms(model)
    return model


def _pack(model: nn.Module, name: str, layer: nn.Module) -> LayerReport:
    if not isinstance(layer, Quantized):
        return LayerReport(name, "dense", "it is a float layer")
    try:
        replacement = packed(layer)
    except NotPackable as why:
        return LayerReport(name, "dense", str(why))
    except ValueError as error:
        raise ValueError(f"cannot pack {name or 'the model'}: {error}") from None
    for hooks in HOOKS:
        setattr(replacement, hooks, getattr(layer, hooks))
    for other in [other for other, module in model.named_modules(remove_duplicate=False) if module is layer]:
        parent, _, child = other.rpartition(".")
        setattr(model.get_submodule(parent), child, replacement)
    return LayerReport(name, "packed")
