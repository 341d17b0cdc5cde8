"""Why the papers' operation counts differ from a count by their own equations 16 and 17, line by line."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .account import Account
from .costs import WORD
from .published import EBB_PLACE, ENDS, in_ebb_place, parts, published_account
from .sizes import CODE, LESS, RULES, UNEXPLAINED, binary_rows, checked, closed, first_of_qkv

if TYPE_CHECKING:
    import pandas as pd

    from .costs import LayerCost

PRINTED_GOPS = {  # BinaryDM (arXiv:2404.05662) Table 5; BiDM (arXiv:2412.05926) Table 4
    ("binarydm", "ldm-4"): {"GOPs": 6.3},
    ("bidm", "ldm-4"): {"GOPs": 1.82, "GBOPs": 92.1, "GFLOPs": 0.38},
}
SITES = {  # BiDM's connections: the last eight of LDM-4's output blocks; the released code's four on CIFAR-10
    "ldm-4": ("up_blocks.1.attentions.1", "up_blocks.1.upsamplers.0", "up_blocks.2.attentions.0",
              "up_blocks.2.attentions.1", "up_blocks.2.upsamplers.0", "up_blocks.3.resnets.[012]"),
    "ddpm-cifar10": ("up_blocks.2.attentions.[012]", "up_blocks.2.upsamplers.0"),
}
RELEASED = {  # the repositories as recipes: layers, bits and what is computed beside them
    "binarydm": "binarydm-w1a4 activations=lsq:8 ends=float at="
                + "|".join(f"{pattern}->ebb:transition=None" for pattern in EBB_PLACE),
    "bidm": "bidm-w1a1 keep=time_embedding*|*conv_shortcut outputs=shortcut:convolve=True,learn=True connections=tbs:",
}


@dataclass(frozen=True)
class Work:
    """One step: the one-bit products and float operations it adds, and what it adds to the float network."""

    basis: str
    text: str
    bops: float
    flops: float
    float_flops: float = 0.0


def released(paper: str, net: str = "ldm-4") -> Account:
    """The account of a network under the recipe closest to what a paper's repository does."""
    return published_account(net, RELEASED[checked(paper)] + ("+".join(SITES[net]) if paper == "bidm" else ""))


def ops_gap(paper: str, net: str = "ldm-4") -> "pd.DataFrame":
    """Operations of one pass, line by line, as `size_gap`: BinaryDM at W1A4, BiDM at W1A1.

    `float` is the float network, counting the same things as the lines so far; `ratio` is float over total.  A line's
    GOPs are GBOPs / 64 + GFLOPs; only BiDM prints these parts.

    Units     10^9; one operation is one multiply-accumulate, or 64 one-bit products.
    Raises    ValueError for an unknown paper or network.
    Source    methods 3.4, 5.1, 5.2 and 7.1.
    """
    import pandas as pd

    lines = {"binarydm": _binarydm, "bidm": _bidm}[checked(paper)](net)
    printed = PRINTED_GOPS.get((paper, net), {})
    frame = pd.DataFrame([{"basis": line.basis, "line": line.text, "GBOPs": line.bops, "GFLOPs": line.flops,
                           "GOPs": line.bops / WORD + line.flops, "float": line.float_flops} for line in lines])
    frame = closed(frame, "GOPs", printed.get("GOPs"))
    frame["float"] = frame["float"].cumsum()
    frame.loc[frame["float"].isna(), "float"] = published_account(net).network.flops / 1e9  # the papers' own count
    return _parts_closed(frame, printed).assign(ratio=frame["float"] / frame.total)


def _parts_closed(frame: "pd.DataFrame", printed: dict[str, float]) -> "pd.DataFrame":
    """The closing lines' GBOPs and GFLOPs, which lead to the printed ones where a paper prints them."""
    for column in ("GBOPs", "GFLOPs"):
        rules, code = (frame.loc[frame.basis == basis, column].sum() for basis in (RULES, CODE))
        ends = {LESS: -code, UNEXPLAINED: printed[column] - rules if column in printed else float("nan")}
        frame[column] = frame[column].fillna(frame.line.map(ends))
    return frame


def _every_product(net: str, bits: int, kept: Iterable[str]) -> list[Work]:
    """All products at `bits` one-bit products each, then the parts that are not."""
    macs = parts(net).GMACs
    return [Work(RULES, f"every product 1 bit by {bits}", macs["total"] * bits, 0.0, macs["total"]),
            *(Work(RULES, f"{name} in float", -bits * macs[name], macs[name]) for name in kept)]


def _beside(net: str, counted: Account) -> list[Work]:
    norms = counted.norm_flops / 1e9
    return [Work(CODE, "normalisations", 0.0, norms, norms)]


def _binarydm(net: str) -> list[Work]:
    macs, counted = parts(net).GMACs, released("binarydm", net)
    inner = macs["total"] - macs[ENDS] - macs["time MLP"]
    doubled = sum(row.macs for row in counted.layers if in_ebb_place(row.name)) / 1e9
    ends, attention = macs[ENDS], macs["attention matmuls"]
    lines = _every_product(net, 4, ["time MLP"])
    lines.insert(1, Work(RULES, "first and last convolution 8 bits by 8", (64 - 4) * ends, 0.0))
    return [
        *lines,
        Work(CODE, "activations at 8 bits", 4 * inner, 0.0),
        Work(CODE, "a second basis in the high-resolution blocks, for ever", 8 * doubled, 0.0),
        Work(CODE, "first and last convolution in float", -64 * ends, ends),
        Work(CODE, "attention's products 8 bits by 8", 64 * attention, 0.0, attention),
        *(Work(CODE, kind, 0.0, flops / 1e9) for kind, flops in counted.overheads().items()),
        *_beside(net, counted),
    ]


def _bidm(net: str) -> list[Work]:
    macs, counted = parts(net).GMACs, released("bidm", net)
    names = {row.name for row in binary_rows(net)}
    binary = [row for row in counted.layers if row.name in names]
    convolutions = [row for row in binary if row.kind == "Conv2d"]  # linear layers have neither map nor shortcut
    different = [row for row in convolutions if row.shape[0] != row.shape[1]]
    same = [row for row in convolutions if row.shape[0] == row.shape[1]]
    attention = macs["attention matmuls"]
    return [
        *_every_product(net, 1, [ENDS, "time MLP", "1x1 skips"]),
        Work(CODE, "a float 1x1 shortcut where a layer's channels differ", 0.0, _sum(different, "shortcut")),
        Work(CODE, "attention's products in float", 0.0, attention, attention),
        Work(CODE, "identity shortcuts", 0.0, _sum(same, "shortcut")),
        Work(CODE, "thresholds", 0.0, _sum(filter(first_of_qkv, binary), "quantizing")),
        *(Work(CODE, text, 0.0, _sum(binary, kind)) for kind, text in (
            ("channel mean", "channel means"), ("kernel", "kernels of the scale maps"),
            ("map", "products with the scale maps"), ("weight scale", "weight scales"))),
        Work(CODE, "connections", 0.0, counted.connection_flops / 1e9),
        *_beside(net, counted),
    ]


def _sum(rows: "Iterable[LayerCost]", kind: str) -> float:
    """10^9 operations of that kind."""
    return sum(row.overheads.get(kind, 0) for row in rows) / 1e9
