"""The published networks and tables, counted again, and lines that add up to what is printed."""

import pytest

from onebit.efficiency import (
    account,
    bit_widths,
    bonsai_sizes,
    ebb_share,
    ops_gap,
    parts,
    published_account,
    published_example,
    published_net,
    released,
    size_gap,
    tail_shares,
)
from onebit.efficiency.sizes import binary_rows, first_of_qkv
from onebit.recipes import quantize

NETS = ("ldm-4", "ddpm-cifar10")
BOTH = [(paper, net) for paper in ("binarydm", "bidm") for net in NETS]


# the networks --------------------------------------------------------------------------------------------------------


def test_ldm_4_has_its_published_size_and_operations():
    """BinaryDM and BiDM print 1045.4 MB and 96.0 G for it; attention's products are not among them."""
    found = published_account("ldm-4")
    assert found.parameters == 274_056_163
    assert found.network.mebibytes == pytest.approx(1045.4, abs=0.05)
    assert found.network.macs == found.network.flops == pytest.approx(96.018e9, abs=5e5)
    assert found.complete.macs - found.network.macs == found.attention_macs == 5_182_062_592


def test_attention_of_ldm_4_by_hand():
    """Two products L x L x C per attention: 2 down and 3 up at each of three resolutions, 1 in the middle."""
    levels = {32: 448, 16: 672, 8: 896}
    expected = sum(2 * side**4 * width * 5 for side, width in levels.items()) + 2 * 8**4 * 896
    assert published_account("ldm-4").attention_macs == expected


def test_the_parts_of_ldm_4_by_hand():
    """Methods 7.2, counted from CompVis' configuration by hand."""
    table = parts("ldm-4")
    assert table.parameters.to_dict() == {
        "3x3 convs": 219_018_240, "attention qkv + proj": 32_313_344, "embedding linears": 11_640_832,
        "1x1 skips": 9_884_672, "first and last convolution": 2 * 9 * 3 * 224, "time MLP": 224 * 896 + 896 * 896,
        "biases, norms": 183_459, "total": 274_056_163, "attention matmuls": 0}
    assert table.GMACs.round(3).to_dict() == {
        "3x3 convs": 84.421, "attention qkv + proj": 7.656, "embedding linears": 0.012, "1x1 skips": 3.879,
        "first and last convolution": 0.050, "time MLP": 0.001, "biases, norms": 0, "total": 96.018,
        "attention matmuls": 5.182}
    inside = table.drop(index=["total", "attention matmuls"])
    assert inside.parameters.sum() == table.parameters["total"]
    assert inside.GMACs.sum() == pytest.approx(table.GMACs["total"])


def test_the_cifar_network_has_its_published_parameters():
    found, table = published_account("ddpm-cifar10"), parts("ddpm-cifar10")
    assert found.parameters == 35_746_307
    assert table.parameters["time MLP"] == 128 * 512 + 512 * 512
    assert table.parameters["attention qkv + proj"] == 4 * 256 * 256 * 6  # 2 down, 3 up, 1 in the middle
    assert table.GMACs["first and last convolution"] == pytest.approx(2 * 9 * 3 * 128 * 32**2 / 1e9)
    assert found.attention_macs == 2 * (5 * 256**2 * 256 + 16**2 * 256)


def test_an_unknown_network_or_paper_is_refused():
    with pytest.raises(ValueError, match="unknown published network 'ldm-8'; valid: ldm-4, ddpm-cifar10"):
        published_net("ldm-8")
    for table in (size_gap, ops_gap, released):
        with pytest.raises(ValueError, match="unknown paper 'bonsai'; valid: binarydm, bidm"):
            table("bonsai")


def test_the_place_of_ebb_is_about_15_percent_of_ldm_4():
    """BinaryDM 3.2; by hand: residual blocks and attention of the two highest resolutions on both sides."""
    def res(a, b):  # two norms, two convolutions, the time's linear layer, a skip where widths differ
        return 2 * a + 9 * a * b + b + 896 * b + b + 2 * b + 9 * b * b + b + (a * b + b if a != b else 0)

    def attention(c):
        return 2 * c + 4 * (c * c + c)

    def conv(c):
        return 9 * c * c + c

    inputs = 9 * 3 * 224 + 224 + 2 * res(224, 224) + conv(224) + res(224, 448) + res(448, 448) + 2 * attention(448)
    outputs = res(672 + 448, 448) + res(448 + 448, 448) + res(448 + 224, 448) + 3 * attention(448) + conv(448)
    outputs += res(448 + 224, 224) + 2 * res(224 + 224, 224)
    assert ebb_share() == pytest.approx((inputs + outputs) / 274_056_163, abs=1e-12)
    assert round(100 * ebb_share()) == 15


# from every weight at 1 bit to the printed value ---------------------------------------------------------------------


@pytest.mark.parametrize(("paper", "net"), BOTH)
@pytest.mark.parametrize(("table", "column"), [(size_gap, "MiB"), (ops_gap, "GOPs")])
def test_the_lines_add_up(table, column, paper, net):
    frame = table(paper, net)
    assert frame.total.to_numpy() == pytest.approx(frame[column].cumsum().to_numpy())
    if column == "GOPs":
        stated = frame.dropna(subset="GBOPs")
        inexact = stated.GBOPs / 64 + stated.GFLOPs - stated.GOPs
        assert inexact[stated.basis != "difference"].abs().max() < 1e-9
        assert inexact.abs().max() < 0.005  # the parts that BiDM prints give 1.819 and not 1.82
    bases = list(dict.fromkeys(frame.basis))
    assert bases == (["rules", "code", "difference", "printed"] if net == "ldm-4" else ["rules", "code"])
    assert frame.line.is_unique


PRINTED = {("binarydm", "MiB"): (35.8, 29.2), ("bidm", "MiB"): (37.3, 28.0),
           ("binarydm", "GOPs"): (6.3, 15.2), ("bidm", "GOPs"): (1.82, 52.7)}


@pytest.mark.parametrize("key", PRINTED)
def test_the_last_line_is_what_the_paper_prints(key):
    paper, column = key
    value, ratio = PRINTED[key]
    frame = (size_gap if column == "MiB" else ops_gap)(paper)
    last, unexplained = frame.iloc[-1], frame[frame.line == "unexplained"].iloc[0]
    assert last.line == "as printed" and last.total == pytest.approx(value)
    assert last.ratio == pytest.approx(ratio, abs=0.06)  # the papers divide rounded numbers
    assert unexplained[column] == pytest.approx(value - frame[frame.basis == "rules"][column].sum())


def test_bidm_prints_its_size_by_its_rules_and_its_one_bit_products_but_not_its_float_ones():
    """37.3 MB and 92.1 GBOPs are found again to the last digit; 0.38 GFLOPs are 3.93 by the same layers."""
    rest = size_gap("bidm").set_index("line").MiB["unexplained"]
    ops = ops_gap("bidm")
    rules = ops[ops.basis == "rules"]
    assert abs(rest) < 0.05
    assert rules.GBOPs.sum() == pytest.approx(92.088, abs=5e-4) and round(rules.GBOPs.sum(), 1) == 92.1
    assert rules.GFLOPs.sum() == pytest.approx(3.930, abs=5e-4)
    assert rules.ratio.iloc[-1] == pytest.approx(17.9, abs=0.05)  # methods 5.2 row 2
    line = ops.set_index("line")
    assert line.GFLOPs["unexplained"] == pytest.approx(0.38 - 3.930, abs=5e-4)
    assert line.ratio["a float 1x1 shortcut where a layer's channels differ"] == pytest.approx(10.4, abs=0.05)
    assert line.ratio["attention's products in float"] == pytest.approx(7.0, abs=0.05)
    assert size_gap("bidm").set_index("line").total["a float 1x1 shortcut where a layer's channels differ"] == \
        pytest.approx(111.5, abs=0.05)


@pytest.mark.parametrize(("paper", "recipe"), [("binarydm", "binarydm-base-w1a4"),
                                               ("bidm", "bidm-w1a1 keep=time_embedding*|*conv_shortcut")])
@pytest.mark.parametrize("net", NETS)
def test_the_rules_lines_give_the_account_of_the_recipe(paper, recipe, net):
    """Sums over parts of the float network against the quantized network's own layers."""
    found = published_account(net, recipe).network
    ops, sizes = ops_gap(paper, net), size_gap(paper, net)
    assert ops[ops.basis == "rules"].GOPs.sum() == pytest.approx(found.ops / 1e9)
    assert ops[ops.basis == "rules"].GBOPs.sum() == pytest.approx(found.bops / 1e9)
    expected = found.mebibytes
    if paper == "bidm":  # the paper's own size has the skips at one bit
        expected = published_account(net, "bidm-w1a1").network.mebibytes
    assert sizes[sizes.basis == "rules"].MiB.sum() == pytest.approx(expected)


@pytest.mark.parametrize("net", NETS)
def test_the_code_lines_of_binarydm_give_the_account_of_its_repository(net):
    found, frame = released("binarydm", net), ops_gap("binarydm", net)
    own = frame[frame.basis.isin(["rules", "code"])]
    assert own.GOPs.sum() == pytest.approx(found.complete.ops / 1e9)
    sizes = size_gap("binarydm", net)
    scales = sizes.set_index("line").MiB["scales in float32"]  # the recipe's are 16 bits
    steps = sum(row.quantizer_bytes for row in found.layers) / 2**20
    own = sizes[sizes.basis.isin(["rules", "code"])]
    assert own.MiB.sum() - scales == pytest.approx(found.complete.mebibytes - steps)


@pytest.mark.parametrize("net", NETS)
def test_the_code_lines_of_bidm_give_the_account_of_its_repository(net):
    """Our recipe puts shortcuts around linear layers too and thresholds before keys and values; the code does not."""
    found, frame = released("bidm", net), ops_gap("bidm", net)
    binary = {row.name for row in binary_rows(net)}
    ours = sum(row.overheads.get("shortcut", 0) for row in found.layers if row.kind == "Linear")
    ours += sum(row.overheads.get("quantizing", 0) for row in found.layers if row.name in binary
                and not first_of_qkv(row))
    own = frame[frame.basis.isin(["rules", "code"])]
    assert own.GOPs.sum() == pytest.approx((found.complete.ops - ours) / 1e9)
    quantizers = sum(row.quantizer_bytes for row in found.layers if row.kind == "Conv2d")
    lines = size_gap(paper="bidm", net=net).set_index("line").MiB
    convolutions = [row for row in found.layers if row.kind == "Conv2d" and row.name in binary]
    shared = lines["a float 1x1 shortcut where a layer's channels differ"] + lines[
        "kernels and biases of the scale maps, shortcut coefficients"]
    thresholds = 4 * sum(row.shape[1] for row in convolutions)
    biases = 4 * len(convolutions)  # of the tiny convolutions, which our recipe leaves out
    assert shared * 2**20 == pytest.approx(quantizers - thresholds + biases)


def test_connections_of_bidm_sit_on_the_last_eight_output_blocks():
    """Elements of CompVis' output blocks 4-11 of LDM-4, twice each."""
    elements = 672 * 16**2 + 672 * 32**2 + 2 * 448 * 32**2 + 448 * 64**2 + 3 * 224 * 64**2
    assert released("bidm").connection_flops == 2 * elements


# bit widths ----------------------------------------------------------------------------------------------------------


def test_bit_widths_leave_a_constant_quarter_of_a_gigaoperation():
    """Methods 5.3: what BinaryDM prints is 0.25 G above the count at every width, and its W1 size 1.5 MB below."""
    frame = bit_widths()
    assert frame.GOPs_rest[["W4A4", "W2A4", "W1A4"]].tolist() == pytest.approx([0.25] * 3, abs=0.05)  # one digit
    assert frame.MiB_rest[["W32A32", "W8A8", "W4A4", "W2A4"]].abs().max() < 0.1
    assert frame.MiB_rest["W1A4"] == pytest.approx(-1.5, abs=0.1)
    per_bit = (274_056_163 - 183_459 - 12_096 - 1_003_520) / 8 / 2**20  # inner weights
    assert frame.MiB["W2A4"] - frame.MiB["W1A4"] == pytest.approx(per_bit)
    assert frame.MiB["W8A8"] - frame.MiB["W4A4"] == pytest.approx(4 * per_bit)
    assert frame.times_fewer["W1A4"] == pytest.approx(15.87, abs=0.01)
    assert frame.times_fewer["W1A32"] == pytest.approx(2, abs=0.01)
    assert frame.times_smaller["W1A4"] == pytest.approx(28.07, abs=0.01)


def test_bit_widths_of_another_network_have_nothing_printed():
    frame = bit_widths("ddpm-cifar10")
    assert frame[["MiB_printed", "GOPs_printed", "MiB_rest", "GOPs_rest"]].isna().all(axis=None)
    assert frame.MiB["W32A32"] == pytest.approx(4 * 35_746_307 / 2**20) and frame.times_smaller["W32A32"] == 1
    assert frame.GOPs["W1A4"] == pytest.approx(0.3853, abs=5e-5)


# Bonsai --------------------------------------------------------------------------------------------------------------


def test_the_tail_of_bonsai_by_hand():
    """Methods 5.3: 5.03 % by the parts list; the printed averages mean 5.38 and 5.60 %."""
    frame = tail_shares()
    assert frame.tail_from_parts.tolist() == pytest.approx([0.0503] * 2, abs=5e-5)
    assert frame.tail_from_average["binary"] == pytest.approx((1.925 - 1.125) / (16 - 1.125))
    assert frame.tail_from_average["ternary"] == pytest.approx((2.51 - 1.70996) / (16 - 1.70996), abs=1e-6)
    rebuilt = (1 - frame.tail_from_average) * frame.bits + 16 * frame.tail_from_average
    assert rebuilt.tolist() == pytest.approx([1.925, 2.51])


def test_the_sizes_of_bonsai_by_hand():
    frame = bonsai_sizes()
    assert frame.GB_parts["binary", "ideal"] == pytest.approx(0.4601 + 0.0575 + 0.3903, abs=5e-5)
    assert frame.GB_parts["ternary", "ideal"] == pytest.approx(1.177, abs=5e-4)
    ideal = frame.xs("ideal", level="form")
    assert (ideal.GB_average - ideal.GB_printed).abs().max() < 0.01  # averages and sizes printed agree
    mlx = frame.xs("MLX", level="form")
    assert mlx.unexplained.abs().max() < 0.005  # to the last digit, with a bias beside every scale
    cuda = frame.xs("CUDA", level="form")
    assert cuda[["bits", "GB_parts", "unexplained", "times_smaller"]].isna().all(axis=None)
    assert cuda.bits_needed.tolist() == pytest.approx([1.5, 2.5], abs=0.01)


# a real device -------------------------------------------------------------------------------------------------------


def test_a_trace_that_recipes_share_counts_what_their_own_would():
    """With connections, whose sites are part of it, and scale maps, which are made from sizes in it."""
    model, example = published_net("ddpm-cifar10"), published_example("ddpm-cifar10")
    quantize(model, "bidm-w1a1", example)
    found = published_account("ddpm-cifar10", "bidm-w1a1")
    assert found == account(model, example) and found.connection_flops > 0


def test_a_published_network_can_be_built_for_real_and_counts_the_same():
    model = published_net("ddpm-cifar10", device="cpu")
    quantize(model, "binarydm-base-w1a4")
    found = account(model, published_example("ddpm-cifar10", device="cpu"))
    assert found == published_account("ddpm-cifar10", "binarydm-base-w1a4")
