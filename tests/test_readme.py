"""The README's Python, block by block: it runs as it stands, with what a reader would have."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from onebit import nets
from onebit.layers import quantized_layers
from onebit.recipes import penalty, quantize

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
UNET = {"sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 16),
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8}


@pytest.fixture
def at_hand(monkeypatch, tmp_path, one_thread):
    """What the blocks take for granted: networks, noised images, features, samples; files go to a temporary folder."""
    monkeypatch.setattr(UNet2DModel, "from_pretrained", lambda name: UNet2DModel(**UNET))
    monkeypatch.chdir(tmp_path)
    noised, timesteps = torch.randn(4, 1, 16, 16), torch.arange(4) * 200
    net = nets.build("unet", 4)
    pixels = np.random.default_rng(0)
    images = pixels.integers(0, 256, (5, 30, 1, 8, 8), dtype=np.uint8)
    return {
        "quantize": quantize, "unet": UNet2DModel(**UNET), "net": net, "another": nets.build("unet", 4),
        "noised_images": noised, "images": noised, "timesteps": timesteps,
        "batches": [(noised, timesteps)] * 2, "features": pixels.normal(size=(60, 8)),
        "real_features": pixels.normal(size=(80, 8)), "samples": images[0], "trained_on": images[0],
        "other_sets": list(images[1:]), "steps": 4, "noise_loss": lambda model: model(noised, timesteps).sample.var(),
    }


@pytest.mark.parametrize("block", BLOCKS, ids=[f"{i}-{block.split(chr(10))[0][:40]}" for i, block in enumerate(BLOCKS)])
def test_a_block_runs_as_it_stands(at_hand, block):
    if "to_packed" in block:
        quantize(at_hand["net"], "xnor-w1a1", at_hand["batches"][0])
    exec(compile(block, "README.md", "exec"), at_hand)


def test_what_the_blocks_promise(at_hand):
    promised = {}
    for block in BLOCKS:
        if "onebit.metrics" in block:
            promised |= (names := dict(at_hand))
            exec(block, names)
            promised |= names
    copies = promised["nearer_seen"](promised["distances"][:, 0], promised["to_others"])
    assert copies.value == 1 and promised["memorized"](promised["distances"]).value == 1  # samples are the images
    assert promised["spread"].degrees == 7 - 4 - 1  # values less rows, and one seed more than the first
    assert promised["spread"].seeds_needed(0.9) > 2


def test_the_loop_takes_ebb_from_two_bases_to_one_and_asks_for_its_penalty(at_hand):
    audit = quantize(at_hand["unet"], "weights=ebb")
    before = {row.weight_bits for row in audit.layers}
    asked = []
    at_hand["noise_loss"] = lambda model: asked.append(penalty(model)) or torch.zeros(())
    exec(next(block for block in BLOCKS if "schedules" in block), at_hand)
    after = {layer.rule.weight_bits for layer in quantized_layers(at_hand["unet"]).values()}
    assert 2 in before and after == {1} and asked[0] > 0
