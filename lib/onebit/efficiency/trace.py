"""One pass of a network on an example, watched: how often every weight is used, and what is computed beside the layers.

A pass on the meta device costs neither memory nor arithmetic.  Quantizers do not run: they change no shape, and a rule
that initialises itself from the first batch must not do so from an example.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..audit import check_countable
from ..connections import site_modules
from ..layers import in_eval_mode, weight_layers, without_quantizers
from ..taps import first

Example = Tensor | tuple | dict
WEIGHTED = ("aten.mm", "aten.addmm", "aten.convolution")  # between layers: a weight used without a layer around it
OTHER_LAYERS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d)  # no recipe quantizes these
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm,
         nn.RMSNorm)


@dataclass
class Use:
    """What one layer does in the pass, summed over its calls.

    Units     macs: multiply-accumulates.  inputs, outputs: elements.  in_positions, out_positions: pixels or tokens,
              times the batch.  output_shape: of the last call.
    """

    macs: int = 0
    inputs: int = 0
    outputs: int = 0
    in_positions: int = 0
    out_positions: int = 0
    output_shape: tuple[int, ...] = ()


@dataclass
class Trace:
    """Uses of every layer by name, and what is computed beside them.

    loose_macs       matrix products and convolutions outside the layers (a weight used directly)
    attention_macs   batched products outside the layers: queries by keys, and their weights by values
    norm_flops       of torch's normalisation layers; see `norm_flops`
    sites            elements put out by every site of the model's cross-timestep connections
    """

    uses: dict[str, Use]
    loose_macs: int = 0
    attention_macs: int = 0
    norm_flops: int = 0
    sites: dict[str, int] = field(default_factory=dict)


def counted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every convolution and Linear by name, those of the quantizers themselves excepted, in the order of registration.

    Raises    ValueError for a model without any, or a copy that `frozen` or `kernels.to_packed` made.
    """
    check_countable(model)
    known = weight_layers(model)
    found = {name: m for name, m in model.named_modules() if name in known or isinstance(m, OTHER_LAYERS)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no convolution and no Linear layer: there is nothing to count")
    return found


def norm_flops(norm: nn.Module) -> int:
    """Operations per element: a batch norm at inference is one multiply-add; the others take mean, variance, the
    normalisation and (where they have weights) the affine map, RMSNorm no mean."""
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return 1
    return (2 if isinstance(norm, nn.RMSNorm) else 3) + (norm.weight is not None)


def trace(model: nn.Module, example: Example) -> Trace:
    """Run the model once, in eval mode and without gradient, and leave it as it was.

    `example` is its input: a tensor, a tuple of positional arguments, or a dict of named ones.

    Raises    ValueError as `counted_layers`, or for an example the model cannot run on.
    """
    layers = counted_layers(model)
    found = Trace({name: Use() for name in layers})
    with contextlib.ExitStack() as stack:
        for context in (in_eval_mode(model), without_quantizers(layers.values()), _hooks(model, layers, found),
                        _plain_kernels()):
            stack.enter_context(context)
        counter = stack.enter_context(FlopCounterMode(display=False))
        _run(model, example)
    counts = counter.get_flop_counts()
    root, counted = type(model).__name__, set(layers.values())
    inside = [counts.get(f"{root}.{name}" if name else root, {})  # a call is counted under one name of several
              for name, module in model.named_modules(remove_duplicate=False) if module in counted]
    for op, flops in counts.get("Global", {}).items():
        macs = (flops - sum(layer.get(op, 0) for layer in inside)) // 2
        if str(op) in WEIGHTED:
            found.loose_macs += macs
        else:
            found.attention_macs += macs
    return found


def _run(model: nn.Module, example: Example) -> None:
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    args = args if isinstance(args, tuple) else (args,)
    try:
        model(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
        shown = ", ".join(_shown(value) for value in (*args, *kwargs.values())) or "nothing"
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{type(model).__name__} does not run on the example ({shown}): {reason}; give it as a "
                         "tensor, a tuple or a dict of arguments, on the model's device") from error


def _shown(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)} on {value.device}" if isinstance(value, Tensor) else repr(value)


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Attention as two batched products, on every device: fused kernels of some devices are not counted."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def _hooks(model: nn.Module, layers: dict[str, nn.Module], found: Trace) -> Iterator[None]:
    modules = dict(model.named_modules())
    handles = [layer.register_forward_hook(_use(found.uses[name]), with_kwargs=True) for name, layer in layers.items()]
    handles += [m.register_forward_hook(_norm(found)) for m in modules.values() if isinstance(m, NORMS)]
    handles += [site.register_forward_hook(_site(found, name)) for name, site in site_modules(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _use(use: Use) -> Callable:
    def hook(layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        x = args[0] if args else kwargs["input"]
        linear = isinstance(layer, nn.Linear)
        sizes = (layer.in_features, layer.out_features) if linear else (layer.in_channels, layer.out_channels)
        in_positions, out_positions = x.numel() // sizes[0], output.numel() // sizes[1]
        use.macs += layer.weight.numel() * (in_positions if getattr(layer, "transposed", False) else out_positions)
        use.inputs += x.numel()
        use.outputs += output.numel()
        use.in_positions += in_positions
        use.out_positions += out_positions
        use.output_shape = tuple(output.shape)
    return hook


def _norm(found: Trace) -> Callable:
    def hook(norm: nn.Module, args: tuple, output: Tensor) -> None:
        found.norm_flops += norm_flops(norm) * output.numel()
    return hook


def _site(found: Trace, name: str) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        found.sites[name] = found.sites.get(name, 0) + first(output).numel()
    return hook
