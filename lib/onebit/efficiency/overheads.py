"""What quantizers cost beside the product they make cheap: float work that no paper's table counts."""

import math

from torch import nn

from ..layers import Quantized
from ..quantizers.activations import AbsMax, DoReFaActivation, Insta, LSQActivation, RSign
from ..quantizers.outputs import RPReLU, Shortcut
from ..quantizers.scale_maps import BiDMMap, MapRule, RankOneMap
from ..quantizers.timed import TDQ, ActivationRule
from ..quantizers.weights import SCALE_BITS
from .trace import Use

MIXING = 2  # of one element of a connected block: (1 - alpha) U + alpha cache


def overheads(layer: nn.Module, use: Use) -> dict[str, int]:
    r"""Operations of a quantized layer by kind; {} for a float one.  C inputs, O outputs, H' W' output pixels.

        quantizing     per input element: 1 for a step or a threshold, 2 where the step is the input's own maximum
        channel mean   C H W,    kernel   kh kw H' W',    map   O H' W'          (XNOR-Net, BiDM)
        weight scale   O H' W' for every scale of an output channel
        shortcut       O H' W', and C H W where it averages;  C O H' W' as a 1x1 convolution
        prelu          3 O H' W'

    Units     multiplications, additions, or multiply-adds, one each.  Comparisons and tables are free: sign, and TDQ's
              step as a function of the timestep.
    Source    BiDM (arXiv:2412.05926) section 3.2 and its released layer, as counted in methods 7.1; the rest by the
              same manner.
    """
    if not isinstance(layer, Quantized):
        return {}
    costs = {"quantizing": input_work(layer.activation) * use.inputs, "weight scale": _scales(layer) * use.outputs}
    costs |= _map(layer, use)
    for module in layer.outputs or ():
        costs |= _output(module, use)
    return {kind: cost for kind, cost in costs.items() if cost}


def input_work(activation: ActivationRule | None) -> int:
    """Operations per input element that make it a code."""
    if isinstance(activation, Insta):  # z, its cube, the mean, the threshold; then what its quantizer does
        return 5 + input_work(activation.quantizer)
    if isinstance(activation, BiDMMap):
        return int(activation.threshold is not None)
    return {LSQActivation: 1, TDQ: 1, DoReFaActivation: 1, RSign: 1, AbsMax: 2}.get(type(activation), 0)


def _scales(layer: Quantized) -> int:
    """Scales per output: of its channel, of every plane or group of it, or one of the whole layer."""
    return math.ceil(layer.rule.scale_bits / SCALE_BITS / layer.rule.channels)


def _map(layer: Quantized, use: Use) -> dict[str, int]:
    activation = layer.activation
    if not isinstance(activation, MapRule) or (isinstance(activation, BiDMMap) and not activation.spatial):
        return {}
    costs = {"map": use.outputs}
    if isinstance(activation, RankOneMap):  # constant at inference
        return costs
    costs["channel mean"] = use.inputs
    if activation.spatial:
        positions = use.in_positions if activation.transposed else use.out_positions
        costs["kernel"] = math.prod(layer.kernel_size) * positions
    return costs


def _output(module: nn.Module, use: Use) -> dict[str, int]:
    if isinstance(module, RPReLU):
        return {"prelu": 3 * use.outputs}
    if not isinstance(module, Shortcut) or not module.applies:
        return {}
    averaged = use.inputs if use.in_positions > use.out_positions else 0
    if module.convolution is None:
        return {"shortcut": averaged + use.outputs}
    return {"shortcut": averaged + module.convolution.weight.numel() * use.out_positions}
