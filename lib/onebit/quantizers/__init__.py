"""Quantizers of weights and activations, and the estimators that let gradients through them.

No class here knows of networks or training.
"""

from .activations import ACTIVATION_RULES, activation_rule
from .annealed import ReSTE
from .estimators import ESTIMATORS, sign, straight_through
from .evolvable import EBB, Residual
from .grouped import GroupBinary, GroupTernary, Ternary
from .multibit import LSQ, DoReFa
from .outputs import OUTPUT_RULES, output_rule
from .rules import WEIGHT_RULES, weight_rule
from .timed import ActivationRule, Clock
from .weights import XNOR, Centred, LearnedScale, PlainSign, ReActNet, WeightRule

__all__ = ["ACTIVATION_RULES", "EBB", "ESTIMATORS", "LSQ", "OUTPUT_RULES", "WEIGHT_RULES", "XNOR", "ActivationRule",
           "Centred", "Clock", "DoReFa", "GroupBinary", "GroupTernary", "LearnedScale", "PlainSign", "ReActNet",
           "ReSTE", "Residual", "Ternary", "WeightRule", "activation_rule", "output_rule", "sign", "straight_through",
           "weight_rule"]
