"""BinaryDM's table of bit widths, counted: LDM-4 by the paper's rules beside what the paper prints."""

from typing import TYPE_CHECKING

from .published import published_account

if TYPE_CHECKING:
    import pandas as pd

BASE = "binarydm-base-w1a4"  # first and last convolution at 8 bits, time MLP in float
WIDTHS = {  # label -> recipe, printed MB, printed GOPs (arXiv:2404.05662, Tables 2, 5 and 16)
    "W32A32": ("fp16", 1045.4, 96.0),
    "W8A8": (f"{BASE} weights=lsq:8 activations=lsq:8", 265.0, None),
    "W4A4": (f"{BASE} weights=lsq:4", 134.9, 24.3),
    "W2A4": (f"{BASE} weights=lsq:2", 69.8, 12.3),
    "two bases, A4": (f"{BASE} weights=residual:2", 70.2, 12.6),
    "W1A4": (BASE, 35.8, 6.3),
    "W1A32": ("binarydm-base-w1a32", 35.8, None),
}


def bit_widths(net: str = "ldm-4") -> "pd.DataFrame":
    """Size and operations at each width by eq. 16 and 17, what is printed, and what lies between them.

    `times_smaller` and `times_fewer` are the float network over the row, by count.  Printed values belong to "ldm-4";
    of another network the columns are empty.  W1A32 claims no multiplication saving: see `LayerCost`.

    Units     MiB (2^20 bytes, the papers' MB); 10^9 operations.
    """
    import pandas as pd

    whole = published_account(net).network
    rows = []
    for label, (recipe, mebibytes, gops) in WIDTHS.items():
        total = published_account(net, recipe).network
        rows.append({"label": label, "MiB": total.mebibytes, "MiB_printed": mebibytes if net == "ldm-4" else None,
                     "GOPs": total.ops / 1e9, "GOPs_printed": gops if net == "ldm-4" else None,
                     "times_smaller": whole.bytes / total.bytes, "times_fewer": whole.ops / total.ops})
    frame = pd.DataFrame(rows).set_index("label").astype(float)
    frame.insert(2, "MiB_rest", frame.MiB_printed - frame.MiB)
    frame.insert(5, "GOPs_rest", frame.GOPs_printed - frame.GOPs)
    return frame
