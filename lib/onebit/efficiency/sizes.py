"""Why the papers' sizes differ from a count: from "every weight 1 bit" to the released code and the printed value."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import unknown
from .published import ENDS, in_ebb_place, part, parts, published_account

if TYPE_CHECKING:
    import pandas as pd

    from .costs import LayerCost

MIB_BITS = 8 * 2**20
SCALE, FLOAT = 16, 32  # bits of a scale in our count, and of what stays float
PRINTED_MIB = {  # BinaryDM (arXiv:2404.05662) Table 5; BiDM (arXiv:2412.05926) Table 4
    ("binarydm", "ldm-4"): 35.8,
    ("bidm", "ldm-4"): 37.3,
}
TABLE_ROWS = {"ldm-4": 100 * 31, "ddpm-cifar10": 100 * 4}  # coefficients in the released connection tables
RULES, CODE, REST, PRINTED = "rules", "code", "difference", "printed"  # the bases of lines
LESS, UNEXPLAINED = "less what only the code does", "unexplained"


@dataclass(frozen=True)
class Line:
    """One step: whose it is ("rules" of the paper, or what only the released "code" does), and the bits it adds."""

    basis: str
    text: str
    bits: float


def size_gap(paper: str, net: str = "ldm-4") -> "pd.DataFrame":
    """The size, line by line: what each adds, the running total, and `ratio`, how often it fits in the float32 size.

    The "rules" lines are what the paper states or its table implies; "code" is what its repository does besides.
    Then, where the paper prints a size: the code's additions are taken off again, and what is still missing to the
    printed size is named unexplained.

    Units     MiB (2^20 bytes), the papers' MB.
    Raises    ValueError for an unknown paper or network.
    Source    methods 3.4, 5.1 and 5.2.
    """
    import pandas as pd

    lines = LINES[checked(paper)](net)
    frame = pd.DataFrame([{"basis": line.basis, "line": line.text, "MiB": line.bits / MIB_BITS} for line in lines])
    frame = closed(frame, "MiB", PRINTED_MIB.get((paper, net)))
    whole = published_account(net).network.mebibytes
    return frame.assign(ratio=whole / frame.total)


def checked(paper: str) -> str:
    """`paper`, or ValueError unless it is one of the two that print efficiency tables."""
    return paper if paper in LINES else unknown("paper", paper, LINES)


def closed(frame: "pd.DataFrame", column: str, printed: float | None) -> "pd.DataFrame":
    """The lines with their running total, and where a value is printed the three that lead to it."""
    import pandas as pd

    if printed is not None:
        code, rules = (frame.loc[frame.basis == basis, column].sum() for basis in (CODE, RULES))
        last = [{"basis": REST, "line": LESS, column: -code},
                {"basis": REST, "line": UNEXPLAINED, column: printed - rules},
                {"basis": PRINTED, "line": "as printed", column: 0.0}]
        frame = pd.concat([frame, pd.DataFrame(last)], ignore_index=True)
    return frame.assign(total=frame[column].cumsum())


def _shared(net: str, quantized_channels: int) -> list[Line]:
    """What both papers leave in float, and the scales."""
    sizes = parts(net).parameters
    return [
        Line(RULES, "time MLP in float32", (FLOAT - 1) * sizes["time MLP"]),
        Line(RULES, "biases and normalisations in float32", FLOAT * sizes["biases, norms"]),
        Line(RULES, "a 16-bit scale per output channel", SCALE * quantized_channels),
    ]


def _every_weight(net: str) -> Line:
    sizes = parts(net).parameters
    return Line(RULES, "every weight at 1 bit", sizes["total"] - sizes["biases, norms"])


def _binarydm(net: str) -> list[Line]:
    table = parts(net)
    ends, channels = table.parameters[ENDS], table.channels
    quantized = channels["total"] - channels["time MLP"]
    doubled = [row for row in published_account(net).layers if in_ebb_place(row.name)]
    second = sum(row.shape[0] for row in doubled)
    return [
        _every_weight(net),
        Line(RULES, "first and last convolution at 8 bits", 7 * ends),
        *_shared(net, quantized),
        Line(CODE, "first and last convolution in float32",
             (FLOAT - 8) * ends - SCALE * channels[ENDS]),
        Line(CODE, "a second basis in the high-resolution blocks, for ever",
             sum(row.weights for row in doubled) + SCALE * second),
        Line(CODE, "scales in float32", (FLOAT - SCALE) * (quantized - channels[ENDS] + second)),
    ]


def _bidm(net: str) -> list[Line]:
    table = parts(net)
    ends, skips, channels = table.parameters[ENDS], table.parameters["1x1 skips"], table.channels
    quantized = channels["total"] - channels["time MLP"] - channels[ENDS]
    binary = binary_rows(net)
    convolutions = [row for row in binary if row.kind == "Conv2d"]
    shortcuts = sum(row.weights // taps(row) + row.shape[0] for row in convolutions if row.shape[0] != row.shape[1])
    return [
        _every_weight(net),
        Line(RULES, "first and last convolution in float32", (FLOAT - 1) * ends),
        *_shared(net, quantized),
        Line(CODE, "1x1 skips of the residual blocks in float32", (FLOAT - 1) * skips - SCALE * channels["1x1 skips"]),
        Line(CODE, "a float 1x1 shortcut where a layer's channels differ", FLOAT * shortcuts),
        Line(CODE, "thresholds", FLOAT * sum(row.shape[1] for row in binary if first_of_qkv(row))),
        Line(CODE, "kernels and biases of the scale maps, shortcut coefficients",
             FLOAT * sum(taps(row) + 2 for row in convolutions)),
        Line(CODE, "coefficients of the connections", FLOAT * TABLE_ROWS[net]),
        Line(CODE, "scales in float32", (FLOAT - SCALE) * (quantized - channels["1x1 skips"])),
    ]


def binary_rows(net: str) -> "list[LayerCost]":
    """The layers that BiDM's released code makes binary: all but the ends, the time MLP and the residual skips."""
    kept = (ENDS, "time MLP", "1x1 skips")
    return [row for row in published_account(net).layers if part(row) not in kept]


def first_of_qkv(row: "LayerCost") -> bool:
    """False for keys and values: in the released code they are one layer with the queries, and one input."""
    return not row.name.endswith((".to_k", ".to_v"))


def taps(row: "LayerCost") -> int:
    """Kernel height times width."""
    return row.weights // (row.shape[0] * row.shape[1])


LINES = {"binarydm": _binarydm, "bidm": _bidm}
