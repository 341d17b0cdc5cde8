"""Quantization after training: codes and scales fitted to the trained weights, or to what layers make of their inputs.

`quantize` gives a trained network its rules; `fit` then chooses what they hold.  Nothing is learned by gradients.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import Quantized, quantized_layers
from .patches import patches, weight_matrix
from .quantizers.multibit import LSQ
from .quantizers.weights import LearnedScale, WeightRule
from .rounding import Fitted, fit_rows

SCALES = {LearnedScale: "scale", LSQ: "step"}  # rules that are a scale per output channel times codes, and its name
Inputs = Sequence[tuple[Tensor, ...]]


def fit(model: nn.Module, reference: nn.Module | None = None, inputs: Inputs = ()) -> None:
    r"""Choose codes q and scales s of every quantized layer, in place; the network must be in eval mode.

    Without inputs each output channel w keeps its weights as well as it can,

        min_{s, q} |w - s q|^2,

    with inputs what the float network computes with them, layer by layer in the order of execution, where X are the
    float network's inputs of the layer and X' those it gets behind the layers that are fitted already:

        min_{s, q, b'} |X w + b - X' s q - b'|^2.

    With the least-squares weights w' = (X'^T X')^-1 X'^T X w this is min |X' (w' - s q)|^2 up to a constant, which is
    `rounding.fit_rows`' problem.  A layer with a bias has it fitted too (X and X' are then centred); where it was
    dropped there is no b', and w' makes up for b: w' = (X'^T X')^-1 X'^T (X w + b).

    model       quantized from the weights of `reference`, by rules with one scale per output channel
    reference   the float network
    inputs      batches of the network's arguments as it sees them in use: training images, noised, at random
                timesteps, as (x_t, timestep), and what it is conditioned on

    Raises    ValueError for a model that is not quantized or in training mode, a rule or a layer that cannot be
              fitted (groups; layers that share a weight; on inputs, one whose input or output is quantized too), a
              reference that is quantized, weights or inputs that are not finite, inputs that are no list of batches
              or come without a reference, or layers that they do not reach, or reach twice.
    Source    GPTQ (arXiv:2210.17323) section 3; the quantized network's inputs against the float network's outputs as
              in AdaRound (arXiv:2004.10568); the bias as in Nagel et al. 2019 (arXiv:1906.04721) section 4.2.
    """
    layers = quantized_layers(model)
    _check(model, layers, reference, inputs)
    with torch.no_grad():
        if not inputs:
            for layer in layers.values():
                _write(layer, fit_rows(weight_matrix(layer).double(), None, layer.rule.levels))
            return
        originals = _seen(reference, list(layers), inputs)
        for name in originals:  # in the order of execution
            def given(name: str = name) -> Iterator[tuple[Tensor, Tensor]]:
                layer, running = layers[name], _running(model, name, inputs)
                return ((patches(layer, x), patches(layer, own[0]))
                        for x, own in zip(originals[name], running, strict=True))

            try:
                _fit_layer(layers[name], reference.get_submodule(name), given)
            except torch.linalg.LinAlgError as error:
                raise ValueError(f"cannot fit {name}: its inputs are not finite, or too large for their squares to be; "
                                 "give others") from error


def _fit_layer(layer: Quantized, original: nn.Module, given: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> None:
    """`original` is the float layer; `given` are the inputs of both, anew in every call."""
    w = weight_matrix(original).double()
    dropped = original.bias if layer.bias is None else None  # the weights have to make up for it
    try:
        moments, fitted = _fitted(layer, w, dropped, given(), wide=False)
    except torch.linalg.LinAlgError:  # inputs that hardly vary about a large mean: float32 sums cancel
        moments, fitted = _fitted(layer, w, dropped, given(), wide=True)
    if layer.bias is not None:
        shift = (w @ moments.mean - fitted.weight @ moments.own_mean).to(layer.bias.dtype)
        layer.bias.copy_(shift if original.bias is None else original.bias + shift)
    _write(layer, fitted)


def _fitted(
    layer: Quantized, w: Tensor, dropped: Tensor | None, given: Iterator[tuple[Tensor, Tensor]], wide: bool
) -> tuple["Moments", Fitted]:
    moments = Moments.of(given, centred=layer.bias is not None, wide=wide)
    return moments, fit_rows(*moments.target(w, dropped), layer.rule.levels)


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs: `own` of those it gets, (n, n), and `cross` of those with the float
    network's, (n, n), about the means where `centred`."""

    own: Tensor
    cross: Tensor
    mean: Tensor  # of the float network's inputs, (n,)
    own_mean: Tensor

    @classmethod
    def of(cls, pairs: Iterable[tuple[Tensor, Tensor]], centred: bool, wide: bool) -> "Moments":
        """From pairs of equally many rows: inputs of the float network, and of this one; products in float32, or with
        `wide` in float64, sums in float64."""
        own, cross, mean, own_mean, count = 0.0, 0.0, 0.0, 0.0, 0
        for original, x in pairs:
            original, x = ((rows.double() if wide else rows.float()) for rows in (original, x))
            own, cross = own + (x.T @ x).double(), cross + (x.T @ original).double()
            mean, own_mean = mean + original.double().sum(0), own_mean + x.double().sum(0)
            count += len(x)
        if not count:
            raise ValueError("the inputs to fit on are empty: give images")
        mean, own_mean = mean / count, own_mean / count
        if centred:
            own, cross = own - count * own_mean.outer(own_mean), cross - count * own_mean.outer(mean)
        return cls(own / count, cross / count, mean, own_mean)

    def target(self, w: Tensor, dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Least-squares weights (out, n) for the inputs as they are, and the matrix that weighs their errors (n, n).

        `dropped` is a bias (out,) of the float layer that the quantized one lacks; moments are not centred then.

        A hundredth of the mean second moment is added to the diagonal, with which inputs that were hardly seen keep
        their weights; at least a millionth of what it would be about zero, below which it is rounding.
        """
        spread, size = self.own.diagonal().mean(), self.own_mean.square().mean()
        ridge = torch.maximum(0.01 * spread, 1e-6 * (spread + size)).clamp_min(1e-14) * torch.eye(len(w.T)).to(w)
        hessian = self.own + ridge
        wanted = (self.cross + ridge) @ w.T
        if dropped is not None:
            wanted = wanted + self.own_mean.outer(dropped.to(wanted))
        return torch.linalg.solve(hessian, wanted).T, hessian


def _check(model: nn.Module, layers: dict[str, Quantized], reference: nn.Module | None, inputs: Inputs) -> None:
    if not layers:
        raise ValueError("the model has no quantized layer: call quantize first")
    if model.training or (reference is not None and reference.training):
        raise ValueError("fit needs networks in eval mode: call model.eval()")
    _check_inputs(inputs)
    if (reference is None) == bool(inputs):
        raise ValueError("inputs and the float network as reference go together: give both, or neither")
    changed = quantized_layers(reference) if inputs else {}
    if changed:
        raise ValueError(f"reference must be the float network, but its {next(iter(changed))} is quantized: copy it "
                         "before quantize")
    owners: dict[int, str] = {}  # of weights by identity
    for name, layer in layers.items():
        owner = owners.setdefault(id(layer.weight), name)
        if owner != name:  # the second fit would overwrite the first
            raise ValueError(f"cannot fit {name}: it shares its weight with {owner}; name both in the recipe's `keep`, "
                             "or give each a copy of its own")
        _check_finite(name, layer)
        if inputs:
            _check_finite(f"the reference's {name}", reference.get_submodule(name))
        if inputs and (layer.activation is not None or layer.outputs):
            raise ValueError(f"cannot fit {name} on inputs: its input or output is quantized too, which the fit leaves "
                             "out; quantize weights alone (activations=none, no outputs), or fit without inputs")
        if type(layer.rule) not in SCALES:
            kind = type(layer.rule).__name__
            raise ValueError(f"cannot fit {name}: rule {kind} is not one scale per output channel times codes; use "
                             "learned-scale or lsq:k")
        if isinstance(layer.rule, LSQ) and not layer.rule.per_channel:
            raise ValueError(f"cannot fit {name}: LSQ with one step for the layer; use one per channel")
        if getattr(layer, "groups", 1) != 1:
            raise ValueError(f"cannot fit {name}: groups={layer.groups}; name it in the recipe's `keep`")


def _check_finite(name: str, layer: nn.Module) -> None:
    if not layer.weight.isfinite().all():
        raise ValueError(f"cannot fit {name}: its weight holds NaN or infinity; train it again with a lower learning "
                         "rate")


def _check_inputs(inputs: Inputs) -> None:
    wanted = "inputs must be a list of batches, each a tuple of the network's arguments: [(x_t, timestep), ...]"
    if not isinstance(inputs, Sequence):  # what runs out after one pass leaves nothing for the second layer
        raise ValueError(f"{wanted}, got {type(inputs).__name__}; make a list of it")
    for batch in inputs:
        if not isinstance(batch, (tuple, list)):
            raise ValueError(f"{wanted}, got {type(batch).__name__} for a batch; put a single batch into a list")


def _write(layer: Quantized, fitted: Fitted) -> None:
    """Latent weights that the layer's rule maps to the fitted ones."""
    rule: WeightRule = layer.rule
    shape = [-1 if axis == rule.out_dim else 1 for axis in range(layer.weight.ndim)]
    getattr(rule, SCALES[type(rule)]).copy_(fitted.scale.view(shape))
    layer.weight.copy_(fitted.weight.view(layer.weight.transpose(0, rule.out_dim).shape).transpose(0, rule.out_dim))


@contextmanager
def _watching(layers: dict[str, nn.Module], seen: dict[str, list[Tensor]]) -> Iterator[None]:
    def watch(name: str):
        def see(layer: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            x = arguments[0] if arguments else named["input"]
            seen.setdefault(name, []).append(x.clone())  # what follows may change it in place
        return see

    handles = [layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _seen(network: nn.Module, names: list[str], inputs: Inputs) -> dict[str, list[Tensor]]:
    """What each layer is given, one tensor per batch, in the order of execution."""
    seen: dict[str, list[Tensor]] = {}
    with _watching({name: network.get_submodule(name) for name in names}, seen):
        for batch in inputs:
            network(*batch)
    for name in names:
        if len(seen.get(name, ())) != len(inputs):
            raise ValueError(f"cannot fit {name}: it is run {len(seen.get(name, ())) / len(inputs):g} times a pass")
    return seen


def _running(model: nn.Module, name: str, inputs: Inputs) -> Iterator[list[Tensor]]:
    """The same for one layer, batch by batch; what follows the layer is not run."""
    layer = model.get_submodule(name)
    for batch in inputs:
        seen: dict[str, list[Tensor]] = {}
        stop = layer.register_forward_hook(_stop)
        try:
            with _watching({name: layer}, seen):
                model(*batch)
        except _Reached:
            pass
        finally:
            stop.remove()
        yield seen[name]


class _Reached(Exception):
    """The layer that was waited for has been run."""


def _stop(*_) -> None:
    raise _Reached
