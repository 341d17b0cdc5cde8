"""What an account leaves alone, and what it refuses."""

import pytest
import torch
from torch import nn

from onebit import nets
from onebit.efficiency import account
from onebit.layers import quantized_layers
from onebit.recipes import Recipe, quantize


def chain():
    """Three convolutions of one width."""
    return nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))



def test_the_model_is_left_as_it_was():
    """An LSQ rule would take its step from the example, a batch norm its statistics, and a frozen norm would thaw."""
    torch.manual_seed(0)
    model = nets.build("unet", 8)
    quantize(model, "binarydm-w1a4")
    model.train()
    model.mid.norm1.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = {m: len(m._forward_hooks) for m in model.modules()}
    account(model, (torch.randn(2, 1, 28, 28), torch.tensor([1, 500])))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {m: len(m._forward_hooks) for m in model.modules()} == hooks
    assert model.training and model.mid.norm2.training and not model.mid.norm1.training
    assert not any("forward" in layer.__dict__ for layer in quantized_layers(model).values())
    assert not any(layer.activation.initialised for layer in quantized_layers(model).values())


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="BatchNorm2d has no convolution and no Linear layer"):
        account(nn.BatchNorm2d(3), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(("example", "said"), [
    (torch.zeros(1, 3, 28, 28), r"float32 \(1, 3, 28, 28\) on cpu"),
    ((), "nothing"),
    ({"image": torch.zeros(1, 4, 28, 28)}, "unexpected keyword"),
    (None, "None"),
])
def test_an_example_that_does_not_fit_is_refused_and_the_model_survives(example, said):
    model = chain()
    quantize(model, "strict-1bit")
    with pytest.raises(ValueError, match=f"Sequential does not run on the example.*{said}.*give it as a tensor"):
        account(model, example)
    assert model.training and "forward" not in model[1].__dict__ and not model[1]._forward_hooks
    assert account(model, torch.zeros(1, 4, 28, 28)).network.macs == 3 * 28 * 28 * 144


@pytest.mark.parametrize("bits", [8, 0, None, "16"])
def test_other_float_bits_are_refused(bits):
    with pytest.raises(ValueError, match="float_bits must be 16 or 32"):
        account(nn.Linear(2, 2), torch.zeros(2), float_bits=bits)


def test_a_quantized_model_moved_to_meta_says_that_its_stage_is_lost():
    model = chain()
    quantize(model, Recipe(weights="ebb"))
    with pytest.raises(ValueError, match=r"0: the stage of its rule is on the meta device.*quantize it outside"):
        account(model.to("meta"), torch.zeros(1, 4, 6, 6, device="meta"))
