"""The training loop: determinism, resuming, averaging, and stopping at a loss that is not finite."""

import contextlib
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from onebit import checkpoint, nets, recipes
from onebit._told import told
from onebit.batches import Batches
from onebit.connections import neighbour
from onebit.diffusion import noise_loss
from onebit.distill import distillation
from onebit.errors import Diverged
from onebit.objective import Objective
from onebit.train import LOG_EVERY, Settings, averaged, reestimate, train

SETTINGS = Settings(steps=50, batch=16, lr=1e-3, warmup=5, decay="cosine", ema=0.9, seed=3, precision="float32")


def new_model(recipe="strict-1bit", net="unet"):
    torch.manual_seed(0)
    model = nets.build(net, 4)
    recipes.quantize(model, recipe)
    return model


def run(folder, images, settings=SETTINGS, model=None, **options):
    return train(model or new_model(), images, settings, folder, progress=False, **options)


def same_results(a, b):
    files = ("model.safetensors", "ema.safetensors", "loss.csv")
    return all((a / file).read_bytes() == (b / file).read_bytes() for file in files)


def test_the_same_settings_give_the_same_bytes(tmp_path, images):
    run(tmp_path / "a", images)
    run(tmp_path / "b", images)
    assert same_results(tmp_path / "a", tmp_path / "b")


def test_the_first_losses_are_pinned(tmp_path, images):
    """When this moves, what a Run produces has changed: bump train.VERSION, then these numbers."""
    losses = []
    settings = replace(SETTINGS, steps=3)
    batches = Batches(images, settings)
    model = new_model("fp16").train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(3):  # the loop written out, without autocast, channels_last or fused Adam
        x0, noise, t = batches(step)
        alpha_bar = (
            torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t].float().view(-1, 1, 1, 1)
        )
        loss = (model(alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise, t) - noise).square().mean()
        optimizer.param_groups[0]["lr"] = settings.lr_at(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    run(tmp_path, images, settings, new_model("fp16"))
    assert pd.read_csv(tmp_path / "loss.csv").loss[0] == pytest.approx(np.mean(losses), rel=1e-5)
    assert losses == pytest.approx(PINNED, rel=1e-4)


PINNED = [0.8653833270072937, 0.8054353594779968, 0.8368097543716431]


def test_a_killed_process_resumes_and_ends_with_the_same_weights(tmp_path, images):
    """SIGKILL in mid-run, in a process of its own; then the same call again."""
    torch.save(images, tmp_path / "images.pt")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time, torch; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "torch.set_num_threads(1)\n"
        "from test_train import new_model, SETTINGS, run\n"
        f"images = torch.load({str(tmp_path / 'images.pt')!r})\n"
        f"run(Path({str(tmp_path / 'killed')!r}), images, checkpoint_seconds=0, on_log=lambda row: time.sleep(0.5))\n"
    )
    process = subprocess.Popen([sys.executable, str(script), os.path.dirname(__file__)])
    note = tmp_path / "killed" / checkpoint.NOTE
    deadline = time.monotonic() + 120
    while not note.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert 0 < json.loads(note.read_text())["step"] < SETTINGS.steps
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    run(tmp_path / "killed", images)
    run(tmp_path / "whole", images)
    assert same_results(tmp_path / "killed", tmp_path / "whole")
    assert not note.exists()


@pytest.mark.parametrize("recipe", [
    "tdq-w1a4", "ternary-w1.58a32 weights=ternary:stochastic=True",
    "ternary-w1.58a32 weights=group-ternary:stochastic=True",
])
def test_what_layers_draw_is_decided_by_the_seed_and_the_caller_keeps_its_own_random_numbers(recipe, tmp_path, images):
    """TDQ's steps pass through a dropout, stochastic rules round at random; whatever was drawn before, and wherever
    the run was interrupted."""
    few = replace(SETTINGS, steps=2 * LOG_EVERY + 4, batch=4)
    for name, drawn in (("a", 0), ("b", 5)):
        model = new_model(recipe)
        torch.rand(drawn)
        if name == "b":
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / name, images, few, model, checkpoint_seconds=0, on_log=stop_at(2 * LOG_EVERY))
            model = new_model(recipe)
        before = torch.get_rng_state()
        run(tmp_path / name, images, few, model)
        assert torch.equal(torch.get_rng_state(), before)
    assert same_results(tmp_path / "a", tmp_path / "b")
    run(tmp_path / "c", images, replace(few, seed=4), new_model(recipe))
    assert not same_results(tmp_path / "a", tmp_path / "c")


def stop_at(step):
    def on_log(row):
        if row["step"] == step:
            raise KeyboardInterrupt

    return on_log


def interrupted(folder, images, settings=SETTINGS):
    """A run stopped at step 40, whose checkpoint is of step 20."""
    with pytest.raises(KeyboardInterrupt):
        run(folder, images, settings, checkpoint_seconds=0, on_log=stop_at(2 * LOG_EVERY))
    return next(folder.glob("checkpoint-*.safetensors"))


def test_a_damaged_checkpoint_is_reported_set_aside_and_not_trusted(tmp_path, images):
    path = interrupted(tmp_path / "damaged", images)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        run(tmp_path / "damaged", images)
    run(tmp_path / "whole", images)
    assert same_results(tmp_path / "damaged", tmp_path / "whole")
    assert path.with_name(f"{path.name}.corrupt").exists()


def saved(folder):
    """A checkpoint of no settings, at step 1."""
    model = new_model()
    checkpoint.save(folder, checkpoint.State(model, torch.optim.Adam(model.parameters()), [], step=1))
    return folder / "checkpoint-1.safetensors"


@pytest.mark.parametrize("text", ["null", "[]", "7", '{"file": null}', "no log", "no settings"])
def test_a_note_that_is_none_is_set_aside_with_its_checkpoint(text, tmp_path):
    path, note = saved(tmp_path), tmp_path / checkpoint.NOTE
    told = json.loads(note.read_text())
    note.write_text({"no log": json.dumps({name: value for name, value in told.items() if name != "log"}),
                     "no settings": json.dumps(told | {"settings": None})}.get(text, text))
    state = checkpoint.State(new_model(), None, [])
    with pytest.warns(UserWarning, match="damaged"):
        checkpoint.restore(tmp_path, state)
    assert state.step == 0 and not note.exists() and path.with_name(f"{path.name}.corrupt").exists()


def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_keeps_the_checkpoint(tmp_path, images):
    from onebit import train as module

    def poisoned(model, x0, noise, timestep):
        poisoned.calls += 1
        return original(model, x0, noise, timestep) * (float("nan") if poisoned.calls == 27 else 1)

    original, poisoned.calls = module.noise_loss, 0
    with pytest.raises(Diverged, match="step 27"):
        run(tmp_path, images, checkpoint_seconds=0, objective=poisoned)
    assert json.loads((tmp_path / checkpoint.NOTE).read_text())["step"] == LOG_EVERY
    assert not (tmp_path / "model.safetensors").exists()


def test_two_arms_see_the_same_batches_and_noise(images):
    a, b = Batches(images, SETTINGS), Batches(images, replace(SETTINGS, lr=1.0, ema=0.0))
    for step in (0, 7, 18, 19, 40):
        assert all(torch.equal(p, q) for p, q in zip(a(step), b(step), strict=True))
    other = Batches(images, replace(SETTINGS, seed=4))
    assert not torch.equal(a(0)[1], other(0)[1])


def test_an_epoch_shows_every_image_once_and_drops_the_short_batch(images):
    images = images.clone()
    images[:, 0, 0, 0] = torch.arange(300) % 256  # a mark; 0..43 occur twice
    batches = Batches(images, SETTINGS)
    assert batches.per_epoch == 300 // 16
    shown = torch.cat([((batches(s)[0][:, 0, 0, 0] + 1) * 127.5).round() for s in range(batches.per_epoch)])
    counts = torch.bincount(shown.long(), minlength=256)
    assert counts.sum() == 18 * 16 and counts.max() <= 2
    second = torch.cat([batches(batches.per_epoch + s)[0] for s in range(2)])
    assert not torch.equal(second, torch.cat([batches(s)[0] for s in range(2)]))


def test_the_learning_rate_rises_then_falls_as_the_cosine():
    settings = Settings(steps=100, lr=2.0, warmup=10, decay="cosine")
    assert settings.lr_at(0) == pytest.approx(0.2)
    assert settings.lr_at(50) == pytest.approx(1.0)
    assert settings.lr_at(99) == pytest.approx(1 + np.cos(np.pi * 0.99))
    assert Settings(steps=100, lr=2.0).lr_at(99) == 2.0


def test_averaged_weights_follow_the_recursion_and_get_their_own_statistics(tmp_path, images):
    """EMA with decay min(d, (1 + k) / (10 + k)), k counting steps from 0, against the weights after every step."""
    model, path = new_model("fp16"), []
    settings = replace(SETTINGS, steps=3)
    start = [p.detach().clone() for p in model.parameters()]
    run(
        tmp_path,
        images,
        settings,
        model,
        snapshot=lambda m: path.append([p.detach().clone() for p in m.parameters()]) or torch.zeros(1),
        snapshot_steps=(1, 2, 3),
    )
    expected = start
    for k, weights in enumerate(path):
        decay = min(settings.ema, (1 + k) / (10 + k))
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights, strict=True)]
    stored = load_file(tmp_path / "ema.safetensors")
    for (name, _), value in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(
        stored["norm_out.running_var"], load_file(tmp_path / "model.safetensors")["norm_out.running_var"]
    )


def test_statistics_of_averaged_weights_are_means_over_fresh_batches(images, monkeypatch):
    from onebit import train as module

    monkeypatch.setattr(module, "BATCH_NORM_BATCHES", 4)
    model = new_model("fp16")
    batches = Batches(images, SETTINGS)
    seen = []
    twin = averaged(model, [p.detach().clone() for p in model.parameters()], batches)
    hook = model.down[0].norm1.register_forward_pre_hook(lambda m, args: seen.append(args[0].mean(dim=(0, 2, 3))))
    for step in range(4):
        module.noise_loss(model, *batches(step))
    hook.remove()
    torch.testing.assert_close(twin.down[0].norm1.running_mean, torch.stack(seen).mean(0), rtol=1e-4, atol=1e-5)
    assert twin.down[0].norm1.momentum == model.down[0].norm1.momentum


def test_sign_flips_count_the_share_of_signs_that_changed(tmp_path, images):
    """One binary layer, its latent weights moved by hand between two log rows: 3 of 9 signs change."""
    from onebit._log import Log

    model = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False))
    recipes.quantize(model, recipes.Recipe(weights="sign"))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    state = checkpoint.State(model, torch.optim.Adam(model.parameters()), [], step=1)
    log = Log(state, batch=1, progress=False, steps=1, on_log=None)
    with torch.no_grad():
        model[0].weight[0] = -1.0
    log.add(torch.tensor(1.0), lr=0.1)
    log.close()
    assert state.log == [{"step": 1, "loss": 1.0, "lr": 0.1, "sign_flips": pytest.approx(3 / 9)}]


@pytest.mark.parametrize(("recipe", "objective", "columns"), [
    ("strict-1bit", noise_loss, []),
    ("bidm-w1a1", Objective(), ["noise_loss"]),  # connections
    ("weights=sign at=mid.*->ebb:transition=None ends=float", Objective(), ["noise_loss", "penalty"]),
])
def test_without_an_objective_a_model_gets_what_its_recipe_asks_for(recipe, objective, columns, tmp_path, images):
    few = replace(SETTINGS, steps=3)
    run(tmp_path / "own", images, few, new_model(recipe))
    run(tmp_path / "told", images, few, new_model(recipe), objective=objective)
    assert same_results(tmp_path / "own", tmp_path / "told")
    assert list(pd.read_csv(tmp_path / "own" / "loss.csv")) == ["step", "loss", "lr", "sign_flips", *columns]
    alpha = load_file(tmp_path / "own" / "model.safetensors").get("connections.alpha")
    assert alpha is None or (alpha != alpha[0, 0]).any()


def test_a_folder_may_be_named_by_a_string(tmp_path, images):
    run(f"{tmp_path}/a", images, replace(SETTINGS, steps=1))
    assert (tmp_path / "a" / "model.safetensors").exists()


@pytest.mark.parametrize(("wrong", "got"), [
    (lambda images: images / 127.5 - 1, r"float32 \(300, 1, 16, 16\)"),
    (lambda images: images[:, 0], r"uint8 \(300, 16, 16\)"),
    (lambda images: images.int(), "int32"),
    (lambda images: images.numpy(), "uint8"),
    (list, "list"),
])
def test_images_that_are_not_grey_levels_are_refused(wrong, got, tmp_path, images):
    with pytest.raises(ValueError, match=f"needs a tensor of uint8 .*got .*{got}"):
        run(tmp_path / "new", wrong(images))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("other", "said"), [
    ({"seed": 4}, "seed 3 there, 4 now"),
    ({"lr": 2e-3, "batch": 8}, "batch 16 there, 8 now; lr 0.001 there, 0.002 now"),
    ({"ema": 0.0}, "ema 0.9 there"), ({"decay": "constant"}, "decay 'cosine' there, 'constant' now"),
])
def test_a_checkpoint_of_other_settings_is_refused_and_kept(other, said, tmp_path, images):
    path = interrupted(tmp_path, images)
    with pytest.raises(ValueError, match=f"{tmp_path}.*{said}.*another folder, or remove"):
        run(tmp_path, images, replace(SETTINGS, **other))
    assert path.exists() and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(("recipe", "brighter", "said"), [
    ("strict-1bit weights=xnor", 0, r"recipe 'weights=centred .*' there, 'weights=xnor .*' now"),
    ("strict-1bit", 1, r"images '\(300, 1, 16, 16\) \w{12}' there, '\(300, 1, 16, 16\) \w{12}' now"),
])
def test_a_checkpoint_of_another_recipe_or_other_images_is_refused_and_kept(recipe, brighter, said, tmp_path, images):
    """Rules without state of their own, whose checkpoints look alike; one grey level of one pixel."""
    path = interrupted(tmp_path, images)
    images[7, 0, 3, 3] += brighter
    with pytest.raises(ValueError, match=f"{said}.*another folder, or remove"):
        run(tmp_path, images, model=new_model(recipe))
    assert path.exists() and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(("net", "width"), [("resunet", 4), ("unet", 8)])
def test_a_checkpoint_of_another_network_is_refused_and_kept(net, width, tmp_path):
    path, model = saved(tmp_path), nets.build(net, width)
    recipes.quantize(model, "strict-1bit")
    with pytest.raises(ValueError, match=r"(?s)holds the checkpoint of another network.*another folder, or remove"):
        checkpoint.restore(tmp_path, checkpoint.State(model, torch.optim.Adam(model.parameters()), []))
    assert path.exists()


@pytest.mark.parametrize("silent", [["recipe", "images", "objective"],
                                    ["recipe", "images", "objective", *asdict(SETTINGS)]])
def test_a_checkpoint_that_says_nothing_of_settings_recipe_or_images_fits(silent, tmp_path, images):
    interrupted(tmp_path / "old", images)
    note = json.loads((tmp_path / "old" / checkpoint.NOTE).read_text())
    content = hashlib.sha256(images.numpy().tobytes()).hexdigest()[:12]
    assert note["settings"] == {"steps": 50, "batch": 16, "lr": 1e-3, "warmup": 5, "decay": "cosine", "ema": 0.9,
                                "seed": 3, "precision": "float32", "images": f"(300, 1, 16, 16) {content}",
                                "objective": "noise_loss", "recipe": "weights=centred ends=float keep=*time*"}
    note["settings"] = {name: value for name, value in note["settings"].items() if name not in silent}
    if not note["settings"]:
        del note["settings"]
    (tmp_path / "old" / checkpoint.NOTE).write_text(json.dumps(note))
    run(tmp_path / "old", images, checkpoint_seconds=1e9)
    run(tmp_path / "whole", images)
    assert same_results(tmp_path / "old", tmp_path / "whole")


def test_settings_out_of_numpy_are_kept_in_a_checkpoint(tmp_path, images):
    interrupted(tmp_path, images)
    run(tmp_path, images, replace(SETTINGS, batch=np.int64(16), lr=np.float64(1e-3)), checkpoint_seconds=0)
    assert (tmp_path / "model.safetensors").exists()


def test_a_training_reseeds_no_device_it_does_not_run_on(tmp_path, images, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    model = new_model("tdq-w1a4")
    calls.clear()
    run(tmp_path, images, replace(SETTINGS, steps=2), model)
    assert not calls


def test_judges_and_new_models_reseed_no_other_device_and_start_from_the_same_weights(monkeypatch):
    from onebit import judge
    from onebit.data import Dataset
    from onebit.study.results import new_model as of_run
    from onebit.study.run import Run

    def drawn(make):
        torch.manual_seed(7)
        return make().state_dict()

    run = Run(dataset="digits", net="unet", width=4, seed=7)
    digits = Dataset("digits", "train", torch.zeros(2, 1, 16, 16, dtype=torch.uint8), torch.zeros(2).long())
    want = [drawn(lambda: judge.Judge(16)), drawn(lambda: nets.build("unet", 4))]
    calls = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    before = torch.get_rng_state()
    got = [judge.train_judge(digits, 0, 7, progress=False).state_dict(), of_run(run).state_dict()]
    assert not calls and torch.equal(torch.get_rng_state(), before)
    for a, b in zip(got, want, strict=True):
        assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("recipe", ["fp16", "bidm-w1a1"])
def test_connections_mix_where_statistics_of_averaged_weights_are_estimated(recipe, images, monkeypatch):
    """Running means of the norm behind the last up block, whose output is mixed, against batches run by hand."""
    from onebit import train as module

    monkeypatch.setattr(module, "BATCH_NORM_BATCHES", 3)
    batches = Batches(images, SETTINGS)
    model = new_model(recipe).train()
    for block in [*model.down, model.mid, *model.up]:  # zero at first: blocks would put out their shortcuts
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    Objective()(model, *batches(0))  # rules that take their steps from the first batch
    twin = averaged(model, [p.detach().clone() for p in model.parameters()], batches)
    seen = []
    for step in range(3):
        mixing = contextlib.nullcontext()
        if recipe != "fp16":
            mixing = model.connections.mixing(neighbour(model, *batches(step)))
        hook = model.norm_out.register_forward_pre_hook(lambda _, args: seen.append(args[0].mean(dim=(0, 2, 3))))
        with mixing, torch.no_grad():
            module.noise_loss(model, *batches(step))
        hook.remove()
    torch.testing.assert_close(twin.norm_out.running_mean, torch.stack(seen).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("broken", [False, True])
def test_estimating_statistics_leaves_every_module_in_its_mode(broken, images):
    def objective(*arguments):
        assert not broken, "stopped"
        return noise_loss(*arguments)

    model = new_model("fp16").eval()
    model.down[0].norm1.train()
    before = {name: (m.training, getattr(m, "momentum", None)) for name, m in model.named_modules()}
    with pytest.raises(AssertionError, match="stopped") if broken else contextlib.nullcontext():
        reestimate(model, Batches(images, SETTINGS), objective)
    assert {name: (m.training, getattr(m, "momentum", None)) for name, m in model.named_modules()} == before


def test_fewer_images_than_a_batch_are_refused(tmp_path, images):
    with pytest.raises(ValueError, match="fewer than one batch of 512"):
        run(tmp_path, images, replace(SETTINGS, batch=512))


def test_a_network_that_nothing_can_train_is_refused_before_the_first_step(images, tmp_path):
    with pytest.raises(ValueError, match=r"no parameter of this UNet wants a gradient.*requires_grad_\(True\)"):
        run(tmp_path, images, model=new_model().requires_grad_(False))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value", "valid"), [("decay", "linear", "cosine"), ("precision", "int8", "bfloat16")]
)
def test_unknown_settings_list_the_valid_ones(field, value, valid):
    with pytest.raises(ValueError, match=valid):
        Settings(steps=1, **{field: value})


@pytest.mark.parametrize(("field", "value", "message"), [
    ("steps", 0, "steps must be an integer >= 1, got 0"), ("steps", 2.5, "steps must be an integer >= 1, got 2.5"),
    ("batch", -1, "batch must be an integer >= 1"), ("warmup", -1, "warmup must be an integer >= 0"),
    ("seed", -1, "seed must be an integer >= 0"), ("lr", 0.0, "lr must be a finite number > 0"),
    ("lr", float("nan"), "lr must be a finite number > 0"), ("lr", float("inf"), "lr must be a finite number > 0"),
    ("lr", "1e-3", "lr must be a finite number"), ("lr", None, "lr must be a finite number"),
    ("ema", None, "ema must be in 0 .. 1"),
    ("ema", 1.0, "ema must be in 0 .. 1, 1 excluded, got 1.0"), ("ema", -0.1, "ema must be in 0 .. 1"),
])
def test_numbers_that_no_training_can_have_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"steps": 1, field: value})


def test_a_run_goes_on_in_the_arithmetic_it_began_in_wherever_it_is_resumed(tmp_path, images, monkeypatch):
    unsaid = replace(SETTINGS, precision="auto")
    monkeypatch.setattr("onebit.train.resolve_precision", lambda _: "bfloat16")
    interrupted(tmp_path / "moved", images, unsaid)
    run(tmp_path / "whole", images, unsaid)
    monkeypatch.setattr("onebit.train.resolve_precision", lambda _: "float32")
    facts = run(tmp_path / "moved", images, unsaid)
    assert facts["precision"] == "bfloat16"
    assert same_results(tmp_path / "moved", tmp_path / "whole")


def test_bfloat16_autocast_trains_near_the_float32_loss(tmp_path, images):
    run(tmp_path / "a", images)
    run(tmp_path / "b", images, replace(SETTINGS, precision="bfloat16"))
    a, b = (pd.read_csv(tmp_path / x / "loss.csv").loss for x in "ab")
    assert not a.equals(b)
    np.testing.assert_allclose(a, b, rtol=0.05)


class Tied(torch.nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x, timestep):
        return self.b(torch.relu(self.a(x)))


def test_a_network_with_tied_weights_is_kept_and_goes_on(tmp_path):
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = Settings(steps=2 * LOG_EVERY, batch=8, ema=0.9)
    models = []
    for stopped, folder in ((False, tmp_path / "whole"), (True, tmp_path / "halves")):
        torch.manual_seed(0)
        models.append(Tied())
        if stopped:
            with contextlib.suppress(KeyboardInterrupt):
                train(models[-1], images, settings, folder, progress=False, checkpoint_seconds=0, on_log=interrupt)
            assert (folder / checkpoint.NOTE).exists()
            models[-1] = Tied()
        train(models[-1], images, settings, folder, progress=False)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves")]
    assert torch.equal(weights[0]["a.weight"], weights[0]["b.weight"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def interrupt(row):
    if row["step"] > LOG_EVERY:  # the checkpoint of the first row is written
        raise KeyboardInterrupt


@pytest.mark.parametrize("draw", ["functional", "attention"])
def test_dropout_without_a_module_is_a_function_of_seed_and_step_too(draw, tmp_path):
    class Drops(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
            self.mixed = torch.nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)

        def forward(self, x, timestep):
            h = self.a(x.squeeze(1))
            h = (torch.nn.functional.dropout(h, 0.2, self.training) if draw == "functional"
                 else self.mixed(h, h, h, need_weights=False)[0])
            return self.b(h)[:, None]

    images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in (1, 2):
        torch.manual_seed(0)
        model = Drops()
        torch.manual_seed(seed)
        train(model, images, Settings(steps=5, batch=8, precision="float32"), tmp_path / str(seed), progress=False)
        found.append(load_file(tmp_path / str(seed) / "model.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("other", ["weight", "teacher", "options", "none"])
def test_a_run_under_another_objective_is_not_gone_on_with(other, tmp_path):
    images = torch.randint(0, 256, (24, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = Settings(steps=3 * LOG_EVERY, batch=8, precision="float32")

    def objective(seed=0, weight=0.01, loss="lrm:2"):
        torch.manual_seed(seed)
        return Objective(nets.build("unet", 4).eval(), distillation(loss), weight)

    with pytest.raises(KeyboardInterrupt):
        train(new_model(), images, settings, tmp_path, progress=False, objective=objective(), checkpoint_seconds=0,
              on_log=interrupt)
    asked = {"weight": objective(weight=1.0), "teacher": objective(seed=1), "options": objective(loss="lrm"),
             "none": None}[other]
    with pytest.raises(ValueError, match=r"objective 'LRM\(k=2\) x 0\.01, teacher"):
        train(new_model(), images, settings, tmp_path, progress=False, objective=asked)
    train(new_model(), images, settings, tmp_path, progress=False, objective=objective())


def weighed(model, x0, noise, timestep, weight):
    return weight * noise_loss(model, x0, noise, timestep)


def closed_over(weight):
    return lambda *batch: weight * noise_loss(*batch)


@pytest.mark.parametrize(("first", "second"), [
    (functools.partial(weighed, weight=1.0), functools.partial(weighed, weight=-1.0)),
    (lambda *batch: noise_loss(*batch), lambda *batch: -noise_loss(*batch)),
    (closed_over(1.0), closed_over(2.0)),
])
def test_another_function_of_the_same_name_is_another_objective(first, second, tmp_path):
    images = torch.randint(0, 256, (24, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = Settings(steps=2 * LOG_EVERY, batch=8, precision="float32")

    def go_on(objective, on_log=None):
        train(new_model(), images, settings, tmp_path, progress=False, objective=objective, checkpoint_seconds=0,
              on_log=on_log)

    with pytest.raises(KeyboardInterrupt):
        go_on(first, stop_at(2 * LOG_EVERY))
    with pytest.raises(ValueError, match="other settings: objective"):
        go_on(second)
    go_on(first)


def test_our_own_losses_are_called_by_name_and_plain_values_make_a_name():
    assert told(noise_loss) == "noise_loss" and told(Objective()) == "Objective"
    assert told(functools.partial(noise_loss, None, x0=(1, "a"))) == "noise_loss(None, x0=[1, 'a'])"
    assert told(closed_over(1.0)) == told(closed_over(1.0)) != told(closed_over(2.0))
    assert told({"b", "a"}) == "{'a', 'b'}" and told(nets.build("unet", 4)) == "UNet"
    assert told(Tied().forward).startswith("forward ")

    def itself():
        return itself

    assert told(itself).startswith("itself ")


def test_state_that_is_no_tensor_is_refused_before_the_first_step(tmp_path, images):
    class Versioned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nets.build("unet", 4)

        def forward(self, x, timestep):
            raise AssertionError("it must not be trained")

        def get_extra_state(self):
            return {"version": 1}

    with pytest.raises(ValueError, match=r"state _extra_state is a dict.*get_extra_state"):
        run(tmp_path, images, model=Versioned())


def test_weights_that_the_last_step_breaks_are_no_result(tmp_path, images):
    """Its loss is finite, the slope of a square root at 0 is not."""
    calls = []

    def loss(model, *batch):
        calls.append(batch)
        weight = next(model.parameters())
        broken = (weight - weight).square().sum().sqrt() if len(calls) == 25 else 0
        return noise_loss(model, *batch) + broken

    with pytest.raises(Diverged, match=r"weights not finite after step 25, the last; .*lower the learning rate"):
        run(tmp_path, images, replace(SETTINGS, steps=25), objective=loss, checkpoint_seconds=0)
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "checkpoint.json").exists()


def test_a_step_that_is_not_its_files_is_not_trusted(tmp_path, images):
    interrupted(tmp_path, images)
    note = json.loads((tmp_path / "checkpoint.json").read_text())
    (tmp_path / "checkpoint.json").write_text(json.dumps(note | {"step": 0}))
    with pytest.warns(UserWarning, match=r"is damaged .*is said to be of step 0.* starts over"):
        run(tmp_path, images)


def test_a_snapshot_that_leaves_the_model_in_eval_mode_changes_nothing(tmp_path):
    images, found = torch.randint(0, 256, (24, 1, 16, 16), dtype=torch.uint8), []
    for i, leave in enumerate((lambda model: torch.zeros(1), lambda model: (model.eval(), torch.zeros(1))[1])):
        train(new_model(), images, Settings(steps=4, batch=8, precision="float32"), tmp_path / str(i), snapshot=leave,
              snapshot_steps=(1,), progress=False)
        found.append(load_file(tmp_path / str(i) / "model.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_every_kind_of_batch_norm_is_estimated_anew():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.out = torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 64)

        def forward(self, x, timestep):
            return self.out(self.norm(x.flatten(1))).view(x.shape)

    images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = Flat()
    reestimate(model, Batches(images, Settings(steps=5, batch=8)))
    assert model.norm.num_batches_tracked == 5 and not torch.equal(model.norm.running_mean, torch.zeros(64))
