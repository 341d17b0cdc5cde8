// The page's part: controls, canvases, and one step of every network per frame of the screen.

// Mean of the middle half: first steps wait for the compiler, others for whatever else the computer does.
function typical(times) {
  const middle = times.sort((a, b) => a - b).slice(Math.floor(times.length / 4), Math.ceil((3 * times.length) / 4));
  return middle.reduce((sum, time) => sum + time, 0) / middle.length;
}

const decoded = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

class Demo {
  constructor(root, {module, arms, grids, side, seed}) {
    Object.assign(this, {module, arms, grids, side, seed, drawing: null});
    this.find = (name) => root.querySelector(`.${name}`);
    this.figures = [...root.querySelectorAll("figure")].map((figure) => ({
      canvas: figure.querySelector("canvas"), speed: figure.querySelector(".speed"), name: figure.dataset.name,
    }));
    this.find("number").addEventListener("change", () => this.rest());
    this.find("another").addEventListener("click", () => {
      this.find("number").value = Math.floor(Math.random() * 1e6);
      this.draw();
    });
    this.find("steps").addEventListener("input", () => this.rest());
    this.find("draw").addEventListener("click", () => (this.drawing ? this.rest() : this.draw()));
    root.querySelectorAll("[disabled]").forEach((control) => (control.disabled = false));
    this.rest();
  }

  say(text) {
    this.find("status").textContent = text;
  }

  get grid() {
    return this.grids[this.find("steps").value];
  }

  get noise() {
    const field = this.find("number"), number = Math.min(Math.max(Math.floor(field.valueAsNumber) || 0, 0), 999999);
    field.value = number;
    return noise(this.seed, number, this.side ** 2);
  }

  // Stop, and show what the next drawing starts from.
  rest() {
    this.drawing = null;
    this.find("draw").textContent = "Draw";
    this.find("count").textContent = this.grid.length;
    this.find("steps").setAttribute("aria-valuetext", `${this.grid.length}`);
    const start = this.noise;
    this.figures.forEach((figure) => this.show(figure, start));
    this.say("This is the noise that every network starts from.");
    return start;
  }

  show({canvas, name}, x) {
    const context = canvas.getContext("2d"), picture = context.createImageData(this.side, this.side);
    x.forEach((value, i) => {
      const grey = 127.5 * (Math.min(Math.max(value, -1), 1) + 1);
      picture.data.set([grey, grey, grey, 255], 4 * i);
    });
    context.putImageData(picture, 0, 0);
    canvas.setAttribute("aria-label", `${name}, from noise ${this.find("number").value}`);
  }

  async draw() {
    const start = this.rest(), mine = (this.drawing = Symbol());
    this.find("draw").textContent = "Stop";
    this.say("Loading the networks.");
    this.networks ??= Promise.all(this.arms.map(async (arm) => {
      const instance = await WebAssembly.instantiate(this.module);
      return new Network(instance.exports, new PackedFile(decoded(arm)), this.side);
    }));
    try {
      const networks = await this.networks;
      if (mine !== this.drawing) return;
      const runs = networks.map((network) => denoise(network, start, this.grid));
      this.say(`Drawing in ${this.grid.length} steps.`);
      this.advance(mine, runs, 1, runs.map(() => []));
    } catch (error) {
      this.rest();
      this.say(`The networks cannot run here: ${error.message}`);
    }
  }

  // One step of every network.  They take turns in going first: who does is interrupted least on a busy computer.
  advance(mine, runs, step, spent) {
    if (mine !== this.drawing) return;
    for (let turn = 0; turn < runs.length; turn++) {
      const i = (step + turn) % runs.length, began = performance.now(), {value} = runs[i].next();
      spent[i].push(performance.now() - began);
      this.show(this.figures[i], value);
    }
    if (step === this.grid.length) this.finish(spent.map(typical));
    else requestAnimationFrame(() => this.advance(mine, runs, step + 1, spent));
  }

  finish(times) {
    this.drawing = null;
    this.find("draw").textContent = "Draw";
    this.figures.forEach(({speed}, i) => (speed.textContent = `${times[i].toFixed(1)} ms per step here`));
    this.say(`Drawn in ${this.grid.length} steps.`);
  }
}

async function startDemo(root, data) {
  const bytes = decoded(data.module), status = root.querySelector(".status");
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(bytes)) {
    status.textContent = "This browser lacks WebAssembly SIMD, which the demo needs; those of 2023 and later have it.";
    return;
  }
  new Demo(root, {...data, module: await WebAssembly.compile(bytes)});
}
