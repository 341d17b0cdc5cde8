"""What `recipes.quantize` refuses before it touches anything: models and layers that would not compute in few bits.

Each function raises a ValueError that names the layer and the mend.
"""

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from ._recipe import Recipe
from .layers import SWAPS

# torchvision's and diffusers' modules that compute with the weights of their own layers and do not call these
READ_WEIGHTS = {"ShiftedWindowAttention", "ShiftedWindowAttention3d", "FirUpsample2D", "FirDownsample2D",
                "HunyuanDiTAttentionPool"}


def check_model(model: nn.Module) -> None:
    """What would otherwise fail after the swap."""
    if hasattr(type(model), "recipe") or any(
            "recipe" in held for held in (model._modules, model._parameters, model._buffers)) or not isinstance(
            vars(model).get("recipe", Recipe()), Recipe):
        raise ValueError(f"{type(model).__name__} has a part named `recipe`, where the model's recipe would go: give "
                         "that another name, or put the model into a wrapper")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name} has no shape yet: run one forward pass first")


def check_called(model: nn.Module, chosen: dict[nn.Module, str]) -> None:
    """A layer whose weight its parent reads stays float whatever takes its place."""
    for parent in model.modules():
        kinds = {kind.__name__ for kind in type(parent).__mro__} & READ_WEIGHTS
        for layer in parent.children() if kinds else ():
            if layer in chosen:
                raise ValueError(f"cannot quantize {chosen[layer]}: {type(parent).__name__} computes with its `weight` "
                                 "and never calls it, so that it would stay float; name it in `keep`")


def check_shared(model: nn.Module, layers: dict[str, nn.Module], chosen: dict) -> None:
    """A weight is stored once: in bits, or in float."""
    quantized = {id(layers[name].weight): name for name in chosen}
    inside = {layers[name] for name in chosen}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if module not in inside and id(parameter) in quantized:
                raise ValueError(f"cannot quantize {quantized[id(parameter)]}: {name}, which stays float, uses its "
                                 "weight as well; name both in `keep`, or give it a copy")


def check_kind(name: str, layer: nn.Module) -> None:
    """Only layers that compute with a weight of their own, by the forward of their class, can be swapped."""
    if type(layer) not in SWAPS:
        kind = type(layer).__name__
        mend = "remove that (torch.nn.utils.parametrize), or " if is_parametrized(layer) else ""
        raise ValueError(f"cannot quantize {name}: {kind} is a subclass of a layer type; {mend}name it in `keep`")
    if "forward" in vars(layer):  # as accelerate's hooks put it there: it would be called in place of the class's
        raise ValueError(f"cannot quantize {name}: it has a `forward` of its own, set by a hook (device_map, "
                         "cpu_offload), that would go on computing in float; remove that hook first "
                         "(accelerate.hooks.remove_hook_from_module), or name it in `keep`")
    if "weight" not in layer._parameters:
        raise ValueError(f"cannot quantize {name}: a hook makes its weight anew in every call (weight_norm, "
                         "spectral_norm, prune): remove that, or name it in `keep`")
    if isinstance(layer, nn.ConvTranspose2d) and layer.groups != 1:  # output channels lie on axes 0 and 1 together
        raise ValueError(f"cannot quantize {name}: no rule has scales for a ConvTranspose2d with groups="
                         f"{layer.groups}; name it in `keep`")
