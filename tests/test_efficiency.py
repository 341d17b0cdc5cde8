"""The account of a network: products and operations by hand, against torch's own counter, and its three totals."""

import math

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18, vit_b_16

from onebit import nets
from onebit.audit import audit
from onebit.efficiency import account, summary
from onebit.recipes import Recipe, quantize

IMAGE = (torch.zeros(1, 1, 28, 28), torch.zeros(1))


def meta(make, *args, **kwargs):
    with torch.device("meta"):
        return make(*args, **kwargs)


def chain(channels=4):
    """Three convolutions of one width, so that a recipe with float ends leaves the one in the middle."""
    return nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)))


def counted(model, *example):
    """Multiply-accumulates by torch's counter, attention's two products as they are."""
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), \
            FlopCounterMode(display=False) as counter:
        model.eval()(*example)
    return counter.get_total_flops() // 2


# products of one layer, by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "shape", "macs"), [
    (nn.Conv2d(2, 5, 3, stride=2, padding=1), (1, 2, 8, 8), 4 * 4 * 5 * 2 * 9),  # 4 x 4 outputs
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), (1, 4, 8, 8), 8 * 8 * 6 * 2 * 9),  # each output sees 2 inputs
    (nn.Conv2d(3, 5, (1, 3)), (2, 3, 4, 6), 2 * 4 * 4 * 5 * 3 * 3),  # two images, 4 x 4 outputs
    (nn.Conv2d(3, 5, 3, dilation=2), (3, 7, 7), 3 * 3 * 5 * 3 * 9),  # without a batch axis
    (nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1), (1, 4, 5, 5), 5 * 5 * 4 * 3 * 16),  # every *input* is spread
    (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (1, 4, 5, 5), 5 * 5 * 4 * 3 * 4),
    (nn.Linear(7, 11), (7,), 77),
    (nn.Linear(7, 11, bias=False), (2, 5, 7), 10 * 77),
    (nn.Conv1d(4, 6, 3), (1, 4, 10), 8 * 6 * 4 * 3),
    (nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3), 8 * 3 * 2 * 8),
])
def test_products_of_a_layer_by_hand_and_by_torchs_counter(layer, shape, macs):
    found = account(layer, torch.zeros(shape))
    (row,) = found.layers
    assert row.macs == found.network.macs == macs
    assert (row.bops, row.flops, row.ops, row.note) == (0, macs, macs, "")  # a float layer: the papers' FLOPs
    assert counted(layer, torch.zeros(shape)) == macs
    assert (found.loose_macs, found.attention_macs) == (0, 0)
    assert row.float_bytes == found.network.bytes == 4 * sum(p.numel() for p in layer.parameters())


def test_a_layer_that_runs_twice_counts_twice_and_is_stored_once():
    layer = nn.Linear(3, 3)
    found = account(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(2, 3))
    assert [row.macs for row in found.layers] == [2 * 2 * 9]
    assert found.complete.bytes == 4 * 12


def test_a_weight_that_two_layers_share_is_stored_once():
    pair = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    pair[1].weight = pair[0].weight
    assert account(pair, torch.zeros(1, 5)).complete.bytes == 4 * (25 + 5 + 5)


def test_a_quantized_layer_may_be_given_its_input_by_name():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 5)

        def forward(self, x):
            return self.layer(input=x)

    model = ByName()
    quantize(model, "weights=xnor")
    assert account(model, torch.zeros(2, 3)).network.macs == 30


def test_a_layer_that_does_not_run_costs_nothing_but_its_size():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(9, 9)

        def forward(self, x):
            return self.used(x)

    found = account(Idle(), torch.zeros(1, 2))
    assert [row.macs for row in found.layers] == [4, 0] and found.network.bytes == 4 * (6 + 90)


class Attention(nn.Module):
    """Queries, keys and values of `dim`, all from one Linear, over `heads`."""

    def __init__(self, dim, heads):
        super().__init__()
        self.qkv, self.heads = nn.Linear(dim, 3 * dim, bias=False), heads

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3 * self.heads, -1)).transpose(1, 2).chunk(3, 1)  # (B, heads, L, dim/heads)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_two_products_beside_the_layers_by_hand(device):
    """heads x L x L x d for queries by keys, the same again for values; only total (c) has them."""
    found = account(Attention(12, 3).to(device), torch.zeros(2, 5, 12, device=device))
    attention = 2 * 2 * 3 * 5 * 5 * 4  # images, products, heads, L, L, d
    assert found.attention_macs == attention and found.loose_macs == 0
    assert found.network.ops == 2 * 5 * 12 * 36 and found.complete.ops == 2 * 5 * 12 * 36 + attention


def test_torchs_multi_head_attention_is_counted_though_it_calls_no_layer():
    """Its in-projection is no layer and its out-projection is never called: their products belong to (b) even so."""
    model, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.zeros(1, 6, 8)
    found = account(model, {"query": x, "key": x, "value": x})
    assert found.loose_macs == 6 * 8 * 24 + 6 * 8 * 8 and found.attention_macs == 2 * 6 * 6 * 8
    assert found.network.macs == found.loose_macs
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(("norm", "shape", "per_element"), [
    (nn.BatchNorm2d(4), (1, 4, 3, 3), 1),
    (nn.GroupNorm(2, 4), (1, 4, 3, 3), 4),
    (nn.GroupNorm(2, 4, affine=False), (1, 4, 3, 3), 3),
    (nn.LayerNorm(4), (2, 4), 4),
    (nn.RMSNorm(4), (2, 4), 3),
])
def test_normalisations_count_in_the_complete_total_alone(norm, shape, per_element):
    first = nn.Conv2d(shape[1], shape[1], 1) if len(shape) == 4 else nn.Linear(shape[1], shape[1])
    found = account(nn.Sequential(first, norm), torch.zeros(shape))
    assert found.norm_flops == per_element * math.prod(shape)
    assert found.complete.ops - found.network.ops == found.norm_flops
    assert found.other_bytes == 4 * sum(p.numel() for p in norm.parameters())


# equations 16 and 17, by hand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "activations", "bits", "ops_per_mac", "note"), [
    ("xnor", "xnor", (1, 1), 1 / 64, False),
    ("xnor", "lsq:4", (1, 4), 4 / 64, False),
    ("lsq:2", "lsq:4", (2, 4), 8 / 64, False),
    ("lsq:8", "lsq:8", (8, 8), 1, False),
    ("ebb", "lsq:8", (2, 8), 16 / 64, False),  # stage 1: two bases
    ("ebb:transition=0", "lsq:8", (1, 8), 8 / 64, False),
    ("residual:3", "none", (3, 32), 1, True),  # 3 x 32 > 64: no more than a float product
    ("xnor", "none", (1, 32), 0.5, True),  # W1A32: half a float operation by eq. 17, and a word of warning
    ("ternary", "lsq:4", (2, 4), 8 / 64, False),  # log2 3 bits to store, two to multiply
])
def test_equations_16_and_17_by_hand(weights, activations, bits, ops_per_mac, note):
    model = chain()
    quantize(model, Recipe(weights=weights, activations=activations, ends="float"))
    found = account(model, torch.zeros(1, 4, 6, 6))
    middle, macs = found.layers[1], 6 * 6 * 4 * 4 * 9
    assert (middle.macs, middle.product_bits, middle.activation_bits) == (macs, *bits)
    if math.prod(bits) <= 64:
        assert (middle.bops, middle.flops) == (macs * math.prod(bits), 0)  # eq. 16
    assert found.quantized.ops == middle.ops == middle.bops / 64 + middle.flops == macs * ops_per_mac  # eq. 17
    assert found.network.ops == 2 * macs + macs * ops_per_mac
    assert bool(middle.note) is note and (not note or middle.note == "no multiplication saving claimed")


def test_bytes_of_a_layer_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 2, 1))
    quantize(model, Recipe(weights="group-ternary:16", activations="bidm", ends="float"))
    row = account(model, torch.zeros(1, 3, 5, 5)).layers[1]
    assert row.weight_bytes == pytest.approx(6 * 36 * math.log2(3) / 8) and row.packed_bytes == 6 * 36 * 2 / 8
    assert row.scale_bytes == 2 * 6 * 3  # 36 weights per channel: groups of 16, 16 and 4
    assert row.float_bytes == 4 * 6  # the bias
    assert row.quantizer_bytes == 4 * (4 + 9)  # thresholds of 4 channels, a 3 x 3 kernel
    half = account(model, torch.zeros(1, 3, 5, 5), float_bits=16).layers[1]
    assert (half.float_bytes, half.quantizer_bytes, half.scale_bytes) == (12, 26, row.scale_bytes)


def test_learned_scales_are_counted_once_as_scales():
    model = chain()
    quantize(model, Recipe(weights="learned-scale"))
    found = account(model, torch.zeros(1, 4, 3, 3))
    assert found.complete.bytes == found.network.bytes == 3 * (144 / 8 + 2 * 4 + 4 * 4)


# agreement -----------------------------------------------------------------------------------------------------------


def small_unet():
    return UNet2DModel(sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
                       norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                       up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8)


@pytest.mark.parametrize(("make", "example"), [
    (lambda: nets.build("resunet", 8), IMAGE),
    (lambda: nets.build("unet", 8, norm="group", attention=True), IMAGE),
    (small_unet, (torch.zeros(1, 1, 16, 16), torch.zeros(1))),
    (resnet18, (torch.zeros(2, 3, 32, 32),)),
    (vit_b_16, (torch.zeros(1, 3, 224, 224),)),
])
def test_products_agree_with_torchs_counter_and_sizes_with_the_parameters(make, example):
    model = meta(make)
    example = tuple(x.to("meta") for x in example)
    found = account(model, example)
    assert found.network.macs + found.attention_macs == found.complete.macs == counted(model, *example)
    parameters = sum(p.numel() for p in model.parameters())
    assert found.parameters == parameters and found.network.bytes == found.complete.bytes == 4 * parameters
    assert found.quantized.bytes == found.quantized.ops == 0 and found.overheads() == {}


RECIPES = ("fp16", "strict-1bit", "lsq-w2a8", "binarydm-w1a4", "bidm-w1a1", "xnorpp-w1a1", "reactnet-w1a1", "tdq-w1a4",
           "insta-w1a4", "bonsai-ternary-g128", "residual2-w1a32")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("make", [lambda: nets.build("unet", 8, attention=True), small_unet])
def test_the_meta_device_gives_the_same_account_and_totals_grow(make, recipe):
    size = 28 if make().__class__.__name__ == "UNet" else 16
    example = torch.zeros(1, 1, size, size), torch.zeros(1)
    accounts = []
    for device in ("cpu", "meta"):
        model, shown = make().to(device), tuple(x.to(device) for x in example)
        quantize(model, recipe, shown)
        accounts.append(account(model, shown))
    assert accounts[0] == accounts[1]
    a, b, c = accounts[0].quantized, accounts[0].network, accounts[0].complete
    assert a.bytes < b.bytes <= c.bytes and a.ops < b.ops < c.ops and a.macs < b.macs < c.macs
    assert (b.bytes < c.bytes) is (recipe in {"binarydm-w1a4", "bidm-w1a1", "xnorpp-w1a1", "reactnet-w1a1", "tdq-w1a4",
                                              "insta-w1a4", "lsq-w2a8"})  # rules that learn more than scales


def test_the_table_adds_up_to_the_complete_total():
    model = nets.build("unet", 8, attention=True)
    quantize(model, "bidm-w1a1")
    found = account(model, IMAGE)
    table, c = found.table(), found.complete
    assert list(table.name[:2]) == ["time_mlp.0", "time_mlp.2"] and table.name.iloc[-1] == "(connections)"
    stored = table[["weight_bytes", "scale_bytes", "float_bytes", "quantizer_bytes"]].to_numpy().sum()
    assert stored == pytest.approx(c.bytes) and table.macs.sum() == c.macs and table.bops.sum() == c.bops
    assert table.flops.sum() + table.overhead_flops.sum() == c.flops
    assert table.ops.sum() + table.overhead_flops.sum() == pytest.approx(c.ops)
    totals = found.totals()
    assert list(totals.index) == ["quantized", "network", "complete"]
    assert totals.loc["complete"].tolist() == pytest.approx(
        [c.bytes / 2**20, c.macs / 1e9, c.bops / 1e9, c.flops / 1e9, (c.bops / 64 + c.flops) / 1e9])


def test_a_summary_has_one_row_per_account_and_the_first_over_each():
    accounts = {}
    for recipe in ("fp16", "strict-1bit"):
        model = nets.build("resunet", 8)
        quantize(model, recipe)
        accounts[recipe] = account(model, IMAGE)
    frame = summary(accounts)
    assert frame.MiB_network_ratio["fp16"] == 1 and frame.GOPs_quantized["fp16"] == 0
    expected = accounts["fp16"].network.bytes / accounts["strict-1bit"].network.bytes
    assert frame.MiB_network_ratio["strict-1bit"] == pytest.approx(expected) and expected > 5


@pytest.mark.parametrize("recipe", ["fp16", "published-1bit", "binarydm-w1a4", "bonsai-ternary-g128"])
def test_sizes_in_half_precision_are_those_of_the_audit(recipe):
    model = nets.build("resunet", 8)
    report = quantize(model, recipe)
    assert account(model, IMAGE, float_bits=16).network.bytes == pytest.approx(report.stored_bytes)
    assert report == audit(model)


class Aliased(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.last = self.blocks[1]

    def forward(self, x):
        return self.last(self.blocks[0](x))


class Shared(nn.Module):
    """One time layer in two blocks."""

    def __init__(self):
        super().__init__()
        time = nn.Linear(8, 8)
        self.a, self.b = nn.Sequential(nn.Linear(8, 8), time), nn.Sequential(nn.Linear(8, 8), time)

    def forward(self, x):
        return self.b(self.a(x))


@pytest.mark.parametrize(("net", "macs"), [(Aliased, 128), (Shared, 256)])
def test_a_layer_under_two_names_is_counted_once_a_call(net, macs):
    found = account(net(), torch.randn(1, 8))
    assert (found.network.macs, found.loose_macs) == (macs, 0)


def test_a_tied_weight_is_audited_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = Tied()
    found = quantize(model, "weights=xnor")
    assert (found.parameters, found.binary_weights, found.binary_share) == (4096, 4096, 1.0)
    assert found.stored_bytes == 4096 / 8 + 2 * 2 * 64 == account(model, torch.randn(1, 64)).network.bytes
    assert found.bits_per_weight == 1 + 2 * 16 * 64 / 4096
    assert found.table().shared.tolist() == [False, True] and "shared" not in audit(chain()).table()


def test_weights_that_a_parametrization_makes_are_shared_by_nobody():
    """They are gone after each look, and the next may lie where the last lay."""
    model = nn.Sequential(*(weight_norm(nn.Linear(8, 8)) for _ in range(9)), nn.Linear(8, 8))
    assert not [row.name for row in audit(model).layers if row.shared]
