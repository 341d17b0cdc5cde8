"""Drop-in proof: networks we did not write are quantized, learn one step, are saved, loaded, and draw a sample."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from safetensors.torch import load_file, save_file

from onebit.layers import quantized_layers
from onebit.post_training import fit
from onebit.recipes import quantize, recipe

RECIPES = ("strict-1bit", "binarydm-w1a4", "bidm-w1a1", "tdq-w1a4", "bonsai-ternary-g128", "reactnet-w1a1")


def unconditional():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )


def conditional():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, attention_head_dim=8,
    )


def predict(model, x, t):
    text = {"encoder_hidden_states": torch.ones(len(x), 3, 12)} if isinstance(model, UNet2DConditionModel) else {}
    return model(x, t, **text).sample


@pytest.mark.parametrize("make", [unconditional, conditional])
@pytest.mark.parametrize("name", RECIPES)
def test_a_diffusers_unet_is_quantized_learns_and_comes_back(make, name, tmp_path):
    model = make()
    parameters = sum(p.numel() for p in model.parameters())
    report = quantize(model, name)
    low = [row for row in report.layers if row.weight_bits < 3]
    assert report.parameters == parameters and sum(row.weights for row in low) > 0.7 * parameters
    assert any("to_q" in row.name for row in low)  # attention's projections too
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    before = {k: layer.weight.detach().clone() for k, layer in quantized_layers(model).items()}
    x, t = torch.randn(3, 1, 16, 16), torch.tensor([1, 400, 999])
    predict(model.train(), x, t).square().mean().backward()
    optimizer.step()
    moved = [k for k, layer in quantized_layers(model).items() if not torch.equal(layer.weight, before[k])]
    still = set(before) - set(moved)
    # with one pixel of text repeated three times, softmax is flat: keys and queries of cross-attention get no gradient
    assert not [k for k in still if "attn2.to_q" not in k and "attn2.to_k" not in k]
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "m.safetensors")
    twin = make()
    quantize(twin, name)
    twin.load_state_dict(load_file(tmp_path / "m.safetensors"))
    with torch.no_grad():
        assert torch.equal(predict(model.eval(), x, t), predict(twin.eval(), x, t))


@pytest.mark.parametrize("make", [unconditional, conditional])
@torch.no_grad()
def test_a_diffusers_unet_is_quantized_after_training(make):
    """Two bits: on inputs it was not fitted on, its error is below that of the weights' own best two bits."""
    model, far = make().eval(), []
    x, t = torch.randn(16, 1, 16, 16), torch.arange(0, 1000, 63)
    text = (torch.randn(16, 3, 12),) if make is conditional else ()
    shown = (x[:12], t[:12], *(part[:12] for part in text))
    for reference, inputs in ((None, ()), (model, [shown])):
        twin = make().eval()
        quantize(twin, "weights=lsq:2 keep=time_embedding* ends=int8")
        fit(twin, reference, inputs)
        rest = (x[12:], t[12:], *(part[12:] for part in text))
        far.append(float((twin(*rest).sample - model(*rest).sample).square().mean()))
    assert far[1] < 0.8 * far[0], far


def test_a_quantized_unet_draws_in_a_diffusers_pipeline():
    model = unconditional()
    quantize(model, "strict-1bit")
    pipeline = DDIMPipeline(model.eval(), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(2, generator=torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 16, 16, 1) and images.std() > 0


def test_binarydm_finds_the_high_resolution_blocks_of_a_diffusers_unet():
    model = unconditional()
    quantize(model, "binarydm-w1a32")
    two = {k.split(".")[0] + k.split(".")[1] for k, layer in quantized_layers(model).items()
           if layer.rule.weight_bits == 2}
    assert recipe("binarydm-w1a32").at and two == {"down_blocks0", "down_blocks1"}
