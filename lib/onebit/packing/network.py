"""Whole networks: which tensors a packed file holds, and how a network is rebuilt from them."""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import nets
from ..errors import unknown
from ..layers import Quantized, quantized_layers, tensors_alone
from ..quantizers import WeightRule
from ..recipes import Recipe, chosen_layers, quantize, recipe
from . import container
from .digits import Coding
from .packed import TERNARY, Packed, Stored, half

WEIGHT, SCALES = "weight", "scales"  # a packed layer's tensors, after its name and a dot
DEFAULTS = {"axis": 0, "group": None, "base": 2, "levels": (-1, 2, 2)}  # of a layer in the header


def save_packed(model: nn.Module, path: str | Path, ternary: str = "slots", exact: bool = False) -> None:
    """Write a network in few bits: one safetensors file that `load_packed` reads.

    Quantized layers keep the integers and scales of their rules (1 bit per weight and basis, k bits for k-bit rules,
    2 for ternary ones, or 1.6 with `ternary="base3"`), no latent weights.  Scales and everything else are float16; a
    tensor that float16 does not hold to 2^-11 of its largest value (of each value, for scales) stays float32, with
    a warning where it is scales.  Integer and boolean buffers stay as they are.  This rounding moves outputs by about
    1e-3 of their size in weight-only networks; where inputs are quantized too, some fall into another step.  With
    `exact` nothing is rounded but scales, to float32 where they are float64: everything else stays as it is, in a file
    about half as long again.

    Raises    ValueError for weights or scales that are not finite, an unknown `ternary`, state that is no tensor
              (`get_extra_state`), layers that are not as `recipes.quantize` leaves them (frozen, replaced, added or
              taken away since, or quantized by a recipe that nobody knows), or a network of `nets.build` that has lost
              a tensor since.
    """
    if ternary not in TERNARY:
        unknown("ternary", ternary, TERNARY)
    model = getattr(model, "_orig_mod", model)  # what torch.compile was given
    layers, how = quantized_layers(model), getattr(model, "recipe", None)
    if not isinstance(how, Recipe):
        how = Recipe()  # a float network may have another thing of that name
        inside = [name for name, module in model.named_modules() if isinstance(getattr(module, "recipe", None), Recipe)]
        if layers and inside:
            raise ValueError(f"this is not the module that recipes.quantize was given: pack its part {inside[0]}")
    _check_layers(model, layers, how)
    _check_parts(model, {_key(name, "bias") for name in layers} if how.drop_bias else set())
    packed = {name: _packed(name, layer, ternary, exact) for name, layer in layers.items()}
    tensors = {name: half(value) if value.is_floating_point() and not exact else value
               for name, value in _rest(model).items()}
    for name, one in packed.items():
        tensors[_key(name, WEIGHT)] = torch.from_numpy(one.data)
        tensors[_key(name, SCALES)] = torch.from_numpy(one.scales)
    header = {"recipe": str(how), "net": nets.architecture(model), "class": type(model).__name__,
              "layers": {name: _described(one) for name, one in packed.items()}}
    container.write(Path(path), header, tensors)


def load_packed(
    path: str | Path, model: nn.Module | None = None, mapped: bool = False, kernels: bool = False
) -> nn.Module:
    """The network of a packed file, in eval mode, with exactly the weights that the file holds.

    It cannot be trained on: its quantized layers have no latent weights, and pass no gradient to the stored ones.

    path        a file of `save_packed`
    model       for a network that `nets.build` does not make: a new float one of the same structure, which is then
                quantized and filled in place
    mapped      leave the weights packed, in the pages of the file, and unpack each layer's in every forward pass: the
                same outputs with less memory, not in less time.  Stays on the CPU, its packed layers' `weight` on meta,
                a mere shape (`state_dict` unpacks it).  A diffusers network names its first weight's device as its
                own, and a pipeline follows it: for one, use a recipe that keeps the first layer
    kernels     compute with the bits themselves (`onebit.kernels`)

    Raises    FileNotFoundError; errors.CorruptFile for a damaged file or one that is no packed network; ValueError for
              another version, a recipe or network this onebit does not know, a `model` on the meta device, or a
              network that the tensors do not fit.
    """
    if mapped and kernels:
        raise ValueError("mapped and kernels are two ways to compute: choose one")
    path = Path(path)
    header, tensors = container.read(path)
    try:
        model = _rebuilt(header, model)
        _fill(model, {name: _undescribed(one) for name, one in header["layers"].items()}, tensors, mapped)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    if mapped:
        for layer in quantized_layers(model).values():
            layer.register_state_dict_post_hook(_unpacked)
    if kernels:
        from .. import kernels as fast  # compiles at import; only who asks for it waits

        return fast.to_packed(model.eval())
    return model.eval()


def _check_layers(model: nn.Module, layers: dict[str, Quantized], how: Recipe) -> None:
    """A file is loaded by quantizing a new network by its recipe: the same layers have to come of that."""
    try:
        chosen = set(chosen_layers(model, how)) if how.weights != "none" else set()
        unlike = sorted(chosen ^ set(layers))
    except ValueError:  # the model has become one in which the recipe finds no layer
        unlike = [*layers, ""][:1]
    unlike += [name for name, layer in layers.items()
               if not isinstance(layer.rule, WeightRule) or "weight" not in layer._parameters]  # a hook makes it
    if unlike:
        raise ValueError(f"the model's layers are not as recipes.quantize leaves them{unlike[0] and ': ' + unlike[0]}; "
                         "quantize it with that once all its layers are in place, and pack it before it is frozen or "
                         "given kernels")


def _check_parts(model: nn.Module, dropped: set[str]) -> None:
    """A file must fill all that `nets.build` makes anew for it, besides what the recipe has `dropped`."""
    if (net := nets.architecture(model)) is None:
        return
    with torch.device("meta"):
        anew = nets.build(**net).state_dict()
    state = model.state_dict()
    unlike = [name for name, tensor in anew.items()
              if name not in dropped and (name not in state or state[name].shape != tensor.shape)]
    if unlike:
        raise ValueError(f"the model is no more what nets.build made: {', '.join(unlike[:5])} is gone or of another "
                         "shape; a file of it could not be loaded")


def _packed(name: str, layer: nn.Module, ternary: str, exact: bool) -> Packed:
    try:
        packed = Packed.of(layer.rule, layer.weight, ternary, exact)
    except ValueError as error:
        raise ValueError(f"cannot pack {name}: {error}") from None
    if packed.scales.dtype != np.float16 and not exact:
        sizes = np.abs(packed.scales[packed.scales != 0])
        warnings.warn(f"{name}: scales from {sizes.min():.3g} to {sizes.max():.3g} are out of float16's range and are "
                      "stored as float32", stacklevel=3)
    return packed


def _key(layer: str, part: str) -> str:
    """The name of a layer's part; a network that is one layer has no name."""
    return f"{layer}.{part}" if layer else part


def _rest(model: nn.Module) -> dict[str, Tensor]:
    """The state besides quantized weights and what their rules learned, which the scales hold; under every name of a
    layer that has several."""
    names = [name for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, Quantized)]
    weights, rules = {_key(name, "weight") for name in names}, tuple(_key(name, "rule.") for name in names)
    return {name: value for name, value in tensors_alone(model).items()
            if name not in weights and not name.startswith(rules)}


def _unpacked(layer: Quantized, state: dict[str, Tensor], prefix: str, _: dict) -> None:
    """Hook of a mapped layer: its weight in a state dict, for who copies or compares one."""
    if layer.weight.is_meta:
        state[prefix + WEIGHT] = layer.quantized_weight()


def _described(one: Packed) -> dict[str, Any]:
    """What the header says of a layer; defaults are left out, since a header's bytes count too."""
    levels = one.coding.levels
    told = {"shape": one.shape, "axis": one.axis, "group": one.group, "base": one.coding.base,
            "levels": (levels.start, levels.stop, levels.step)}
    return {key: value for key, value in told.items() if value != DEFAULTS.get(key)}


def _undescribed(told: dict[str, Any]) -> dict[str, Any]:
    told = DEFAULTS | told
    coding = Coding(range(*told["levels"]), told["base"])
    return {"shape": tuple(told["shape"]), "axis": told["axis"], "group": told["group"], "coding": coding}


class _Uninitialised(TorchFunctionMode):
    """Within it torch.nn.init leaves tensors as they are: random numbers that a file overwrites need not be drawn."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        if getattr(function, "__module__", None) == "torch.nn.init":
            return arguments[0] if arguments else named["tensor"]
        return function(*arguments, **(named or {}))


def _rebuilt(header: dict[str, Any], model: nn.Module | None) -> nn.Module:
    """The network of a header with its layers swapped, every parameter still to be filled."""
    how, model = recipe(header["recipe"]), getattr(model, "_orig_mod", model)  # what torch.compile was given
    with torch.random.fork_rng(devices=[]):  # loading moves nobody's random numbers
        if model is None:
            if header["net"] is None:
                raise ValueError(f"it holds a {header['class']} that nets.build did not make; give load_packed a new "
                                 "one as `model`")
            with _Uninitialised():
                model = nets.build(**header["net"])
        elif any(tensor.is_meta for tensors in (model.parameters(), model.buffers()) for tensor in tensors):
            raise ValueError("`model` lies on the meta device, which holds no values: build it outside `with "
                             "torch.device('meta')`")
        stand_in = replace(how, weights="sign", at=()) if how.weights != "none" else how  # a rule that learns nothing
        quantize(model, stand_in, prepare=False)
    model.recipe = how
    return model


def _fill(model: nn.Module, layers: dict[str, dict], tensors: dict[str, Tensor], mapped: bool) -> None:
    quantized = quantized_layers(model)
    _same("quantized layers", quantized, layers)
    packed = {key: tensors.pop(key, None) for key in (_key(name, part) for name in layers for part in (WEIGHT, SCALES))}
    _same("tensors of packed layers", packed, {name for name, tensor in packed.items() if tensor is not None})
    for name, layer in quantized.items():
        data, scales = (packed[_key(name, part)].numpy() for part in (WEIGHT, SCALES))
        one = Packed(**layers[name], data=data if mapped else data.copy(), scales=scales.copy())
        _install(name, layer, one, mapped)
    try:
        missing, surplus = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # shapes
        raise ValueError(str(error)) from None
    _same("other tensors", set(missing) & set(_rest(model)), surplus)


def _same(what: str, network: Iterable[str], file: Iterable[str]) -> None:
    lacks, surplus = sorted(set(network) - set(file)), sorted(set(file) - set(network))
    if lacks or surplus:
        raise ValueError(f"{what} differ; in the network alone: {', '.join(lacks[:5]) or 'none'}; in the file alone: "
                         f"{', '.join(surplus[:5]) or 'none'}")


def _install(name: str, layer: Quantized, packed: Packed, mapped: bool) -> None:
    """Make the layer's weight the packed one."""
    weight = layer.weight
    if packed.shape != tuple(weight.shape) or packed.axis != layer.rule.out_dim:
        raise ValueError(f"{name} is {packed.shape} in the file and {tuple(weight.shape)} in the network")
    layer.rule = Stored(packed)
    new = torch.empty(packed.shape, dtype=weight.dtype, device="meta") if mapped else packed.weight().to(weight)
    layer.weight = nn.Parameter(new, requires_grad=False)
