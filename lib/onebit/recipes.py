"""What is quantized where: recipes, by name or spelt out, and `quantize`, which swaps layers of any torch module."""

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from . import _refusals as refusals
from ._recipe import ENDS, Recipe, changes
from .audit import Audit, audit
from .connections import CONNECTIONS, install
from .errors import unknown
from .layers import SWAPS, Quantized, in_eval_mode, quantized_layers, weight_layers, without_quantizers
from .quantizers import ActivationRule, Clock, WeightRule, activation_rule, output_rule, weight_rule
from .quantizers import spec as specs
from .taps import reached

TIME_MLP = ("time_mlp*", "time_embed*", "time_embedding*", "timestep_embedder*")  # ours, the papers', diffusers'
# BinaryDM's place for EBB: blocks at full and half resolution, on both sides, of our U-Net and of diffusers' with four
# levels, which is the published one; in one with more or fewer, `at` has to name them
HIGH_RESOLUTION = tuple(
    (pattern, "ebb") for pattern in ("down.[01].*", "up.[12].*", "down_blocks.[01].*", "up_blocks.[23].*")
)
STRICT = Recipe(weights="centred", keep=("*time*",), ends="float")
BASE = Recipe(weights="learned-scale", keep=TIME_MLP, ends="int8")  # the BinaryDM baseline
W1A1 = Recipe(weights="xnor", activations="xnor", keep=TIME_MLP, ends="float")


def _with_activations(name: str, base: Recipe) -> dict[str, Recipe]:
    """A weight recipe at the three activation widths of BinaryDM's tables."""
    widths = {"a32": "none", "a8": "lsq:8", "a4": "lsq:4"}
    return {f"{name}{width}": replace(base, activations=rule) for width, rule in widths.items()}


RECIPES: dict[str, Recipe] = {
    "fp16": Recipe(),  # the control: float weights, trained under autocast where the machine has it
    "published-1bit": Recipe(  # source 000 as released: 35 % of the ResUNet's parameters
        weights="centred", only=("down.*.conv1", "down.*.conv2", "up.*.conv2"), drop_bias=True
    ),
    "strict-1bit": STRICT,  # everything but the first and last layer and the time embedding
    "ptq-1bit": replace(STRICT, post_training="start"),  # strict's layers, without its training
    **_with_activations("lsq-w2", replace(BASE, weights="lsq:2")),
    **_with_activations("binarydm-base-w1", BASE),
    **_with_activations("binarydm-w1", replace(BASE, at=HIGH_RESOLUTION)),  # EBB; LRM is part of the training
    "xnor-w1a1": W1A1,
    "xnorpp-w1a1": replace(W1A1, weights="sign", activations="xnor++"),
    "dorefa-w1a1": replace(W1A1, weights="dorefa", activations="dorefa"),
    "reactnet-w1a1": replace(W1A1, weights="reactnet", activations="rsign", outputs=("shortcut", "rprelu")),
    "reste-w1a1": replace(W1A1, weights="reste", activations="reste"),
    "bidm-w1a1": replace(  # SPD is part of the training
        W1A1, weights="learned-scale", activations="bidm", outputs=("shortcut",), connections="tbs"
    ),
    "insta-w1a4": replace(BASE, weights="reactnet", activations="insta:4"),
    "tdq-w1a4": replace(BASE, activations="tdq:4"),
    "ternary-w1.58a32": replace(BASE, weights="ternary"),
    "bonsai-binary-g128": replace(BASE, weights="group-binary:128"),
    "bonsai-ternary-g128": replace(BASE, weights="group-ternary:128"),
    "residual2-w1a32": replace(BASE, weights="residual:2"),
}


@cache
def recipe(text: str) -> Recipe:
    """The recipe of that name, or the one spelt out: "weights=ebb activations=lsq:4 ends=int8".

    A name may be followed by changes: "bidm-w1a1 connections=none".

    Raises ValueError, listing what is valid, for anything else.
    """
    first, *rest = text.split() or [""]
    named = RECIPES.get(first)
    if named is None and "=" not in first:
        unknown("recipe", first, RECIPES)
    return replace(named or Recipe(), **changes(rest if named else [first, *rest]))


def quantize(
    model: nn.Module, how: str | Recipe, example: Tensor | tuple[Tensor, ...] | None = None, prepare: bool = True
) -> Audit:
    """Quantize Conv2d, ConvTranspose2d and Linear layers of `model` in place by a recipe, its name or its text, and say
    what became of each.

    `example` is an input of the model (images, or images and timesteps), on which it is run once to warn of quantized
    layers that are not called; only rules with one parameter per output pixel ("xnor++") need it.  With
    `prepare=False`, for a model whose state is loaded next, it is not run.  Rules initialise what they learn about
    weights from the weights the model has now, and what they learn about inputs from the first training batch: a
    network that is in eval mode, as `from_pretrained` gives them, stays in it with all its rules until `model.train()`.
    What a frozen layer's rules could learn is frozen too.  The model remembers its recipe as `model.recipe`.  A model
    that is refused stays as it was.

    Before: fuse what is to be fused (diffusers' `fuse_qkv_projections` would take the latent weights).  After: run one
    training batch before the model is copied, for averaged weights or by DistributedDataParallel.  A training loop of
    one's own tells the rules of `schedules(model)` before every step how far it is, and adds `penalty(model)` to its
    loss, without which EBB keeps its second basis.

    Raises    ValueError for an unknown recipe, a model that is quantized already, has a part named `recipe` or lazy
              layers that have not run yet, or of which the recipe leaves no layer to quantize (a pattern of `keep` or
              `at` that matches none is no error), a weight that a float module uses as well, a layer that cannot take
              its rules or that its parent is known not to call, connections that cannot be made, or a missing example;
              whatever the model raises for an `example` that is none of its inputs, where rules need one.
    """
    how = recipe(how) if isinstance(how, str) else how
    if not isinstance(how, Recipe):
        raise ValueError(f"a recipe is a name, a text or a Recipe, got {how!r}")
    example = (example,) if isinstance(example, Tensor) else example
    refusals.check_model(model)
    layers = weight_layers(model)
    if any(isinstance(layer, Quantized) for layer in layers.values()):
        raise ValueError("the model is quantized already; build a new one for another recipe")
    if how.weights != "none":
        clock = Clock(model)
        chosen = chosen_layers(model, how)
        refusals.check_called(model, {layers[name]: name for name in chosen})
        refusals.check_shared(model, layers, chosen)
        parts = _build(layers, chosen, clock)  # everything before the first swap
        connections = specs.build("connections", CONNECTIONS, how.connections, model)
        if prepare and example is None and any(hasattr(own["activation"], "prepare") for own in parts.values()):
            raise ValueError("this recipe has parameters per output pixel: give quantize an `example` (images, "
                             "timesteps)")
        with ExitStack() as undo:
            for name, own in parts.items():
                _swap(layers[name], own, how.drop_bias, undo)
            _leave_fast_paths(model, undo)
            if how.activations != "none":
                undo.callback(model.register_forward_pre_hook(clock, with_kwargs=True).remove)
            if connections is not None:
                _install_connections(model, connections, undo)
            if prepare and example is not None:
                _rehearse(model, {layers[name]: name for name in parts}, example)
            undo.pop_all()  # it has come about: nothing is undone
    model.recipe = how
    return audit(model)


def schedules(model: nn.Module) -> list[nn.Module]:
    """The model's quantizers that change with the share of training done; each has `advance(share)`."""
    idle = (WeightRule.advance, ActivationRule.advance)
    return [m for m in model.modules()
            if isinstance(m, (WeightRule, ActivationRule)) and type(m).advance not in idle]


def penalty(model: nn.Module) -> Tensor | None:
    """What the model's weight rules add to the loss: the mean over the layers that ask for something, or None."""
    asked = [layer.rule.penalty() for layer in quantized_layers(model).values() if isinstance(layer.rule, WeightRule)]
    asked = [p for p in asked if p is not None]
    return torch.stack(asked).mean() if asked else None


def chosen_layers(model: nn.Module, how: Recipe) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Weight rule, activation rule and output rules of every layer that the recipe quantizes, by name.

    Raises    ValueError if there are none.
    """
    layers = weight_layers(model)
    names, known = list(layers), _all_names(model, layers)
    kept, only = _reached(known, how.keep), _reached(known, how.only)
    candidates = [name for name in names if name not in kept]
    inner = candidates if how.ends == "quantized" else candidates[1:-1]
    elsewhere = {}
    for pattern, rule in reversed(how.at):  # the first match counts
        elsewhere |= dict.fromkeys(_reached(known, (pattern,)), rule)
    chosen = {name: (elsewhere.get(name, how.weights), how.activations, how.outputs)
              for name in inner if not how.only or name in only}
    if not chosen:
        between = "" if how.ends == "quantized" else " between the first and the last"
        raise ValueError(f"{how} matches no Conv2d, ConvTranspose2d or Linear of this model{between}; its layers: "
                         f"{', '.join(names) or 'none'}")
    if ENDS[how.ends]:
        activations = ENDS[how.ends] if how.activations != "none" else "none"
        chosen |= {name: (ENDS[how.ends], activations, ()) for name in (candidates[0], candidates[-1])
                   if not how.only or name in only}
    return chosen


def _all_names(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, str]:
    """Every name of every layer, of which a shared one has several, and the one it is listed under."""
    first = {layer: name for name, layer in layers.items()}
    return {name: first[module] for name, module in model.named_modules(remove_duplicate=False) if module in first}


def _reached(known: dict[str, str], patterns: tuple[str, ...]) -> set[str]:
    """Pattern by pattern: one that matches must not keep another from being tried behind a prefix."""
    return {known[name] for pattern in patterns for name in reached(known, [pattern])}


def _build(layers: dict[str, nn.Module], chosen: dict[str, tuple[str, str, tuple[str, ...]]], clock: Clock) -> dict:
    """The modules that the chosen layers get, by layer and attribute; no layer is touched."""
    for name in chosen:
        refusals.check_kind(name, layers[name])
    parts = {}
    for name, rules in chosen.items():
        try:
            parts[name] = _parts(layers[name], *rules, clock)
        except ValueError as error:
            raise ValueError(f"cannot quantize {name}: {error}") from error
    return parts


def _parts(layer: nn.Module, weights: str, activations: str, outputs: tuple[str, ...], clock: Clock) -> dict:
    return {
        "rule": weight_rule(weights, layer.weight, out_dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0),
        "activation": activation_rule(activations, layer, clock) if activations != "none" else None,
        "outputs": nn.ModuleList(output_rule(output, layer) for output in outputs) if outputs else None,
    }


def _swap(layer: nn.Module, parts: dict[str, nn.Module | None], drop_bias: bool, undo: ExitStack) -> None:
    """Change the layer's class in place: parameters, their names, and references to the layer all stay."""
    undo.callback(_unswap, layer, type(layer), layer.bias)
    for name, part in parts.items():
        setattr(layer, name, part if part is None else part.train(layer.training))
        if part is not None and not layer.weight.requires_grad:
            part.requires_grad_(False)
    layer.__class__ = SWAPS[type(layer)]
    if drop_bias:
        layer.bias = None


def _unswap(layer: nn.Module, kind: type[nn.Module], bias: nn.Parameter | None) -> None:
    layer.__class__, layer.bias = kind, bias
    for name in ("rule", "activation", "outputs"):
        delattr(layer, name)


def _leave_fast_paths(model: nn.Module, undo: ExitStack) -> None:
    """In eval mode torch computes a whole transformer layer at once, from its linear layers' own weights, which are the
    latent ones here.  A layer whose activation function it does not know it leaves alone."""
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoderLayer) and quantized_layers(layer):
            undo.callback(setattr, layer, "activation_relu_or_gelu", layer.activation_relu_or_gelu)
            layer.activation_relu_or_gelu = 0
        if isinstance(layer, nn.TransformerEncoder) and quantized_layers(layer):  # rules take no nested tensors
            undo.callback(setattr, layer, "use_nested_tensor", layer.use_nested_tensor)
            layer.use_nested_tensor = False


def _install_connections(model: nn.Module, connections: nn.Module, undo: ExitStack) -> None:
    for handle in install(model, connections):
        undo.callback(handle.remove)
    undo.callback(delattr, model, "connections")


def _rehearse(model: nn.Module, layers: dict[nn.Module, str], example: tuple[Tensor, Tensor]) -> None:
    """Run the model once on the example and warn of quantized layers that are not called.

    Rules with parameters per output pixel are made by their layer's first call, in the order of execution; the other
    layers compute in float, since their rules may wait for a training batch.  Where there are no such rules the pass
    is a mere check, which must neither fail nor leave a trace.
    """
    waiting = {layer for layer in layers if hasattr(layer.activation, "prepare")}
    own = model if waiting else getattr(model, "_orig_mod", model)  # torch.compile would keep what a check runs
    try:
        with torch.random.fork_rng(devices=[], enabled=not waiting):
            called = _called(own, layers, waiting, example)
    except Exception as error:
        if waiting:
            raise
        warnings.warn(f"the model does not run on the example ({error}): layers that are never called stay unnoticed",
                      stacklevel=3)
        return
    idle = [name for layer, name in layers.items() if layer not in called]
    if idle:
        warnings.warn(f"the example did not call {', '.join(idle)}: where a parent computes with the `weight` of such "
                      "a layer itself, it stays float; name it in `keep`", stacklevel=3)


def _called(model: nn.Module, layers: Iterable[nn.Module], waiting: set[nn.Module],
            example: tuple[Tensor, Tensor]) -> set[nn.Module]:
    """The layers that one pass calls, in eval mode; those in waiting are prepared."""
    called = set()

    def meet(layer: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        if layer in waiting and layer not in called:
            _preparing(layer, arguments, named)
        called.add(layer)

    handles = [layer.register_forward_pre_hook(meet, with_kwargs=True) for layer in layers]
    try:
        with in_eval_mode(model), without_quantizers(set(layers) - waiting):
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return called


def _preparing(layer: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
    x = arguments[0] if arguments else named["input"]
    y = layer.linear_map(layer.activation.quantized(x), layer.quantized_weight(), None)
    layer.activation.prepare(x, y)
    if not layer.weight.requires_grad:
        layer.activation.requires_grad_(False)
