"""Bonsai Image's published sizes, from bits per weight and a tail in half precision."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# The white paper's parts list (PrismML, "1-bit and Ternary Bonsai Image 4B", May 2026, Table 13)
LOW_BIT_WEIGHTS = 460.1e6 * 8  # 460.1 MB at one bit each
TAIL_BYTES = 390.3e6  # in half precision: embedders, modulation, norms, output projection
GROUP, HALF = 128, 16  # weights per scale, bits of a scale
FLOAT_GB = 7.75  # as printed, in half precision
SCALE_BITS = HALF / GROUP
IDEAL = {"binary": 1 + SCALE_BITS, "ternary": math.log2(3) + SCALE_BITS}  # 1.125 and 1.710
PACKED = {"binary": 1 + 2 * SCALE_BITS, "ternary": 2 + 2 * SCALE_BITS}  # MLX: a bias beside every scale, 2-bit slots
AVERAGE = {"binary": 1.925, "ternary": 2.51}  # bits per weight with the tail, as printed
PRINTED_GB = {  # format -> form -> GB (10^9 bytes) of the transformer
    "binary": {"ideal": 0.93, "MLX": 0.97, "CUDA": 1.08},
    "ternary": {"ideal": 1.21, "MLX": 1.43, "CUDA": 1.54},
}


def parameters() -> float:
    """All parameters of the transformer, by the parts list."""
    return LOW_BIT_WEIGHTS + TAIL_BYTES * 8 / HALF


def tail_shares() -> "pd.DataFrame":
    r"""Share of parameters in half precision: as each stated average implies, and as the parts list says.

        average = (1 - f) b + 16 f,    f = (average - b) / (16 - b),    b = bits per low-bit weight, scale included

    Units     share 0..1; bits per weight.  `average_parts` is the average that the parts list gives.
    Source    white paper, sections 4.1-4.3 (b), its summary table (average), Table 13 (parts).
    """
    import pandas as pd

    listed = TAIL_BYTES * 8 / HALF / parameters()
    rows = [{"format": kind, "bits": bits, "average_printed": AVERAGE[kind],
             "average_parts": (1 - listed) * bits + HALF * listed,
             "tail_from_average": (AVERAGE[kind] - bits) / (HALF - bits), "tail_from_parts": listed}
            for kind, bits in IDEAL.items()]
    return pd.DataFrame(rows).set_index("format")


def bonsai_sizes() -> "pd.DataFrame":
    """Every printed size beside the parts list at the bits that are known for it, and beside the printed average.

    `bits_needed` is what a low-bit weight would have to take for the printed size.  For CUDA no bits are stated, and
    nothing is computed from them.  `times_smaller` is the printed half-precision size over the counted one.

    Units     GB of 10^9 bytes, as the white paper; bits per low-bit weight, scales included.
    Source    white paper, its summary table and Table 13; MLX's bias beside every scale is documented by MLX.
    """
    import pandas as pd

    rows = []
    for kind, forms in PRINTED_GB.items():
        for form, printed in forms.items():
            bits = {"ideal": IDEAL, "MLX": PACKED}.get(form, {}).get(kind)
            counted = None if bits is None else (LOW_BIT_WEIGHTS * bits / 8 + TAIL_BYTES) / 1e9
            average = parameters() * AVERAGE[kind] / 8e9 if form == "ideal" else None
            rows.append({"format": kind, "form": form, "bits": bits, "GB_printed": printed, "GB_parts": counted,
                         "GB_average": average, "bits_needed": (printed * 1e9 - TAIL_BYTES) * 8 / LOW_BIT_WEIGHTS,
                         "times_smaller": None if counted is None else FLOAT_GB / counted})
    frame = pd.DataFrame(rows).set_index(["format", "form"]).astype(float)
    frame.insert(4, "unexplained", frame.GB_printed - frame.GB_parts)
    return frame
