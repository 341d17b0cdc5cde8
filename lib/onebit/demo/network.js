// The study's U-Net (onebit.nets.unet) as a list of kernel calls, made once from a packed file.

const EMBEDDING = 32, EPSILON = 1e-5; // of the timestep; of batch norm
const PLAN = ["input", "inputPixel", "inputRow", "taps", "tapCount", "run", "weights", "scale", "bias", "output",
              "outputPixel", "outputRow", "residual", "residualPixel", "residualRow", "height", "width", "channels",
              "kinds", "counts"]; // the fields of Plan in kernels.ts, before its one float
const silu = (x) => x / (1 + Math.exp(-x));

class Network {
  constructor(kernels, file, side) {
    this.kernels = kernels;
    this.file = file;
    this.memory = new Memory(kernels.memory);
    this.calls = []; // what one prediction runs, in turn
    this.times = []; // where the timestep enters
    this.time = ["time_mlp.0", "time_mlp.2"].map((name) => laidOut(file.layer(name)));
    this.build(side);
  }

  build(side) {
    const width = this.file.packed.net.width, widths = [width, 2 * width, 4 * width];
    const sides = [side, side / 2, side / 4];
    const joined = widths.map((c, i) => this.memory.frame(sides[i], 2 * c)); // what came up, then what was skipped
    const risen = joined.map((frame, i) => channelsOf(frame, 0, widths[i]));
    const skipped = joined.map((frame, i) => channelsOf(frame, widths[i], widths[i]));
    const made = () => widths.map((c, i) => this.memory.frame(sides[i], c));
    const fallen = made(), ends = made();
    this.input = this.memory.frame(side, 1);
    this.convolve("conv_in", this.input, fallen[0]);
    for (const level of [0, 1]) {
      this.block(`down.${level}`, fallen[level], skipped[level]);
      this.convolve(`downsample.${level}`, skipped[level], level ? skipped[2] : fallen[1], {stride: 2});
    }
    this.block("mid", skipped[2], risen[2]);
    this.block("up.0", joined[2], ends[2]);
    for (const level of [1, 0]) {
      this.convolve(`upsample.${1 - level}`, ends[level + 1], risen[level], {transposed: true});
      this.block(`up.${2 - level}`, joined[level], ends[level]);
    }
    this.output = this.memory.frame(side, BLOCK); // the noise, and channels that fill the vector
    this.convolve("conv_out", this.activate("norm_out", ends[0]), this.output);
  }

  // x + conv(SiLU(norm(conv(SiLU(norm(x))) + time))); a 1 x 1 convolution of x where the widths differ.
  block(name, input, output) {
    const {side, channels} = output, inner = this.memory.frame(side, channels);
    const bias = this.convolve(`${name}.conv1`, this.activate(`${name}.norm1`, input), inner);
    this.times.push({layer: laidOut(this.file.layer(`${name}.time`)), ...bias});
    let residual = input;
    if (this.file.has(`${name}.shortcut.weight`)) {
      residual = this.memory.frame(side, channels);
      this.convolve(`${name}.shortcut`, input, residual);
    }
    this.convolve(`${name}.conv2`, this.activate(`${name}.norm2`, inner), output, {residual});
  }

  // SiLU of a batch norm, which is one multiply-add per value.
  activate(name, input) {
    const {side, channels} = input, output = this.memory.frame(side, channels);
    const [weight, bias, mean, variance] = ["weight", "bias", "running_mean", "running_var"]
      .map((part) => this.file.floats(`${name}.${part}`));
    const factors = weight.map((w, c) => w / Math.sqrt(variance[c] + EPSILON));
    const scale = this.memory.putFloats(factors);
    const shift = this.memory.putFloats(bias.map((b, c) => b - mean[c] * factors[c]));
    this.calls.push(() => this.kernels.activate(input.at, input.pixel, input.row, output.at, output.pixel, output.row,
                                                side, channels, scale, shift));
    return output;
  }

  // The input as signs and mean magnitudes.
  packed(input) {
    const {side, channels} = input, output = this.memory.frame(side, Math.ceil(channels / 32) + 1);
    this.calls.push(() => this.kernels.pack(input.at, input.pixel, input.row, output.at, output.pixel, output.row,
                                            side, channels));
    return output;
  }

  // A layer from one frame to another; returns its bias and where that lies in memory.
  convolve(name, input, output, {stride = 1, transposed = false, residual = null} = {}) {
    const layer = this.file.layer(name, transposed), bias = this.memory.putFloats(filled(layer.bias));
    const {signs} = layer;
    const from = signs ? this.packed(input) : input, kernel = signs ? this.kernels.xnor : this.kernels.convolve;
    for (const pass of passes(layer, stride)) {
      const weights = signs ? binary(this.memory, layer, pass, input.side) : dense(this.memory, layer, pass);
      const taps = this.memory.put(Int32Array.from(pass.taps, ({dy, dx}) => dy * from.row + dx * from.pixel));
      const added = residual && {residual: residual.at, residualPixel: residual.pixel, residualRow: residual.row};
      const plan = this.plan({...geometry(from, output, pass), ...weights, ...added, bias, taps,
                              tapCount: pass.taps.length, channels: filled(layer.bias).length});
      this.calls.push(() => kernel(plan));
    }
    return {own: layer.bias, at: bias};
  }

  plan(fields) {
    const values = Uint32Array.from([...PLAN, "mapFactor"], (name) => fields[name] ?? 0);
    new Float32Array(values.buffer)[PLAN.length] = fields.mapFactor ?? 0;
    return this.memory.put(values);
  }

  // The noise in x (side^2 pixels in x_t's units) at a timestep 0 .. T-1.
  predict(x, timestep) {
    const time = this.embedded(timestep), all = this.memory.floats(0, this.memory.end / 4);
    const place = ({at, row, pixel, side}, i) => (at + Math.floor(i / side) * row + (i % side) * pixel) / 4;
    for (const {layer, own, at} of this.times) all.set(linear(layer, time).map((v, c) => v + own[c]), at / 4);
    x.forEach((value, i) => (all[place(this.input, i)] = value));
    for (const call of this.calls) call();
    return x.map((_, i) => all[place(this.output, i)]);
  }

  // The timestep as the blocks see it.  Rounded to float32 where torch rounds: sines of large angles notice.
  embedded(timestep) {
    const half = EMBEDDING / 2, slope = -Math.log(10000) / (half - 1), rounded = Math.fround;
    const angles = Float32Array.from({length: half}, (_, i) => timestep * rounded(Math.exp(rounded(i * slope))));
    const sines = Float32Array.from([...angles].map(Math.sin).concat([...angles].map(Math.cos)));
    return this.time.reduce((x, layer) => linear(layer, x).map(silu), sines);
  }
}

// A linear layer.  With binary inputs x counts by its signs, and by its mean magnitude.
function linear({matrix, bias, scale, signs}, x) {
  const size = signs ? x.reduce((sum, v) => sum + Math.abs(v), 0) / x.length : 1;
  const seen = signs ? x.map((v) => (v < 0 ? -1 : 1)) : x;
  return bias.map((b, o) => {
    let sum = 0;
    for (let i = 0; i < seen.length; i++) sum += seen[i] * matrix[o * seen.length + i];
    return b + sum * size * (scale ? scale[o] : 1);
  });
}

// The layer with its weights as one array, row by row.
function laidOut(layer) {
  const {outputs, inputs, weight} = layer;
  const matrix = Float32Array.from({length: outputs * inputs}, (_, n) => weight(Math.floor(n / inputs), n % inputs, 0));
  return {...layer, matrix};
}
