"""Every weight rule by its name: one line per published rule; options follow the name after a colon."""

from torch import Tensor, no_grad

from . import spec
from .annealed import ReSTE
from .evolvable import EBB, Residual
from .grouped import GroupBinary, GroupTernary, Ternary
from .multibit import LSQ, DoReFa
from .weights import XNOR, Centred, LearnedScale, PlainSign, ReActNet, WeightRule

WEIGHT_RULES: dict[str, type[WeightRule]] = {
    "sign": PlainSign,
    "xnor": XNOR,
    "learned-scale": LearnedScale,
    "centred": Centred,
    "reactnet": ReActNet,
    "reste": ReSTE,
    "dorefa": DoReFa,
    "lsq": LSQ,
    "ebb": EBB,
    "residual": Residual,
    "ternary": Ternary,
    "group-binary": GroupBinary,
    "group-ternary": GroupTernary,
}


def weight_rule(name: str, weight: Tensor, out_dim: int = 0) -> WeightRule:
    """The rule of that name ("xnor"), with options if it has some ("lsq:4", "ebb:tau=0.01"), built for `weight`.

    Raises    ValueError for an unknown name or option, and as the rule's class.
    """
    with no_grad():
        rule = spec.build("weight rule", WEIGHT_RULES, name, weight, out_dim)
        return rule if weight.is_meta else rule.to(weight.device)
