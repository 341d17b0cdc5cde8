"""The live demo: its engine and its page against the Python networks that they stand for."""

import base64
import json
import re
import shutil
import subprocess

import pytest
import torch
from browser_tools import BROWSER, Browser

from onebit import data, demo, nets, recipes, sampling
from onebit.demo import document
from onebit.packing import load_packed

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="the engine is run by Node.js, which is not installed")


def network(recipe, width=4, seed=0):
    """A network whose every parameter and statistic is random: as built, half of them are zeros and ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nets.build("unet", width)
        recipes.quantize(made, recipe)
        with torch.no_grad():
            for module in made.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 2)
                    module.weight.normal_(1, 0.3)
                    module.bias.normal_(0, 0.3)
                elif hasattr(module, "weight") and module.weight.abs().max() == 0:
                    module.weight.normal_(0, 0.05)
    return made.eval()


def stored(net, tmp_path):
    """The network that the packed file holds, and the file."""
    path = tmp_path / "packed"
    path.write_bytes(document.packed_file(net))
    return load_packed(path), path


def in_node(tmp_path, body, **inputs):
    """What the body, a JavaScript function of `given` beside the engine, returns."""
    script = tmp_path / "run.js"
    script.write_text(
        f'"use strict";\n{document.engine()}\nconst fs = require("fs");\nconst given = {json.dumps(inputs)};\n'
        "const read = (path) => new Uint8Array(fs.readFileSync(path));\n"
        "async function opened(path, side) {\n"
        f"  const {{instance}} = await WebAssembly.instantiate(read({json.dumps(str(document.MODULE))}));\n"
        "  return new Network(instance.exports, new PackedFile(read(path)), side);\n}\n"
        f"(async () => {{ {body} }})().then((made) => console.log(JSON.stringify(made)));\n")
    done = subprocess.run(["node", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def start(number, side):
    return torch.randn(1, side, side, generator=sampling.generators(0, [number])[0])


@needs_node
@pytest.mark.parametrize("side", [16, 28])
def test_a_noise_number_is_that_image_of_the_library(tmp_path, side):
    """Largest difference seen: 1.2e-6, by torch's vectorised logarithm and cosine."""
    numbers = [0, 1, 77, 999_999]
    made = in_node(tmp_path, "return given.numbers.map((k) => [...noise(0, k, given.n)]);", numbers=numbers, n=side**2)
    expected = torch.stack([start(k, side) for k in numbers]).flatten(1)
    torch.testing.assert_close(torch.tensor(made), expected, rtol=0, atol=4e-6)


@needs_node
@pytest.mark.parametrize(("recipe", "width", "side"), [
    ("fp16", 4, 16), ("strict-1bit", 4, 16), ("fp16", 16, 28), ("strict-1bit", 16, 28),
    ("strict-1bit drop_bias=True", 8, 20),
])
def test_the_engine_draws_what_the_packed_network_draws(tmp_path, recipe, width, side):
    """A whole trajectory of float arithmetic: the same image, but for rounding."""
    net, path = stored(network(recipe, width), tmp_path)
    made = in_node(tmp_path, """
        const run = denoise(await opened(given.path, given.side), noise(0, 5, given.side ** 2), given.grid);
        return [...[...run].at(-1)];""", path=str(path), side=side, grid=document.grids()[2])
    steps = document.STEPS[2]
    drawn = sampling.sample(net, [5], shape=(1, side, side), sampler="ddim", steps=steps)
    assert drawn.std() > 0.1
    torch.testing.assert_close(torch.tensor(made).clamp(-1, 1).view_as(drawn), drawn, rtol=0, atol=1e-3)


@needs_node
@pytest.mark.parametrize("width", [4, 16])
def test_the_engine_multiplies_signs_as_the_packed_network_does(tmp_path, width):
    """Step by step on the same inputs: rounding may turn the sign of an activation near zero, seldom in so few."""
    net, path = stored(network("xnor-w1a1", width), tmp_path)
    x, timesteps = torch.stack([start(k, 16) for k in range(8)]), [999, 800, 650, 500, 350, 200, 50, 0]
    with torch.no_grad():
        expected = net(x, torch.tensor(timesteps)).flatten(1)
    made = in_node(tmp_path, """
        const network = await opened(given.path, 16);
        return given.x.map((x, i) => [...network.predict(Float32Array.from(x), given.timesteps[i])]);""",
        path=str(path), x=x.flatten(1).tolist(), timesteps=timesteps)
    worst = (torch.tensor(made) - expected).abs().amax(1) / expected.abs().max()
    assert (worst < 1e-4).sum() >= 6, worst


@pytest.fixture
def arms():
    return {"float": network("fp16"), "1-bit <weights>": network("strict-1bit"), "1-bit both": network("xnor-w1a1")}


class TestPage:
    """One piece of HTML that needs nothing else."""

    def test_it_holds_the_packed_files_and_fetches_nothing(self, arms):
        text = demo.page(arms, (1, 16, 16)).data
        given = json.loads(re.search(r"^const data = (.*);$", text, re.M)[1])
        files = [base64.b64decode(arm) for arm in given["arms"]]
        assert files == [document.packed_file(net) for net in arms.values()]
        assert base64.b64decode(given["module"]) == document.MODULE.read_bytes()
        assert not re.search(r"https?:|src=|@import|fetch\(|XMLHttpRequest|import\(", text)
        assert "<weights>" not in text and text.count("<figure") == 3 and text.count("</script>") == 1

    def test_the_same_networks_give_the_same_page(self, arms):
        assert demo.page(arms, (1, 16, 16)).data == demo.page(arms, (1, 16, 16)).data
        other = demo.page(dict(list(arms.items())[:2]), (1, 16, 16)).data
        key = re.compile(r'data-demo="(\w+)"')
        assert key.search(other)[1] != key.search(demo.page(arms, (1, 16, 16)).data)[1]

    def test_one_of_the_study_stays_small(self):
        """Width 16: the file of the 1-bit network is below 1 MB, the page below 2.5 MB."""
        arms = {recipe: network(recipe, 16) for recipe in ("fp16", "strict-1bit", "xnor-w1a1")}
        assert len(document.packed_file(arms["strict-1bit"])) < 150_000
        assert len(demo.page(arms, (1, 28, 28)).data.encode()) < 1_500_000

    def test_its_steps_are_those_of_the_library(self):
        for steps, grid in zip(document.STEPS, document.grids(), strict=True):
            scheduler = sampling.scheduler("ddim", steps)
            x, eps = start(0, 16).double(), start(1, 16).double()
            for i, (t, alpha_bar) in enumerate(grid):
                after = grid[i + 1][1] if i + 1 < steps else 1.0
                x0 = (x - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
                mine = after**0.5 * x0 + (1 - after) ** 0.5 * eps
                torch.testing.assert_close(mine, scheduler.step(eps, t, x).prev_sample, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("make", "message"), [
        (lambda: nets.build("resunet", 4), "'it' must be a unet"),
        (lambda: nets.build("unet", 6), "width divisible by 4"),
        (lambda: nets.build("unet", 4, norm="group"), "with batch norm"),
        (lambda: nets.build("unet", 4, attention=True), "without attention"),
        (lambda: network("binarydm-base-w1a32"), "'it' has recipe"),
        (lambda: network("reactnet-w1a1"), "'it' has recipe"),
        (lambda: network("dorefa-w1a1"), "'it' has recipe"),
        (lambda: network("ternary-w1.58a32"), "'it' has recipe"),
        (lambda: network("xnor-w1a1 connections=tbs"), "'it' has recipe"),
    ])
    def test_a_network_it_cannot_run_is_refused_by_name(self, make, message):
        with pytest.raises(ValueError, match=message):
            demo.page({"it": make()}, (1, 16, 16))

    @pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 20), (1, 18, 18), (1, 12, 12)])
    def test_a_shape_it_cannot_run_is_refused(self, arms, shape):
        with pytest.raises(ValueError, match="divisible by 4 and at least 16"):
            demo.page(arms, shape)

    def test_no_network_at_all_is_refused(self):
        with pytest.raises(ValueError, match="networks is empty"):
            demo.page({}, (1, 16, 16))


@pytest.fixture
def browser(tmp_path):
    one = Browser(tmp_path / "profile")
    yield one
    one.close()


DRAW = """(() => {
  const draw = document.querySelector(".draw"), steps = document.querySelector(".steps");
  if (!draw || draw.disabled) return false;
  steps.value = 0;
  draw.click();
  return true;
})()"""
DRAWN = """document.querySelector(".status").textContent === "Drawn in 5 steps."
  && [...document.querySelectorAll("canvas")].map((canvas) =>
    [...canvas.getContext("2d").getImageData(0, 0, 16, 16).data].filter((_, i) => i % 4 === 0))"""
SPEEDS = '[...document.querySelectorAll(".speed")].map((one) => one.textContent)'


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_a_browser_draws_the_images_of_the_library(tmp_path, arms, browser):
    """From the file system, by a click: the pixels on the canvases of the two networks that compute in floats."""
    page = tmp_path / "page.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><body>{demo.page(arms, (1, 16, 16)).data}</body>')
    session = browser.open(page.as_uri())
    browser.until(session, DRAW)
    drawn = torch.tensor(browser.until(session, DRAWN))
    speeds = browser.until(session, SPEEDS)
    assert len(drawn) == len(speeds) == 3 and all(re.fullmatch(r"[\d.]+ ms per step here", one) for one in speeds)
    for pixels, net in zip(drawn[:2], arms.values(), strict=False):
        x = sampling.sample(stored(net, tmp_path)[0], 1, shape=(1, 16, 16), sampler="ddim", steps=document.STEPS[0])
        assert (pixels - data.to_uint8(x).flatten().int()).abs().max() <= 1
    assert browser.complaints == []
