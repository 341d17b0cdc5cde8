"""Weight rules and the estimators that let gradients through them.  No class here knows of networks or training."""

from .estimators import ESTIMATORS, sign, straight_through
from .weights import WEIGHT_RULES, XNOR, Centred, LearnedScale, PlainSign, WeightRule, weight_rule

__all__ = ["ESTIMATORS", "WEIGHT_RULES", "XNOR", "Centred", "LearnedScale", "PlainSign", "WeightRule", "sign",
           "straight_through", "weight_rule"]
