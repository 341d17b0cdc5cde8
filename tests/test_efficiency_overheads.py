"""Work beside the products, by hand, and sizes of the study's own network (source 000 at width 64)."""

import pytest
import torch
from torch import nn

from onebit import nets
from onebit.connections import attach
from onebit.efficiency import account
from onebit.recipes import Recipe, quantize

IN, OUT, SIDE = 4, 6, 8  # of the layer in the middle


def middle(recipe, layer=None, ends=(IN, OUT), shape=(SIDE, SIDE)):
    """The row of a layer between two 1x1 convolutions that stay float."""
    model = nn.Sequential(nn.Conv2d(1, ends[0], 1), layer or nn.Conv2d(IN, OUT, 3, padding=1), nn.Conv2d(ends[1], 1, 1))
    quantize(model, recipe, (torch.zeros(1, 1, *shape),))
    found = account(model, torch.zeros(1, 1, *shape))
    assert found.overheads() == found.layers[1].overheads
    return found.layers[1]


def of(weights="xnor", activations="none", outputs=()):
    return Recipe(weights=weights, activations=activations, outputs=outputs, ends="float")


X, Y = IN * SIDE**2, OUT * SIDE**2  # elements of input and output


@pytest.mark.parametrize(("recipe", "work"), [
    (of("xnor"), {"weight scale": Y}),
    (of("sign"), {}),
    (of("ebb"), {"weight scale": 2 * Y}),
    (of("dorefa"), {"weight scale": Y}),  # one scale for the layer is one product per output too
    (of("group-binary:16"), {"weight scale": 3 * Y}),  # 36 weights per output: three groups
    (of("lsq:2", "lsq:4"), {"quantizing": X, "weight scale": Y}),
    (of("sign", "absmax"), {"quantizing": 2 * X}),
    (of("sign", "insta"), {"quantizing": 5 * X}),
    (of("sign", "insta:4"), {"quantizing": 6 * X}),
    (of("xnor", "xnor"), {"channel mean": X, "kernel": 9 * SIDE**2, "map": Y, "weight scale": Y}),
    (of("xnor", "bidm"), {"quantizing": X, "channel mean": X, "kernel": 9 * SIDE**2, "map": Y, "weight scale": Y}),
    (of("xnor", "bidm:threshold=False"), {"channel mean": X, "kernel": 9 * SIDE**2, "map": Y, "weight scale": Y}),
    (of("sign", "xnor++"), {"map": Y}),
    (of("sign", "sign", ("shortcut",)), {}),  # channels differ: there is none
    (of("sign", "sign", ("shortcut:convolve=True",)), {"shortcut": IN * Y}),
    (of("sign", "sign", ("rprelu",)), {"prelu": 3 * Y}),
])
def test_work_beside_a_convolution_by_hand(recipe, work):
    assert middle(recipe).overheads == work


def test_work_where_sizes_change_by_hand():
    """A strided layer's shortcut averages its input first; a transposed one slides the kernel over its inputs."""
    small = middle(of("sign", "xnor", ("shortcut",)), nn.Conv2d(4, 4, 3, stride=2, padding=1), (4, 4))
    x, y = 4 * 64, 4 * 16
    assert small.overheads == {"channel mean": x, "kernel": 9 * 16, "map": y, "shortcut": x + y}
    large = middle(of("sign", "xnor", ("shortcut",)), nn.ConvTranspose2d(4, 4, 2, stride=2), (4, 4))
    x, y = 4 * 64, 4 * 256
    assert large.overheads == {"channel mean": x, "kernel": 4 * 64, "map": y, "shortcut": y}


def test_work_beside_a_linear_layer_by_hand():
    """XNOR-Net scales every token by its mean magnitude; BiDM's released linear layers have no map."""
    def row(activations):
        model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 6), nn.Linear(6, 1))
        quantize(model, of("xnor", activations))
        return account(model, torch.zeros(5, 2)).layers[1].overheads

    assert row("xnor") == {"channel mean": 20, "map": 30, "weight scale": 30}
    assert row("bidm") == {"quantizing": 20, "weight scale": 30}
    assert row("tdq:4") == {"quantizing": 20, "weight scale": 30}


def test_connections_cost_two_operations_per_element_of_a_site():
    model = nets.build("unet", 8)
    plain = account(model, (torch.zeros(1, 1, 28, 28), torch.zeros(1)))
    attach(model, ("up.[01]",))
    found = account(model, (torch.zeros(1, 1, 28, 28), torch.zeros(1)))
    elements = 32 * 7 * 7 + 16 * 14 * 14
    assert found.connection_flops == 2 * elements and found.connection_bytes == 4 * 100 * 2
    assert found.complete.ops - plain.complete.ops == 2 * elements and found.network == plain.network


def test_connections_inside_a_wrapper_count_and_a_layer_of_that_name_is_none():
    alone = nets.build("unet", 8)
    example = torch.zeros(1, 1, 28, 28), torch.zeros(1)
    attach(alone, ("up.[01]",))
    want, found = account(alone, example), account(nn.DataParallel(alone), example)
    assert (found.connection_flops, found.connection_bytes) == (want.connection_flops, want.connection_bytes)
    assert found.complete == want.complete

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.connections = nn.Linear(3, 3)

        def forward(self, x):
            return self.connections(x)

    found = account(Own(), torch.zeros(1, 3))
    assert found.connection_bytes == 0 and found.network.bytes == 4 * 12


# source 000 at width 64, from its layer sizes (methods 7.3) ----------------------------------------------------------

BINARY = 368_640 + 737_280 + 184_320  # down conv1, down conv2, up conv2
STRICT = BINARY + 737_280 + 1_310_720 + 327_680  # and up conv1, the strided and the transposed convolutions
WHOLE = 3_690_721


def resunet(recipe):
    model = nets.build("resunet", 64)
    quantize(model, recipe)
    return account(model, (torch.zeros(1, 1, 28, 28), torch.zeros(1)))


def test_sizes_of_the_published_network_by_hand():
    published, strict = resunet("published-1bit"), resunet("strict-1bit")
    assert published.quantized.bytes == BINARY / 8 + 2 * 960  # 960 channels
    assert published.network.bytes == BINARY / 8 + 2 * 960 + 4 * (WHOLE - 960 - BINARY)  # its 960 biases are gone
    channels = 3 * (128 + 256) + 3 * (128 + 64)  # two 3x3 and one 4x4 convolution per block
    assert strict.quantized.bytes == STRICT / 8 + 2 * channels
    assert strict.network.bytes == 560_900 == STRICT / 8 + 2 * channels + 4 * (WHOLE - STRICT)
    assert strict.complete.bytes == strict.network.bytes  # the rule learns nothing
    assert 4 * WHOLE / strict.network.bytes == pytest.approx(26.3, abs=0.05)
    assert 4 * WHOLE / published.network.bytes == pytest.approx(1.51, abs=0.005)


def test_operations_of_the_published_network_by_hand():
    down = 784 * 9 * (64 * 128 + 128**2) + 196 * 16 * 128**2 + 196 * 9 * (128 * 256 + 256**2) + 49 * 16 * 256**2
    up = 49 * 9 * (512 * 128 + 128**2) + 49 * 16 * 128**2 + 196 * 9 * (256 * 64 + 64**2) + 196 * 16 * 64**2
    ends = 784 * (9 * 64 + 64)
    time = 32 * 32 + 32 * (128 + 256 + 128 + 64)
    found = resunet("strict-1bit")
    assert found.network.macs == down + up + ends + time
    assert found.quantized.macs == down + up and found.quantized.ops == (down + up) / 2  # b_a = 32 (no saving claimed)
    assert found.network.flops == ends + time
    assert {row.note for row in found.layers if row.quantized} == {"no multiplication saving claimed"}
    norms = 784 * 2 * 128 + 196 * 2 * 256 + 49 * 2 * 128 + 196 * 2 * 64
    assert found.norm_flops == norms  # batch norm: one multiply-add per element
    scales = 784 * 2 * 128 + 196 * 128 + 196 * 2 * 256 + 49 * 256 + 49 * 2 * 128 + 196 * 128 + 196 * 2 * 64 + 784 * 64
    assert found.complete.flops == ends + time + norms + scales
