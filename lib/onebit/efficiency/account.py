"""The account of a network: what it takes to store and to run once, layer by layer, and in three totals."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torch import nn

from ..audit import FLOAT_BITS, audit
from ..connections import connections_of
from ..layers import Quantized
from .costs import LayerCost, Total
from .overheads import MIXING, overheads
from .trace import Example, Trace, Use, counted_layers, trace

if TYPE_CHECKING:
    import pandas as pd

BYTE = 8  # bits
DERIVED = ("bops", "flops", "ops", "overhead_flops", "note")  # properties of a row that its table shows
TOTALS = ("quantized", "network", "complete")


@dataclass(frozen=True)
class Account:
    """Rows of all layers, and what belongs to none of them; see `Trace` and `LayerCost` for the parts.

    quantized   total (a), the quantized layers alone: codes and scales, their products
    network     total (b), all layers, and every parameter of the network itself: what the papers count
    complete    total (c), with attention's products, normalisations, the quantizers' own parameters and work, and
                cross-timestep connections.  Activation functions, softmax and resampling are not counted.
    """

    layers: tuple[LayerCost, ...]
    parameters: int  # as `audit` counts them: without the quantizers'
    other_bytes: float  # parameters outside the layers: normalisations, tables of embeddings
    loose_macs: int
    attention_macs: int
    norm_flops: int
    connection_flops: int
    connection_bytes: float

    @property
    def quantized(self) -> Total:
        rows = [row for row in self.layers if row.quantized]
        return _total(rows, sum(row.weight_bytes + row.scale_bytes for row in rows))

    @property
    def network(self) -> Total:
        stored = self.other_bytes + sum(row.weight_bytes + row.scale_bytes + row.float_bytes for row in self.layers)
        return _total(self.layers, stored, self.loose_macs)

    @property
    def complete(self) -> Total:
        base = self.network
        return Total(
            bytes=base.bytes + self.connection_bytes + sum(row.quantizer_bytes for row in self.layers),
            macs=base.macs + self.attention_macs,
            bops=base.bops,
            flops=base.flops + self.attention_macs + self.norm_flops + sum(self.overheads().values()),
        )

    def overheads(self) -> dict[str, int]:
        """Operations of the quantizers and connections by kind, over all layers; {} for a float network."""
        kinds: dict[str, int] = {}
        for row in self.layers:
            for kind, cost in row.overheads.items():
                kinds[kind] = kinds.get(kind, 0) + cost
        return kinds | ({"connections": self.connection_flops} if self.connection_flops else {})

    def table(self) -> "pd.DataFrame":
        """One row per layer, then what lies beside them: the columns' sums are total (c)."""
        import pandas as pd  # slow to import, and a count alone needs no table

        rows = [asdict(row) | {name: getattr(row, name) for name in DERIVED} for row in self.layers]
        beside = [
            {"name": "(parameters outside layers)", "float_bytes": self.other_bytes},
            {"name": "(products outside layers)", "macs": self.loose_macs, "flops": self.loose_macs},
            {"name": "(attention)", "macs": self.attention_macs, "flops": self.attention_macs},
            {"name": "(normalisations)", "overhead_flops": self.norm_flops},
            {"name": "(connections)", "overhead_flops": self.connection_flops,
             "quantizer_bytes": self.connection_bytes},
        ]
        rows += [{"kind": "", "note": "", "ops": row.get("flops", 0)} | row for row in beside]
        frame = pd.DataFrame(rows).drop(columns="overheads")
        counts = [c for c in frame if c.endswith(("_bytes", "flops")) or c in ("weights", "macs", "bops")]
        return frame.fillna(dict.fromkeys(counts, 0)).astype(
            {c: "int64" for c in counts if not c.endswith("_bytes")})

    def totals(self) -> "pd.DataFrame":
        """The three totals, one row each: MiB, GMACs, GBOPs, GFLOPs, GOPs."""
        import pandas as pd

        found = {name: getattr(self, name) for name in TOTALS}
        return pd.DataFrame({name: {"MiB": total.mebibytes, "GMACs": total.macs / 1e9, "GBOPs": total.bops / 1e9,
                                    "GFLOPs": total.flops / 1e9, "GOPs": total.ops / 1e9}
                             for name, total in found.items()}).T


def account(
    model: nn.Module, example: Example, float_bits: int = FLOAT_BITS, found: Trace | None = None
) -> Account:
    """The account of any network, float or quantized by a recipe, on any device; "meta" takes no memory.

    Build a large network under `torch.device("meta")`, and quantize it outside.  Numbers are those of one pass on
    `example`: a batch of one for costs per image and step.  What is not quantized is stored at `float_bits`, 32 as in
    the papers, or 16; scales as their rules say.  Buffers count nothing: a batch norm's fold into its parameters.
    `found` is the network's trace on that example where it is at hand: quantizers do not run in it, so that networks
    which differ in them alone have one in common.

    Raises    ValueError for a model without layers, an example it does not run on, a quantized model moved to "meta",
              which leaves the stage of its rules behind, or other `float_bits`.
    """
    if float_bits not in (16, FLOAT_BITS):
        raise ValueError(f"float_bits must be 16 or {FLOAT_BITS}, got {float_bits!r}")
    layers = counted_layers(model)
    _check_stages(layers)
    found = found or trace(model, example)
    size = float_bits / BYTE
    stored: set[int] = set()  # parameters by identity: one that two layers share is stored once
    rows = [_row(name, layer, found.uses[name], size, stored) for name, layer in layers.items()]
    connections = connections_of(model)
    alphas = list(connections.parameters()) if connections is not None else []
    rest = _unseen([p for p in model.parameters() if id(p) not in {id(a) for a in alphas}], stored)
    return Account(
        layers=tuple(rows),
        parameters=audit(model).parameters,
        other_bytes=rest * size,
        loose_macs=found.loose_macs,
        attention_macs=found.attention_macs,
        norm_flops=found.norm_flops,
        connection_flops=MIXING * sum(found.sites.values()),
        connection_bytes=sum(a.numel() for a in alphas) * size,
    )


def summary(accounts: dict[str, Account]) -> "pd.DataFrame":
    """One row per account: MiB and GOPs in each of the three totals, and for (b), (c) the first account over this."""
    import pandas as pd

    rows = {}
    for label, counted in accounts.items():
        totals = {name: getattr(counted, name) for name in TOTALS}
        rows[label] = {f"MiB_{name}": total.mebibytes for name, total in totals.items()}
        rows[label] |= {f"GOPs_{name}": total.ops / 1e9 for name, total in totals.items()}
    frame = pd.DataFrame(rows).T
    for column in [c for c in frame if not c.endswith("_quantized")]:
        frame[f"{column}_ratio"] = frame[column].iloc[0] / frame[column]
    return frame


def _row(name: str, layer: nn.Module, use: Use, size: float, stored: set[int]) -> LayerCost:
    quantized = isinstance(layer, Quantized)
    rule = layer.rule if quantized else None
    weights = _unseen([layer.weight], stored) if quantized else 0  # as codes; 0 where a layer before holds them
    own = _unseen(layer.parameters(recurse=False), stored)
    learned = _unseen([p for m in (layer.activation, layer.outputs) if m is not None for p in m.parameters()],
                      stored) if quantized else 0
    if quantized:
        stored |= {id(p) for p in rule.parameters()}  # learned scales: counted as scale_bits
    return LayerCost(
        name=name, kind=type(layer).__name__.removeprefix("Quant"), shape=tuple(layer.weight.shape),
        output_shape=use.output_shape, weights=layer.weight.numel(), macs=use.macs,
        weight_bits=rule.weight_bits if quantized else FLOAT_BITS,
        product_bits=rule.packed_bits if quantized else FLOAT_BITS,
        activation_bits=layer.activation.activation_bits if quantized and layer.activation else FLOAT_BITS,
        weight_bytes=weights * rule.weight_bits / BYTE if quantized else 0,
        packed_bytes=weights * rule.packed_bits / BYTE if quantized else 0,
        scale_bytes=rule.scale_bits / BYTE if quantized else 0,
        float_bytes=own * size, quantizer_bytes=learned * size, overheads=overheads(layer, use),
    )


def _check_stages(layers: dict[str, nn.Module]) -> None:
    for name, layer in layers.items():
        stage = getattr(layer.rule, "stage", None) if isinstance(layer, Quantized) else None
        if stage is not None and stage.is_meta:
            raise ValueError(f"{name}: the stage of its rule is on the meta device, which holds no values; build the "
                             "model there and quantize it outside `with torch.device('meta')`")


def _unseen(parameters: Iterable[nn.Parameter], stored: set[int]) -> int:
    """Elements of the parameters that were not counted before; from now on they are."""
    new = [p for p in parameters if id(p) not in stored]
    stored |= {id(p) for p in new}
    return sum(p.numel() for p in new)


def _total(rows: Iterable[LayerCost], stored: float, loose: int = 0) -> Total:
    rows = list(rows)
    macs, flops = sum(row.macs for row in rows) + loose, sum(row.flops for row in rows) + loose
    return Total(stored, macs, sum(row.bops for row in rows), flops)
