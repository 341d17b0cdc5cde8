"""The training loss with a teacher, a regulariser and connections: its parts, and a run that is killed and resumed."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onebit import nets, train
from onebit.connections import neighbour
from onebit.diffusion import add_noise, noise_loss
from onebit.distill import BLOCKS, Taps, distillation
from onebit.layers import quantized_layers
from onebit.objective import Objective, asked
from onebit.recipes import penalty, quantize

EXAMPLE = (torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 10, 500, 999]))


def net(recipe="fp16", seed=0):
    torch.manual_seed(seed)
    model = nets.build("unet", 4)
    for block in [*model.down, model.mid, *model.up]:  # zero at first: a student would be its teacher
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    quantize(model, recipe, EXAMPLE)
    return model


def batch(n=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(n, 1, 16, 16, generator=g)  # noqa: E731
    return draw().clamp(-1, 1), draw(), torch.randint(0, 1000, (n,), generator=g)


def test_without_additions_it_is_the_noise_loss():
    model = net("strict-1bit").eval()
    torch.testing.assert_close(Objective()(model, *batch()), noise_loss(model, *batch()))


def test_a_regulariser_is_added():
    model = net("binarydm-w1a32").eval()
    objective = Objective()
    total = objective(model, *batch())
    want = noise_loss(model, *batch()) + penalty(model)
    torch.testing.assert_close(total, want)
    torch.testing.assert_close(objective.terms["noise_loss"] + objective.terms["penalty"], total.detach())
    model.mid.conv1.rule.advance(1.0)


@pytest.mark.parametrize(("recipe", "more"), [
    ("fp16", False), ("strict-1bit", False), ("reste-w1a1", False), ("binarydm-w1a32", True), ("bidm-w1a1", True),
])
def test_a_model_asks_for_more_than_the_noise_loss_where_its_recipe_adds_to_it(recipe, more):
    model = net(recipe)
    assert isinstance(asked(model), Objective) if more else asked(model) is noise_loss
    for layer in quantized_layers(model).values():
        layer.rule.advance(1.0)  # EBB goes over to one basis, which has no penalty
    assert isinstance(asked(model), Objective) == (recipe == "bidm-w1a1")


@pytest.mark.parametrize("name", ["l2", "lrm", "spd"])
def test_distillation_compares_block_outputs_on_the_same_noisy_images(name):
    model, teacher = net("binarydm-base-w1a32").eval(), net(seed=3)
    objective = Objective(teacher, distillation(name), 0.5)
    total = objective(model, *batch())
    x0, noise, t = batch()
    features = []
    for network in (model, teacher.eval()):
        with Taps(network, BLOCKS) as taps:
            network(add_noise(x0, noise, t), t)
        features.append(taps.features)
    assert len(features[0]) == 6
    want = noise_loss(model, *batch()) + 0.5 * distillation(name)(*features)
    torch.testing.assert_close(total, want)
    total.backward()
    assert model.mid.conv1.weight.grad is not None and all(p.grad is None for p in teacher.parameters())
    assert not [k for k in objective.state_dict() if "teacher" in k]


def test_connections_mix_the_neighbouring_timestep_in():
    model = net("bidm-w1a1").eval()
    twin = copy.deepcopy(model)
    total = Objective()(model, *batch())
    cache = neighbour(twin, *batch())
    with twin.connections.mixing(cache):
        want = noise_loss(twin, *batch())
    torch.testing.assert_close(total, want)
    assert not torch.equal(total, noise_loss(twin, *batch()))
    total.backward()
    assert model.connections.alpha.grad.abs().max() > 0


def test_the_teacher_that_is_given_stays_as_it_was():
    teacher = net(seed=3).train()
    before = copy.deepcopy(teacher.state_dict())
    Objective(teacher, distillation("l2"), 1.0)(net("binarydm-base-w1a32").train(), *batch())
    assert teacher.training and all(p.requires_grad for p in teacher.parameters())
    torch.testing.assert_close(dict(teacher.state_dict()), dict(before), rtol=0, atol=0)


def test_a_teacher_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="both a teacher and a loss"):
        Objective(teacher=net())


class Killed(Exception):
    pass


@pytest.mark.parametrize(("recipe", "loss"), [("binarydm-w1a4", "lrm"), ("bidm-w1a1", "spd"), ("reste-w1a1", None)])
def test_a_killed_run_with_a_teacher_ends_with_the_same_weights(recipe, loss, tmp_path):
    """Bases, learned steps, stages, annealed powers and connections all come back from the checkpoint."""
    images = torch.randint(0, 256, (96, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    settings = train.Settings(steps=50, batch=8, lr=1e-3, precision="float32")

    def run(folder, stop=None):
        def on_log(row):
            if stop is not None and row["step"] >= stop:
                raise Killed

        objective = Objective(net(seed=3), distillation(loss), 0.1) if loss else Objective()
        train.train(net(recipe), images, settings, folder, on_log=on_log, checkpoint_seconds=0, progress=False,
                    objective=objective)
        return load_file(folder / "model.safetensors")

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", stop=40)
    again = run(tmp_path / "killed")
    assert whole.keys() == again.keys()
    assert not [k for k in whole if not torch.equal(whole[k], again[k])]
    log = (tmp_path / "whole" / "loss.csv").read_text().splitlines()[0]
    assert "noise_loss" in log and ("distillation" in log) == bool(loss)


def test_blocks_of_networks_with_other_names_are_compared_by_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1, self.layer2, self.layer3 = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((1, 4), (4, 4), (4, 1)))

        def forward(self, x, timestep):
            return self.layer3(self.layer2(self.layer1(x)).relu())

    teacher = Net()
    student = copy.deepcopy(teacher)
    quantize(student, "strict-1bit")
    x0, noise, t = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([10, 700])
    objective = Objective(teacher, distillation("l2"), 0.5, blocks=("layer[12]",))
    total = objective(student, x0, noise, t)
    seen = add_noise(x0, noise, t)
    pairs = [(student.layer1(seen), teacher.layer1(seen))]
    pairs.append((student.layer2(pairs[0][0]), teacher.layer2(pairs[0][1])))
    distances = torch.stack([(a - b).square().mean() for a, b in pairs])
    assert objective.terms["distillation"] == pytest.approx(0.5 * distances.mean().item(), rel=1e-5)
    assert torch.isclose(total, objective.terms["noise_loss"] + objective.terms["distillation"])
    assert "layer[12]" in objective.told


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_loss_that_would_not_count_is_refused(weight):
    with pytest.raises(ValueError, match="weight must be > 0"):
        Objective(nets.build("unet", 8), distillation("spd"), weight)
