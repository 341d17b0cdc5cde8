"""Operations and sizes: the account of any network, and why the published tables differ from a count."""

from .account import Account, account, summary
from .bonsai import bonsai_sizes, tail_shares
from .costs import LayerCost, Total
from .operations import ops_gap, released
from .published import ebb_share, parts, published_account, published_example, published_net
from .sizes import size_gap
from .widths import bit_widths

__all__ = ["Account", "LayerCost", "Total", "account", "bit_widths", "bonsai_sizes", "ebb_share", "ops_gap", "parts",
           "published_account", "published_example", "published_net", "released", "size_gap", "summary",
           "tail_shares"]
